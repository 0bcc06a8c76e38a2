//! Which interfaces lead beyond the cluster.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{NodeView, Route};

impl NodeView {
    /// The devices that a route of any table, for anything that is not `local`, leads out of, and the ports to the
    /// routers behind bridges.
    ///
    /// A host that is on-link itself is no such thing: that is how a pod, or a container of somebody else's, is reached.
    #[must_use]
    pub fn leading_beyond(&self, local: &BTreeSet<IpNet>) -> BTreeSet<u32> {
        let lengths: BTreeSet<u8> = local.iter().map(IpNet::prefix_len).collect();
        let is_local = |net: &IpNet| {
            lengths
                .iter()
                .filter(|length| **length <= net.prefix_len())
                .filter_map(|length| IpNet::new(net.addr(), *length).ok())
                .any(|around| local.contains(&around.trunc()))
        };
        let mut leading = BTreeSet::new();
        let of_main = self.routes.iter().filter(|route| !route.is_host_on_link());
        let of_main = of_main.map(|route| (route.ifindex, route.destination));
        for (ifindex, net) in of_main.chain(self.ruled.iter().copied()) {
            let usable = self.links.get(&ifindex).is_some_and(|link| !link.loopback);
            if usable && !leading.contains(&ifindex) && !is_local(&net) {
                leading.insert(ifindex);
            }
        }
        let ports: Vec<u32> = self
            .routes
            .iter()
            .filter(|route| leading.contains(&route.ifindex))
            .flat_map(|route| self.ports_to_router(route))
            .collect();
        leading.extend(ports);
        leading
    }

    /// The ports of a bridge behind which the route's router is.
    fn ports_to_router(&self, route: &Route) -> impl Iterator<Item = u32> {
        let bridge = route.ifindex;
        let is_bridge = self.links.get(&bridge).is_some_and(|link| link.bridge);
        let router = route.gateway.filter(|_| is_bridge);
        let mac = router.and_then(|router| {
            let neighbour = |n: &&super::Neighbour| n.ifindex == bridge && n.address == router;
            self.neighbours.iter().find(neighbour).map(|n| n.mac)
        });
        self.forwarding
            .iter()
            .filter(move |entry| Some(entry.mac) == mac)
            .map(|entry| entry.port)
            .filter(move |port| self.master(*port) == Some(bridge))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may fail loudly")]
mod tests {
    use egress_common::Mac;

    use super::*;
    use crate::node::{ForwardingEntry, Link, Neighbour};

    const LOOPBACK: u32 = 1;
    const ETH0: u32 = 2;
    const ETH1: u32 = 3;
    const TUNNEL: u32 = 4;
    const POD: u32 = 5;
    const BRIDGE: u32 = 6;
    const PORT: u32 = 7;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn view(routes: &[(&str, Option<&str>, u32)], ruled: &[(u32, &str)]) -> NodeView {
        let mut links: std::collections::BTreeMap<u32, Link> = [
            (ETH0, "eth0"),
            (ETH1, "eth1"),
            (TUNNEL, "flannel.1"),
            (POD, "cali1"),
            (BRIDGE, "br0"),
            (PORT, "eth2"),
        ]
        .map(|(index, name)| (index, Link::ethernet(name)))
        .into();
        links.insert(
            LOOPBACK,
            Link {
                loopback: true,
                ..Link::ethernet("lo")
            },
        );
        links.entry(BRIDGE).and_modify(|link| link.bridge = true);
        links
            .entry(PORT)
            .and_modify(|link| link.master = Some(BRIDGE));
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        NodeView {
            links,
            routes: routes
                .iter()
                .map(|(destination, gateway, ifindex)| Route {
                    destination: net(destination),
                    gateway: gateway.map(|gateway| gateway.parse().unwrap()),
                    ifindex: *ifindex,
                    metric: 0,
                    mtu: None,
                })
                .collect(),
            ruled: ruled.iter().map(|(index, to)| (*index, net(to))).collect(),
            neighbours: vec![Neighbour {
                ifindex: BRIDGE,
                address: "192.0.2.1".parse().unwrap(),
                mac,
            }],
            forwarding: vec![ForwardingEntry { port: PORT, mac }],
            ..NodeView::default()
        }
    }

    #[test]
    fn whatever_leads_beyond_the_cluster() {
        type Row<'a> = (
            &'a str,
            &'a [(&'a str, Option<&'a str>, u32)],
            &'a [(u32, &'a str)],
            &'a [u32],
        );
        let local: BTreeSet<IpNet> = ["10.244.0.0/16", "fd00::/64", "fe80::/10"].map(net).into();
        let rows: &[Row<'_>] = &[
            ("nothing", &[], &[], &[]),
            (
                "default routes of both families",
                &[
                    ("0.0.0.0/0", Some("198.51.100.1"), ETH0),
                    ("::/0", Some("2001:db8::1"), ETH1),
                ],
                &[],
                &[ETH0, ETH1],
            ),
            (
                "a network that is on-link",
                &[("198.51.100.0/24", None, ETH0)],
                &[],
                &[ETH0],
            ),
            (
                "a host behind a router",
                &[("192.0.2.9/32", Some("198.51.100.1"), ETH0)],
                &[],
                &[ETH0],
            ),
            (
                "a host that is on-link",
                &[("192.0.2.9/32", None, POD)],
                &[],
                &[],
            ),
            (
                "pods of this and of other nodes",
                &[
                    ("10.244.1.0/24", Some("10.244.1.0"), TUNNEL),
                    ("10.244.0.7/32", None, POD),
                    ("fd00::/80", None, TUNNEL),
                    ("fe80::/64", None, POD),
                ],
                &[],
                &[],
            ),
            (
                "more than the cluster",
                &[("10.0.0.0/8", Some("10.244.1.0"), TUNNEL)],
                &[],
                &[TUNNEL],
            ),
            (
                "another table",
                &[],
                &[
                    (ETH1, "0.0.0.0/0"),
                    (TUNNEL, "10.244.2.0/24"),
                    (99, "0.0.0.0/0"),
                ],
                &[ETH1],
            ),
            (
                "the loopback device",
                &[("192.0.2.0/24", None, LOOPBACK)],
                &[],
                &[],
            ),
            (
                "a bridge's port",
                &[("0.0.0.0/0", Some("192.0.2.1"), BRIDGE)],
                &[],
                &[BRIDGE, PORT],
            ),
            (
                "another router",
                &[("0.0.0.0/0", Some("192.0.2.2"), BRIDGE)],
                &[],
                &[BRIDGE],
            ),
        ];
        for (what, routes, ruled, leading) in rows {
            let found = view(routes, ruled).leading_beyond(&local);
            assert!(found.iter().eq(*leading), "{what}: {found:?}");
        }
    }
}
