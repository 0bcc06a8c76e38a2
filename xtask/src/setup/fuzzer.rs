//! `cargo-fuzz`, and the C++ compiler that libFuzzer is built with.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::packages;
use crate::{
    command::{self, find_program, is_executable, say},
    workspace::Workspace,
};

const NAME: &str = "cargo-fuzz";
/// What is built from source; any that is there already is taken as it is.
const VERSION: &str = "0.13.2";

/// Finds `cargo-fuzz`, the user's own first, or installs it.
pub(super) fn everything(workspace: &Workspace) -> Result<PathBuf> {
    packages::install_fuzz_tools()?;
    let ours = workspace.tools().join("bin").join(NAME);
    let found =
        find_program(NAME).or_else(|| Some(ours.clone()).filter(|path| is_executable(path)));
    match found {
        Some(path) => Ok(path),
        None => {
            install(workspace.tools().as_path())?;
            Ok(ours)
        }
    }
}

fn install(root: &Path) -> Result<()> {
    say(format_args!(
        "installing {NAME} {VERSION} into {} (a minute or two)",
        root.display()
    ));
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    let (how, more): (_, &[&str]) = if find_program("cargo-binstall").is_some() {
        ("binstall", &["--no-confirm"])
    } else {
        ("install", &[])
    };
    command::run(
        command::cargo()
            // Away from the workspace, whose configuration is not meant for it.
            .current_dir(root)
            .args([how, NAME, "--version", VERSION, "--locked"])
            .args(more)
            .arg("--root")
            .arg(root),
    )
}
