//! The maps of egress addresses and other nodes: from what they say to what they should say, pure.
//!
//! A packet finds an egress address under its gateway, or a reply under its destination, and then reads the
//! element that the index names. An element is written once, where nothing live is, and then the keys are
//! turned to it; a packet that was slow between the two reads still finds the old one. What goes is removed
//! last, after the policies that lead to it, and its index is given out again only after a grace period.
//!
//! A node's index is different: connections name it for as long as they live. It stays the node's while the
//! node lives, its element changes in place, and new nodes are first given indexes that no node ever had.

mod ids;
mod plan;
mod settings;
#[cfg(test)]
mod tests;
mod underlay;

use std::collections::BTreeMap;

use egress_common::{
    Addr,
    gateway::{Egress, GatewayKey, Settings},
    overlay::NodeState,
};
use ipnet::IpNet;

pub use self::{
    plan::{Plan, PlanError, plan},
    settings::settings,
    underlay::{Underlay, underlay, with_underlay},
};

/// What the maps say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// `SETTINGS`.
    pub settings: Settings,
    /// `GATEWAYS`.
    pub gateways: BTreeMap<GatewayKey, u32>,
    /// `EGRESS_ADDRS`.
    pub addresses: BTreeMap<Addr, u32>,
    /// `EGRESS`, where it was ever written.
    pub egress: BTreeMap<u32, Egress>,
    /// `NODES`.
    pub nodes: BTreeMap<Addr, u32>,
    /// `NODE_STATE`, where it was ever written.
    pub node_state: BTreeMap<u32, NodeState>,
    /// `LOCALS4` and `LOCALS6`.
    pub locals: BTreeMap<IpNet, u32>,
}

/// How much the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Egress addresses, and the counters of their gateways.
    pub egress: u32,
    /// Other nodes, and their addresses.
    pub nodes: u32,
    /// Prefixes of one family that are local whatever a policy says.
    pub locals: u32,
}

/// One step of a plan; each can be carried out twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes what the whole node is told.
    WriteSettings(Box<Settings>),
    /// Writes another node, in place if it is live.
    WriteNode {
        /// Its index.
        index: u32,
        /// Its content.
        node: NodeState,
    },
    /// Makes a node's address known, or turns it to another node.
    InsertNode {
        /// The address.
        address: Addr,
        /// The node.
        index: u32,
    },
    /// Writes an egress address where nothing live is.
    WriteEgress {
        /// Its index.
        index: u32,
        /// Its content.
        egress: Egress,
    },
    /// Makes replies to an address find it.
    InsertAddress {
        /// The address.
        address: Addr,
        /// Its index.
        index: u32,
    },
    /// Makes packets for a gateway find its address.
    InsertGateway {
        /// Gateway and family.
        key: GatewayKey,
        /// The address's index.
        index: u32,
    },
    /// Takes a gateway's address away.
    RemoveGateway {
        /// Gateway and family.
        key: GatewayKey,
    },
    /// Leaves what comes for an address to the kernel.
    RemoveAddress {
        /// The address.
        address: Addr,
    },
    /// Forgets a node's address.
    RemoveNode {
        /// The address.
        address: Addr,
    },
    /// Makes a prefix local whatever a policy says, or tells why it is.
    InsertLocal {
        /// The prefix.
        prefix: IpNet,
        /// Why it is.
        why: u32,
    },
    /// Makes it local no more.
    RemoveLocal {
        /// The prefix.
        prefix: IpNet,
    },
    /// Waits until no packet in flight holds an index that it read before.
    Grace,
}

impl State {
    /// What the maps say after a change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::WriteSettings(settings) => self.settings = **settings,
            Change::WriteNode { index, node } => {
                self.node_state.insert(*index, *node);
            }
            Change::InsertNode { address, index } => {
                self.nodes.insert(*address, *index);
            }
            Change::WriteEgress { index, egress } => {
                self.egress.insert(*index, *egress);
            }
            Change::InsertAddress { address, index } => {
                self.addresses.insert(*address, *index);
            }
            Change::InsertGateway { key, index } => {
                self.gateways.insert(*key, *index);
            }
            Change::RemoveGateway { key } => {
                self.gateways.remove(key);
            }
            Change::RemoveAddress { address } => {
                self.addresses.remove(address);
            }
            Change::RemoveNode { address } => {
                self.nodes.remove(address);
            }
            Change::InsertLocal { prefix, why } => {
                self.locals.insert(*prefix, *why);
            }
            Change::RemoveLocal { prefix } => {
                self.locals.remove(prefix);
            }
            Change::Grace => {}
        }
    }
}
