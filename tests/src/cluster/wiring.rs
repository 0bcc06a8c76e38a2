//! Cables, addresses, routes and rules of the cluster's hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Cluster, INTERNAL, Node, RED, Underlay};
use crate::{
    Host,
    topology::{
        Pod,
        wiring::{SERVERS, bare, connect_as_calico, digits, router},
    },
};

impl Cluster {
    pub(super) fn connect_networks(&self) -> Result<()> {
        self.internet.sysctl(&[PING_FOR_ALL])?;
        let mtu = self.shape.internet_mtu;
        self.fabric.ip(&format!(
            "link set lo up
             link add br0 address 02:18:00:00:00:01 type bridge
             link set br0 up
             addr add 172.18.0.1/24 dev br0
             addr add fd00:18::1/64 dev br0 nodad
             link add eth1 type veth peer name eth0 netns {transit}
             link add eth2 type veth peer name eth0 netns {firewall}
             link set eth1 up mtu {mtu}
             link set eth2 up
             addr add 203.0.113.254/24 dev eth1
             addr add 2001:db8:113::254/64 dev eth1 nodad
             addr add 10.81.0.1/24 dev eth2
             addr add fd00:81::1/64 dev eth2 nodad
             route add default via 203.0.113.1
             route add default via 2001:db8:113::1
             route add 10.80.0.0/24 via 10.81.0.2
             route add fd00:80::/64 via fd00:81::2
             ",
            transit = self.transit.namespace(),
            firewall = self.firewall.namespace(),
        ))?;
        self.transit.ip(&format!(
            "link set lo up
             link add eth1 type veth peer name eth0 netns {internet}
             link set eth0 up mtu {mtu}
             link set eth1 up
             addr add 203.0.113.1/24 dev eth0
             addr add 2001:db8:113::1/64 dev eth0 nodad
             addr add 100.64.0.1/24 dev eth1
             addr add 2001:db8:64::1/64 dev eth1 nodad
             route add default via 203.0.113.254
             route add default via 2001:db8:113::254
             route add 192.0.2.0/24 via 100.64.0.2
             route add 198.51.100.0/24 via 100.64.0.2
             route add 2001:db8:2::/48 via 2001:db8:64::2
             route add 2001:db8:100::/48 via 2001:db8:64::2
             ",
            internet = self.internet.namespace(),
        ))?;
        self.internet.ip("link set lo up
             link set eth0 up
             addr add 100.64.0.2/24 dev eth0
             addr add 2001:db8:64::2/64 dev eth0 nodad
             route add default via 100.64.0.1
             route add default via 2001:db8:64::1
             ")?;
        self.internet.ip(SERVERS)?;
        self.firewall.ip(&format!(
            "link set lo up
             link add eth1 type veth peer name eth0 netns {internal}
             link set eth0 up
             link set eth1 up
             addr add 10.81.0.2/24 dev eth0
             addr add fd00:81::2/64 dev eth0 nodad
             addr add 10.80.0.1/24 dev eth1
             addr add fd00:80::1/64 dev eth1 nodad
             route add default via 10.81.0.1
             route add default via fd00:81::1
             ",
            internal = self.internal.namespace(),
        ))?;
        self.firewall.nft(&firewall_rules())?;
        self.internal.ip(&format!(
            "link set lo up
             link set eth0 up
             addr add {}/24 dev eth0
             addr add {}/64 dev eth0 nodad
             route add default via 10.80.0.1
             route add default via fd00:80::1
             ",
            INTERNAL.v4, INTERNAL.v6
        ))
    }

    /// Adds a node to the segment.
    pub(super) fn add_node(&mut self, name: &'static str) -> Result<()> {
        let number = number_of(name, self.nodes.len())?;
        let host = router(&self.workspace, name)?;
        host.ip(&format!(
            "link set lo up
             link add eth0 type veth peer name {name} netns {fabric}
             link set eth0 up
             addr add fd00:18::{number}/64 dev eth0 nodad
             route add default via fd00:18::1
             ",
            fabric = self.fabric.namespace(),
        ))?;
        self.fabric
            .ip(&format!("link set {name} master br0 up\n"))?;
        if self.shape.underlay == Underlay::Dual || name.starts_with("gw") {
            host.ip(&format!(
                "addr add 172.18.0.{number}/24 dev eth0
                 route add default via 172.18.0.1
                 "
            ))?;
        }
        host.nft(NODE_RULES)?;
        self.nodes.push(Node {
            name,
            host,
            number,
            v4: Ipv4Addr::new(172, 18, 0, number),
            v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, digits(number)?),
        });
        Ok(())
    }

