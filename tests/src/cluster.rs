//! The cluster: nodes on one segment, some with pods, some with egress addresses, and an outside.
//!
//! ```text
//!  pods web, batch, plain    pod app        (pods)
//!   10.65.11.10…          10.65.12.10…    10.65.21.10…
//!     ┌────────┐           ┌────────┐      ┌──────┐         ┌──────┐
//!     │worker-1│           │worker-2│      │ gw-1 │         │ gw-2 │
//!     └───┬────┘           └───┬────┘      └──┬───┘         └──┬───┘
//!     172.18.0.11          172.18.0.12    172.18.0.21      172.18.0.22
//!         │                    │              │ .201 red       │
//!         └────────────────────┴──────────────┴ .202 blue ─────┘
//!                              │ br0  172.18.0.1
//!                          ┌───┴────┐ narrow on wish  ┌─────────┐    ┌──────────┐ 198.51.100.80 elsewhere
//!                          │ fabric ├─────────────────┤ transit ├────┤ internet │ 192.0.2.80    partner
//!                          └───┬────┘ 203.0.113.254 .1└─────────┘    └──────────┘
//!                              │ eth2  10.81.0.1
//!                          ┌───┴────┐
//!                          │firewall│ admits the red egress address, refuses all others
//!                          └───┬────┘
//!                              │ eth1
//!                           internal  10.80.0.80
//! ```
//!
//! The router of the segment, `fabric`, finds every address of `172.18.0.0/24` by asking on the segment, so
//! an egress address works only where a node answers for it. It routes pods' addresses too: a leaked packet
//! would be answered, and shows as a wrong address.
//!
//! Every host has strict reverse-path filters, every node drops what conntrack calls invalid and masquerades
//! what pods send out of the cluster by plain routing.

mod outside;
mod resources;
mod stage;
mod wiring;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{Context, Result};

pub use crate::topology::ELSEWHERE;

pub use self::{
    outside::{INTERNET_HOST, Outside, greeted},
    resources::{
        JOBS, OFFICE, SHOP, egress_gateway, gateway_spec, namespace_of, node_resources, usual,
    },
    stage::{
        ClusterStage, GATEWAY_NODE, KEY, NodeSetup, OVERLAY_PORT, OVERLAY_VNI, Seen, usual_gateways,
    },
};
use crate::{
    Host,
    topology::{Destination, Pod, RED_NETWORK, like},
    workspace::Workspace,
};

/// Prefixes of the cluster, as `--local-cidr` takes them.
pub const LOCAL_CIDRS: [&str; 4] = [
    "10.65.0.0/16",
    "172.18.0.0/24",
    "fd00:65::/32",
    "fd00:18::/64",
];

/// The service behind the firewall.
pub const INTERNAL: Destination = Destination {
    name: "internal service",
    v4: Ipv4Addr::new(10, 80, 0, 80),
    v6: Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 0x80),
};
/// A server on the internet.
pub const PARTNER: Destination = Destination {
    name: "partner",
    ..RED_NETWORK
};
/// The segment's router.
pub const ROUTER: Destination = Destination {
    name: "router",
    v4: Ipv4Addr::new(172, 18, 0, 1),
    v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 1),
};

/// The router behind it, as those see it who come from there.
pub const TRANSIT: Destination = Destination {
    name: "transit",
    v4: Ipv4Addr::new(203, 0, 113, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1),
};

/// An egress address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// The name and the code of its gateway.
    pub name: &'static str,
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

/// The egress address that the firewall admits.
pub const RED: Egress = Egress {
    name: "red",
    v4: Ipv4Addr::new(172, 18, 0, 201),
    v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x201),
};
/// Another one.
pub const BLUE: Egress = Egress {
    name: "blue",
    v4: Ipv4Addr::new(172, 18, 0, 202),
    v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x202),
};

impl Egress {
    /// The address of the same family as `other`.
    #[must_use]
    pub const fn like(self, other: IpAddr) -> IpAddr {
        like(other, self.v4, self.v6)
    }

    /// Both addresses.
    #[must_use]
    pub const fn addresses(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }
}

/// What nodes reach each other by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    /// Nodes have addresses of both families.
    #[default]
    Dual,
    /// Workers have no IPv4 address and no IPv4 route out, and no `Node` names one. Nodes with egress
    /// addresses have one on their uplink, for the outside alone.
    V6,
}

