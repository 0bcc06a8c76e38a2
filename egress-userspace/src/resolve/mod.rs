//! Which pods are steered on this node, by which policy, through which gateways: pure.
//!
//! `plan` turns a policy into rules with gateways, `gateways` knows which exist and which are usable, `choose` picks
//! those that a pod uses, `pods` knows where pods are, and `cluster` which prefixes are the cluster's own.

mod choose;
mod cluster;
mod gateways;
mod plan;
mod pods;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
};

use egress_common::DropReason;
use ipnet::IpNet;

use crate::{
    model::{Model, ObjectName, Replies},
    node::NodeView,
};

pub use crate::node::Way;

/// What the operator settled for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The node's name.
    pub node_name: String,
    /// Prefixes that are local on top of those that the cluster tells.
    pub local_cidrs: Vec<IpNet>,
    /// Whether a pod's own annotations count, or only its namespace's.
    pub per_pod_policies: bool,
}

/// Interfaces of the addresses that the kernel steers by now.
///
/// A pod keeps its interface while that exists, whatever else the routes and tables say for a moment: a
/// route that flaps must not let its packets go, nor a neighbour that claims its address.
pub type Held = BTreeMap<IpAddr, u32>;

/// Resolves the model on this node.
///
/// Equal inputs give equal results.
#[must_use]
pub fn resolve(model: &Model, node: &NodeView, settings: &Settings, held: &Held) -> Resolved {
    let index = node.index();
    let mut resolved = Resolved {
        cluster_prefixes: cluster::prefixes(model, node, settings),
        ..Resolved::default()
    };
    let gateways = gateways::Gateways::new(model, &index, settings, &mut resolved.warnings);
    let mut planner = plan::Planner::new(model, &gateways);
    pods::resolve(
        pods::Places::new(model, &index, settings, held),
        &gateways,
        &mut planner,
        &mut resolved,
    );
    resolved.warnings.append(&mut planner.warnings);
    resolved.gateways = gateways.statuses();
    resolved
}

/// What this node has to do, before it is turned into maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Source pods that are steered, in order of name.
    pub pods: BTreeMap<ObjectName, SourcePod>,
    /// Prefixes that are local unless a rule is at least as specific.
    pub cluster_prefixes: BTreeSet<IpNet>,
    /// Every gateway that some selector could match, usable or not.
    pub gateways: BTreeMap<ObjectName, GatewayStatus>,
    /// State of every annotated pod of this node.
    pub pod_states: BTreeMap<ObjectName, PodState>,
    /// Bridges and pods' addresses on them that nothing is known of yet: to be asked for until the view tells.
    pub to_solicit: BTreeSet<(u32, IpAddr)>,
    /// What the operator should know, one sentence each, without repeats.
    pub warnings: BTreeSet<String>,
}

/// A steered pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePod {
    /// Its host-side interface.
    pub ifindex: u32,
    /// The name of that interface.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The policy's name, as counters carry it.
    pub policy: String,
    /// What that policy means for this pod.
    pub fate: Fate,
}

/// What a policy means for one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Every packet is dropped.
    Drop(DropReason),
    /// The rules, sorted by destination (none first). Pods that are told the same share them.
    Rules(Arc<[EffectiveRule]>),
}

/// A rule with its selector resolved, for one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EffectiveRule {
    /// The rule's name in metrics.
    pub label: String,
    /// Its destination; none is both families' default.
    pub destination: Option<IpNet>,
    /// Where its packets go.
    pub action: Action,
}

/// Where a resolved rule's packets go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// The kernel's own routing.
    Local,
    /// Through one of these, sorted by name; an empty list drops. Equal groups are shared.
    Gateways(Arc<[UsableGateway]>),
}

/// A gateway that can be used from this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsableGateway {
    /// Its name.
    pub name: ObjectName,
    /// Its share.
    pub weight: NonZeroU32,
    /// Who brings replies back.
    pub replies: Replies,
    /// Its ways, at most one of each family.
    pub ways: Vec<Way>,
}

/// Whether a gateway can be used, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayStatus {
    /// Usable, by these ways.
    Up(Vec<Way>),
    /// Not usable, for this reason.
    Down(String),
}

/// Where an annotated pod stands (`egress_pods{state}`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PodState {
    /// Its traffic is steered.
    Steered,
    /// Steered, but its policy does not exist or is invalid: everything is dropped.
    PolicyMissing,
    /// Its host-side interface is not known (yet).
    NoInterface,
    /// Its interface serves others too, or is not its own.
    NoOwnInterface,
    /// It shares the node's network.
    HostNetwork,
    /// It has finished.
    Finished,
    /// It has no address yet.
    NoAddress,
    /// It is a gateway itself.
    Gateway,
}

impl PodState {
    /// Every state.
    pub const ALL: &[Self] = &[
        Self::Steered,
        Self::PolicyMissing,
        Self::NoInterface,
        Self::NoOwnInterface,
        Self::HostNetwork,
        Self::Finished,
        Self::NoAddress,
        Self::Gateway,
    ];

    /// The state as metrics spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steered => "steered",
            Self::PolicyMissing => "policy_missing",
            Self::NoInterface => "no_interface",
            Self::NoOwnInterface => "no_own_interface",
            Self::HostNetwork => "host_network",
            Self::Finished => "finished",
            Self::NoAddress => "no_address",
            Self::Gateway => "gateway",
        }
    }
}
