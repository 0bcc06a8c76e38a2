//! `egress detach`: everything of ours out of the kernel.

use std::{fs, process::ExitCode};

use anyhow::{Context, bail};
use clap::Args;

use crate::{kernel, settings::Places, state_dir::StateDir};

/// Arguments of `egress detach`.
#[derive(Args, Debug)]
pub struct DetachArgs {
    #[command(flatten)]
    places: Places,
}

/// Detaches every program and removes every map; pods' traffic takes the kernel's routes from then on.
pub fn detach(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    let paths = args.places.paths();
    let directory = args.places.state_dir();
    if !paths.root().exists() && !directory.exists() {
        println!(
            "nothing to detach: {} does not exist",
            paths.root().display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    // The lock keeps a running agent from attaching again behind our back.
    let state_dir = StateDir::open(&directory)?;
    let errors = kernel::detach_all(&paths);
    if let Some(first) = errors.first() {
        bail!(
            "{first:#} ({} failures in all); the maps stay, so that nothing leaks",
            errors.len()
        );
    }
    if paths.root().exists() {
        fs::remove_dir_all(paths.root())
            .with_context(|| format!("cannot remove {}", paths.root().display()))?;
    }
    state_dir.remove()?;
    println!("detached: pods' traffic takes the kernel's own routes now");
    Ok(ExitCode::SUCCESS)
}
