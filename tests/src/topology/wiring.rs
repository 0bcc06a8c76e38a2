//! Cables, addresses, routes and rules of the scene's fixed hosts.

use anyhow::Result;

use super::Pod;
use crate::{Host, workspace::Workspace};

/// A host with strict checks that does not forward.
pub(crate) fn bare(workspace: &Workspace, role: &str) -> Result<Host> {
    let host = workspace.host(role)?;
    host.sysctl(&[
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        // Nobody here has anybody else's address: no need to wait and see.
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        // A limit meant for the outside world; tests send errors as fast as they can.
        ("ipv6/icmp/ratelimit", "0"),
        ("ipv4/icmp_ratelimit", "0"),
    ])?;
    Ok(host)
}

pub(crate) fn router(workspace: &Workspace, role: &str) -> Result<Host> {
    let host = bare(workspace, role)?;
    host.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    Ok(host)
}

pub(super) fn connect_networks(
    node: &Host,
    fabric: &Host,
    dmz: &Host,
    internal: &Host,
    internet: &Host,
) -> Result<()> {
    dmz.ip("link set lo up
            link add br0 type bridge
            link set br0 up
            ")?;
    node.ip(&format!(
        "link set lo up
         link add eth0 type veth peer name eth0 netns {}
         link add eth1 type veth peer name node0 netns {}
         link set eth0 up
         link set eth1 up
         addr add 172.18.0.2/24 dev eth0
         addr add fd00:18::2/64 dev eth0 nodad
         addr add 172.19.0.2/24 dev eth1
         addr add fd00:19::2/64 dev eth1 nodad
         route add default via 172.18.0.1
         route add default via fd00:18::1
         ",
        fabric.namespace(),
        dmz.namespace()
    ))?;
    dmz.ip("link set node0 master br0 up\n")?;
    internet.ip("link set lo up
         link add wan0 type bridge
         link set wan0 up
         addr add 203.0.113.1/24 dev wan0
         addr add 2001:db8:113::1/64 dev wan0 nodad
         ")?;
    internet.ip(SERVERS)?;
    fabric.ip(&format!(
        "link set lo up
         link add eth1 type veth peer name fabric0 netns {}
         link add eth2 type veth peer name eth0 netns {}
         link set eth0 up
         link set eth1 up
         link set eth2 up
         addr add 172.18.0.1/24 dev eth0
         addr add fd00:18::1/64 dev eth0 nodad
         addr add 203.0.113.254/24 dev eth1
         addr add 2001:db8:113::254/64 dev eth1 nodad
         addr add 10.70.0.1/24 dev eth2
         addr add fd00:70::1/64 dev eth2 nodad
         route add default via 203.0.113.1
         route add default via 2001:db8:113::1
         route add 10.65.0.0/16 via 172.18.0.2
         route add fd00:65::/32 via fd00:18::2
         ",
        internet.namespace(),
        internal.namespace()
    ))?;
    internet.ip("link set fabric0 master wan0 up
         route add 172.18.0.0/24 via 203.0.113.254
         route add fd00:18::/64 via 2001:db8:113::254
         ")?;
    internet.nft(INTERNET_RULES)?;
    internal.ip("link set lo up
         link set eth0 up
         addr add 10.70.0.80/24 dev eth0
         addr add fd00:70::80/64 dev eth0 nodad
         route add default via 10.70.0.1
         route add default via fd00:70::1
         ")
}

/// The addresses of all servers on the internet.
pub(crate) const SERVERS: &str = "addr add 192.0.2.80/32 dev lo
addr add 2001:db8:2::80/128 dev lo nodad
addr add 198.51.100.80/32 dev lo
addr add 2001:db8:100::80/128 dev lo nodad
";

/// Connects a pod to its node as Calico does: host routes, and a gateway that the node answers for.
pub(crate) fn connect_as_calico(node: &Host, pod: &Pod, mtu: u16) -> Result<()> {
    let Pod {
        host,
        interface,
        v4,
        v6,
        ..
    } = pod;
    node.ip(&format!(
        "link add {interface} type veth peer name eth0 netns {inside}
         link set {interface} address ee:ee:ee:ee:ee:ee
         link set {interface} up mtu {mtu}
         route add {v4}/32 dev {interface} scope link
         route add {v6}/128 dev {interface}
         ",
        inside = host.namespace()
    ))?;
    node.sysctl(&[
        (&format!("ipv4/conf/{interface}/proxy_arp"), "1"),
        (&format!("ipv4/neigh/{interface}/proxy_delay"), "0"),
    ])?;
    host.ip(&format!(
        "link set lo up
         link set eth0 up mtu {mtu}
         addr add {v6}/128 dev eth0 nodad
         addr add {v4}/32 dev eth0
         route add 169.254.1.1 dev eth0 scope link
         route add default via 169.254.1.1 dev eth0
         route add default via fe80::ecee:eeff:feee:eeee dev eth0
         "
    ))
}

/// Makes a pod a port of its node's bridge, as the bridge plugin does.
pub(super) fn connect_to_bridge(node: &Host, pod: &Pod) -> Result<()> {
    let Pod {
        host,
        interface,
        v4,
        v6,
        ..
    } = pod;
    node.ip(&format!(
        "link add {interface} type veth peer name eth0 netns {inside}
         link set {interface} master cni0 up
         ",
        inside = host.namespace()
    ))?;
    host.ip(&format!(
        "link set lo up
         link set eth0 up
         addr add {v6}/64 dev eth0 nodad
         addr add {v4}/24 dev eth0
         route add default via 10.65.0.1
         route add default via fd00:65::1
         "
    ))
}

/// The number whose hexadecimal digits look like this number's decimal ones.
pub(crate) fn digits(number: u8) -> Result<u16> {
    Ok(u16::from_str_radix(&number.to_string(), 16)?)
}

pub(super) const BRIDGE: &str = "link add cni0 type bridge
link set cni0 up
addr add 10.65.0.1/24 dev cni0
addr add fd00:65::1/64 dev cni0 nodad
";

/// kube-proxy's rule for invalid packets, and Calico's outgoing NAT.
pub(super) const NODE_RULES: &str = "
table inet kube {
  counter invalid {}
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state invalid counter name invalid drop
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"eth0\" ip saddr 10.65.0.0/16 ip daddr != { 10.0.0.0/8, 172.16.0.0/12 } masquerade
    oifname \"eth0\" ip6 saddr fd00:65::/32 ip6 daddr != fd00::/8 masquerade
  }
}
";

/// Counts what arrives, by way.
const INTERNET_RULES: &str = "
table inet seen {
  counter leaked {}
  counter by_node {}
  chain prerouting {
    type filter hook prerouting priority -450; policy accept;
    ip saddr 10.0.0.0/8 counter name leaked
    ip6 saddr fd00:65::/32 counter name leaked
    ip saddr 172.18.0.0/24 counter name by_node
    ip6 saddr fd00:18::/64 counter name by_node
  }
}
";

/// A gateway's own translation, and what it sees of pods.
pub(super) fn gateway_rules(number: u8) -> String {
    format!(
        "
table inet gateway {{
  counter from_pods {{}}
  counter to_pods {{}}
  chain prerouting {{
    type filter hook prerouting priority -450; policy accept;
    iifname \"eth0\" ip saddr 10.65.0.0/16 counter name from_pods
    iifname \"eth0\" ip6 saddr fd00:65::/32 counter name from_pods
  }}
  chain count_replies {{
    type filter hook postrouting priority 300; policy accept;
    oifname \"eth0\" ip daddr 10.65.0.0/16 counter name to_pods
    oifname \"eth0\" ip6 daddr fd00:65::/32 counter name to_pods
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"eth1\" snat ip to 203.0.113.{number}
    oifname \"eth1\" snat ip6 to 2001:db8:113::{number}
  }}
}}
"
    )
}
