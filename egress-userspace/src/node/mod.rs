//! What the kernel says of this node: links, addresses, routes, neighbours, forwarding entries.
//!
//! `netlink` reads it, `watch` follows it, and `index` answers questions from it without asking the kernel again.

mod announce;
mod assign;
mod assumed;
mod beyond;
mod index;
mod ipsec;
mod link_layer;
mod netlink;
mod nft;
mod ports;
mod problem;
mod told;
mod towards;
mod uplinks;
mod vxlan;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egress_common::Mac;
use ipnet::IpNet;

pub use announce::{Announcer, frames as announcement};
pub use assign::{Listed, assign, list as list_addresses, withdraw};
pub use index::{Device, NodeIndex, PodInterface};
pub use ipsec::watch_ipsec;
pub use link_layer::LinkLayer;
pub use netlink::Netlink;
pub use nft::{HoldTable, Pattern, Standing, generation as nft_generation};
pub use ports::local_ports;
pub use problem::{InterfaceProblem, NoWay};
pub use uplinks::Uplinks;
pub use vxlan::{OverlayDevice, OverlayProblem};
pub use watch::{Watch, watch};

/// How packets of one family reach a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The on-link next hop.
    pub next_hop: IpAddr,
    /// The device.
    pub ifindex: u32,
    /// Largest IP packet in bytes.
    pub mtu: u32,
}

/// A consistent reading of the node's network, in one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Links by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses of the node's own interfaces, with their prefix lengths.
    pub addresses: Vec<(u32, IpNet)>,
    /// Unicast routes of the main table.
    pub routes: Vec<Route>,
    /// Devices and destinations of the unicast routes of all other tables, but those to a host that is on-link.
    pub ruled: BTreeSet<(u32, IpNet)>,
    /// Neighbours with a known MAC on bridges: those of other devices tell nobody's interface.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries of bridges: MAC → port.
    pub forwarding: Vec<ForwardingEntry>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether it is administratively up and has carrier.
    pub up: bool,
    /// Whether it is a bridge.
    pub bridge: bool,
    /// Whether it is the loopback device.
    pub loopback: bool,
    /// Whether it carries Ethernet frames.
    pub ethernet: bool,
    /// The device it is a port of.
    pub master: Option<u32>,
}

#[cfg(test)]
impl Link {
    /// An Ethernet device that is up and nobody's port.
    pub(crate) fn ethernet(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            mtu: 1500,
            up: true,
            bridge: false,
            loopback: false,
            ethernet: true,
            master: None,
        }
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The next hop; none is on-link.
    pub gateway: Option<IpAddr>,
    /// The device.
    pub ifindex: u32,
    /// Lower wins among routes to the same prefix.
    pub metric: u32,
    /// Largest IP packet in bytes, where the route says less than its device.
    pub mtu: Option<u32>,
}

impl Route {
    /// Whether it leads to one host, which is on-link: a pod, or a container of somebody else's.
    #[must_use]
    pub fn is_host_on_link(&self) -> bool {
        self.gateway.is_none() && self.destination.prefix_len() == self.destination.max_prefix_len()
    }
}

/// A neighbour entry with a MAC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The device.
    pub ifindex: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: Mac,
}

/// An entry of a bridge's forwarding table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardingEntry {
    /// The bridge port.
    pub port: u32,
    /// The MAC behind it.
    pub mac: Mac,
}

impl NodeView {
    /// Keeps what `before` had learned of bridged neighbours and the kernel has forgotten since.
    ///
    /// A pod that is silent for a while is aged out of both tables although it is still there. Its interface
    /// would be unknown, and its next packet would leave as if nobody steered it. What was learned holds until
    /// something else is learned or the bridge port is gone.
    pub fn remember(&mut self, before: &Self) {
        let known: BTreeSet<_> = self
            .neighbours
            .iter()
            .map(|n| (n.ifindex, n.address))
            .collect();
        let mut neighbours: Vec<_> = before
            .neighbours
            .iter()
            .filter(|n| !known.contains(&(n.ifindex, n.address)))
            .cloned()
            .collect();
        let behind: BTreeSet<_> = self
            .forwarding
            .iter()
            .filter_map(|entry| Some((self.master(entry.port)?, entry.mac)))
            .collect();
        let wanted: BTreeSet<_> = self
            .neighbours
            .iter()
            .chain(&neighbours)
            .map(|n| (n.ifindex, n.mac))
            .collect();
        let forwarding: Vec<_> = before
            .forwarding
            .iter()
            .filter(|entry| {
                self.same_port(before, entry.port).is_some_and(|bridge| {
                    !behind.contains(&(bridge, entry.mac)) && wanted.contains(&(bridge, entry.mac))
                })
            })
            .cloned()
            .collect();
        self.forwarding.extend(forwarding);
        let reachable: BTreeSet<_> = self
            .forwarding
            .iter()
            .filter_map(|entry| Some((self.master(entry.port)?, entry.mac)))
            .collect();
        neighbours.retain(|n| reachable.contains(&(n.ifindex, n.mac)));
        if self.neighbours.len() + neighbours.len() <= MOST_REMEMBERED {
            self.neighbours.extend(neighbours);
        }
        self.sort();
    }

