//! `egress dump`: what the kernel's maps say, in words.

mod connections;
mod rows;
mod tables;

use std::{collections::BTreeMap, net::IpAddr};

use clap::ValueEnum;
use ipnet::IpNet;
use serde::Serialize;

pub use self::connections::{Connections, dump_connections};
use self::tables::{counters_table, gateways_table, pods_table, policies_table, prefixes_table};
use super::Output;
use crate::{
    counters::{MapUse, Reading},
    state::{KernelState, MemberLabel, Names},
};

/// Arguments of `egress dump`.
#[derive(Debug, clap::Args)]
pub struct DumpArgs {
    /// What to show; everything but connections unless given
    #[arg(value_enum)]
    pub what: Option<What>,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Which connections.
    #[command(flatten)]
    pub connections: Connections,
}

/// A part of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Source pods and their rows.
    Pods,
    /// Prefixes and their classes.
    Prefixes,
    /// Verdicts of each policy.
    Policies,
    /// Members: gateways as rules use them.
    Gateways,
    /// Counters, and how full the maps are.
    Counters,
    /// Connections that this node translates.
    Nat,
}

/// All that the maps say, read at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a> {
    /// The maps.
    pub kernel: &'a KernelState,
    /// What the numbers mean.
    pub names: &'a Names,
    /// The counters.
    pub reading: &'a Reading,
    /// How full the maps are.
    pub map_use: &'a [MapUse],
    /// Names of the node's interfaces.
    pub interfaces: &'a BTreeMap<u32, String>,
}

/// Writes down the parts that the arguments ask for.
///
/// # Errors
/// When they cannot be written in the form asked for.
pub fn render(args: &DumpArgs, maps: &Maps<'_>) -> anyhow::Result<String> {
    args.connections.refuse_unless_asked_for(args.what)?;
    let dump = Dump::of(args.what, maps);
    args.output.render(&dump, Dump::table)
}

/// Prints the parts that the arguments ask for.
///
/// # Errors
/// When they cannot be written in the form asked for, or not printed.
pub fn dump(args: &DumpArgs, maps: &Maps<'_>) -> anyhow::Result<std::process::ExitCode> {
    super::print(&render(args, maps)?)?;
    Ok(std::process::ExitCode::SUCCESS)
}

/// The parts that were asked for.
#[derive(Default, Serialize)]
struct Dump {
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<Vec<PodRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefixes: Option<Vec<PrefixRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<Vec<VerdictRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateways: Option<Vec<MemberRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<CounterRows>,
}

#[derive(Serialize)]
struct PodRow {
    interface: String,
    ifindex: u32,
    address: IpAddr,
    slot: u32,
    policy: Option<String>,
    row: Option<u32>,
    row_is_sparse: Option<bool>,
    rule_base: Option<u32>,
}

#[derive(Serialize)]
struct PrefixRow {
    prefix: IpNet,
    class: u32,
}

#[derive(Serialize)]
struct VerdictRow {
    policy: Option<String>,
    rule_base: u32,
    number: usize,
    verdict: String,
    /// Prefixes with this number in any row of the block; the shortest is the rule's own.
    prefixes: Vec<IpNet>,
}

#[derive(Serialize)]
struct MemberRow {
    member: u32,
    #[serde(flatten)]
    label: Option<MemberLabel>,
    next_hop: IpAddr,
    device: String,
    mtu: u32,
    replies: &'static str,
    counter: u32,
    packets: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct CounterRows {
    counters: Vec<CounterRow>,
    maps: Vec<MapUse>,
}

#[derive(Serialize)]
struct CounterRow {
    what: String,
    policy: Option<String>,
    rule: Option<String>,
    packets: u64,
    bytes: u64,
}

impl Dump {
    fn of(what: Option<What>, maps: &Maps<'_>) -> Self {
        let wanted = |part| what.is_none_or(|what| what == part);
        Self {
            pods: wanted(What::Pods).then(|| maps.pods()),
            prefixes: wanted(What::Prefixes).then(|| maps.prefixes()),
            policies: wanted(What::Policies).then(|| maps.policies()),
            gateways: wanted(What::Gateways).then(|| maps.gateways()),
            counters: wanted(What::Counters).then(|| maps.counters()),
        }
    }

    fn table(&self) -> String {
        let tables = [
            self.pods.as_deref().map(pods_table),
            self.prefixes.as_deref().map(prefixes_table),
            self.policies.as_deref().map(policies_table),
            self.gateways.as_deref().map(gateways_table),
            self.counters.as_ref().map(counters_table),
        ];
        let tables: Vec<String> = tables.into_iter().flatten().collect();
        tables.join("\n")
    }
}

#[cfg(test)]
mod tests;
