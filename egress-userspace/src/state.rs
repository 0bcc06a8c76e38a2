//! The two descriptions of the maps: what they should say, by name, and what they do say, by number.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
};

use egress_common::{
    Addr, DropReason, Family,
    cells::{CELLS_PER_LINE, RowPlace},
    gateway::{GatewayId, LOCAL_CLUSTER, LOCAL_NODE},
    keys::PodKey,
    maps::capacity,
    overlay::Tag,
    verdict::{Member, PodState, Replies, Verdict},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    model::ObjectName,
    rows::{Cells, Row},
};

/// What the maps should say, without a single number that the kernel would see.
///
/// Equal inputs give equal states, whatever ran before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// Every source pod's profile, an entry for each address.
    pub pods: BTreeMap<PodKey, usize>,
    /// The distinct things that pods are told.
    pub profiles: Vec<Profile>,
    /// The distinct rows, each with a number for every prefix, in the order of `prefixes`.
    pub rows: Vec<Arc<Row>>,
    /// Every distinct prefix of every policy and of the cluster, sorted.
    pub prefixes: Arc<[IpNet]>,
    /// The devices where recorded replies arrive from next hops.
    pub reply_interfaces: BTreeSet<u32>,
    /// Egress addresses and other nodes.
    pub translation: Translation,
    /// What else is to be known of every source pod.
    pub facts: BTreeMap<PodKey, Facts>,
}

/// What is to be known of a pod beside its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Largest IP packet in bytes that its interface takes.
    pub mtu: u32,
    /// UDP ports on which connections may come in to it, in order, without repeats.
    pub udp_ports: Vec<u16>,
}

/// What a gateway node needs to know: nothing of pods or policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// The egress addresses that this node owns.
    pub addresses: BTreeMap<IpAddr, EgressAddress>,
    /// The other nodes, by name.
    pub nodes: BTreeMap<String, OtherNode>,
    /// The node's own addresses for the ICMP messages that it sends, at most one of each family.
    pub own: Vec<IpAddr>,
    /// Prefixes that are local whatever a policy says, where pods are steered.
    pub locals: BTreeMap<IpNet, Local>,
}

/// Why a prefix is local whatever a policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Local {
    /// It is the cluster's own, or nobody's to steer.
    Cluster,
    /// It is an address of this node, whose own NAT may hide anybody behind it.
    Node,
}

impl Local {
    /// The map value.
    #[must_use]
    pub const fn value(self) -> u32 {
        match self {
            Self::Cluster => LOCAL_CLUSTER,
            Self::Node => LOCAL_NODE,
        }
    }
}

/// An egress address that this node owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressAddress {
    /// The gateway.
    pub gateway: ObjectName,
    /// Its number on every node.
    pub id: GatewayId,
    /// The uplink.
    pub ifindex: u32,
    /// The uplink's name.
    pub interface: String,
    /// Largest IP packet in bytes that the uplink takes.
    pub mtu: u32,
    /// The first and the last port that connections may be given.
    pub ports: (u16, u16),
    /// Whose the address is.
    pub holder: Holder,
    /// Whether what belongs to no connection goes to the kernel.
    pub allow_local_services: bool,
    /// Whether this node's own probes say that nothing gets out by it: other nodes are told so.
    pub is_down: bool,
}

/// Whose an egress address is on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The agent puts it on the uplink, and takes it off again.
    Agent,
    /// Routing brings it here; nobody need hold it.
    Routing,
    /// The node has it anyway: ports outside the range are the kernel's.
    Node,
    /// A gateway pod.
    Pod,
}

/// Another node as the overlay knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherNode {
    /// All its addresses: frames come from one of them.
    pub addresses: Vec<IpAddr>,
    /// Where frames for it are sent to.
    pub address: IpAddr,
    /// Largest IP packet in bytes that fits a frame to it.
    pub mtu: u32,
    /// The tag of frames to it.
    pub send: Tag,
    /// The tags that its frames may have; zero is none.
    pub accept: [Tag; 2],
}

/// What a pod is told: a policy's name, its row, and the verdicts that the row's numbers mean.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Profile {
    /// The policy that is counted.
    pub policy: String,
    /// Index into `DesiredState::rows`.
    pub row: usize,
    /// The verdict of each number.
    pub verdicts: Arc<[VerdictSpec]>,
}

/// A verdict, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerdictSpec {
    /// No rule matched.
    Unmatched,
    /// The kernel's own routing.
    Local,
    /// Dropped.
    Drop(DropReason),
    /// Through one of these members: at least one, in ascending order of their gateways' ids.
    Gateways(Vec<MemberSpec>),
}

