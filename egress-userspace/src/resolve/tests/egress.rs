//! Egress addresses: whose they are, and what the node that owns them has to do.

use super::*;
use crate::gateway_id::gateway_id;

/// The one way of a gateway that is up.
#[track_caller]
pub(super) fn only_way(resolved: &Resolved, gateway: &str) -> Way {
    match &resolved.gateways[&name(gateway)] {
        GatewayStatus::Up(ways) => {
            assert_eq!(ways.len(), 1, "{gateway}: {ways:?}");
            ways[0].clone()
        }
        GatewayStatus::Down(why) => panic!("{gateway} is down: {why}"),
    }
}

pub(super) fn here(egress: &str, ifindex: u32, mtu: u32) -> Way {
    Way::Here {
        egress: ip(egress),
        node: "here".to_owned(),
        ifindex,
        mtu,
    }
}

fn change(gateway: &mut Gateway, change: impl FnOnce(&mut EgressAddresses)) {
    match &mut gateway.exit {
        Exit::Node(egress) => change(egress),
        Exit::NextHops { .. } => panic!("next hops"),
    }
}

#[test]
fn a_gateway_of_this_node_is_translated_to_here() {
    let mut world = World::new();
    world.steered("apps/web", 2, "p");
    world.policy("p", vec![rule(None, Some(in_egress("code == 'red'")))]);
    let gateway = world.egress("egress/red", "here", &["203.0.113.10", "2001:db8:5::10"]);
    gateway.labels = labels("code=red");
    gateway.interface = Some("eth0".to_owned());
    let resolved = world.resolve();
    assert_eq!(
        resolved.gateways[&name("egress/red")],
        GatewayStatus::Up(vec![
            here("203.0.113.10", 2, 1500),
            here("2001:db8:5::10", 2, 1500)
        ])
    );
    assert_eq!(rules(&resolved, "apps/web"), ["default -> red"]);
    let expected = EgressAddress {
        gateway: name("egress/red"),
        id: gateway_id(&name("egress/red")),
        ifindex: 2,
        interface: "eth0".to_owned(),
        mtu: 1500,
        ports: (1024, 65_535),
        holder: Holder::Agent,
        allow_local_services: false,
        is_down: false,
    };
    assert_eq!(
        resolved.translation.addresses,
        [
            (ip("203.0.113.10"), expected.clone()),
            (ip("2001:db8:5::10"), expected)
        ]
        .into()
    );
}

#[test]
fn the_uplink_is_found() {
    type Change = fn(&mut World);
    let rows: &[(&str, Change, Result<(u32, u32), &[&str]>)] = &[
        ("by the default route", |_| {}, Ok((2, 1500))),
        (
            "a default route with an MTU",
            |world| world.node.routes[0].mtu = Some(1400),
            Ok((2, 1400)),
        ),
        (
            "no default route",
            |world| {
                world.node.routes.remove(0);
            },
            Err(&["no default route of IPv4", "--uplink", "spec.interface"]),
        ),
        (
            "a default route over a device that is down",
            |world| world.node.links.get_mut(&2).unwrap().up = false,
            Err(&["eth0", "down"]),
        ),
        (
            "by flag",
            |world| world.settings.uplinks = vec!["eth7".to_owned(), "eth0".to_owned()],
            Ok((7, 9000)),
        ),
        (
            "by flag, the first that is there",
            |world| world.settings.uplinks = vec!["eth8".to_owned(), "eth7".to_owned()],
            Ok((7, 9000)),
        ),
        (
            "by flag, none there",
            |world| world.settings.uplinks = vec!["eth8".to_owned()],
            Err(&["--uplink", "eth8"]),
        ),
        (
            "by the gateway",
            |world| {
                world.settings.uplinks = vec!["eth0".to_owned()];
                world.gateway_mut("egress/red").interface = Some("eth7".to_owned());
            },
            Ok((7, 9000)),
        ),
        (
            "by the gateway, not there",
            |world| world.gateway_mut("egress/red").interface = Some("eth8".to_owned()),
            Err(&["eth8", "does not exist"]),
        ),
    ];
    for (what, change, expected) in rows {
        let mut world = World::new();
        world.node.links.insert(
            7,
            Link {
                mtu: 9000,
                ..Link::ethernet("eth7")
            },
        );
        world.egress("egress/red", "here", &["203.0.113.10"]);
        change(&mut world);
        let resolved = world.resolve();
        match expected {
            Ok((ifindex, mtu)) => {
                let way = only_way(&resolved, "egress/red");
                assert_eq!(way, here("203.0.113.10", *ifindex, *mtu), "{what}");
            }
            Err(parts) => {
                assert_down(&resolved, "egress/red", parts);
                assert!(resolved.translation.addresses.is_empty(), "{what}");
            }
        }
    }
}

