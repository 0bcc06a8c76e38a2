//! `cargo xtask build`: the one file that a node needs.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    command::{self, say},
    setup,
    workspace::{Profile, Workspace},
};

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

/// The binaries that tests and the demo start.
pub(crate) struct TestBinaries {
    pub(crate) egress: PathBuf,
    pub(crate) demo: PathBuf,
}

/// Builds every binary, after set-up.
///
/// All packages at once, as the tests are built: cargo unites the features of what it builds together,
/// and another choice of packages would build most dependencies twice.
pub(crate) fn test_binaries(workspace: &Workspace) -> Result<TestBinaries> {
    command::run(
        command::cargo()
            .current_dir(workspace.root())
            .args(["build", "--bins"]),
    )?;
    Ok(TestBinaries {
        egress: workspace.binary(Profile::Dev, "egress"),
        demo: workspace.binary(Profile::Dev, "egress-demo"),
    })
}
