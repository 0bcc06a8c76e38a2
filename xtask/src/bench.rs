//! `cargo xtask bench`: what a packet and a change cost, beside what a user would pick instead.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build, command, setup,
    workspace::{Profile, Workspace},
};

/// Sets up, builds the benchmarks as releases are built unless that takes too long, and becomes them, elevated.
pub(crate) fn run(workspace: &Workspace, dev: bool, arguments: &[OsString]) -> Result<()> {
    setup::everything(workspace)?;
    let profile = if dev { Profile::Dev } else { Profile::Release };
    // The benchmark of the control plane starts the agent that it finds beside it.
    build::egress(workspace, profile)?;
    let bench = build::bench(workspace, profile)?;
    command::become_program(
        command::elevated(bench, &[])?
            .current_dir(workspace.root())
            .args(arguments),
    )
}
