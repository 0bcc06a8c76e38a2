//! One core, and how much of it the packets take.

use std::fs;

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

const OWN: &str = "/proc/thread-self/schedstat";

/// The calling thread on one core, until this goes; what it sends is received there, too.
pub(super) struct Core {
    before: CpuSet,
    /// What the kernel does for interrupts there that take long.
    helper: Option<String>,
}

/// A moment on the core.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Nanoseconds that the thread had the core, and what interrupted it there.
    had: u64,
    /// Nanoseconds that the helper had it.
    helped: u64,
}

impl Core {
    /// The last that this process may run on: the first has most of the interrupts.
    pub(super) fn take() -> Result<Self> {
        let me = Pid::from_raw(0);
        let before = sched_getaffinity(me).context("cannot ask which cores there are")?;
        let mut number = 0;
        for core in 0..CpuSet::count() {
            if before.is_set(core)? {
                number = core;
            }
        }
        let mut one = CpuSet::new();
        one.set(number)?;
        sched_setaffinity(me, &one).context("cannot keep to one core")?;
        Ok(Self {
            before,
            helper: helper(number),
        })
    }

    pub(super) fn moment(&self) -> Result<Moment> {
        let helped = match &self.helper {
            Some(path) => had(path)?,
            None => 0,
        };
        Ok(Moment {
            had: had(OWN)?,
            helped,
        })
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // On one core all goes on, only slower.
        let _kept = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

impl Moment {
    /// Nanoseconds of the core since then, without those that others had, and without those when there was nothing to do.
    #[expect(
        clippy::cast_precision_loss,
        reason = "hours of nanoseconds are counted exactly"
    )]
    pub(super) const fn until(self, later: Self) -> f64 {
        (later.had - self.had + (later.helped - self.helped)) as f64
    }
}

/// The file of the thread that does the interrupts' work of a core, unless this process cannot see it.
fn helper(core: usize) -> Option<String> {
    let name = format!("ksoftirqd/{core}\n");
    let mut processes = fs::read_dir("/proc").ok()?.flatten();
    let path = processes.find_map(|process| {
        let path = process.path();
        let found = fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name);
        found.then_some(path)
    })?;
    Some(path.join("schedstat").to_string_lossy().into_owned())
}

/// Nanoseconds that a thread had a core.
fn had(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read {path}: the kernel needs CONFIG_SCHED_INFO"))?;
    let first = text.split_whitespace().next();
    first
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("{path} does not tell how long a thread ran: {text}"))
}
