//! Which pods are steered, and why others are not.

use egress_common::Mac;

use super::*;
use crate::node::{ForwardingEntry, Neighbour};

#[test]
fn a_pods_annotation_overrides_its_namespaces() {
    let mut world = World::new();
    for policy in ["of-pod", "of-namespace"] {
        world.policy(policy, vec![rule(None, None)]);
    }
    let steering = Some(Steering::Policy("of-namespace".to_owned()));
    world.model.namespaces.get_mut("apps").unwrap().steering = steering;
    world.steered("apps/own", 2, "of-pod");
    world.pod("apps/inherits", 3);
    world.pod("egress/other", 4);
    let policies = |world: &World| -> Vec<_> {
        let pods = world.resolve().pods;
        pods.into_iter()
            .map(|(name, pod)| format!("{name} {}", pod.policy))
            .collect()
    };
    assert_eq!(
        policies(&world),
        ["apps/inherits of-namespace", "apps/own of-pod"]
    );
    world.settings.per_pod_policies = false;
    assert_eq!(
        policies(&world),
        ["apps/inherits of-namespace", "apps/own of-namespace"]
    );
}

#[test]
fn pods_that_are_not_steered_say_why() {
    let rows: &[(&str, fn(&mut Pod), PodState, &str)] = &[
        (
            "host network",
            |pod| pod.host_network = true,
            PodState::HostNetwork,
            "shares the node's network",
        ),
        (
            "finished",
            |pod| pod.phase = Phase::Finished,
            PodState::Finished,
            "has finished",
        ),
        (
            "no address",
            |pod| pod.addresses.clear(),
            PodState::NoAddress,
            "no address yet",
        ),
        (
            "not found",
            |pod| pod.addresses = vec![ip("10.9.9.9")],
            PodState::NoInterface,
            "looked for",
        ),
        (
            "no such hint",
            |pod| {
                pod.addresses = vec![ip("10.9.9.9")];
                pod.interface = Some("veth99".to_owned());
            },
            PodState::NoInterface,
            "names veth99",
        ),
        (
            "on the uplink's network",
            |pod| pod.addresses = vec![ip("192.0.2.99")],
            PodState::NoOwnInterface,
            "egress.fastpath/interface",
        ),
        (
            "the node's address",
            |pod| pod.addresses = vec![ip("192.0.2.10")],
            PodState::NoOwnInterface,
            "node itself",
        ),
    ];
    for (what, change, state, warning) in rows {
        let mut world = World::new();
        world.policy("p", vec![rule(None, None)]);
        change(world.steered("apps/web", 2, "p"));
        let resolved = world.resolve();
        assert!(resolved.pods.is_empty(), "{what}");
        assert_eq!(resolved.pod_states[&name("apps/web")], *state, "{what}");
        assert_warned(&resolved, &["apps/web", warning]);
        assert_eq!(resolved.warnings.len(), 1, "{what}");
    }
}

#[test]
fn pods_of_other_nodes_are_not_ours() {
    let mut world = World::new();
    world.policy("p", vec![rule(None, None)]);
    world.steered("apps/there", 2, "p").node = Some("there".to_owned());
    world.steered("apps/unscheduled-here", 3, "p").node = None;
    let lost = world.steered("apps/unscheduled", 4, "p");
    lost.node = None;
    lost.addresses = vec![ip("10.9.9.9")];
    world.pod("apps/plain", 5);
    let resolved = world.resolve();
    let states = [(name("apps/unscheduled-here"), PodState::Steered)];
    assert_eq!(resolved.pod_states, states.into());
    assert_eq!(resolved.warnings, BTreeSet::new());
}

