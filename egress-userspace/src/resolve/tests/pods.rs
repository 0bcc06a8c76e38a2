//! Which pods are steered, and why others are not.

use super::*;

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

#[test]
fn a_bridged_pod_that_is_not_known_yet_is_asked_for() {
    let mut world = World::new();
    world.policy("p", vec![rule(None, None)]);
    let bridge = Link {
        bridge: true,
        ..link("br0")
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
