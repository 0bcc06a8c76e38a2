//! One node, and what is asked of it, row by row.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "rows say what they are; a test that cannot go on says where"
)]

use super::*;
use crate::node::{ForwardingEntry, Neighbour};

const LO: u32 = 1;
const ETH0: u32 = 2;
const ETH1: u32 = 3;
const VETH: u32 = 4;
const VETH2: u32 = 5;
const BRIDGE: u32 = 6;
const PORT: u32 = 7;
const PORT2: u32 = 8;
const TUN: u32 = 9;
const DOWN: u32 = 10;

fn link(name: &str) -> Link {
    Link {
        name: name.to_owned(),
        mtu: 1500,
        up: true,
        bridge: false,
        loopback: false,
        ethernet: true,
        master: None,
    }
}

fn port(name: &str) -> Link {
    Link {
        master: Some(BRIDGE),
        ..link(name)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn route(destination: &str, gateway: Option<&str>, ifindex: u32, metric: u32) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        gateway: gateway.map(ip),
        ifindex,
        metric,
        mtu: None,
    }
}

fn node() -> NodeView {
    let neighbour = |address, mac| Neighbour {
        ifindex: BRIDGE,
        address: ip(address),
        mac: Mac([2, 0, 0, 0, 0, mac]),
    };
    let forwarding = |port, mac| ForwardingEntry {
        port,
        mac: Mac([2, 0, 0, 0, 0, mac]),
    };
    NodeView {
        links: [
            (
                LO,
                Link {
                    loopback: true,
                    ethernet: false,
                    mtu: 65536,
                    ..link("lo")
                },
            ),
            (ETH0, link("eth0")),
            (
                ETH1,
                Link {
                    mtu: 9000,
                    ..link("eth1")
                },
            ),
            (VETH, link("veth1")),
            (VETH2, link("veth2")),
            (
                BRIDGE,
                Link {
                    bridge: true,
                    ..link("br0")
                },
            ),
            (PORT, port("port1")),
            (PORT2, port("port2")),
            (
                TUN,
                Link {
                    ethernet: false,
                    ..link("tun0")
                },
            ),
            (
                DOWN,
                Link {
                    up: false,
                    ..link("down0")
                },
            ),
        ]
        .into(),
        addresses: vec![
            (LO, "127.0.0.1/8".parse().unwrap()),
            (ETH0, "192.0.2.10/24".parse().unwrap()),
            (ETH0, "2001:db8::10/64".parse().unwrap()),
            (BRIDGE, "10.1.0.1/24".parse().unwrap()),
        ],
        routes: vec![
            route("0.0.0.0/0", Some("192.0.2.1"), ETH0, 0),
            route("::/0", Some("2001:db8::1"), ETH0, 1024),
            route("192.0.2.0/24", None, ETH0, 0),
            route("2001:db8::/64", None, ETH0, 256),
            route("fe80::/64", None, ETH0, 256),
            route("fe80::/64", None, ETH1, 256),
            // The same network twice: by metric, and by carrier.
            route("198.51.100.0/24", None, ETH0, 100),
            route("198.51.100.0/24", None, ETH1, 50),
            route("198.51.100.0/24", None, DOWN, 10),
            route("203.0.113.0/24", None, ETH0, 0),
            route("203.0.113.128/25", Some("192.0.2.2"), ETH0, 0),
            route("10.0.0.2/32", None, VETH, 0),
            route("2001:db8:1::2/128", None, VETH, 1024),
            route("10.0.0.3/32", None, VETH2, 0),
            route("2001:db8:1::3/128", None, VETH, 1024),
            route("10.0.0.4/32", None, ETH0, 0),
            route("10.0.0.5/32", None, TUN, 0),
            route("10.0.0.6/32", None, LO, 0),
            route("10.0.0.7/32", None, VETH, 0),
            route("10.0.0.7/32", None, VETH2, 0),
            route("10.0.1.0/24", None, VETH, 0),
            route("10.0.2.0/24", Some("192.0.2.2"), ETH0, 0),
            route("10.0.3.2/32", Some("10.0.0.2"), VETH, 0),
            route("10.1.0.0/24", None, BRIDGE, 0),
            route("10.1.0.9/32", None, BRIDGE, 0),
            route("10.9.0.0/16", None, DOWN, 0),
            route("10.8.0.0/16", None, TUN, 0),
            Route {
                mtu: Some(1400),
                ..route("10.7.0.0/16", None, ETH1, 0)
            },
            Route {
                mtu: Some(9999),
                ..route("10.6.0.0/16", None, ETH0, 0)
            },
        ],
        neighbours: vec![
            neighbour("10.1.0.2", 2),
            neighbour("10.1.0.3", 3),
            neighbour("10.1.0.4", 4),
            neighbour("10.1.0.9", 2),
        ],
        forwarding: vec![
            forwarding(PORT, 2),
            forwarding(PORT, 4),
            forwarding(PORT2, 4),
        ],
    }
}