#[test]
fn a_shared_interface_tells_nobody_apart() {
    let mut world = World::new();
    world.policy("p", vec![rule(None, None)]);
    for text in ["apps/a", "apps/b", "apps/c", "apps/d", "apps/e"] {
        world.steered(text, 2, "p");
    }
    world.model.pods.get_mut(&name("apps/e")).unwrap().steering = None;
    world.steered("apps/alone", 3, "p");
    world.steered("apps/gone", 3, "p").phase = Phase::Finished;
    let resolved = world.resolve();
    assert_eq!(
        resolved.pods.keys().collect::<Vec<_>>(),
        [&name("apps/alone")]
    );
    assert_eq!(
        resolved.pod_states[&name("apps/a")],
        PodState::NoOwnInterface
    );
    assert_warned(
        &resolved,
        &[
            "pod apps/a is",
            "veth2 with apps/b, apps/c and 2 more",
            "give each pod",
        ],
    );
    assert!(!resolved.pod_states.contains_key(&name("apps/e")));
}

#[test]
fn a_steered_pod_keeps_its_interface_while_that_exists() {
    let mut world = World::new();
    world.policy("p", vec![rule(None, None)]);
    let address = world.steered("apps/web", 2, "p").addresses[0];
    let ifindex = world.resolve().pods[&name("apps/web")].ifindex;
    world.held = [(address, ifindex)].into();

    world.node.routes.retain(|route| route.ifindex != ifindex);
    let resolved = world.resolve();
    assert_eq!(
        resolved.pods[&name("apps/web")].ifindex,
        ifindex,
        "its route flaps"
    );
    assert_warned(
        &resolved,
        &["apps/web", "stays steered", "through the router"],
    );

    world.node.links.remove(&ifindex);
    let resolved = world.resolve();
    assert!(resolved.pods.is_empty(), "its interface is gone");
    assert_eq!(
        resolved.pod_states[&name("apps/web")],
        PodState::NoInterface
    );
}

#[test]
fn a_neighbour_that_claims_a_steered_pods_interface_does_not_free_it() {
    let mut world = World::new();
    world.policy("p", vec![rule(None, None)]);
    let address = world.steered("apps/web", 2, "p").addresses[0];
    let ifindex = world.resolve().pods[&name("apps/web")].ifindex;
    world.held = [(address, ifindex)].into();
    let claimed = ip("10.0.0.99");
    world.steered("apps/intruder", 2, "p").addresses = vec![claimed];
    world.node.routes.push(Route {
        destination: claimed.into(),
        gateway: None,
        ifindex,
        metric: 0,
        mtu: None,
    });
    let resolved = world.resolve();
    assert_eq!(
        resolved.pods.keys().collect::<Vec<_>>(),
        [&name("apps/web")]
    );
    assert_eq!(
        resolved.pod_states[&name("apps/intruder")],
        PodState::NoOwnInterface
    );
}

/// A bridge with the ports 51 and 52, behind the first of which the tables have "apps/web", which is steered.
fn bridged() -> World {
    let mut world = World::new();
    world.policy("p", vec![rule(None, None)]);
    let bridge = Link {
        bridge: true,
        ..Link::ethernet("br0")
    };
    world.node.links.insert(50, bridge);
    for n in [51, 52] {
        let port = Link {
            master: Some(50),
            ..Link::ethernet(&format!("port{n}"))
        };
        world.node.links.insert(n, port);
    }
    world.node.routes.push(Route {
        destination: net("10.1.0.0/24"),
        gateway: None,
        ifindex: 50,
        metric: 0,
        mtu: None,
    });
    world.steered("apps/web", 2, "p").addresses = vec![ip("10.1.0.2")];
    learn(&mut world, "10.1.0.2", 51);
    hold(&mut world);
    world
}

/// What an ARP packet from that port makes of the tables, true or forged.
fn learn(world: &mut World, address: &str, port: u32) {
    let address = ip(address);
    let mac = Mac([2, 0, 0, 0, 0, port.to_le_bytes()[0]]);
    let node = &mut world.node;
    node.neighbours.retain(|known| known.address != address);
    node.neighbours.push(Neighbour {
        ifindex: 50,
        address,
        mac,
    });
    node.forwarding.retain(|known| known.mac != mac);
    node.forwarding.push(ForwardingEntry { port, mac });
}