#[test]
fn who_holds_an_address_and_with_which_ports() {
    type Change = fn(&mut World);
    let rows: &[(&str, Change, Result<(Holder, (u16, u16)), &[&str]>)] = &[
        ("assigned", |_| {}, Ok((Holder::Agent, (1024, 65_535)))),
        (
            "left to routing",
            |world| change(world.gateway_mut("egress/red"), |e| e.assign = false),
            Ok((Holder::Routing, (1024, 65_535))),
        ),
        (
            "ports of its own",
            |world| ports(world, 100, 2000),
            Ok((Holder::Agent, (1024, 2000))),
        ),
        (
            "narrowed by the flag",
            |world| {
                world.settings.nat_ports = (1500, 1600);
                ports(world, 1550, 2000);
            },
            Ok((Holder::Agent, (1550, 1600))),
        ),
        (
            "nothing left by the flag",
            |world| {
                world.settings.nat_ports = (1500, 1600);
                ports(world, 40_000, 49_999);
            },
            Err(&["40000-49999", "--nat-port-range 1500-1600"]),
        ),
        (
            "on the interface because it was assigned before",
            |world| {
                world.node.addresses.push((2, net("203.0.113.10/32")));
                world.assigned = [ip("203.0.113.10")].into();
            },
            Ok((Holder::Agent, (1024, 65_535))),
        ),
        (
            "on the interface anyway",
            |world| world.node.addresses.push((2, net("203.0.113.10/24"))),
            Err(&["203.0.113.10", "spec.portRange", "32768-60999"]),
        ),
        (
            "the Node's own, whatever was assigned",
            |world| {
                world.assigned = [ip("203.0.113.10")].into();
                world.node_object("here", &["203.0.113.10"]);
            },
            Err(&["203.0.113.10", "spec.portRange"]),
        ),
        (
            "shared with the node",
            |world| {
                world.node_object("here", &["203.0.113.10"]);
                ports(world, 61_000, 62_000);
            },
            Ok((Holder::Node, (61_000, 62_000))),
        ),
        (
            "shared with the node's connections",
            |world| {
                world.node_object("here", &["203.0.113.10"]);
                ports(world, 60_999, 62_000);
            },
            Err(&["60999-62000", "32768-60999", "ip_local_port_range"]),
        ),
        (
            "around the node's connections",
            |world| {
                world.node_object("here", &["203.0.113.10"]);
                world.settings.local_ports = (2000, 3000);
                ports(world, 1024, 65_535);
            },
            Err(&["1024-65535", "2000-3000"]),
        ),
        (
            "shared with the overlay",
            |world| {
                world.node_object("here", &["203.0.113.10"]);
                world.with_overlay();
                ports(world, 4000, 5000);
            },
            Err(&["4000-5000", "overlay", "4790"]),
        ),
        (
            "the overlay's port on an address of the gateway's own",
            |world| {
                world.with_overlay();
                ports(world, 4000, 5000);
            },
            Ok((Holder::Agent, (4000, 5000))),
        ),
    ];
    for (what, change, expected) in rows {
        let mut world = World::new();
        world.egress("egress/red", "here", &["203.0.113.10"]);
        change(&mut world);
        let resolved = world.resolve();
        match expected {
            Ok((holder, ports)) => {
                let address = &resolved.translation.addresses[&ip("203.0.113.10")];
                assert_eq!((address.holder, address.ports), (*holder, *ports), "{what}");
            }
            Err(parts) => {
                assert_down(&resolved, "egress/red", parts);
                assert!(resolved.translation.addresses.is_empty(), "{what}");
            }
        }
    }
}

pub(super) fn ports(world: &mut World, first: u16, last: u16) {
    let gateway = world.gateway_mut("egress/red");
    change(gateway, |egress| egress.ports = Some((first, last)));
}

#[test]
fn local_services_are_as_the_gateway_says() {
    for allowed in [false, true] {
        let mut world = World::new();
        let gateway = world.egress("egress/red", "here", &["203.0.113.10"]);
        change(gateway, |egress| egress.allow_local_services = allowed);
        let address = &world.resolve().translation.addresses[&ip("203.0.113.10")];
        assert_eq!(address.allow_local_services, allowed);
    }
}

#[test]
fn a_family_without_an_uplink_is_warned_of() {
    let mut world = World::new();
    world.egress("egress/red", "here", &["203.0.113.10", "2001:db8:5::10"]);
    let resolved = world.resolve();
    assert_eq!(
        only_way(&resolved, "egress/red"),
        here("203.0.113.10", 2, 1500)
    );
    let parts = ["egress/red", "one family only", "no default route of IPv6"];
    assert_warned(&resolved, &parts);
    assert_eq!(
        resolved.translation.addresses.keys().collect::<Vec<_>>(),
        [&ip("203.0.113.10")]
    );
}

