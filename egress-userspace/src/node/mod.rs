//! What the kernel says of this node: links, addresses, routes, neighbours, forwarding entries.

use std::{collections::BTreeMap, net::IpAddr};

use egress_common::Mac;
use ipnet::IpNet;

/// A consistent reading of the node's network, in one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Links by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses of the node's own interfaces, with their prefix lengths.
    pub addresses: Vec<(u32, IpNet)>,
    /// Unicast routes of the main table.
    pub routes: Vec<Route>,
    /// Neighbours with a known MAC.
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

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The next hop; none is on-link.
    pub gateway: Option<IpAddr>,
    /// The device.
    pub ifindex: u32,
    /// Lower wins among routes to the same prefix.
    pub metric: u32,
}

/// A neighbour entry with a MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The device.
    pub ifindex: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: Mac,
}

/// An entry of a bridge's forwarding table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardingEntry {
    /// The bridge port.
    pub port: u32,
    /// The MAC behind it.
    pub mac: Mac,
}
