//! The scene: a node with pods, gateways on a DMZ segment behind it, an internal host, the internet.
//!
//! ```text
//!   pod web ────┐                 eth0 ┌────────┐ eth2
//!   pod batch ──┤ cali-…  ┌──────┐─────│ fabric │────── internal   10.70.0.80
//!   pod plain ──┴─────────│ node │     └────────┘
//!   10.65.0.10…           └──────┘         │ eth1
//!                        eth1 │            │
//!                  ┌─────────────────┐     │             192.0.2.80   the red network
//!                  │ dmz 172.19.0/24 │     │           198.51.100.80  anywhere else
//!                  └─┬─────────────┬─┘     │                  │
//!                  red            blue     │             ┌──────────┐
//!               172.19.0.11  172.19.0.12   └─────────────│ internet │
//!                    └─────────────┴─────────────────────└──────────┘
//!               203.0.113.11 203.0.113.12  203.0.113.254   203.0.113.1
//! ```
//!
//! Gateways translate to their own address on the internet's segment; what leaves by the node's
//! default route is translated to the node's address 172.18.0.2. So the caller's address that the
//! internet sees tells which way a packet took, and a leak is a wrong address, not a silence.
//!
//! Every host has strict reverse-path filters, and the node drops what conntrack calls invalid, as
//! kube-proxy makes it.

pub(crate) mod wiring;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use self::wiring::{
    BRIDGE, NODE_RULES, bare, connect_as_calico, connect_networks, connect_to_bridge, digits,
    gateway_rules, router,
};
use crate::{Host, workspace::Workspace};

/// The node's name in the resources.
pub const NODE: &str = "worker-1";
/// What outside hosts see of pods that leave by the node's default route.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// The same for IPv6.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 2);
/// Prefixes of the cluster, as `--local-cidr` takes them.
pub const CLUSTER_CIDRS: [&str; 4] = [
    "10.65.0.0/16",
    "10.70.0.0/16",
    "fd00:65::/32",
    "fd00:70::/32",
];

/// A destination that pods talk to, in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// What it is.
    pub name: &'static str,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// A host of the cluster outside the node.
pub const INTERNAL: Destination = Destination {
    name: "internal host",
    v4: Ipv4Addr::new(10, 70, 0, 80),
    v6: Ipv6Addr::new(0xfd00, 0x70, 0, 0, 0, 0, 0, 0x80),
};
/// A server of the network that only red gateways should talk to.
pub const RED_NETWORK: Destination = Destination {
    name: "red network",
    v4: Ipv4Addr::new(192, 0, 2, 80),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x80),
};
/// A server anywhere else.
pub const ELSEWHERE: Destination = Destination {
    name: "elsewhere",
    v4: Ipv4Addr::new(198, 51, 100, 80),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x80),
};

impl Destination {
    /// Both addresses.
    #[must_use]
    pub const fn addresses(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }
}

/// That one of two addresses which is of the same family as `other`.
pub(crate) const fn like(other: IpAddr, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
    match other {
        IpAddr::V4(_) => IpAddr::V4(v4),
        IpAddr::V6(_) => IpAddr::V6(v6),
    }
}

/// How pods are connected to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Calico's: an interface and host routes for each pod, a gateway that the node answers for.
    #[default]
    Calico,
    /// The bridge plugin's: pods are ports of a bridge that has an address in their network.
    Bridge,
}

/// What a scene has beside its fixed parts.
#[derive(Clone, Debug)]
pub struct Shape {
    /// How pods are connected.
    pub layout: Layout,
    /// The pods, by name.
    pub pods: Vec<&'static str>,
    /// The gateways, by name.
    pub gateways: Vec<&'static str>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            layout: Layout::Calico,
            pods: vec!["web", "batch", "plain"],
            gateways: vec!["red", "blue"],
        }
    }
}

/// A pod: a host that is connected to the node only.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: &'static str,
    /// The name of its node.
    pub node: &'static str,
    /// Its network.
    pub host: Host,
    /// Its interface on the node.
    pub interface: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pod {
    /// Its address of the same family as `other`.
    #[must_use]
    pub const fn address_like(&self, other: IpAddr) -> IpAddr {
        like(other, self.v4, self.v6)
    }
}

/// A gateway that does its own NAT.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Its name.
    pub name: &'static str,
    /// Its network: `eth0` is on the DMZ, `eth1` on the internet's segment.
    pub host: Host,
    /// Its IPv4 address on the DMZ: the next hop.
    pub hop_v4: Ipv4Addr,
    /// Its IPv6 address on the DMZ.
    pub hop_v6: Ipv6Addr,
    /// The IPv4 address that the internet sees.
    pub egress_v4: Ipv4Addr,
    /// The IPv6 address that the internet sees.
    pub egress_v6: Ipv6Addr,
}

impl Gateway {
    /// The address that the internet sees, of the same family as `other`.
    #[must_use]
    pub const fn egress_like(&self, other: IpAddr) -> IpAddr {
        like(other, self.egress_v4, self.egress_v6)
    }
}

/// A built scene; dropping it removes everything.
#[derive(Debug)]
pub struct Scene {
    /// The node: `eth0` is its uplink, `eth1` leads to the DMZ.
    pub node: Host,
    /// The router that the node's uplink leads to.
    pub fabric: Host,
    /// The segment between node and gateways: a bridge `br0`.
    pub dmz: Host,
    /// The host of the cluster.
    pub internal: Host,
    /// The host that is everything outside.
    pub internet: Host,
    /// The pods.
    pub pods: Vec<Pod>,
    /// The gateways.
    pub gateways: Vec<Gateway>,
    workspace: Workspace,
}