#[test]
fn gateway_pods_hold_egress_addresses() {
    let mut world = World::new();
    world.steered("apps/web", 2, "p");
    world.policy("p", vec![rule(None, Some(in_egress("code == 'red'")))]);
    world.node_object("there", &["192.0.2.77"]);
    type Row = (&'static str, fn(&mut Pod), Result<bool, &'static str>);
    let rows: &[Row] = &[
        ("egress/ready", |_| {}, Ok(true)),
        ("egress/unready", |pod| pod.ready = false, Err("not ready")),
        (
            "egress/host",
            |pod| pod.host_network = true,
            Err("shares the node's network"),
        ),
        (
            "egress/no-address",
            |pod| pod.addresses.clear(),
            Err("no address"),
        ),
        (
            "egress/remote",
            |pod| pod.node = Some("there".to_owned()),
            Err("--overlay-key-file"),
        ),
        ("egress/unscheduled", |pod| pod.node = None, Ok(true)),
        (
            "egress/unscheduled-elsewhere",
            |pod| {
                pod.node = None;
                pod.addresses = vec![ip("10.99.0.1")];
            },
            Err("which node"),
        ),
        ("egress/not-selected", |pod| pod.labels.clear(), Ok(false)),
    ];
    for ((text, change, _), n) in rows.iter().zip(10..) {
        let pod = world.pod(text, n);
        pod.labels = labels("code=red");
        change(pod);
    }
    let resolved = world.resolve();
    for ((text, _, expected), n) in rows.iter().zip(10..) {
        let address = IpAddr::from([10, 0, 0, n]);
        let owned = resolved.translation.addresses.get(&address);
        match expected {
            Ok(true) => {
                let way = only_way(&resolved, text);
                assert_eq!(way, here(&address.to_string(), 2, 1500), "{text}");
                let owned = owned.unwrap();
                assert_eq!(owned.gateway, name(text));
                assert_eq!(owned.holder, Holder::Pod, "{text}");
                assert_eq!(owned.ports, (1024, 65_535), "{text}");
                assert!(owned.allow_local_services, "{text}");
            }
            Ok(false) => {
                assert!(!resolved.gateways.contains_key(&name(text)), "{text}");
                assert_eq!(owned, None, "{text}");
            }
            Err(part) => {
                assert_down(&resolved, text, &[part]);
                assert_eq!(owned, None, "{text}");
            }
        }
    }
    assert_eq!(
        rules(&resolved, "apps/web"),
        ["default -> ready,unscheduled"]
    );
}

#[test]
fn gateways_of_this_node_are_local_ones() {
    let mut world = World::new();
    world.with_overlay();
    world.node_object("there", &["192.0.2.77"]);
    world.steered("apps/web", 2, "p");
    let nearest = GatewaySelector {
        preference: Preference::NodeLocal,
        ..in_egress("all()")
    };
    world.policy("p", vec![rule(None, Some(nearest))]);
    world.egress("egress/far", "there", &["203.0.113.11"]);
    world.gateway("egress/box", "", &["192.0.2.21"]);
    assert_eq!(rules(&world.resolve(), "apps/web"), ["default -> box,far"]);
    world.egress("egress/near", "here", &["203.0.113.10"]);
    assert_eq!(rules(&world.resolve(), "apps/web"), ["default -> near"]);
}

#[test]
fn egress_addresses_are_of_the_outside_and_local_nowhere() {
    let mut world = World::new();
    world.egress("egress/red", "here", &["203.0.113.10"]);
    world.egress("egress/far", "there", &["203.0.113.11"]);
    world.node.addresses.push((2, net("203.0.113.10/32")));
    world.assigned = [ip("203.0.113.10")].into();
    let local = world.resolve().cluster_prefixes;
    let covered = |address: &str| local.iter().any(|net| net.contains(&ip(address)));
    assert!(!covered("203.0.113.10") && !covered("203.0.113.11"));
    assert!(covered("192.0.2.10"));
    // What the node has anyway is the node's.
    world.node_object("here", &["203.0.113.10"]);
    let local = world.resolve().cluster_prefixes;
    assert!(local.contains(&net("203.0.113.10/32")));
}

#[test]
fn the_node_speaks_for_itself_with_its_own_addresses() {
    let mut world = World::new();
    let own = |world: &World| world.resolve().translation.own;
    // The default route of IPv4 tells the uplink, which has addresses; of IPv6 nothing does.
    assert_eq!(own(&world), [ip("192.0.2.10")]);
    world.settings.uplinks = vec!["eth0".to_owned()];
    assert_eq!(own(&world), [ip("192.0.2.10"), ip("2001:db8::10")]);
    world.node.addresses = vec![
        (2, net("169.254.1.1/16")),
        (2, net("203.0.113.10/32")),
        (2, net("198.51.100.9/24")),
        (2, net("fe80::1/64")),
    ];
    world.assigned = [ip("203.0.113.10")].into();
    assert_eq!(own(&world), [ip("198.51.100.9")]);
    world.node_object("here", &["2001:db8::99", "2001:db8::98", "192.0.2.99"]);
    assert_eq!(own(&world), [ip("192.0.2.99"), ip("2001:db8::99")]);
}

#[test]
fn ports_that_pods_name_come_along() {
    let mut world = World::new();
    world.policy("p", vec![rule(None, None)]);
    world.steered("apps/dns", 2, "p").inbound_udp = vec![53, 5060];
    let resolved = world.resolve();
    assert_eq!(resolved.pods[&name("apps/dns")].udp_ports, [53, 5060]);
}
