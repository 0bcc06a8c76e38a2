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

/// Builds the `egress` binary, after set-up.
pub(crate) fn egress(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    binary(workspace, profile, "egress-userspace", "egress")
}

/// Builds one binary of one package, after set-up.
pub(crate) fn binary(
    workspace: &Workspace,
    profile: Profile,
    package: &str,
    name: &str,
) -> Result<PathBuf> {
    command::run(
        command::cargo()
            .current_dir(workspace.root())
            .args(["build", "--package", package, "--bin", name])
            .args(profile.arguments()),
    )?;
    Ok(workspace.binary(profile, name))
}