#[test]
fn where_a_pods_interface_is() {
    let rows: &[(&str, &[&str], Option<&str>, Result<u32, &str>)] = &[
        ("host route", &["10.0.0.2"], None, Ok(VETH)),
        ("host route, IPv6", &["2001:db8:1::2"], None, Ok(VETH)),
        (
            "both families",
            &["10.0.0.2", "2001:db8:1::2"],
            None,
            Ok(VETH),
        ),
        (
            "families that disagree",
            &["10.0.0.3", "2001:db8:1::3"],
            None,
            Err("different interfaces"),
        ),
        (
            "families that disagree, hinted",
            &["10.0.0.3", "2001:db8:1::3"],
            Some("veth2"),
            Err("different interfaces"),
        ),
        (
            "one family without a route",
            &["10.0.0.2", "2001:db8:9::9"],
            None,
            Ok(VETH),
        ),
        (
            "the route wins over the hint",
            &["10.0.0.2"],
            Some("veth2"),
            Ok(VETH),
        ),
        ("the neighbour's port", &["10.1.0.2"], None, Ok(PORT)),
        (
            "the hint names another port of the bridge",
            &["10.1.0.2"],
            Some("port2"),
            Ok(PORT2),
        ),
        (
            "the hint names a port where the tables name two",
            &["10.1.0.4"],
            Some("port1"),
            Ok(PORT),
        ),
        (
            "the hint names no port of the bridge",
            &["10.1.0.2"],
            Some("veth2"),
            Ok(PORT),
        ),
        ("host route to a bridge", &["10.1.0.9"], None, Ok(PORT)),
        (
            "bridge without the neighbour",
            &["10.1.0.7"],
            None,
            Err("not learned its MAC"),
        ),
        (
            "bridge without the neighbour, hinted",
            &["10.1.0.7"],
            Some("port2"),
            Ok(PORT2),
        ),
        (
            "bridge without the port",
            &["10.1.0.3"],
            None,
            Err("not learned the port"),
        ),
        (
            "a MAC on two ports",
            &["10.1.0.4"],
            None,
            Err("several ports"),
        ),
        (
            "subnet route",
            &["10.0.1.2"],
            None,
            Err("veth1 is not the pod's own interface"),
        ),
        (
            "subnet route, hinted",
            &["10.0.1.2"],
            Some("veth2"),
            Ok(VETH2),
        ),
        (
            "behind a router",
            &["10.0.2.2"],
            None,
            Err("router 192.0.2.2"),
        ),
        (
            "host route behind a router",
            &["10.0.3.2"],
            None,
            Err("router 10.0.0.2"),
        ),
        (
            "only the default route",
            &["10.200.0.1"],
            None,
            Err("router 192.0.2.1"),
        ),
        (
            "only the default route, hinted",
            &["10.200.0.1"],
            Some("veth2"),
            Ok(VETH2),
        ),
        (
            "the hint does not exist",
            &["10.200.0.1"],
            Some("veth9"),
            Err("names veth9"),
        ),
        (
            "the hint is a bridge",
            &["10.200.0.1"],
            Some("br0"),
            Err("it is a bridge"),
        ),
        (
            "the hint is the uplink",
            &["10.200.0.1"],
            Some("eth0"),
            Err("default route"),
        ),
        (
            "the hint is loopback",
            &["10.200.0.1"],
            Some("lo"),
            Err("loopback"),
        ),
        (
            "host route out of the uplink",
            &["10.0.0.4"],
            None,
            Err("default route"),
        ),
        ("no Ethernet", &["10.0.0.5"], None, Err("Ethernet")),
        (
            "host route to loopback",
            &["10.0.0.6"],
            None,
            Err("loopback"),
        ),
        ("two paths", &["10.0.0.7"], None, Err("several paths")),
        (
            "the node's address",
            &["192.0.2.10"],
            None,
            Err("address of the node"),
        ),
        (
            "the node's address, hinted",
            &["192.0.2.10"],
            Some("veth1"),
            Err("address of the node"),
        ),
        (
            "loopback's address",
            &["127.0.0.2"],
            None,
            Err("address of the node"),
        ),
    ];
    let node = node();
    for (what, addresses, hint, expected) in rows {
        let addresses: Vec<_> = addresses.iter().map(|a| ip(a)).collect();
        match (node.pod_interface(&addresses, *hint), expected) {
            (Ok(ifindex), Ok(expected)) => assert_eq!(ifindex, *expected, "{what}"),
            (Err(problem), Err(text)) => {
                assert!(problem.to_string().contains(text), "{what}: {problem}");
            }
            (result, expected) => panic!("{what}: {result:?}, not {expected:?}"),
        }
    }
}

