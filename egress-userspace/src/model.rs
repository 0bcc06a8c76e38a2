//! The validated types of the domain: what exists in the cluster, illegal states left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

mod probes;

pub use egress_common::verdict::Replies;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::probes::{Asked, Probe, ProbeKind, Probes, Url};
use crate::selector::Selector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: String,
    /// Its name within the namespace.
    pub name: String,
}

impl ObjectName {
    /// The object `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything that the sources tell, after validation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Pods of every node.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// `EgressGatewayPolicy` objects by name.
    pub policies: BTreeMap<String, Policy>,
    /// `EgressGateway` objects: gateways that are not pods.
    pub gateways: BTreeMap<ObjectName, Gateway>,
    /// Labels of service accounts.
    pub service_accounts: BTreeMap<ObjectName, Labels>,
    /// Network policies of others that judge what pods send, by kind and name, such as "NetworkPolicy apps/deny".
    pub network_policies: BTreeMap<String, NetworkPolicy>,
    /// Prefixes of the cluster itself: Calico's `IPPool`s, `ServiceCIDR`s, the addresses of known Services.
    pub cluster_prefixes: BTreeSet<IpNet>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels, with `projectcalico.org/name` and `kubernetes.io/metadata.name`.
    pub labels: Labels,
    /// What its annotations ask for, for pods that ask for nothing themselves.
    pub steering: Option<Steering>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// What its own annotations ask for.
    pub steering: Option<Steering>,
    /// The host-side interface that `egress.fastpath/interface` names.
    pub interface: Option<String>,
    /// The UDP ports of `egress.fastpath/inbound-udp`, in order, without repeats.
    pub inbound_udp: Vec<u16>,
    /// The node it runs on, once scheduled.
    pub node: Option<String>,
    /// Its addresses, at most one of each family that matters to us.
    pub addresses: Vec<IpAddr>,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Where it stands in its life.
    pub phase: Phase,
    /// Whether its readiness condition is true.
    pub ready: bool,
    /// Whether it is about to go: as a gateway it takes no new connections.
    pub leaving: Leaving,
}

/// Whether somebody is about to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leaving {
    /// No.
    #[default]
    No,
    /// `egress.fastpath/drain` says so.
    Asked,
    /// It is being deleted.
    Terminating,
}

/// Where a pod stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not finished: pending, running, or unknown.
    Alive,
    /// Succeeded or failed: its address may belong to somebody else by now.
    Finished,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes that its pods get addresses from.
    pub pod_cidrs: Vec<IpNet>,
}

/// What an annotation asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Steering {
    /// `egress.projectcalico.org/egressGatewayPolicy`: the policy of this name, which may not exist.
    Policy(String),
    /// `egress.projectcalico.org/selector` and its companions: everything through these gateways.
    Gateways(GatewaySelector),
    /// An annotation that cannot be parsed: the pod's traffic is dropped.
    Invalid,
}

/// An `EgressGatewayPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its rules, no two of which have the same destination; their order means nothing. Readings of an unchanged file
    /// share them.
    pub rules: Arc<[Rule]>,
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Free text.
    pub description: Option<String>,
    /// The destination prefix, host bits masked; none is both `0.0.0.0/0` and `::/0`.
    pub destination: Option<IpNet>,
    /// Where its packets go.
    pub target: Target,
    /// Where they go while none of its gateways is usable.
    pub on_failure: OnFailure,
}

/// What becomes of a rule's packets while none of its gateways is usable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They are dropped.
    #[default]
    Drop,
    /// They are left to the kernel's own routing, and leave with whatever address that gives them.
    Local,
    /// They go through these gateways, and are dropped if none of those is usable either.
    Fallback(GatewaySelector),
}

impl Rule {
    /// The rule's name in metrics and tables: its destination, which is unique in its policy.
    #[must_use]
    pub fn label(&self) -> String {
        self.destination
            .map_or_else(|| "default".to_owned(), |net| net.to_string())
    }
}

/// Where a rule sends packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To no gateway: the kernel's own routing.
    Local,
    /// Through the gateways that a selector matches.
    Gateways(GatewaySelector),
}

/// Which gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySelector {
    /// Selects namespaces; none is the source pod's own.
    pub namespaces: Option<Selector>,
    /// Selects gateways in those namespaces.
    pub gateways: Selector,
    /// How many of them a pod uses; none is all.
    pub max_next_hops: Option<NonZeroU32>,
    /// Which of them are taken first.
    pub preference: Preference,
}

/// Which gateways are taken first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// No preference.
    #[default]
    None,
    /// Those on the source pod's node if there is one, else all.
    NodeLocal,
}

/// A network policy that judges what pods send: whom it selects, which is all that matters here.
///
/// What its rules say is not looked at: one that allows everything selects its pods like any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Where its pods are.
    pub scope: Scope,
    /// Selects pods there.
    pub pods: Selector,
    /// Selects the service accounts of those pods; none is all of them.
    pub service_accounts: Option<Selector>,
}

/// The namespaces of a network policy's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Its own.
    Own(String),
    /// Those that a selector matches.
    Selected(Selector),
}

/// An `EgressGateway`: a gateway that is not a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its labels.
    pub labels: Labels,
    /// The interface that leads to its next hops, or its node's uplink; none is what the routes say.
    pub interface: Option<String>,
    /// Its share among the gateways of a group.
    pub weight: NonZeroU32,
    /// Who translates, and where.
    pub exit: Exit,
    /// Whether it takes no new connections: `egress.fastpath/drain`, or it is being deleted.
    pub leaving: Leaving,
    /// How long connections that it has may stay then; none is what the agent is told.
    pub drain_timeout: Option<Duration>,
}

/// Where the traffic of a gateway leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By hosts that translate by themselves.
    NextHops {
        /// At most one of each family.
        addresses: Vec<IpAddr>,
        /// Who brings replies back.
        replies: Replies,
    },
    /// By a node, which translates to addresses that it owns.
    Node(EgressAddresses),
}

/// Egress addresses, and the node that owns them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressAddresses {
    /// The node's name.
    pub node: String,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Whether the agent puts them on the interface and announces them.
    pub assign: bool,
    /// Whether what belongs to no connection goes to the kernel.
    pub allow_local_services: bool,
    /// The first and the last port that connections may be given; none is all that the node allows.
    pub ports: Option<(u16, u16)>,
    /// What the node asks of the outside from them; none is nothing.
    pub probes: Option<Probes>,
}
