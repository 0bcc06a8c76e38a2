//! `cargo xtask build`: the one file that a node needs.

use std::{fs, path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result};

use crate::{
    command::{self, say},
    setup,
    workspace::{Profile, Workspace},
};

/// Packages of eBPF programs, which nothing builds for the host.
pub(crate) const FOR_THE_KERNEL: [&str; 2] = ["egress-ebpf", "egress-bench-ebpf"];

/// An example of the agent's package: with it, dependencies have the features that tests ask for.
const EXAMPLE: &str = "large-policies";

/// Builds the binary and says where it is.
pub(crate) fn run(workspace: &Workspace, release: bool) -> Result<()> {
    setup::build_tools(workspace)?;
    let profile = if release {
        Profile::Release
    } else {
        Profile::Dev
    };
    let binary = egress(workspace, profile)?;
    say(format_args!("built {}", binary.display()));
    Ok(())
}

/// Builds the `egress` binary alone, after set-up.
pub(crate) fn egress(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    command::run(
        command::cargo()
            .current_dir(workspace.root())
            .args(["build", "--package", "egress-userspace", "--bin", "egress"])
            .args(profile.arguments()),
    )?;
    Ok(workspace.binary(profile, "egress"))
}

/// Builds the benchmarks alone, after set-up.
pub(crate) fn bench(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    command::run(
        command::cargo()
            .current_dir(workspace.root())
            .args([
                "build",
                "--package",
                "egress-bench",
                "--bin",
                "egress-bench",
            ])
            .args(profile.arguments()),
    )?;
    Ok(workspace.binary(profile, "egress-bench"))
}

/// Builds what runs in a virtual machine of another kernel, after set-up, and says where it is.
///
/// The same packages as for all tests, so that no dependency is built again.
pub(crate) fn kernel_tests(workspace: &Workspace) -> Result<PathBuf> {
    let told = command::output(
        command::cargo()
            .current_dir(workspace.root())
            .args(["test", "--workspace"])
            .args(
                FOR_THE_KERNEL
                    .iter()
                    .flat_map(|package| ["--exclude", package]),
            )
            .args(["--no-run", "--test", "kernels"])
            .args(["--message-format", "json-render-diagnostics"])
            .stderr(Stdio::inherit()),
    )?;
    executable(&told, "kernels")
        .context("cargo built the tests of other kernels, and did not say where")
}

/// The executable that cargo says it made of a test target.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    let name = format!("\"name\":\"{target}\"");
    messages
        .lines()
        .filter(|line| line.contains("\"kind\":[\"test\"]") && line.contains(&name))
        .find_map(|line| {
            let (_, path) = line.split_once("\"executable\":\"")?;
            Some(PathBuf::from(path.split_once('"')?.0))
        })
}

/// The binaries that tests and the demo start.
pub(crate) struct TestBinaries {
    pub(crate) egress: PathBuf,
    pub(crate) demo: PathBuf,
    pub(crate) bench: PathBuf,
}

/// Builds every binary, after set-up.
pub(crate) fn test_binaries(workspace: &Workspace) -> Result<TestBinaries> {
    as_for_tests(workspace, &["--bins", "--examples"])?;
    Ok(TestBinaries {
        egress: workspace.binary(Profile::Dev, "egress"),
        demo: workspace.binary(Profile::Dev, "egress-demo"),
        bench: workspace.binary(Profile::Dev, "egress-bench"),
    })
}

/// Builds an agent whose maps have another layout, for upgrades and downgrades; the usual one has to be built after
/// it, for both are left in the same place by cargo.
pub(crate) fn other_layout(workspace: &Workspace) -> Result<PathBuf> {
    as_for_tests(
        workspace,
        &[
            "--bin",
            "egress",
            "--example",
            EXAMPLE,
            "--features",
            "egress-userspace/other-layout",
        ],
    )?;
    let built = workspace.binary(Profile::Dev, "egress");
    let binary = workspace.binary(Profile::Dev, "egress-other-layout");
    fs::copy(&built, &binary)
        .with_context(|| format!("cannot copy {} to {}", built.display(), binary.display()))?;
    Ok(binary)
}

/// Builds these targets as the tests are built.
///
/// Cargo unites the features of all that it builds together, those that only tests ask for with them where an example
/// is among it: another choice of packages, or none of the examples, would build most dependencies once more.
fn as_for_tests(workspace: &Workspace, targets: &[&str]) -> Result<()> {
    command::run(
        command::cargo()
            .current_dir(workspace.root())
            .arg("build")
            .args(targets),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_where_a_test_is() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"kernels"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"kernels"},"executable":"/t/kernels-1f"}"#,
            "\n{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        assert_eq!(
            executable(messages, "kernels"),
            Some(PathBuf::from("/t/kernels-1f"))
        );
        assert_eq!(executable(messages, "others"), None);
    }
}
