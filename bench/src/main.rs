//! What a packet and a change cost, beside what a user would pick instead.
//!
//! `cargo xtask bench` builds this and runs it as root. Each benchmark hands on [`measured::Measured`] figures; tables,
//! the file, pictures and gates know nothing but those.

#![forbid(unsafe_code)]

mod benchmark;
mod control;
mod forward;
mod gates;
mod lab;
mod measured;
mod program;
mod progress;
mod report;
mod rounds;
mod statistics;
mod world;

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{
    benchmark::{Benchmark, Effort, Group},
    gates::{Gate, Outcome, Strictness},
    measured::Measured,
    progress::Progress,
};

/// All that is measured, in this order.
const BENCHMARKS: &[Benchmark] = &[program::BENCHMARK, forward::BENCHMARK, control::BENCHMARK];

/// Measures what packets cost in our programs, and in others beside them.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// Two minutes instead of ten: shorter rounds, and no scenes that no gate asks for
    #[arg(long)]
    quick: bool,
    /// Measure a build as tests have it, not a release: it is there sooner, and what is measured is the kernel's all the
    /// same
    // Whoever builds this looks at it.
    #[arg(long)]
    dev: bool,
    /// Fail where a gate does not hold, and say by how much
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "strict")]
    check: Option<Strictness>,
    /// Only groups whose names contain this; may be given more than once
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// How long the rounds of each group go on, in seconds
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
    /// Where results.json and the pictures go
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    output: PathBuf,
}

#[expect(clippy::print_stderr, reason = "errors go where errors belong")]
fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports; false if gates do not hold that were to be checked.
fn run(arguments: &Arguments) -> Result<bool> {
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot make {}", arguments.output.display()))?;
    let effort = Effort {
        time: arguments.time.map(Duration::from_secs),
        quick: arguments.quick,
    };
    let figures = measure(&arguments.only, effort)?;
    report::write_json(&arguments.output.join("results.json"), &figures)?;
    report::draw(&arguments.output, &figures)?;

    let strictness = arguments.check.unwrap_or(Strictness::Strict);
    let judged: Vec<(&Gate, Outcome)> = BENCHMARKS
        .iter()
        .flat_map(|benchmark| benchmark.gates)
        .map(|gate| (gate, gate.judge(&figures, strictness)))
        .collect();
    let mut out = io::stdout().lock();
    writeln!(out, "{}\n", report::figures(&figures))?;
    writeln!(out, "{}\n", report::gates(&judged, strictness))?;
    writeln!(
        out,
        "results.json and pictures are in {}",
        arguments.output.display()
    )?;
    let holds = judged.iter().all(|(_, outcome)| match outcome {
        Outcome::Holds(_) | Outcome::NotAsked => true,
        Outcome::Fails(_) | Outcome::Missing => false,
    });
    Ok(holds || arguments.check.is_none())
}

/// Every group that was asked for, one after the other.
fn measure(only: &[String], effort: Effort) -> Result<Vec<Measured>> {
    let asked = |group: &Group| {
        let named = |text: &String| group.name.contains(text.as_str());
        only.iter().any(named) || (only.is_empty() && group.is_asked_for(effort.quick))
    };
    let all = || {
        let groups = |benchmark: &'static Benchmark| {
            let with = move |group| (benchmark, group);
            benchmark.groups.iter().map(with)
        };
        BENCHMARKS.iter().flat_map(groups)
    };
    let groups: Vec<_> = all().filter(|(_, group)| asked(group)).collect();
    ensure!(
        !groups.is_empty(),
        "no group's name contains any of {only:?}: they are {}",
        all()
            .map(|(_, group)| group.name)
            .collect::<Vec<_>>()
            .join(", ")
    );
    let expected = groups.iter().map(|(_, group)| group.expected(effort));
    let progress = Progress::new(expected.sum());
    let mut figures = Vec::new();
    for (benchmark, group) in groups {
        let measured = (benchmark.measure)(group, effort, &progress);
        figures.extend(measured.with_context(|| format!("cannot measure {}", group.name))?);
    }
    progress.finish();
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_gates_look_at_is_always_measured() {
        for benchmark in BENCHMARKS {
            for group in benchmark.groups {
                let looked = benchmark.gates.iter().any(|gate| gate.looks_at(group.name));
                assert_eq!(group.is_asked_for(true), looked, "{}", group.name);
                assert!(group.is_asked_for(false), "{}", group.name);
            }
        }
    }

    #[test]
    fn names_of_groups_tell_them_apart() {
        let groups = || BENCHMARKS.iter().flat_map(|benchmark| benchmark.groups);
        let names: std::collections::BTreeSet<&str> = groups().map(|group| group.name).collect();
        assert_eq!(names.len(), groups().count());
    }

    #[test]
    fn gates_are_checked_strictly_unless_told_otherwise() {
        for (words, expected) in [
            (&["bench"][..], None),
            (&["bench", "--check"], Some(Strictness::Strict)),
            (&["bench", "--check=strict"], Some(Strictness::Strict)),
            (
                &["bench", "--check=loose", "--quick"],
                Some(Strictness::Loose),
            ),
        ] {
            let found = Arguments::try_parse_from(words).ok().map(|a| a.check);
            assert_eq!(found, Some(expected), "{words:?}");
        }
    }
}
