//! Which interface is a pod's.

use super::*;

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
