//! Gateways on other nodes, and what is known of those.

use egress_common::overlay::Tag;

use super::*;

const DEVICE: u32 = 9;

/// A world with an overlay, and a gateway on the node "there" that has these addresses.
fn world(addresses: &[&str]) -> World {
    let mut world = World::new();
    world.with_overlay();
    world.node_object("there", addresses);
    world.egress("egress/red", "there", &["203.0.113.10"]);
    world
}

fn way(world: &World) -> (IpAddr, u32) {
    match &world.resolve().gateways[&name("egress/red")] {
        GatewayStatus::Up(ways) => match &ways[..] {
            [Way::Overlay { address, mtu, .. }] => (*address, *mtu),
            ways => panic!("{ways:?}"),
        },
        GatewayStatus::Down(why) => panic!("down: {why}"),
    }
}

#[test]
fn a_gateway_on_another_node_is_reached_through_the_overlay() {
    let mut world = world(&["192.0.2.77"]);
    world.egress("egress/both", "there", &["203.0.113.11", "2001:db8:5::11"]);
    let resolved = world.resolve();
    let overlay = world.settings.overlay.as_ref().unwrap();
    let way = |egress: &str| Way::Overlay {
        egress: ip(egress),
        node: "there".to_owned(),
        address: ip("192.0.2.77"),
        ifindex: DEVICE,
        mtu: 1450,
        tag: overlay.keys.tag(4097, "here", "there"),
    };
    for (gateway, ways) in [
        ("egress/red", vec![way("203.0.113.10")]),
        (
            "egress/both",
            vec![way("203.0.113.11"), way("2001:db8:5::11")],
        ),
    ] {
        assert_eq!(
            resolved.gateways[&name(gateway)],
            GatewayStatus::Up(ways),
            "IPv6 goes over an IPv4 underlay too"
        );
    }
    let there = &resolved.translation.nodes["there"];
    assert_eq!(there.addresses, [ip("192.0.2.77")]);
    assert_eq!((there.address, there.mtu), (ip("192.0.2.77"), 1450));
    assert_eq!(there.send, overlay.keys.tag(4097, "here", "there"));
    assert_eq!(
        there.accept,
        [overlay.keys.tag(4097, "there", "here"), Tag::ZERO]
    );
    assert!(resolved.translation.addresses.is_empty());
    assert_eq!(resolved.warnings, BTreeSet::new());
}

#[test]
fn frames_go_to_the_first_address_that_a_route_leads_to() {
    type Change = fn(&mut World);
    let rows: &[(&str, &[&str], Change, (&str, u32))] = &[
        ("on-link", &["192.0.2.77"], |_| {}, ("192.0.2.77", 1450)),
        (
            "behind a router",
            &["198.51.100.7"],
            |_| {},
            ("198.51.100.7", 1450),
        ),
        (
            "over IPv6",
            &["2001:db8::77", "192.0.2.77"],
            |_| {},
            ("2001:db8::77", 1430),
        ),
        (
            "no route to the first",
            &["2001:db8:9::77", "192.0.2.77"],
            |_| {},
            ("192.0.2.77", 1450),
        ),
        (
            "the first is this node's own",
            &["192.0.2.10", "192.0.2.77"],
            |_| {},
            ("192.0.2.77", 1450),
        ),
        (
            "a narrow route",
            &["192.0.2.77"],
            |world| world.node.routes[1].mtu = Some(1300),
            ("192.0.2.77", 1250),
        ),
        (
            "a narrow overlay device",
            &["192.0.2.77"],
            |world| world.node.links.get_mut(&DEVICE).unwrap().mtu = 1400,
            ("192.0.2.77", 1400),
        ),
        (
            "a wide overlay device",
            &["192.0.2.77"],
            |world| world.node.links.get_mut(&DEVICE).unwrap().mtu = 9000,
            ("192.0.2.77", 1450),
        ),
    ];
    for (what, addresses, change, (address, mtu)) in rows {
        let mut world = world(addresses);
        change(&mut world);
        assert_eq!(way(&world), (ip(address), *mtu), "{what}");
        let node = &world.resolve().translation.nodes["there"];
        assert_eq!((node.address, node.mtu), (ip(address), *mtu), "{what}");
        let all: Vec<_> = addresses.iter().map(|a| ip(a)).collect();
        assert_eq!(node.addresses, all, "{what}");
    }
}