/// Steers what is resolved.
fn hold(world: &mut World) {
    let pods = world.resolve().pods;
    world.held = pods
        .into_values()
        .flat_map(|pod| pod.addresses.into_iter().map(move |a| (a, pod.ifindex)))
        .collect();
}

/// The interfaces of the pods that are steered.
fn places(world: &World) -> Vec<(String, u32)> {
    let pods = world.resolve().pods;
    pods.into_iter()
        .map(|(name, pod)| (name.to_string(), pod.ifindex))
        .collect()
}

fn at(pods: &[(&str, u32)]) -> Vec<(String, u32)> {
    pods.iter().map(|&(name, n)| (name.to_owned(), n)).collect()
}

#[test]
fn forged_arp_does_not_move_a_steered_pod_to_another_port() {
    let mut world = bridged();
    learn(&mut world, "10.1.0.2", 52);
    assert_eq!(places(&world), at(&[("apps/web", 51)]));
    let parts = ["apps/web stays steered on port51", "now name port52"];
    assert_warned(&world.resolve(), &parts);

    // Nor does it where the annotation names what the bridge does not have, and the tables then tell nothing.
    world.node.links.insert(60, Link::ethernet("veth60"));
    let pod = world.model.pods.get_mut(&name("apps/web")).unwrap();
    pod.interface = Some("veth60".to_owned());
    assert_eq!(places(&world), at(&[("apps/web", 51)]));
    world.node.neighbours.clear();
    assert_eq!(places(&world), at(&[("apps/web", 51)]));

    world.node.links.remove(&51);
    learn(&mut world, "10.1.0.2", 52);
    assert_eq!(places(&world), at(&[("apps/web", 52)]), "its port is gone");
}

#[test]
fn forged_arp_does_not_free_two_pods_that_end_on_one_port() {
    let mut world = bridged();
    world.steered("apps/accomplice", 3, "p").addresses = vec![ip("10.1.0.3")];
    learn(&mut world, "10.1.0.3", 52);
    hold(&mut world);
    let both = at(&[("apps/accomplice", 52), ("apps/web", 51)]);
    assert_eq!(places(&world), both);
    for (address, port) in [("10.1.0.2", 52), ("10.1.0.3", 51), ("10.1.0.3", 52)] {
        learn(&mut world, address, port);
        assert_eq!(places(&world), both, "{address} on {port}");
    }
}

#[test]
fn forged_arp_of_a_newcomer_claims_nothing_that_is_held() {
    let mut world = bridged();
    world.steered("apps/newcomer", 3, "p").addresses = vec![ip("10.1.0.3")];
    learn(&mut world, "10.1.0.3", 51);
    let resolved = world.resolve();
    assert_eq!(places(&world), at(&[("apps/web", 51)]));
    assert_eq!(
        resolved.pod_states[&name("apps/newcomer")],
        PodState::NoOwnInterface
    );
}

#[test]
fn a_bridges_port_that_the_annotation_names_wins_over_forged_arp() {
    for held in [true, false] {
        let mut world = bridged();
        if !held {
            world.held.clear();
        }
        learn(&mut world, "10.1.0.2", 51);
        let pod = world.model.pods.get_mut(&name("apps/web")).unwrap();
        pod.interface = Some("port52".to_owned());
        assert_eq!(places(&world), at(&[("apps/web", 52)]), "held: {held}");
    }
}

#[test]
fn a_steered_pod_follows_its_host_route() {
    let mut world = bridged();
    world.node.links.insert(60, Link::ethernet("veth60"));
    world.node.routes.push(Route {
        destination: net("10.1.0.2/32"),
        gateway: None,
        ifindex: 60,
        metric: 0,
        mtu: None,
    });
    assert_eq!(places(&world), at(&[("apps/web", 60)]));
}

