//! How a next hop is reached.

use super::*;

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