#[test]
fn what_a_pod_can_forge_is_told_from_what_it_cannot() {
    let rows: &[(&str, &[&str], Option<&str>, bool)] = &[
        ("host route", &["10.0.0.2"], None, false),
        ("tables", &["10.1.0.2"], None, true),
        ("a port, hinted", &["10.1.0.2"], Some("port2"), false),
        ("no port, hinted", &["10.1.0.2"], Some("veth2"), true),
        (
            "tables that tell nothing",
            &["10.1.0.7"],
            Some("veth2"),
            true,
        ),
        (
            "routes that tell nothing",
            &["10.200.0.1"],
            Some("veth2"),
            false,
        ),
        ("tables twice", &["10.1.0.2", "10.1.0.9"], None, true),
        (
            "tables in vain, beside a host route",
            &["10.1.0.7", "10.0.0.2"],
            None,
            false,
        ),
    ];
    let node = node();
    for (what, addresses, hint, learned) in rows {
        let addresses: Vec<_> = addresses.iter().map(|a| ip(a)).collect();
        let found = node.index().find_pod(&addresses, *hint).unwrap();
        assert_eq!(found.learned, *learned, "{what}");
    }
}

#[test]
fn what_time_may_solve_is_told_from_what_it_does_not() {
    let node = node();
    let problem = |address: &str| node.pod_interface(&[ip(address)], None).unwrap_err();
    for address in ["10.1.0.7", "10.1.0.3", "10.200.0.1"] {
        assert!(problem(address).may_pass(), "{address}");
    }
    for address in ["10.0.1.2", "10.1.0.4", "192.0.2.10"] {
        assert!(!problem(address).may_pass(), "{address}");
    }
    assert_eq!(
        problem("10.1.0.7").to_solicit(),
        Some((BRIDGE, ip("10.1.0.7")))
    );
    assert_eq!(
        problem("10.1.0.3").to_solicit(),
        Some((BRIDGE, ip("10.1.0.3")))
    );
    assert_eq!(problem("10.0.1.2").to_solicit(), None);
}

#[test]
fn how_a_next_hop_is_reached() {
    let rows: &[(&str, &str, Option<&str>, Result<(u32, u32), &str>)] = &[
        ("on-link", "192.0.2.1", None, Ok((ETH0, 1500))),
        ("on-link, IPv6", "2001:db8::1", None, Ok((ETH0, 1500))),
        (
            "on the interface asked for",
            "192.0.2.1",
            Some("eth0"),
            Ok((ETH0, 1500)),
        ),
        (
            "not on the interface asked for",
            "192.0.2.1",
            Some("eth1"),
            Err("not on-link on eth1"),
        ),
        (
            "no such interface",
            "192.0.2.1",
            Some("eth9"),
            Err("eth9 does not exist"),
        ),
        (
            "lowest metric with a carrier",
            "198.51.100.1",
            None,
            Ok((ETH1, 9000)),
        ),
        (
            "another metric, asked for",
            "198.51.100.1",
            Some("eth0"),
            Ok((ETH0, 1500)),
        ),
        (
            "no carrier, asked for",
            "198.51.100.1",
            Some("down0"),
            Err("down"),
        ),
        (
            "no carrier",
            "10.9.0.1",
            None,
            Err("down0 that leads to it is down"),
        ),
        (
            "longest prefix, on-link",
            "203.0.113.1",
            None,
            Ok((ETH0, 1500)),
        ),
        (
            "longest prefix, through a router",
            "203.0.113.129",
            None,
            Err("router 192.0.2.2"),
        ),
        (
            "through the default router",
            "8.8.8.8",
            None,
            Err("router 192.0.2.1"),
        ),
        (
            "through the default router, asked for",
            "8.8.8.8",
            Some("eth0"),
            Err("not on-link"),
        ),
        (
            "not Ethernet",
            "10.8.0.1",
            None,
            Err("tun0 that leads to it does not carry Ethernet"),
        ),
        ("the route's MTU", "10.7.0.1", None, Ok((ETH1, 1400))),
        ("the device's MTU", "10.6.0.1", None, Ok((ETH0, 1500))),
        ("a bridge", "10.1.0.2", None, Ok((BRIDGE, 1500))),
        ("a pod", "10.0.0.2", None, Ok((VETH, 1500))),
        ("link-local", "fe80::1", None, Err("set spec.interface")),
        (
            "link-local with interface",
            "fe80::1",
            Some("eth1"),
            Ok((ETH1, 9000)),
        ),
        ("ourselves", "192.0.2.10", None, Err("address of this node")),
        ("loopback", "127.0.0.3", None, Err("address of this node")),
        ("multicast", "224.0.0.1", None, Err("single host")),
        (
            "a subnet's broadcast",
            "192.0.2.255",
            None,
            Err("single host"),
        ),
        ("broadcast", "255.255.255.255", None, Err("single host")),
        ("unspecified", "::", None, Err("single host")),
    ];
    let node = node();
    for (what, next_hop, interface, expected) in rows {
        match (node.way_to(ip(next_hop), *interface), expected) {
            (Ok(way), Ok(expected)) => {
                assert_eq!((way.ifindex, way.mtu), *expected, "{what}");
                assert_eq!(way.next_hop, ip(next_hop), "{what}");
            }
            (Err(problem), Err(text)) => {
                assert!(problem.to_string().contains(text), "{what}: {problem}");
            }
            (result, expected) => panic!("{what}: {result:?}, not {expected:?}"),
        }
    }
    let empty = NodeView::default();
    assert_eq!(
        empty.way_to(ip("192.0.2.1"), None),
        Err(NoWay::NoRoute(ip("192.0.2.1")))
    );
}

