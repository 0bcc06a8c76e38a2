//! Faults that tests ask for: an apply that dies or fails at a step of their choice. Only in builds with debug
//! assertions; in others every step is nothing.
//!
//! The variable [`FILE`] names a file with one line: `abort STEP`, `fail STEP ERRNO`, or `wait NUMBER NAME` for
//! as long as the file is there, at that one of the steps of a name. It is read when an apply begins, and beside it,
//! with the ending `steps`, the apply leaves the number of its steps, and what they were.

pub(crate) use steps::{begin, end, step};

/// The environment variable that names the file.
#[cfg(debug_assertions)]
const FILE: &str = "EGRESS_TEST_FAULTS";

#[cfg(debug_assertions)]
mod steps {
    use std::{
        env, fs, io,
        path::PathBuf,
        sync::{Mutex, PoisonError},
        thread,
        time::Duration,
    };

    use nix::sys::signal::{Signal, raise};

    /// What the present apply is to meet, and how far it is.
    #[derive(Default)]
    struct Plan {
        file: Option<PathBuf>,
        fault: Option<(u64, Fault)>,
        done: Vec<String>,
    }

    #[derive(Clone)]
    enum Fault {
        Abort,
        Fail(i32),
        Wait(String),
    }

    static PLAN: Mutex<Option<Plan>> = Mutex::new(None);

    /// An apply begins.
    pub(crate) fn begin() {
        let Some(file) = env::var_os(super::FILE).map(PathBuf::from) else {
            return;
        };
        let fault = fs::read_to_string(&file).ok().and_then(|text| read(&text));
        *PLAN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Plan {
            file: Some(file),
            fault,
            done: Vec::new(),
        });
    }

    /// An apply is through, whether it worked or not.
    pub(crate) fn end() {
        let plan = PLAN.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(plan) = plan
            && let Some(file) = plan.file
            && !plan.done.is_empty()
        {
            // Whoever asked for faults misses it, and fails.
            drop(fs::write(
                file.with_extension("steps"),
                plan.done.join("\n"),
            ));
        }
    }

    /// One step of an apply, about to be made.
    ///
    /// # Errors
    /// The one that was asked for.
    pub(crate) fn step(what: &str) -> io::Result<()> {
        let mut plan = PLAN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(plan) = plan.as_mut() else {
            return Ok(());
        };
        plan.done.push(what.to_owned());
        let Some((at, fault)) = &plan.fault else {
            return Ok(());
        };
        let is_counted = |done: &&String| match fault {
            Fault::Abort | Fault::Fail(_) => true,
            Fault::Wait(name) => *done == name,
        };
        let number = plan.done.iter().filter(is_counted).count() as u64;
        if number != *at || !is_counted(&&what.to_owned()) {
            return Ok(());
        }
        match fault {
            // As `kill -9` does it: nothing is cleaned up. It returns only if there is no such signal.
            Fault::Abort => raise(Signal::SIGKILL).map_err(io::Error::from),
            Fault::Fail(errno) => Err(io::Error::from_raw_os_error(*errno)),
            Fault::Wait(_) => {
                let file = plan.file.clone().unwrap_or_default();
                fs::write(file.with_extension("waiting"), what)?;
                while file.exists() {
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
        }
    }

    fn read(text: &str) -> Option<(u64, Fault)> {
        let mut words = text.split_whitespace();
        let (kind, step) = (words.next()?, words.next()?.parse().ok()?);
        match kind {
            "abort" => Some((step, Fault::Abort)),
            "wait" => Some((step, Fault::Wait(words.next()?.to_owned()))),
            "fail" => Some((step, Fault::Fail(words.next()?.parse().ok()?))),
            _ => None,
        }
    }
}

#[cfg(not(debug_assertions))]
mod steps {
    use std::io;

    pub(crate) const fn begin() {}
    pub(crate) const fn end() {}
    #[expect(clippy::unnecessary_wraps, reason = "the other build's can fail")]
    pub(crate) const fn step(_what: &str) -> io::Result<()> {
        Ok(())
    }
}
