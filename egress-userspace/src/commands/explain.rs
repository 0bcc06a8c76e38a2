//! `egress explain`: where packets from a pod to an address go, and why.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;

use super::{AGENT, Output};
use crate::{
    explain::{self, Answer},
    http::client,
    model::ObjectName,
    resolve::Resolved,
};

/// Arguments of `egress explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// The source pod
    #[arg(long, value_name = "NS/NAME", value_parser = explain::parse_pod)]
    pub pod: ObjectName,
    /// The address that its packets go to
    #[arg(long, value_name = "ADDR", value_parser = explain::parse_address)]
    pub dst: IpAddr,
    /// Explain from these files and directories instead of asking the agent; may be given several times
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub resources: Vec<PathBuf>,
    /// The node to explain for, with --resources [default: the pod's]
    #[arg(long, value_name = "NAME", requires = "resources")]
    pub node: Option<String>,
    /// Where the agent listens
    #[arg(long, value_name = "ADDR", default_value = AGENT, conflicts_with = "resources")]
    pub agent: String,
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// What is resolved without an agent, and the node's interfaces by index.
pub type Assumed = (Resolved, BTreeMap<u32, String>);

/// Resolves resource files without an agent, for a node or for this one.
pub type Resolve<'a> = &'a dyn Fn(&[PathBuf], Option<&str>) -> anyhow::Result<Assumed>;

/// Prints the answer, and fails where kernel and resources differ.
///
/// # Errors
/// When the agent cannot be asked, or the files cannot be resolved.
pub fn explain(args: &ExplainArgs, resolve: Resolve<'_>) -> anyhow::Result<ExitCode> {
    let answer = if args.resources.is_empty() {
        ask(args)?
    } else {
        let files = || {
            let names: Vec<_> = args
                .resources
                .iter()
                .map(|p| Path::display(p).to_string())
                .collect();
            format!("explaining from {}", names.join(", "))
        };
        let (resolved, interfaces) =
            resolve(&args.resources, args.node.as_deref()).with_context(files)?;
        explain::offline(&resolved, &interfaces, &args.pod, args.dst)
    };
    super::print(&args.output.render(&answer, Answer::to_string)?)?;
    Ok(if answer.disagreements.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn ask(args: &ExplainArgs) -> anyhow::Result<Answer> {
    let path = format!("/explain?pod={}&dst={}", args.pod, args.dst);
    serde_json::from_str(&client::get(&args.agent, &path)?)
        .context("the agent's answer cannot be read: is it of another version?")
}
