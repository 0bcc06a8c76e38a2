//! One core, and how much of it the packets take.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, bail};
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
    now: Instant,
    own: Schedule,
    /// Nanoseconds that the helper had it.
    helped: u64,
}

/// What a thread had, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    /// A core, and what interrupted it there.
    had: u64,
    /// None, although there was something to do.
    waited: u64,
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
            Some(path) => schedule(path)?.had,
            None => 0,
        };
        Ok(Moment {
            now: Instant::now(),
            own: schedule(OWN)?,
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
        (later.own.had - self.own.had + (later.helped - self.helped)) as f64
    }

    /// How much that is of the time that nobody else had the core.
    #[expect(
        clippy::cast_precision_loss,
        reason = "hours of nanoseconds are counted exactly"
    )]
    pub(super) fn share(self, later: Self) -> f64 {
        let all = later.now.duration_since(self.now).as_nanos() as f64;
        self.until(later) / (all - (later.own.waited - self.own.waited) as f64)
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

fn schedule(path: &str) -> Result<Schedule> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read {path}: the kernel needs CONFIG_SCHED_INFO"))?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(had)), Some(Ok(waited))) => Ok(Schedule { had, waited }),
        _ => bail!("{path} does not tell how long a thread ran and waited: {text}"),
    }
}
