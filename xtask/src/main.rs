//! Set-up, build, run, demo, test, bench and lint: what a checkout needs, each as one command.
//!
//! Nothing here knows what a policy is. One module per subcommand; `command` runs every program, so
//! that every failure names its command line.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod command;
mod demo;
mod fuzz;
mod kernels;
mod lint;
mod run;
mod setup;
mod test;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{command::say, workspace::Workspace};

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup => setup::everything(&workspace).map(drop),
        Task::Build { release } => build::run(&workspace, release),
        Task::Run { arguments } => run::run(&workspace, &arguments),
        Task::Demo {
            multi_node,
            arguments,
        } => demo::run(&workspace, multi_node, &arguments),
        Task::Test {
            kernels: true,
            record,
            filters,
            ..
        } => kernels::run(&workspace, &filters, record),
        Task::Test {
            fuzz: true,
            seconds,
            keep,
            filters,
            ..
        } => fuzz::run(
            &workspace,
            &fuzz::Options {
                seconds,
                keep,
                targets: &filters,
            },
        ),
        Task::Test { soak, filters, .. } => test::run(&workspace, soak, &filters),
        Task::Bench { arguments } => bench::run(&workspace, &arguments),
        Task::Lint => lint::run(&workspace),
    }
}

/// Tasks of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find what builds and tests need, and install what is missing
    Setup,
    /// Build the `egress` binary with the eBPF programs inside
    Build {
        /// Optimised, as for a node
        #[arg(long)]
        release: bool,
    },
    /// Build the release binary and become `egress run` with these arguments, elevated
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Show real traffic leaving through the gateways of the example policies, and through egress addresses on
    /// another node
    Demo {
        /// Only the latter: three nodes, pods on two of them, egress addresses on the third
        #[arg(long)]
        multi_node: bool,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run every test; those that need root are elevated
    Test {
        /// Only the tests that run for a minute and longer
        #[arg(long)]
        soak: bool,
        /// Boot other kernels in virtual machines and run a choice of tests there
        #[arg(long)]
        kernels: bool,
        /// Write the outcome into the README's support table
        #[arg(long, requires = "kernels")]
        record: bool,
        /// Run fuzz targets, one after the other
        #[arg(long, conflicts_with_all = ["soak", "kernels"])]
        fuzz: bool,
        /// How long each of them runs
        #[arg(long, requires = "fuzz", default_value_t = 60)]
        seconds: u32,
        /// Keep what reaches something new, in fuzz/corpus
        #[arg(long, requires = "fuzz")]
        keep: bool,
        /// Only tests whose names contain one of these; with `--kernels`, only kernels of these series, such as 5.10;
        /// with `--fuzz`, only these targets
        filters: Vec<String>,
    },
    /// Measure what packets cost in our programs and in others beside them, elevated
    #[command(disable_help_flag = true)]
    Bench {
        /// Such as `--quick`, `--check` and `--dev`; `--help` tells all
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Check formatting, clippy on both sides of the kernel boundary, and dependencies
    Lint,
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
    fn the_demo_of_several_nodes_is_a_flag() {
        for (words, expected) in [
            (&["cargo xtask", "demo"][..], Some((false, 0))),
            (&["cargo xtask", "demo", "--multi-node"], Some((true, 0))),
            (
                &["cargo xtask", "demo", "--resources", "DIR"],
                Some((false, 2)),
            ),
        ] {
            let found = match Arguments::try_parse_from(words).map(|arguments| arguments.task) {
                Ok(Task::Demo {
                    multi_node,
                    arguments,
                }) => Some((multi_node, arguments.len())),
                Ok(
                    Task::Setup
                    | Task::Build { .. }
                    | Task::Run { .. }
                    | Task::Test { .. }
                    | Task::Bench { .. }
                    | Task::Lint,
                )
                | Err(_) => None,
            };
            assert_eq!(found, expected, "{words:?}");
        }
    }

    #[test]
    fn what_follows_the_dashes_is_the_agents() {
        let parsed = Arguments::try_parse_from(["cargo xtask", "run", "--", "--resources", "DIR"]);
        let arguments = match parsed.map(|arguments| arguments.task) {
            Ok(Task::Run { arguments }) => arguments,
            Ok(
                Task::Setup
                | Task::Build { .. }
                | Task::Demo { .. }
                | Task::Test { .. }
                | Task::Bench { .. }
                | Task::Lint,
            )
            | Err(_) => Vec::new(),
        };
        assert_eq!(arguments, ["--resources", "DIR"]);
    }

    #[test]
    fn what_benchmarks_are_told_is_theirs() {
        for words in [
            &["--check=loose", "--help"][..],
            &["--dev", "--quick"],
            &["--quick", "--dev"],
            &[],
        ] {
            let all = [&["cargo xtask", "bench"], words].concat();
            let found = match Arguments::try_parse_from(all).map(|arguments| arguments.task) {
                Ok(Task::Bench { arguments }) => Some(arguments),
                Ok(
                    Task::Setup
                    | Task::Build { .. }
                    | Task::Run { .. }
                    | Task::Demo { .. }
                    | Task::Test { .. }
                    | Task::Lint,
                )
                | Err(_) => None,
            };
            let expected = words.iter().map(OsString::from).collect();
            assert_eq!(found, Some(expected), "{words:?}");
        }
    }
}