    /// Sorts all lists, so that equal networks give equal views.
    fn sort(&mut self) {
        self.addresses.sort_unstable();
        self.addresses.dedup();
        self.routes.sort_unstable();
        self.routes.dedup();
        self.neighbours.sort_unstable();
        self.neighbours.dedup();
        self.forwarding.sort_unstable();
        self.forwarding.dedup();
    }

    fn master(&self, port: u32) -> Option<u32> {
        self.links.get(&port)?.master
    }

    /// The bridge of a port that is in both views the same.
    fn same_port(&self, before: &Self, port: u32) -> Option<u32> {
        let (now, then) = (self.links.get(&port)?, before.links.get(&port)?);
        (now.name == then.name && now.master == then.master)
            .then_some(now.master)
            .flatten()
    }
}

/// Neighbours beyond which nothing is remembered: a pod can invent as many IPv6 addresses as it likes.
const MOST_REMEMBERED: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: u32 = 5;
    const PORT: u32 = 6;
    const OTHER: u32 = 7;

    fn link(name: &str, master: Option<u32>) -> Link {
        Link {
            name: name.to_owned(),
            mtu: 1500,
            up: true,
            bridge: master.is_none(),
            loopback: false,
            ethernet: true,
            master,
        }
    }

    fn bridged(entries: &[(u32, u8)]) -> NodeView {
        NodeView {
            links: [
                (BRIDGE, link("br0", None)),
                (PORT, link("veth1", Some(BRIDGE))),
                (OTHER, link("veth2", Some(BRIDGE))),
            ]
            .into(),
            neighbours: entries
                .iter()
                .map(|&(_, n)| Neighbour {
                    ifindex: BRIDGE,
                    address: IpAddr::from([10, 0, 0, n]),
                    mac: Mac([2, 0, 0, 0, 0, n]),
                })
                .collect(),
            forwarding: entries
                .iter()
                .map(|&(port, n)| ForwardingEntry {
                    port,
                    mac: Mac([2, 0, 0, 0, 0, n]),
                })
                .collect(),
            ..NodeView::default()
        }
    }

    #[test]
    fn what_ages_out_is_remembered() {
        let before = bridged(&[(PORT, 2), (OTHER, 3)]);
        let mut now = bridged(&[(OTHER, 3)]);
        now.remember(&before);
        assert_eq!(now, before);
    }

    #[test]
    fn what_moves_is_not() {
        let before = bridged(&[(PORT, 2)]);
        let mut now = bridged(&[(OTHER, 2)]);
        let expected = now.clone();
        now.remember(&before);
        assert_eq!(now, expected);
    }

    #[test]
    fn a_port_that_is_gone_takes_its_neighbours_along() {
        let before = bridged(&[(PORT, 2)]);
        for forget in [
            (|v: &mut NodeView| drop(v.links.remove(&PORT))) as fn(&mut NodeView),
            |v| drop(v.links.insert(PORT, link("veth1", None))),
            |v| drop(v.links.insert(PORT, link("another", Some(BRIDGE)))),
        ] {
            let mut now = bridged(&[]);
            forget(&mut now);
            now.remember(&before);
            assert!(now.neighbours.is_empty() && now.forwarding.is_empty());
        }
    }

    #[test]
    fn macs_that_no_neighbour_has_are_not_remembered() {
        let mut before = bridged(&[(PORT, 2)]);
        before.neighbours.clear();
        let mut now = bridged(&[]);
        now.remember(&before);
        assert!(now.forwarding.is_empty());
    }
}