#[test]
fn what_keeps_a_node_from_being_reached_is_said() {
    type Change = fn(&mut World);
    let rows: &[(&str, Change, &[&str])] = &[
        (
            "no key",
            |world| world.settings.overlay = None,
            &["there", "--overlay-key-file"],
        ),
        (
            "no device",
            |world| drop(world.node.links.remove(&DEVICE)),
            &["egress.vxlan", "not there yet"],
        ),
        (
            "the device is down",
            |world| world.node.links.get_mut(&DEVICE).unwrap().up = false,
            &["egress.vxlan", "down"],
        ),
        (
            "no such node",
            |world| world.model.nodes.clear(),
            &["there", "Node resources"],
        ),
        (
            "no address",
            |world| world.node_object("there", &[]),
            &["there", "no address"],
        ),
        (
            "no route",
            |world| world.node_object("there", &["2001:db8:9::77"]),
            &["no route", "there", "2001:db8:9::77"],
        ),
        (
            "the route's device is down",
            |world| world.node.links.get_mut(&2).unwrap().up = false,
            &["no route", "there", "192.0.2.77"],
        ),
        (
            "all its addresses are this node's",
            |world| world.node_object("here", &["192.0.2.77"]),
            &["there", "no address of its own"],
        ),
    ];
    for (what, change, parts) in rows {
        let mut world = world(&["192.0.2.77"]);
        change(&mut world);
        let resolved = world.resolve();
        assert_down(&resolved, "egress/red", parts);
        let missing_device = what.contains("device") && !what.contains("route");
        assert_eq!(
            resolved.translation.nodes.contains_key("there"),
            missing_device,
            "{what}: frames from it may come before the device can send"
        );
    }
}

#[test]
fn nodes_that_cannot_be_reached_are_warned_of_once() {
    let mut world = World::new();
    world.with_overlay();
    for n in 0..5 {
        world.node_object(&format!("n{n}"), &[&format!("2001:db8:9::{n}")]);
    }
    let resolved = world.resolve();
    assert!(resolved.translation.nodes.is_empty());
    assert_eq!(resolved.warnings.len(), 4, "{:?}", resolved.warnings);
    assert_warned(&resolved, &["2 more nodes"]);
    assert_warned(&resolved, &["2001:db8:9::1"]);
    // Without a key nobody wants to reach them.
    world.settings.overlay = None;
    assert_eq!(world.resolve().warnings, BTreeSet::new());
}

#[test]
fn an_address_of_two_nodes_is_the_firsts() {
    let mut world = world(&["192.0.2.77", "192.0.2.78", "192.0.2.78"]);
    world.node_object("other", &["192.0.2.77", "192.0.2.79"]);
    let resolved = world.resolve();
    let addresses = |node: &str| resolved.translation.nodes[node].addresses.clone();
    assert_eq!(addresses("other"), [ip("192.0.2.77"), ip("192.0.2.79")]);
    assert_eq!(addresses("there"), [ip("192.0.2.78")]);
    assert_warned(&resolved, &["other", "there", "192.0.2.77"]);
}

#[test]
fn a_gateway_pod_on_another_node_is_reached_alike() {
    let mut world = world(&["192.0.2.77"]);
    world.steered("apps/web", 2, "p");
    world.policy("p", vec![rule(None, Some(in_egress("code == 'pod'")))]);
    let pod = world.pod("egress/pod", 3);
    pod.labels = labels("code=pod");
    pod.node = Some("there".to_owned());
    let resolved = world.resolve();
    assert_eq!(rules(&resolved, "apps/web"), ["default -> pod"]);
    assert!(matches!(
        &resolved.gateways[&name("egress/pod")],
        GatewayStatus::Up(ways)
            if matches!(&ways[..], [Way::Overlay { egress, .. }] if *egress == ip("10.0.0.3"))
    ));
    assert!(resolved.translation.addresses.is_empty());
}