/// What a cluster has.
#[derive(Clone, Debug)]
pub struct ClusterShape {
    /// What nodes reach each other by.
    pub underlay: Underlay,
    /// The nodes, by name.
    pub nodes: Vec<&'static str>,
    /// The pods: name and node.
    pub pods: Vec<(&'static str, &'static str)>,
    /// The MTU of the link between the segment's router and the next, in bytes.
    pub internet_mtu: u16,
    /// The MTU of pods' interfaces, in bytes.
    pub pod_mtu: u16,
}

impl Default for ClusterShape {
    fn default() -> Self {
        Self {
            underlay: Underlay::Dual,
            nodes: vec!["worker-1", "worker-2", "gw-1"],
            pods: vec![
                ("web", "worker-1"),
                ("batch", "worker-1"),
                ("plain", "worker-1"),
                ("app", "worker-2"),
            ],
            internet_mtu: 1500,
            pod_mtu: 1500,
        }
    }
}

/// A node of the cluster; `eth0` is its uplink.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: &'static str,
    /// Its network.
    pub host: Host,
    /// The last part of its addresses.
    pub number: u8,
    /// Its IPv4 address on the segment; what is in its place where it has none answers nowhere.
    pub v4: Ipv4Addr,
    /// Its IPv6 address on the segment.
    pub v6: Ipv6Addr,
}

impl Node {
    /// Its address of the same family as `other`.
    #[must_use]
    pub const fn address_like(&self, other: IpAddr) -> IpAddr {
        like(other, self.v4, self.v6)
    }

    /// The addresses that the node has on its uplink.
    pub fn uplink_addresses(&self) -> Result<Vec<IpAddr>> {
        let listing: serde_json::Value = serde_json::from_str(
            &self
                .host
                .run(&["ip", "-j", "addr", "show", "dev", "eth0"])?,
        )?;
        let addresses = listing[0]["addr_info"].as_array().context("no addresses")?;
        addresses
            .iter()
            .map(|address| {
                let text = address["local"].as_str().context("no address")?;
                Ok(text.parse()?)
            })
            .collect()
    }
}

/// A built cluster; dropping it removes everything.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The pods of all nodes.
    pub pods: Vec<Pod>,
    /// The segment `br0` and its router.
    pub fabric: Host,
    /// The router before the internal service.
    pub firewall: Host,
    /// The internal service's host.
    pub internal: Host,
    /// The router behind the link that may be narrow.
    pub transit: Host,
    /// The host that is everything outside.
    pub internet: Host,
    /// What it was built as.
    pub shape: ClusterShape,
    workspace: Workspace,
}

impl Cluster {
    /// The usual cluster.
    pub fn new() -> Result<Self> {
        Self::build(&ClusterShape::default())
    }

    /// A cluster of this shape.
    pub fn build(shape: &ClusterShape) -> Result<Self> {
        let workspace = Workspace::new()?;
        let [fabric, firewall, internal, transit, internet] =
            ["fabric", "firewall", "internal", "transit", "internet"]
                .map(|role| crate::topology::wiring::router(&workspace, role));
        let mut cluster = Self {
            nodes: Vec::new(),
            pods: Vec::new(),
            fabric: fabric?,
            firewall: firewall?,
            internal: internal?,
            transit: transit?,
            internet: internet?,
            shape: shape.clone(),
            workspace,
        };
        cluster.connect_networks()?;
        for name in &shape.nodes {
            cluster.add_node(name)?;
        }
        cluster.connect_nodes()?;
        for (name, node) in &shape.pods {
            cluster.add_pod(name, node)?;
        }
        for host in cluster.hosts() {
            host.wait_until_up()?;
        }
        Ok(cluster)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.with_context(|| format!("the cluster has no node {name}"))
    }

    /// A pod by name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        let pod = self.pods.iter().find(|pod| pod.name == name);
        pod.with_context(|| format!("the cluster has no pod {name}"))
    }

    /// Everything that agents could have left on the nodes, and their pins.
    pub fn inventory(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for node in &self.nodes {
            let of_node = node.host.inventory()?.into_iter();
            found.extend(of_node.map(|line| format!("{}: {line}", node.name)));
            let directory = self.bpffs().join(node.name);
            if directory.exists() {
                crate::topology::pins(&directory, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Every host.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.fabric, &self.transit, &self.internet]
            .into_iter()
            .chain([&self.firewall, &self.internal])
            .chain(self.nodes.iter().map(|node| &node.host))
            .chain(self.pods.iter().map(|pod| &pod.host))
    }

    /// A directory for files of this cluster.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.workspace.files()
    }

    /// A bpffs of this cluster's own.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.workspace.bpffs()
    }
}