impl VerdictSpec {
    /// The members that it leads to, if it leads to any.
    #[must_use]
    pub fn members(&self) -> &[MemberSpec] {
        match self {
            Self::Gateways(members) => members,
            Self::Unmatched | Self::Local | Self::Drop(_) => &[],
        }
    }
}

/// A member, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberSpec {
    /// The gateway's number on every node; the datapath searches a group by it.
    pub gateway: GatewayId,
    /// What its counters are called.
    pub label: Arc<MemberLabel>,
    /// Its share of the group.
    pub weight: NonZeroU32,
    /// Which flows are its.
    pub standing: Standing,
    /// How packets reach it.
    pub way: Way,
}

/// Which flows a member of a group has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Those that are there, and its share of new ones.
    #[default]
    Serving,
    /// Likewise, and others of its group may come back: although it is the only one by now, it is written down which
    /// flows are its, so that they stay.
    Remaining,
    /// Those that are there: new ones only where all others are draining, too.
    Draining,
}

impl MemberSpec {
    /// The map value, counted at this index.
    #[must_use]
    pub fn value(&self, counter: u32) -> Member {
        let id = self.gateway;
        match &self.way {
            Way::NextHop {
                next_hop,
                ifindex,
                mtu,
                replies,
            } => {
                let next_hop = Addr::from(*next_hop);
                Member::next_hop(counter, id, *ifindex, *mtu, next_hop, *replies)
            }
            Way::Overlay {
                address,
                ifindex,
                mtu,
                tag,
                ..
            } => Member::overlay(counter, id, *ifindex, *mtu, Addr::from(*address), *tag),
            Way::Here { egress, mtu, .. } => Member::here(counter, id, *mtu, Addr::from(*egress)),
        }
    }
}

/// How packets of one family reach a gateway from this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To an on-link next hop, which translates by itself.
    NextHop {
        /// The next hop.
        next_hop: IpAddr,
        /// The device that leads to it.
        ifindex: u32,
        /// Largest IP packet in bytes.
        mtu: u32,
        /// Who brings replies back.
        replies: Replies,
    },
    /// Through the overlay to the node that owns the egress address.
    Overlay {
        /// The address that the outside sees.
        egress: IpAddr,
        /// The node that owns it.
        node: String,
        /// That node's address, of either family.
        address: IpAddr,
        /// The overlay device.
        ifindex: u32,
        /// Largest IP packet in bytes that fits a frame to that node.
        mtu: u32,
        /// The tag of frames to it.
        tag: Tag,
    },
    /// Translated on this node, which owns the egress address.
    Here {
        /// The address that the outside sees.
        egress: IpAddr,
        /// This node.
        node: String,
        /// The uplink.
        ifindex: u32,
        /// Largest IP packet in bytes that the uplink takes.
        mtu: u32,
    },
}

impl Way {
    /// The family of the packets that take it: that of the next hop or of the egress address.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::NextHop {
                next_hop: address, ..
            }
            | Self::Overlay {
                egress: address, ..
            }
            | Self::Here {
                egress: address, ..
            } => match address {
                IpAddr::V4(_) => Family::V4,
                IpAddr::V6(_) => Family::V6,
            },
        }
    }

    /// The device that packets leave by.
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        match self {
            Self::NextHop { ifindex, .. }
            | Self::Overlay { ifindex, .. }
            | Self::Here { ifindex, .. } => *ifindex,
        }
    }

    /// Largest IP packet in bytes.
    #[must_use]
    pub const fn mtu(&self) -> u32 {
        match self {
            Self::NextHop { mtu, .. } | Self::Overlay { mtu, .. } | Self::Here { mtu, .. } => *mtu,
        }
    }

    /// The device whose incoming packets are replies that we have to deliver from a next hop.
    #[must_use]
    pub const fn replies_from(&self) -> Option<u32> {
        match self {
            Self::NextHop {
                ifindex,
                replies: Replies::Recorded,
                ..
            } => Some(*ifindex),
            Self::NextHop { .. } | Self::Overlay { .. } | Self::Here { .. } => None,
        }
    }

    /// The way in a few words, with the name of its device.
    #[must_use]
    pub fn phrase(&self, device: &str) -> String {
        match self {
            Self::NextHop { next_hop, .. } => format!("{next_hop} on {device}"),
            Self::Overlay {
                egress,
                node,
                address,
                ..
            } => format!("{egress} on node {node}, through the overlay to {address} by {device}"),
            Self::Here { egress, node, .. } => {
                format!("{egress} on this node, {node}, out of {device}")
            }
        }
    }
}

