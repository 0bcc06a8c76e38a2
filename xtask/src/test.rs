//! `cargo xtask test`: every test there is; root is for those that need the kernel.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    build,
    command::{self, find_program, is_root, say},
    setup,
    workspace::{Profile, Workspace},
};

/// The package whose tests load programs and make network namespaces.
const ROOT_PACKAGE: &str = "egress-tests";
/// Built for another target, by the build script of `egress-userspace`.
const EBPF_PACKAGE: &str = "egress-ebpf";

/// `cargo nextest` ends like this when no test matches the filters.
const NOTHING_RUN: i32 = 4;

/// Sets up, builds the binary, and runs the tests whose names match the filters.
pub(crate) fn run(workspace: &Workspace, filters: &[String]) -> Result<()> {
    setup::everything(workspace)?;
    let egress = build::egress(workspace, Profile::Dev)?;
    let runner = Runner::find();

    let mut ran_any = false;
    let mut failures = Vec::new();
    for stage in [Stage::User, Stage::Root] {
        say(format_args!("{}", stage.title()));
        let mut command = runner.command(workspace, stage, filters);
        command.env("EGRESS_BIN", &egress);
        if matches!(stage, Stage::Root) && !is_root()? {
            elevate_each_test(&mut command)?;
        }
        let status = command::status(&mut command)?;
        if status.success() {
            ran_any = true;
        } else if status.code() == Some(NOTHING_RUN) && !filters.is_empty() {
            say(format_args!("none of these match"));
        } else {
            failures.push(format!("`{}` failed ({status})", command::line(&command)));
        }
    }

    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    if !ran_any {
        bail!("no test's name contains any of: {}", filters.join(", "));
    }
    Ok(())
}

/// Which tests, and as whom.
#[derive(Clone, Copy)]
enum Stage {
    /// Everything that an ordinary user can run.
    User,
    /// What talks to the kernel.
    Root,
}

impl Stage {
    const fn title(self) -> &'static str {
        match self {
            Self::User => "tests that need no root",
            Self::Root => "tests that load programs and make network namespaces, as root",
        }
    }

    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::User => &[
                "--workspace",
                "--exclude",
                EBPF_PACKAGE,
                "--exclude",
                ROOT_PACKAGE,
            ],
            Self::Root => &["--package", ROOT_PACKAGE],
        }
    }
}

/// What runs test binaries.
enum Runner {
    /// One process a test, with the groups of `.config/nextest.toml`.
    Nextest,
    /// What every cargo has.
    Cargo,
}

impl Runner {
    fn find() -> Self {
        if find_program("cargo-nextest").is_some() {
            Self::Nextest
        } else {
            Self::Cargo
        }
    }

    fn command(&self, workspace: &Workspace, stage: Stage, filters: &[String]) -> Command {
        let mut command = command::cargo();
        command.current_dir(workspace.root());
        match self {
            Self::Nextest => {
                command
                    .args(["nextest", "run", "--no-fail-fast"])
                    .args(stage.packages())
                    .args(filters);
            }
            Self::Cargo => {
                command
                    .args(["test", "--no-fail-fast", "--all-targets"])
                    .args(stage.packages())
                    .arg("--")
                    .args(filters);
                if matches!(stage, Stage::Root) {
                    // Hosts and traffic of one test at a time, as nextest's groups have it.
                    command.arg("--test-threads=1");
                }
            }
        }
        command
    }
}

/// Builds as the user, and runs each test binary through sudo.
fn elevate_each_test(command: &mut Command) -> Result<()> {
    let Some(sudo) = find_program("sudo") else {
        bail!("these tests need root, and there is no sudo: run `cargo xtask test` as root");
    };
    let runner = format!(
        "target.'cfg(all())'.runner=[\"{}\", \"--preserve-env\"]",
        sudo.display()
    );
    command.args(["--config", &runner]);
    Ok(())
}