#[test]
fn a_bridges_port_to_the_outside_is_no_pods() {
    let mut node = node();
    // A node whose uplink is a bridge: the router is behind port 2, and so is everything outside.
    node.routes
        .push(route("0.0.0.0/0", Some("10.1.0.254"), BRIDGE, 50));
    for (address, mac) in [("10.1.0.254", 9), ("10.1.0.20", 20)] {
        let mac = Mac([2, 0, 0, 0, 0, mac]);
        node.neighbours.push(Neighbour {
            ifindex: BRIDGE,
            address: ip(address),
            mac,
        });
        node.forwarding.push(ForwardingEntry { port: PORT2, mac });
    }
    let problem = node.pod_interface(&[ip("10.1.0.20")], None).unwrap_err();
    assert!(problem.to_string().contains("default route"), "{problem}");
    assert_eq!(node.pod_interface(&[ip("10.1.0.2")], None), Ok(PORT));
}

#[test]
fn the_outside_is_where_default_routes_lead() {
    let of = |view: &NodeView, family: &str| view.index().default_device(ip(family));
    let device = |ifindex, mtu| Some(Ok(Device { ifindex, mtu }));
    let mut view = node();
    assert_eq!(of(&view, "0.0.0.0"), device(ETH0, 1500));
    assert_eq!(of(&view, "::"), device(ETH0, 1500));
    view.routes
        .push(route("::/0", Some("2001:db8::2"), ETH1, 10));
    assert_eq!(of(&view, "::"), device(ETH1, 9000), "a better one");
    view.links.get_mut(&ETH1).unwrap().up = false;
    assert_eq!(
        of(&view, "::"),
        device(ETH0, 1500),
        "the better one is down"
    );
    view.links.get_mut(&ETH0).unwrap().up = false;
    let problem = Some(Err(NoWay::Down("eth1".to_owned())));
    assert_eq!(of(&view, "::"), problem);
    view.routes.clear();
    assert_eq!(of(&view, "::"), None);
}

#[test]
fn other_hosts_are_towards_some_device() {
    let view = node();
    let rows = [
        ("192.0.2.77", Some((ETH0, 1500))),
        ("8.8.8.8", Some((ETH0, 1500))),
        ("203.0.113.200", Some((ETH0, 1500))),
        ("198.51.100.9", Some((ETH1, 9000))),
        ("10.8.0.1", Some((TUN, 1500))),
        ("10.9.0.1", None),
        ("10.0.0.6", None),
        ("192.0.2.10", None),
        ("127.0.0.1", None),
    ];
    for (host, expected) in rows {
        let found = view.index().device_towards(ip(host));
        let found = found.map(|device| (device.ifindex, device.mtu));
        assert_eq!(found, expected, "{host}");
    }
}

#[test]
fn a_devices_addresses_are_those_that_others_can_send_to() {
    let mut view = node();
    view.addresses.push((ETH0, "fe80::1/64".parse().unwrap()));
    view.addresses
        .push((ETH0, "169.254.7.7/16".parse().unwrap()));
    let of = |ifindex| view.index().addresses_of(ifindex).collect::<Vec<_>>();
    assert_eq!(of(ETH0), [ip("192.0.2.10"), ip("2001:db8::10")]);
    assert_eq!(of(LO), [] as [IpAddr; 0]);
}
