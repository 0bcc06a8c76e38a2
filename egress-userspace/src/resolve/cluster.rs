//! Prefixes that are local because they are the cluster's own, or nobody's to steer.
//!
//! Every node's addresses are, and so are pods', those of gateway pods included. An egress address is not: it is
//! an address of the outside, and what a policy says of the outside holds for it too, on the node that has it as
//! on all others. Only one that a node has anyway is local, as that node's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Assigned, Settings};
use crate::{
    model::{Model, Phase},
    node::NodeView,
    state::Local,
};

/// Every cluster prefix. Pods' addresses that a known prefix covers are left out, since pods come and go; nodes'
/// never are, so that no rule for a part of that prefix takes what pods send to a node.
pub(super) fn prefixes(
    model: &Model,
    node: &NodeView,
    settings: &Settings,
    assigned: &Assigned,
) -> BTreeSet<IpNet> {
    let mut cover = Cover::default();
    let configured = model.cluster_prefixes.iter().chain(&settings.local_cidrs);
    let pod_cidrs = model.nodes.values().flat_map(|node| &node.pod_cidrs);
    for net in configured.chain(pod_cidrs) {
        cover.insert(net.trunc());
    }
    for net in built_in() {
        cover.insert(net);
    }
    let pods = model
        .pods
        .values()
        .filter(|pod| pod.phase == Phase::Alive && !pod.host_network)
        .flat_map(|pod| &pod.addresses);
    let single: Vec<_> = pods
        .filter(|&&address| !cover.covers(address))
        .map(|&address| IpNet::from(address))
        .collect();
    let nodes = model.nodes.values().flat_map(|node| &node.addresses);
    let mut prefixes = cover.prefixes;
    prefixes.extend(single);
    prefixes.extend(nodes.copied().map(IpNet::from));
    prefixes.extend(own(node, assigned));
    prefixes
}

/// Why each of these prefixes is local: an address of this node's own is more than the cluster's.
pub(super) fn locals(
    prefixes: &BTreeSet<IpNet>,
    node: &NodeView,
    assigned: &Assigned,
) -> BTreeMap<IpNet, Local> {
    let own: BTreeSet<IpNet> = own(node, assigned).collect();
    let why = |net: &IpNet| {
        if own.contains(net) {
            Local::Node
        } else {
            Local::Cluster
        }
    };
    prefixes.iter().map(|net| (*net, why(net))).collect()
}

/// Addresses of this node's interfaces but those that we assigned, and the broadcast addresses of their subnets.
fn own(node: &NodeView, assigned: &Assigned) -> impl Iterator<Item = IpNet> {
    node.addresses
        .iter()
        .filter(|(_, net)| !assigned.contains(&net.addr()))
        .filter(|(_, net)| !match net.addr() {
            IpAddr::V4(a) => a.is_loopback() || a.is_link_local(),
            IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local(),
        })
        .flat_map(|(_, net)| {
            let broadcast = match net {
                // RFC 3021: a /31 has none.
                IpNet::V4(v4) if v4.prefix_len() < 31 => {
                    Some(IpNet::from(IpAddr::from(v4.broadcast())))
                }
                IpNet::V4(_) | IpNet::V6(_) => None,
            };
            [Some(IpNet::from(net.addr())), broadcast]
        })
        .flatten()
}

/// Loopback, link-local, multicast and broadcast.
fn built_in() -> [IpNet; 7] {
    const V4: [Ipv4Net; 4] = [
        Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
        Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
        Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32),
    ];
    const V6: [Ipv6Net; 3] = [
        Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
        Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    ];
    let [a, b, c, d] = V4.map(IpNet::V4);
    let [e, f, g] = V6.map(IpNet::V6);
    [a, b, c, d, e, f, g]
}

/// Prefixes, and quickly whether one of them covers an address.
#[derive(Default)]
struct Cover {
    prefixes: BTreeSet<IpNet>,
    /// Prefix lengths that occur, by whether they are IPv4's.
    lengths: BTreeMap<bool, BTreeSet<u8>>,
}

impl Cover {
    fn insert(&mut self, net: IpNet) {
        self.lengths
            .entry(net.addr().is_ipv4())
            .or_default()
            .insert(net.prefix_len());
        self.prefixes.insert(net);
    }

    fn covers(&self, address: IpAddr) -> bool {
        self.lengths
            .get(&address.is_ipv4())
            .into_iter()
            .flatten()
            .filter_map(|&length| IpNet::new(address, length).ok())
            .any(|net| self.prefixes.contains(&net.trunc()))
    }
}
