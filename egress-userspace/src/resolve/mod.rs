//! Which pods are steered on this node, by which policy, through which gateways: pure.
//!
//! `plan` turns a policy into rules with gateways, `memo` knows those that were made before, `gateways` knows which exist, `usable` by which ways, `choose`
//! picks those that a pod uses, `enforcement` heeds the network policies of others, `egress` which egress addresses this node owns, `nodes` how it reaches the others, `pods`
//! knows where pods are, and `cluster` which prefixes are the cluster's own.

mod choose;
mod cluster;
mod egress;
mod enforcement;
mod gateways;
mod memo;
mod nodes;
mod plan;
mod pods;
#[cfg(test)]
mod tests;
mod usable;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use clap::ValueEnum;
use egress_common::{DropReason, gateway::GatewayId};
use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    health::{Faults, Probed, Subject},
    model::{Model, ObjectName},
    node::NodeView,
    overlay_keys::OverlayKeys,
    state::Translation,
};

pub use self::memo::Memo;
pub use crate::state::{Standing, Way};

/// What the operator settled for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The node's name.
    pub node_name: String,
    /// Prefixes that are local on top of those that the cluster tells.
    pub local_cidrs: Vec<IpNet>,
    /// Whether a pod's own annotations count, or only its namespace's.
    pub per_pod_policies: bool,
    /// Whether packets of pods that an egress network policy selects are redirected past it.
    pub accept_networkpolicy_bypass: bool,
    /// What a gateway pod is.
    pub pod_gateways: PodGateways,
    /// The interfaces that lead to the outside; none are the devices of the default routes.
    pub uplinks: Vec<String>,
    /// The overlay; none without a key.
    pub overlay: Option<Overlay>,
    /// The first and the last port that translated connections may be given.
    pub nat_ports: (u16, u16),
    /// The first and the last port that the node gives its own connections.
    pub local_ports: (u16, u16),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            local_cidrs: Vec::new(),
            per_pod_policies: true,
            accept_networkpolicy_bypass: false,
            pod_gateways: PodGateways::default(),
            uplinks: Vec::new(),
            overlay: None,
            nat_ports: NAT_PORTS,
            local_ports: LOCAL_PORTS,
        }
    }
}

/// Ports that connections are given unless somebody says otherwise: all but those that mean something (RFC 6335, 6).
pub const NAT_PORTS: (u16, u16) = (1024, u16::MAX);
/// What Linux gives a node's own connections unless somebody says otherwise (`Documentation/networking/ip-sysctl.rst`).
pub const LOCAL_PORTS: (u16, u16) = (32_768, 60_999);

/// What a gateway pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodGateways {
    /// A holder of an egress address: its node translates.
    #[default]
    Translate,
    /// A next hop that translates by itself.
    Forward,
}

/// The overlay between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The name of the VXLAN device.
    pub device: String,
    /// Its UDP port.
    pub port: u16,
    /// Its network identifier.
    pub vni: u32,
    /// The keys that the nodes share.
    pub keys: OverlayKeys,
}

/// Interfaces of the addresses that the kernel steers by now.
///
/// A pod keeps its interface while that exists, whatever else the routes and tables say for a moment: a
/// route that flaps must not let its packets go, nor a neighbour that claims its address.
pub type Held = BTreeMap<IpAddr, u32>;

/// Egress addresses that the agent has put on this node's interfaces: the node has them for no other reason.
pub type Assigned = BTreeSet<IpAddr>;

/// Resolves the model on this node, on which those with `faults` do not answer.
///
/// Equal inputs give equal results.
#[must_use]
pub fn resolve(
    model: &Model,
    node: &NodeView,
    settings: &Settings,
    held: &Held,
    assigned: &Assigned,
    faults: &Faults,
) -> Resolved {
    let mut memo = Memo::default();
    resolve_again(model, node, settings, held, assigned, faults, &mut memo)
}

/// The same after earlier resolutions, which makes it quicker and no different.
#[must_use]
pub fn resolve_again(
    model: &Model,
    node: &NodeView,
    settings: &Settings,
    held: &Held,
    assigned: &Assigned,
    faults: &Faults,
    memo: &mut Memo,
) -> Resolved {
    memo.begin();
    let index = node.index();
    let mut resolved = Resolved {
        cluster_prefixes: cluster::prefixes(model, node, settings, assigned),
        ..Resolved::default()
    };
    let mut owned = egress::Owned::new(model, &index, settings, assigned, &mut resolved.warnings);
    let gateways = gateways::Gateways::new(
        model,
        &index,
        settings,
        faults,
        &mut owned,
        memo,
        &mut resolved,
    );
    resolved.translation = owned.translation();
    let mut planner = plan::Planner::new(model, &gateways, memo);
    pods::resolve(
        pods::Places::new(model, &index, settings, held),
        &gateways,
        &mut planner,
        &mut resolved,
    );
    if !resolved.pods.is_empty() {
        resolved.translation.locals = cluster::locals(&resolved.cluster_prefixes, node, assigned);
    }
    resolved.warnings.append(&mut planner.warnings);
    resolved.gateways = gateways.statuses();
    memo.end();
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
    /// Egress addresses of this node, and other nodes.
    pub translation: Translation,
    /// State of every annotated pod of this node.
    pub pod_states: BTreeMap<ObjectName, PodState>,
    /// Interfaces, by index, of pods that are known not to be steered: all that are behind each, with their namespaces.
    pub unsteered: BTreeSet<u32>,
    /// Bridges and pods' addresses on them that nothing is known of yet: to be asked for until the view tells.
    pub to_solicit: BTreeSet<(u32, IpAddr)>,
    /// Who is to be asked whether it is in order, and the gateways that need it.
    pub subjects: BTreeMap<Subject, BTreeSet<ObjectName>>,
    /// Gateways that take no new connections, and how long those that they have may stay; none is what the agent is
    /// told.
    pub draining: BTreeMap<ObjectName, Option<Duration>>,
    /// Gateways of this node that ask the outside whether they are in order.
    pub probed: BTreeMap<ObjectName, Probed>,
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
    /// Largest IP packet in bytes that it takes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The policy's name, as counters carry it.
    pub policy: String,
    /// What that policy means for this pod.
    pub fate: Fate,
    /// The egress network policies that what its policy sends to gateways goes past, or would, by kind and name.
    pub network_policies: Vec<String>,
    /// UDP ports on which connections may come in to it, in order, without repeats.
    pub udp_ports: Vec<u16>,
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
    /// Nowhere.
    Drop(DropReason),
}

/// A gateway that can be used from this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsableGateway {
    /// Its name.
    pub name: ObjectName,
    /// Its number on every node.
    pub id: GatewayId,
    /// Its share.
    pub weight: NonZeroU32,
    /// Which flows are its.
    pub standing: Standing,
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
    /// Steered, but an egress network policy selects it: what would be redirected is dropped.
    PolicyEnforcement,
    /// Steered past an egress network policy that selects it, as the operator accepts.
    PolicyBypass,
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
        Self::PolicyEnforcement,
        Self::PolicyBypass,
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
            Self::PolicyEnforcement => "policy_enforcement",
            Self::PolicyBypass => "policy_bypass",
            Self::NoInterface => "no_interface",
            Self::NoOwnInterface => "no_own_interface",
            Self::HostNetwork => "host_network",
            Self::Finished => "finished",
            Self::NoAddress => "no_address",
            Self::Gateway => "gateway",
        }
    }
}