#[test]
fn a_steered_pod_that_is_told_to_be_where_another_is_stays() {
    let mut world = bridged();
    world.pod("apps/other", 3).addresses = vec![ip("10.1.0.3")];
    learn(&mut world, "10.1.0.3", 52);
    let pod = world.model.pods.get_mut(&name("apps/web")).unwrap();
    pod.interface = Some("port52".to_owned());
    assert_eq!(places(&world), at(&[("apps/web", 51)]));
    let parts = [
        "apps/web stays steered on port51",
        "port52 now, where other",
    ];
    assert_warned(&world.resolve(), &parts);
}

#[test]
fn two_pods_with_one_steered_address_are_dropped_and_not_let_go() {
    for annotated in [true, false] {
        let mut world = bridged();
        let twin = world.steered("apps/a-twin", 3, "p");
        twin.addresses = vec![ip("10.1.0.2")];
        if !annotated {
            twin.steering = None;
        }
        let resolved = world.resolve();
        assert_eq!(
            resolved.pods.len(),
            if annotated { 2 } else { 1 },
            "annotated: {annotated}"
        );
        for (name, pod) in &resolved.pods {
            assert_eq!(pod.ifindex, 51);
            assert_eq!(rules(&resolved, &name.to_string()), ["drop PolicyMissing"]);
            assert_eq!(resolved.pod_states[name], PodState::PolicyMissing);
        }
        assert_warned(
            &resolved,
            &["pod apps/web sends is dropped", "port51", "apps/a-twin"],
        );
    }
}

#[test]
fn letting_go_of_an_interface_that_exists_is_said() {
    let rows: &[(fn(&mut Pod), &str)] = &[
        (|pod| pod.phase = Phase::Finished, "apps/web has finished"),
        (|pod| pod.addresses.clear(), "apps/web is without any"),
    ];
    for (change, why) in rows {
        let mut world = bridged();
        change(world.model.pods.get_mut(&name("apps/web")).unwrap());
        let resolved = world.resolve();
        assert!(resolved.pods.is_empty(), "{why}");
        assert_warned(&resolved, &["letting go of port51", "10.1.0.2", why]);

        world.node.links.remove(&51);
        let warnings = world.resolve().warnings;
        assert!(!warnings.iter().any(|w| w.contains("letting go")), "{why}");
    }
}

#[test]
fn a_bridged_pod_that_is_not_known_yet_is_asked_for() {
    let mut world = World::new();
    world.policy("p", vec![rule(None, None)]);
    let bridge = Link {
        bridge: true,
        ..Link::ethernet("br0")
    };
    world.node.links.insert(50, bridge);
    world.node.routes.push(Route {
        destination: net("10.1.0.0/24"),
        gateway: None,
        ifindex: 50,
        metric: 0,
        mtu: None,
    });
    let pod = world.steered("apps/web", 2, "p");
    pod.addresses = vec![ip("10.1.0.2")];
    pod.node = None;
    let resolved = world.resolve();
    assert_eq!(resolved.to_solicit, [(50, ip("10.1.0.2"))].into());
    assert_eq!(
        resolved.pod_states[&name("apps/web")],
        PodState::NoInterface
    );
}

#[test]
fn one_address_of_each_family_is_used() {
    let mut world = World::new();
    world.policy("p", vec![rule(None, None)]);
    world.steered("apps/web", 2, "p").addresses =
        vec![ip("fd00::2"), ip("10.0.0.2"), ip("10.0.0.9")];
    let resolved = world.resolve();
    assert_eq!(
        resolved.pods[&name("apps/web")].addresses,
        [ip("10.0.0.2"), ip("fd00::2")]
    );
    assert_warned(&resolved, &["apps/web", "10.0.0.2, fd00::2", "spoofed"]);
}
