//! `cargo xtask demo`: real traffic through the example policies, shown as a table.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build, command, setup,
    workspace::{Profile, Workspace},
};

/// Sets up, builds, and becomes the demo.
pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    setup::everything(workspace)?;
    // The same profile as the tests: whoever runs both builds once.
    let egress = build::egress(workspace, Profile::Dev)?;
    let demo = build::binary(workspace, Profile::Dev, "egress-tests", "egress-demo")?;
    let mut demo = command::elevated(demo, &[("EGRESS_BIN", egress.as_os_str())])?;
    command::become_program(demo.current_dir(workspace.root()).args(arguments))
}
