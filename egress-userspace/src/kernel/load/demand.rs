//! Programs are verified once they are needed: that is most of what a start costs, and few nodes need all of them.

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::Context as _;
use aya::{Ebpf, programs::SchedClassifier};

use super::super::object::Program;

/// Most programs that are verified at a time: a start may not take all processors of a node.
const AT_ONCE: usize = 4;

/// The program of that name, loaded.
pub(in crate::kernel) fn classifier(
    ebpf: &mut Ebpf,
    program: Program,
) -> anyhow::Result<&mut SchedClassifier> {
    let loaded = named(ebpf, program.name())?;
    verify(program.name(), loaded)?;
    Ok(loaded)
}

/// The program of that name, loaded or not.
pub(super) fn named<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut SchedClassifier> {
    ebpf.program_mut(name)
        .with_context(|| format!("the embedded object has no program {name}"))?
        .try_into()
        .with_context(|| format!("{name} is not a TC program"))
}

/// Loads the programs of these names that are not yet.
pub(super) fn load(ebpf: &mut Ebpf, names: &[&str]) -> anyhow::Result<()> {
    for name in names {
        named(ebpf, name)?;
    }
    let mut missing: Vec<(&str, &mut SchedClassifier)> = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        if names.contains(&name) && program.fd().is_err() {
            missing.push((name, program.try_into()?));
        }
    }
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let workers = missing.len().min(processors).min(AT_ONCE);
    if workers <= 1 {
        return missing
            .into_iter()
            .try_for_each(|(name, program)| verify(name, program));
    }
    let queue = Mutex::new(missing);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || -> anyhow::Result<()> {
        while let Some((name, program)) = next() {
            verify(name, program)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        // This thread is one of them.
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let theirs = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(theirs);
        }
        result
    })
}

fn verify(name: &str, program: &mut SchedClassifier) -> anyhow::Result<()> {
    if program.fd().is_ok() {
        return Ok(());
    }
    program
        .load()
        .with_context(|| format!("the kernel's verifier refuses the program {name}"))
}
