//! `egress run`: the agent, or a look at what it would do.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;

use crate::{
    agent,
    compile::compile,
    diff::{self, Change},
    health::Faults,
    kernel::Maps,
    node::{self, Netlink},
    privileges,
    resolve::resolve,
    settings::{Flags, Settings},
    sources::files::Loader,
    state::{KernelState, Names},
    state_dir::{self, read_assigned, read_names},
};

/// Arguments of `egress run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    flags: Flags,
    /// YAML file with the same settings, by the same names; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print what would change, and change nothing; the exit code is 2 if the maps would change, else 0
    #[arg(long)]
    dry_run: bool,
}

/// Runs the agent until it is told to stop.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let settings = args.flags.settings(args.config.as_deref())?;
    // Before there are threads: each has capabilities of its own.
    privileges::keep_what_is_needed(&settings.load.paths)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the threads of the agent")?;
    if args.dry_run {
        let changed = runtime.block_on(dry_run(&settings))?;
        return Ok(if changed {
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        });
    }
    runtime.block_on(agent::run(settings))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what an apply would change, and says whether it is anything.
async fn dry_run(settings: &Settings) -> anyhow::Result<bool> {
    let kept = state_dir::objects(&settings.state_dir);
    let loaded = Loader::going_on(settings.resources.clone(), &kept).load();
    for diagnostic in &loaded.diagnostics {
        println!("{}", diagnostic.render(false));
    }
    let view = Netlink::connect()?.read().await?;
    let (state, names) = current(settings)?;
    let mut settled = settings.resolve.clone();
    settled.local_ports = node::local_ports()?;
    if let Some(overlay) = &settings.overlay {
        settled.overlay = Some(overlay.with_keys()?);
    }
    let assigned = read_assigned(&settings.state_dir)?;
    let resolved = resolve(
        &loaded.model,
        &view,
        &settled,
        &state.held(),
        &assigned,
        &Faults::new(),
    );
    for warning in &resolved.warnings {
        println!("warning: {warning}");
    }
    let desired = compile(&resolved, &settings.limits)?;
    let plan = diff::plan(&state, &names, &desired, &settings.limits)?;
    let device = settings.overlay.as_ref().map(|overlay| &overlay.device);
    let overlay = view
        .links
        .iter()
        .find(|(_, link)| Some(&link.name) == device);
    let outside = agent::OutsideLinks {
        uplinks: view.uplinks(&settings.resolve.uplinks).links,
        overlay: overlay.map(|(index, link)| (*index, link.name.clone())),
        // Whether IPsec encrypts, only the agent follows.
        underlay: None,
        marks: settings.mark.is_on(),
        guarded: BTreeSet::new(),
    };
    for hook in agent::wanted_hooks(&resolved, &desired, &view, &outside) {
        println!(
            "program {} belongs on {}",
            hook.program.name(),
            hook.interface
        );
    }
    for change in &plan.changes {
        println!("would {}", agent::describe(change));
    }
    let changes = plan
        .changes
        .iter()
        .filter(|change| **change != Change::Grace)
        .count();
    println!(
        "{} pods would be steered; {changes} changes to the maps; nothing was changed",
        resolved.pods.len()
    );
    Ok(changes > 0)
}

fn current(settings: &Settings) -> anyhow::Result<(KernelState, Names)> {
    if !settings.load.paths.has_maps() {
        return Ok((KernelState::default(), Names::default()));
    }
    let maps = Maps::open(&settings.load.paths)?;
    Ok((diff::trace(&maps)?, read_names(&settings.state_dir)?))
}
