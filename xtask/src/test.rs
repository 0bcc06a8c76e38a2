//! `cargo xtask test`: every test there is; root is for those that need the kernel.
//!
//! Tests that run for a minute and longer are ignored by the runners, and are what `--soak` runs.

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

/// Sets up, builds the binary, and runs the tests whose names match the filters: the long ones, or the others.
pub(crate) fn run(workspace: &Workspace, soak: bool, filters: &[String]) -> Result<()> {
    setup::everything(workspace)?;
    let other_layout = build::other_layout(workspace)?;
    let egress = build::test_binaries(workspace)?.egress;
    let runner = Runner::find();

    let mut failures = Vec::new();
    // Nextest runs no documentation tests; plain cargo runs them with the others.
    if matches!(runner, Runner::Nextest) && filters.is_empty() && !soak {
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
        let mut command = runner.command(workspace, stage, soak, filters)?;
        command
            .env("EGRESS_BIN", &egress)
            .env("EGRESS_OTHER_LAYOUT_BIN", &other_layout);
        let status = command::status(&mut command)?;
        if status.success() {
            ran_any = true;
        } else if status.code() == Some(NOTHING_RUN) && (soak || !filters.is_empty()) {
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

    fn filterset(self) -> String {
        match self {
            Self::User => format!("not package({ROOT_PACKAGE})"),
            Self::Root => format!("package({ROOT_PACKAGE})"),
        }
    }

    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::User => &[
                "--workspace",
                "--exclude",
                "egress-ebpf",
                "--exclude",
                "egress-bench-ebpf",
                "--exclude",
                ROOT_PACKAGE,
            ],
            Self::Root => &["--package", ROOT_PACKAGE, "--lib", "--bins", "--tests"],
        }
    }

    const fn harness(self) -> &'static [&'static str] {
        match self {
            Self::User => &[],
            // Hosts and traffic of one test at a time: plain cargo knows no groups.
            Self::Root => &["--test-threads=1"],
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

    fn command(
        &self,
        workspace: &Workspace,
        stage: Stage,
        soak: bool,
        filters: &[String],
    ) -> Result<Command> {
        let elevation = match stage {
            Stage::User => Vec::new(),
            Stage::Root => elevation()?,
        };
        let mut command = command::cargo();
        command.current_dir(workspace.root());
        match self {
            // The same packages for both stages, so that nothing is built twice.
            Self::Nextest => command
                .args(["nextest", "run", "--no-fail-fast", "-E", &stage.filterset()])
                .args(if soak {
                    &["--profile=soak", "--run-ignored=only"][..]
                } else {
                    &[]
                })
                .args(elevation)
                .args(filters),
            Self::Cargo => command
                .args(["test", "--no-fail-fast"])
                .args(stage.packages())
                .args(elevation)
                .arg("--")
                .args(stage.harness())
                .args(soak.then_some("--ignored"))
                .args(filters),
        };
        Ok(command)
    }
}

/// What makes cargo run each test binary, built by the user, as root.
fn elevation() -> Result<Vec<String>> {
    if is_root()? {
        return Ok(Vec::new());
    }
    let Some(sudo) = find_program("sudo") else {
        bail!("these tests need root, and there is no sudo: run `cargo xtask test` as root");
    };
    let runner = format!(
        "target.'cfg(all())'.runner=[\"{}\", \"--preserve-env\"]",
        sudo.display()
    );
    Ok(vec!["--config".to_owned(), runner])
}
