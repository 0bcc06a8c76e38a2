//! The command line: arguments, then one command.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use egress_common::cells::{Line, MAX_SEGMENTS, SEGMENT_LINES};
use ipnet::IpNet;

use crate::{
    commands::{
        completion::{CompletionArgs, completion},
        detach::{DetachArgs, detach},
        dump::{self, DumpArgs},
        explain::{Assumed, ExplainArgs, explain},
        run::{RunArgs, run},
        status::{StatusArgs, status},
        validate::{ValidateArgs, validate},
    },
    counters::{CounterSource, Numbers},
    diff,
    health::Faults,
    kernel::{CounterReader, Maps},
    node::NodeView,
    overlay_keys::OverlayKeys,
    resolve::{self, PodGateways, resolve},
    settings::{OVERLAY_DEVICE, OVERLAY_PORT, OVERLAY_VNI, Places},
    sources::files::Loader,
    state_dir::read_names,
};

const SEGMENT_BYTES: u64 = (SEGMENT_LINES as usize * size_of::<Line>()) as u64;

/// Egress gateway: pods' traffic to chosen destinations leaves through chosen gateways.
#[derive(Debug, Parser)]
#[command(name = "egress", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load, attach, and keep the kernel true to the resources
    Run(Box<RunArgs>),
    /// Check resources without touching the kernel
    Validate(ValidateArgs),
    /// Say what happens to a pod's packets, and why
    Explain(Explain),
    /// Show what the agent does
    Status(StatusArgs),
    /// Show what the kernel's maps say, with or without an agent
    Dump(Dump),
    /// Remove everything of ours from the kernel
    Detach(DetachArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
}

#[derive(Debug, clap::Args)]
struct Explain {
    #[command(flatten)]
    args: ExplainArgs,
    /// Prefix that stays local, as given to the agent; with --resources
    #[arg(long, value_name = "CIDR", num_args = 1.., requires = "resources")]
    local_cidr: Vec<IpNet>,
    /// What gateway pods are, as given to the agent; with --resources
    #[arg(long, value_enum, default_value_t, requires = "resources")]
    pod_gateways: PodGateways,
    /// Whether packets are redirected past egress network policies, as given to the agent; with --resources
    #[arg(long, requires = "resources")]
    accept_networkpolicy_bypass: bool,
}

#[derive(Debug, clap::Args)]
struct Dump {
    // First: the heading of the connections' arguments is that of all that follow.
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    args: DumpArgs,
}

impl Cli {
    /// Carries the command out.
    ///
    /// # Errors
    /// What keeps it from being carried out, with what to do about it.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(args) => run(*args),
            Command::Validate(args) => validate(args),
            Command::Explain(args) => {
                explain(&args.args, &|paths, node| offline(&args, paths, node))
            }
            Command::Status(args) => status(&args),
            Command::Dump(args) => dump_pinned(&args),
            Command::Detach(args) => detach(&args),
            Command::Completion(args) => completion(&args, &mut Self::command()),
        }
    }
}

/// Reads the pinned maps, which are there whether an agent runs or not.
fn dump_pinned(args: &Dump) -> anyhow::Result<ExitCode> {
    let paths = args.places.paths();
    let names = read_names(&args.places.state_dir())?;
    if args.args.what == Some(dump::What::Nat) {
        let DumpArgs {
            output,
            connections,
            ..
        } = &args.args;
        return dump::dump_connections(*output, connections, &paths, &names);
    }
    let state = diff::trace(&Maps::open(&paths)?)?;
    let reader = CounterReader::open(&paths)?;
    reader.set_state(&state, u64::from(MAX_SEGMENTS) * SEGMENT_BYTES)?;
    reader.count_tables(|| ())?;
    let reading = reader.read(&Numbers::from(&names))?;
    let interfaces = state
        .pods
        .keys()
        .map(|key| key.ifindex)
        .chain(state.members.values().map(|member| member.ifindex))
        .filter_map(|index| {
            let name = nix::net::if_::if_indextoname(index).ok()?;
            Some((index, name.to_string_lossy().into_owned()))
        })
        .collect();
    let maps = dump::Maps {
        kernel: &state,
        names: &names,
        reading: &reading,
        map_use: &reader.map_use(),
        interfaces: &interfaces,
    };
    dump::dump(&args.args, &maps)
}

/// Resolves resources for the explained pod's node, as if that node were in order.
fn offline(args: &Explain, paths: &[PathBuf], node: Option<&str>) -> anyhow::Result<Assumed> {
    let loaded = Loader::new(paths.to_vec()).load();
    for diagnostic in &loaded.diagnostics {
        tracing::warn!("{}", diagnostic.render(false));
    }
    let pod = loaded.model.pods.get(&args.args.pod).with_context(|| {
        format!(
            "there is no pod {} in these files: is its namespace right?",
            args.args.pod
        )
    })?;
    let node_name = node.or(pod.node.as_deref()).unwrap_or_default().to_owned();
    let settings = resolve::Settings {
        node_name,
        local_cidrs: args.local_cidr.clone(),
        pod_gateways: args.pod_gateways,
        accept_networkpolicy_bypass: args.accept_networkpolicy_bypass,
        overlay: Some(resolve::Overlay {
            device: OVERLAY_DEVICE.to_owned(),
            port: OVERLAY_PORT,
            vni: OVERLAY_VNI,
            keys: OverlayKeys::assumed(),
        }),
        ..resolve::Settings::default()
    };
    let view = NodeView::assumed(&loaded.model, OVERLAY_DEVICE);
    let resolved = resolve(
        &loaded.model,
        &view,
        &settings,
        &resolve::Held::new(),
        &resolve::Assigned::new(),
        &Faults::new(),
    );
    let interfaces = view
        .links
        .into_iter()
        .map(|(index, link)| (index, link.name));
    Ok((resolved, interfaces.collect()))
}

#[cfg(test)]
mod tests;
