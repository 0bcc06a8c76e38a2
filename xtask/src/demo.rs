//! `cargo xtask demo`: real traffic through the example policies, shown as a table.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, command, setup, workspace::Workspace};

/// Sets up, builds, and becomes the demo.
pub(crate) fn run(workspace: &Workspace, multi_node: bool, arguments: &[OsString]) -> Result<()> {
    setup::everything(workspace)?;
    // The same binaries as the tests': whoever runs both builds once.
    let binaries = build::test_binaries(workspace)?;
    let mut demo = command::elevated(
        binaries.demo,
        &[("EGRESS_BIN", binaries.egress.as_os_str())],
    )?;
    demo.current_dir(workspace.root());
    if multi_node {
        demo.arg("--multi-node");
    }
    command::become_program(demo.args(arguments))
}