impl Scene {
    /// The usual scene.
    pub fn new() -> Result<Self> {
        Self::build(&Shape::default())
    }

    /// A scene of this shape.
    pub fn build(shape: &Shape) -> Result<Self> {
        let workspace = Workspace::new()?;
        let [node, fabric, dmz, internal, internet] =
            ["node", "fabric", "dmz", "internal", "internet"].map(|role| router(&workspace, role));
        let (node, fabric, dmz, internal, internet) = (node?, fabric?, dmz?, internal?, internet?);
        connect_networks(&node, &fabric, &dmz, &internal, &internet)?;
        let mut scene = Self {
            node,
            fabric,
            dmz,
            internal,
            internet,
            pods: Vec::new(),
            gateways: Vec::new(),
            workspace,
        };
        scene.node.nft(NODE_RULES)?;
        if shape.layout == Layout::Bridge {
            scene.node.ip(BRIDGE)?;
        }
        for name in &shape.gateways {
            scene.add_gateway(name)?;
        }
        for name in &shape.pods {
            scene.add_pod(name, shape.layout)?;
        }
        for host in [
            &scene.node,
            &scene.fabric,
            &scene.dmz,
            &scene.internal,
            &scene.internet,
        ] {
            host.wait_until_up()?;
        }
        for host in scene.pods.iter().map(|pod| &pod.host) {
            host.wait_until_up()?;
        }
        for host in scene.gateways.iter().map(|gateway| &gateway.host) {
            host.wait_until_up()?;
        }
        Ok(scene)
    }

    /// A pod by name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        let pod = self.pods.iter().find(|pod| pod.name == name);
        pod.with_context(|| format!("the scene has no pod {name}"))
    }

    /// A gateway by name.
    pub fn gateway(&self, name: &str) -> Result<&Gateway> {
        let gateway = self.gateways.iter().find(|gateway| gateway.name == name);
        gateway.with_context(|| format!("the scene has no gateway {name}"))
    }

    /// A directory for files of this scene.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.workspace.files()
    }

    /// A bpffs of this scene's own.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.workspace.bpffs()
    }

    /// Everything that an agent could have left on the node, and its pins.
    pub fn inventory(&self) -> Result<Vec<String>> {
        let mut found = self.node.inventory()?;
        pins(&self.bpffs(), &mut found)?;
        Ok(found)
    }

    /// A further host that forwards, for a test that needs one; the test connects it.
    pub fn add_router(&self, role: &str) -> Result<Host> {
        router(&self.workspace, role)
    }

    /// Has the internet know the way to pods, so that it can call them.
    pub fn route_internet_to_pods(&self) -> Result<()> {
        self.internet.ip("route add 10.65.0.0/16 via 203.0.113.254
             route add fd00:65::/32 via 2001:db8:113::254
             ")
    }

    /// Adds a gateway to the DMZ.
    pub fn add_gateway(&mut self, name: &'static str) -> Result<&Gateway> {
        let number = u8::try_from(self.gateways.len() + 11)?;
        let host = router(&self.workspace, name)?;
        let (dmz, internet) = (self.dmz.namespace(), self.internet.namespace());
        host.ip(&format!(
            "link add eth0 type veth peer name {name}0 netns {dmz}
             link add eth1 type veth peer name {name}0 netns {internet}
             link set lo up
             link set eth0 up
             link set eth1 up
             addr add 172.19.0.{number}/24 dev eth0
             addr add fd00:19::{number}/64 dev eth0 nodad
             addr add 203.0.113.{number}/24 dev eth1
             addr add 2001:db8:113::{number}/64 dev eth1 nodad
             route add default via 203.0.113.1
             route add default via 2001:db8:113::1
             route add 10.65.0.0/16 via 172.19.0.2
             route add fd00:65::/32 via fd00:19::2
             "
        ))?;
        self.dmz.ip(&format!("link set {name}0 master br0 up\n"))?;
        self.internet
            .ip(&format!("link set {name}0 master wan0 up\n"))?;
        host.nft(&gateway_rules(number))?;
        let wide = digits(number)?;
        self.gateways.push(Gateway {
            name,
            host,
            hop_v4: Ipv4Addr::new(172, 19, 0, number),
            hop_v6: Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, wide),
            egress_v4: Ipv4Addr::new(203, 0, 113, number),
            egress_v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, wide),
        });
        self.gateway(name)
    }

    /// Adds a pod to the node.
    pub fn add_pod(&mut self, name: &'static str, layout: Layout) -> Result<&Pod> {
        let number = u8::try_from(self.pods.len() + 10)?;
        let interface = match layout {
            Layout::Calico => format!("cali-{name}0"),
            Layout::Bridge => format!("veth-{name}0"),
        };
        let host = bare(&self.workspace, &format!("pod-{name}"))?;
        let pod = Pod {
            name,
            node: NODE,
            host,
            interface,
            v4: Ipv4Addr::new(10, 65, 0, number),
            v6: Ipv6Addr::new(0xfd00, 0x65, 0, 0, 0, 0, 0, digits(number)?),
        };
        match layout {
            Layout::Calico => connect_as_calico(&self.node, &pod, 1500)?,
            Layout::Bridge => connect_to_bridge(&self.node, &pod)?,
        }
        self.pods.push(pod);
        self.pod(name)
    }
}

pub(crate) fn pins(directory: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        found.push(path.display().to_string());
        if path.is_dir() {
            pins(&path, found)?;
        }
    }
    Ok(())
}