/// The labels of a member's counters. A gateway's two families share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberLabel {
    /// The gateway's namespace.
    pub namespace: String,
    /// The gateway's name.
    pub gateway: String,
    /// The policy.
    pub policy: String,
    /// The rule's destination, or "default".
    pub rule: String,
}

/// What the maps do say: read back by walking from the pods, or kept up by what was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// Source pod → slot.
    pub pods: BTreeMap<PodKey, u32>,
    /// Slot → row and rule base, for the slots in use.
    pub slots: BTreeMap<u32, PodState>,
    /// Prefix → class.
    pub prefixes: BTreeMap<IpNet, u32>,
    /// Where each live row is → what it says of each class.
    pub rows: BTreeMap<RowPlace, Extent>,
    /// First line of each live slot table → its cells.
    pub slot_tables: BTreeMap<u32, Arc<Vec<u16>>>,
    /// Rule base of each live block → its verdicts, by number.
    pub blocks: BTreeMap<u32, Vec<Verdict>>,
    /// Live members.
    pub members: BTreeMap<u32, Member>,
}

impl KernelState {
    /// The interface of each address that is steered.
    #[must_use]
    pub fn held(&self) -> BTreeMap<IpAddr, u32> {
        self.pods
            .keys()
            .map(|key| (key.addr.into(), key.ifindex))
            .collect()
    }
}

/// A live row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Lines that belong to it.
    pub lines: u32,
    /// What they say.
    pub cells: Arc<Cells>,
}

impl Extent {
    /// Lines that a dense row needs when classes below `classes` are in use.
    ///
    /// At least one: a row without lines could not be told from its neighbour.
    #[must_use]
    pub const fn lines_needed(classes: u32) -> u32 {
        let lines = classes.div_ceil(CELLS_PER_LINE);
        if lines == 0 { 1 } else { lines }
    }

    /// Lines that a new dense row is given: an eighth more than it needs, so that few new prefixes move it.
    #[must_use]
    pub const fn lines_given(classes: u32) -> u32 {
        let lines = Self::lines_needed(classes);
        (lines + lines / 8).next_multiple_of(8)
    }
}

/// What the maps of this node have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that the rows and slot tables of a desired state may take.
    pub matrix_memory: u64,
    /// Lines of dense rows from which on a row may be sparse: a cell is found sooner than an entry.
    pub sparse_from: u32,
    /// Source pods, one for each address.
    pub pods: u32,
    /// Distinct prefixes of one family.
    pub prefixes: u32,
    /// Verdicts of all blocks.
    pub verdicts: u32,
    /// Members of all groups, and their counters.
    pub members: u32,
    /// Policies that are counted, with the one that stands for none.
    pub policies: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            matrix_memory: 256 << 20,
            sparse_from: 64,
            pods: capacity::PODS,
            prefixes: capacity::PREFIXES,
            verdicts: capacity::VERDICTS,
            members: capacity::MEMBERS,
            policies: capacity::POLICIES,
        }
    }
}

/// The meaning of the numbers that counters have: kept beside the maps, since the kernel knows no names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Policy → index into the policy counters; 0 is nobody's.
    pub policies: BTreeMap<String, u32>,
    /// Member → index into the member counters.
    #[serde(with = "labels")]
    pub members: Vec<(Arc<MemberLabel>, u32)>,
    /// Gateway of this node → index into the gateway counters.
    #[serde(default, with = "pairs")]
    pub gateways: BTreeMap<ObjectName, u32>,
    /// Another node → index into `NODE_STATE`; 0 is nobody's.
    #[serde(default)]
    pub nodes: BTreeMap<String, u32>,
}

/// Labels as if nobody shared them.
mod labels {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::MemberLabel;

    pub(super) fn serialize<S: Serializer>(
        members: &[(Arc<MemberLabel>, u32)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(members.iter().map(|(label, id)| (&**label, id)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(Arc<MemberLabel>, u32)>, D::Error> {
        let members: Vec<(MemberLabel, u32)> = Vec::deserialize(deserializer)?;
        let shared = members.into_iter().map(|(label, id)| (Arc::new(label), id));
        Ok(shared.collect())
    }
}

/// A map as a list of pairs: JSON's keys are strings.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::model::ObjectName;

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<ObjectName, u32>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let pairs: Vec<(&ObjectName, &u32)> = map.iter().collect();
        pairs.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<ObjectName, u32>, D::Error> {
        let pairs: Vec<(ObjectName, u32)> = Vec::deserialize(deserializer)?;
        Ok(pairs.into_iter().collect())
    }
}
