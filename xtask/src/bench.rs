//! `cargo xtask bench`: what a packet and a change cost, beside what a user would pick instead.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build, command, setup,
    workspace::{Profile, Workspace},
};

/// Sets up, builds the benchmarks as releases are built, and becomes them, elevated.
pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    setup::everything(workspace)?;
    let bench = build::bench(workspace, Profile::Release)?;
    command::become_program(
        command::elevated(bench, &[])?
            .current_dir(workspace.root())
            .args(arguments),
    )
}
