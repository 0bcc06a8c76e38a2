//! `cargo xtask test`: every test there is; root is for those that need the kernel.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    build,
    command::{self, find_program, is_root, say},
    setup,
    workspace::Workspace,
};

/// The package whose tests load programs and make network namespaces.
const ROOT_PACKAGE: &str = "egress-tests";

/// `cargo nextest` ends like this when no test matches the filters.
const NOTHING_RUN: i32 = 4;

/// Sets up, builds the binary, and runs the tests whose names match the filters.
pub(crate) fn run(workspace: &Workspace, filters: &[String]) -> Result<()> {
    setup::everything(workspace)?;
    let egress = build::test_binaries(workspace)?.egress;
    let runner = Runner::find();

    let mut failures = Vec::new();
    // Nextest runs no documentation tests; plain cargo runs them with the others.
    if matches!(runner, Runner::Nextest) && filters.is_empty() {
        say(format_args!("examples in the documentation"));
        let mut examples = command::cargo();
        examples
            .current_dir(workspace.root())
            .args(["test", "--doc", "--quiet"]);
        failures.extend(
            command::run(&mut examples)
                .err()
                .map(|error| error.to_string()),
        );
    }

    let mut ran_any = false;
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
        match (self, stage) {
            // The same packages for both stages, so that nothing is built twice.
            (Self::Nextest, Stage::User) => {
                let filterset = format!("not package({ROOT_PACKAGE})");
                command
                    .args(["nextest", "run", "--no-fail-fast", "-E", &filterset])
                    .args(filters);
            }
            (Self::Nextest, Stage::Root) => {
                let filterset = format!("package({ROOT_PACKAGE})");
                command
                    .args(["nextest", "run", "--no-fail-fast", "-E", &filterset])
                    .args(filters);
            }
            (Self::Cargo, Stage::User) => {
                command
                    .args(["test", "--no-fail-fast", "--workspace"])
                    .args(["--exclude", "egress-ebpf", "--exclude", ROOT_PACKAGE])
                    .arg("--")
                    .args(filters);
            }
            // Hosts and traffic of one test at a time, as nextest's groups have it.
            (Self::Cargo, Stage::Root) => {
                command
                    .args(["test", "--no-fail-fast", "--package", ROOT_PACKAGE])
                    .args(["--", "--test-threads=1"])
                    .args(filters);
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
