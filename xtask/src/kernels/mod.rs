//! `cargo xtask test --kernels`: the same programs on other kernels, each booted in a virtual machine.
//!
//! The machines' processors are emulated in software, so that it works wherever a checkout does, inside other
//! virtual machines too. `packages` finds kernels, `initramfs` puts together what a machine needs, `machine`
//! boots one, `outcome` reads what it says and makes the table.

mod initramfs;
mod machine;
mod outcome;
mod packages;

use std::{
    collections::VecDeque,
    fs,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    machine::Machine,
    outcome::{Fate, Outcome},
    packages::{Kernel, Packages},
};
use crate::{build, command::say, setup, workspace::Workspace};

/// The series that are tried: the oldest that is promised, long-term ones, and a recent one. Whatever is slow comes
/// first.
const SERIES: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.3"];

/// Boots a kernel of each series, or of those that are asked for, and says in a table how each fared.
pub(crate) fn run(workspace: &Workspace, asked: &[String], record: bool) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "other kernels are booted on x86-64 only"
    );
    let series: Vec<&str> = if asked.is_empty() {
        SERIES.to_vec()
    } else {
        asked.iter().map(String::as_str).collect()
    };
    setup::everything(workspace)?;
    setup::kernel_tools()?;
    let egress = build::test_binaries(workspace)?.egress;
    let tests = build::kernel_tests(workspace)?;
    let base = initramfs::base(&egress, &tests)?;
    let logs = workspace.kernel_logs();
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;

    let mut packages = Packages::open(workspace)?;
    let mut outcomes = Vec::new();
    let mut waiting = VecDeque::new();
    for (place, series) in series.iter().enumerate() {
        match packages.kernel(series) {
            Ok(kernel) => waiting.push_back((place, kernel)),
            Err(error) => {
                say(format_args!("skipped: kernel {series}: {error:#}"));
                outcomes.push((place, Outcome::skipped(series)));
            }
        }
    }
    let boot = |kernel: &Kernel| -> Outcome {
        let machine = Machine {
            kernel,
            base: &base,
            logs: &logs,
        };
        machine.run().unwrap_or_else(|error| {
            say(format_args!("kernel {}: {error:#}", kernel.version()));
            Outcome::failed(kernel.series(), kernel.version())
        })
    };
    outcomes.extend(in_parallel(waiting, boot));
    outcomes.sort_by_key(|(place, _)| *place);
    let outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();

    println!("{}", outcome::table(&outcomes));
    if record {
        outcome::record(&workspace.root().join("README.md"), &outcomes)?;
    }
    conclude(&outcomes)
}

/// Boots as many at once as there are processors; one takes about one.
fn in_parallel(
    waiting: VecDeque<(usize, Kernel)>,
    boot: impl Fn(&Kernel) -> Outcome + Sync,
) -> Vec<(usize, Outcome)> {
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    let machines = at_once.min(waiting.len());
    let waiting = Mutex::new(waiting);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..machines {
            scope.spawn(|| {
                loop {
                    let next = waiting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some((place, kernel)) = next else { break };
                    let outcome = boot(&kernel);
                    done.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((place, outcome));
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A kernel that cannot be had is no failure, unless none can be.
fn conclude(outcomes: &[Outcome]) -> Result<()> {
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| outcome.fate == Fate::Failed)
        .map(|outcome| outcome.kernel.as_str())
        .collect();
    if !failed.is_empty() {
        bail!("kernels on which something failed: {}", failed.join(", "));
    }
    ensure!(
        outcomes.iter().any(|outcome| outcome.fate == Fate::Passed),
        "not one of the kernels could be had, so nothing was shown"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_failed_or_nothing_at_all_is_a_failure() {
        let passed = || Outcome::passed("6.1", "6.1.0-1");
        for (outcomes, expected) in [
            (vec![passed()], None),
            (vec![passed(), Outcome::skipped("5.10")], None),
            (vec![Outcome::skipped("5.10")], Some("not one")),
            (vec![], Some("not one")),
            (
                vec![passed(), Outcome::failed("6.12", "6.12.9")],
                Some("failed: 6.12.9"),
            ),
        ] {
            let said = conclude(&outcomes).err().map(|error| error.to_string());
            match expected {
                None => assert_eq!(said, None, "{outcomes:?}"),
                Some(words) => assert!(
                    said.as_ref().is_some_and(|said| said.contains(words)),
                    "{outcomes:?}: {said:?}"
                ),
            }
        }
    }
}