    /// Tells everybody on the segment which node has which pods.
    pub(super) fn connect_nodes(&self) -> Result<()> {
        for node in &self.nodes {
            let number = node.number;
            let v4 = format!("route add 10.65.{number}.0/24 via {}\n", node.v4);
            let v6 = format!("route add fd00:65:0:{number}::/64 via {}\n", node.v6);
            let others = self.nodes.iter().filter(|other| other.name != node.name);
            for host in others.map(|other| &other.host).chain([&self.fabric]) {
                host.ip(&v6)?;
                if self.shape.underlay == Underlay::Dual {
                    host.ip(&v4)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a pod to a node, as Calico connects it.
    pub fn add_pod(&mut self, name: &'static str, node: &'static str) -> Result<&Pod> {
        let place = self.node(node)?.clone();
        let before = self.pods.iter().filter(|pod| pod.node == node).count();
        let (net, own) = (place.number, u8::try_from(before + 10)?);
        let pod = Pod {
            name,
            node,
            host: bare(&self.workspace, &format!("pod-{name}"))?,
            interface: format!("cali-{name}"),
            v4: Ipv4Addr::new(10, 65, net, own),
            v6: Ipv6Addr::new(0xfd00, 0x65, 0, digits(net)?, 0, 0, 0, digits(own)?),
        };
        connect_as_calico(&place.host, &pod, self.shape.pod_mtu)?;
        if self.shape.underlay == Underlay::V6 {
            // A node without an IPv4 route answers for nobody's IPv4 address.
            pod.host.ip(
                "neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent\n",
            )?;
        }
        pod.host.sysctl(&[PING_FOR_ALL])?;
        self.pods.push(pod);
        self.pod(name)
    }

    /// Whom the firewall has refused since it was asked last.
    pub fn refused(&self) -> Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        for set in ["refused4", "refused6"] {
            let place = ["inet", "firewall", set];
            let words = [&["nft", "-j", "list", "set"][..], &place].concat();
            let listing: Value = serde_json::from_str(&self.firewall.run(&words)?)?;
            let items = listing["nftables"]
                .as_array()
                .context("nft printed no list")?;
            let members = items
                .iter()
                .filter_map(|item| item["set"]["elem"].as_array());
            for member in members.flatten() {
                found.push(member.as_str().context("no address")?.parse()?);
            }
            self.firewall
                .run(&[&["nft", "flush", "set"][..], &place].concat())?;
        }
        Ok(found)
    }

    /// A further host on the segment, with the last part of its addresses; `eth0` is its interface.
    pub fn add_stranger(&self, role: &str, number: u8) -> Result<Host> {
        let host = bare(&self.workspace, role)?;
        host.ip(&format!(
            "link set lo up
             link add eth0 type veth peer name {role} netns {fabric}
             link set eth0 up
             addr add 172.18.0.{number}/24 dev eth0
             addr add fd00:18::{number}/64 dev eth0 nodad
             route add default via 172.18.0.1
             route add default via fd00:18::1
             ",
            fabric = self.fabric.namespace(),
        ))?;
        self.fabric
            .ip(&format!("link set {role} master br0 up\n"))?;
        host.wait_until_up()?;
        Ok(host)
    }
}

/// Who may open a socket for echo requests: by default nobody.
const PING_FOR_ALL: (&str, &str) = ("ipv4/ping_group_range", "0 2147483647");

/// Workers from 11, gateway nodes from 21, in the order of their names' numbers.
fn number_of(name: &str, before: usize) -> Result<u8> {
    let start = if name.starts_with("gw") { 20 } else { 10 };
    let own = name.rsplit('-').next().and_then(|text| text.parse().ok());
    Ok(start + own.unwrap_or(u8::try_from(before + 1)?))
}

/// kube-proxy's rule for invalid packets, and Calico's outgoing NAT.
const NODE_RULES: &str = "
table inet kube {
  counter invalid {}
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state invalid counter name invalid drop
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"eth0\" ip saddr 10.65.0.0/16 ip daddr != 10.65.0.0/16 masquerade
    oifname \"eth0\" ip6 saddr fd00:65::/32 ip6 daddr != fd00:65::/32 masquerade
  }
}
";

/// Admits one egress address, and tells everybody else at once.
fn firewall_rules() -> String {
    format!(
        "
table inet firewall {{
  counter admitted {{}}
  counter refused {{}}
  set refused4 {{ type ipv4_addr; flags dynamic; size 1024; }}
  set refused6 {{ type ipv6_addr; flags dynamic; size 1024; }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ip saddr {} counter name admitted accept
    ip6 saddr {} counter name admitted accept
    counter name refused
    meta nfproto ipv4 add @refused4 {{ ip saddr }} reject with icmp type admin-prohibited
    meta nfproto ipv6 add @refused6 {{ ip6 saddr }} reject with icmpv6 type admin-prohibited
  }}
}}
",
        RED.v4, RED.v6
    )
}
