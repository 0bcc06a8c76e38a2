//! `cargo xtask run`: the agent on this node, and nothing but the agent as root.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build, command, setup,
    workspace::{Profile, Workspace},
};

/// Builds the release binary and becomes `egress run` with the user's arguments.
pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    setup::build_tools(workspace)?;
    let egress = build::egress(workspace, Profile::Release)?;
    // Relative paths among the arguments are the user's, so the working folder stays.
    command::become_program(command::elevated(egress, &[])?.arg("run").args(arguments))
}
