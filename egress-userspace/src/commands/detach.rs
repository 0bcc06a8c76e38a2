//! `egress detach`: everything of ours out of the kernel.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, bail};
use clap::Args;

use crate::{
    agent, kernel,
    node::{HoldTable, Netlink},
    settings::Places,
    state_dir::StateDir,
};

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
    let hold = HoldTable::of(paths.root());
    if !paths.root().exists() && !directory.exists() {
        remove_hold(&hold)?;
        println!(
            "nothing to detach: {} does not exist",
            paths.root().display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    // The locks keep a running agent from attaching again behind our back.
    let pins = paths.root().exists().then(|| paths.lock()).transpose()?;
    let state_dir = StateDir::open(&directory)?;
    remove_overlay(&state_dir)?;
    // While the uplink's program still keeps the node from answering on them.
    for address in agent::addresses::release(&state_dir.address_book())? {
        println!("took the egress address {address} off");
    }
    if pins.is_some() {
        let errors = kernel::detach_all(&paths);
        if let Some(first) = errors.first() {
            bail!(
                "{first:#} ({} failures in all); the maps stay, so that nothing leaks",
                errors.len()
            );
        }
        tell_if_left(paths.root(), paths.remove()?);
    }
    remove_hold(&hold)?;
    tell_if_left(&directory, state_dir.remove()?);
    println!("detached: pods' traffic takes the kernel's own routes now");
    Ok(ExitCode::SUCCESS)
}

/// Removes the overlay device while its program still keeps what arrives there from the kernel.
fn remove_overlay(state_dir: &StateDir) -> anyhow::Result<()> {
    let file = state_dir.overlay_file();
    if !file.exists() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start what talks to the kernel")?;
    let removed = runtime.block_on(async {
        let netlink = Netlink::connect()?;
        agent::remove_overlay_device(&netlink, &file).await
    })?;
    if let Some(device) = removed {
        println!("removed the overlay device {device}");
    }
    Ok(())
}

fn remove_hold(table: &HoldTable) -> anyhow::Result<()> {
    if table.remove()? {
        println!(
            "removed the nftables table {}, which closed new interfaces",
            table.name()
        );
    }
    Ok(())
}

fn tell_if_left(directory: &Path, gone: bool) {
    if !gone {
        println!(
            "{} stays: something that is not ours is in it, or mounted on it",
            directory.display()
        );
    }
}
