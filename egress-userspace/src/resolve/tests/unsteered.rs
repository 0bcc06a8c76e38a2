//! Whose interfaces may be open without a program: those of pods that are known not to be steered.

use super::*;

#[test]
fn only_what_is_known_not_to_be_steered_is_let_through() {
    type Change = fn(&mut World);
    let rows: [(&str, Change, bool); 12] = [
        ("a pod without annotation", |_| {}, true),
        (
            "its namespace is not known, which might ask for a policy",
            |w| drop(w.model.namespaces.remove("apps")),
            false,
        ),
        (
            "its namespace asks for a policy",
            |w| {
                w.model.namespaces.get_mut("apps").unwrap().steering =
                    Some(Steering::Policy("p".to_owned()));
            },
            false,
        ),
        (
            "it asks for a policy that does not exist",
            |w| w.pod("apps/a", 2).steering = Some(Steering::Policy("q".to_owned())),
            false,
        ),
        (
            "its own annotation does not count",
            |w| {
                w.settings.per_pod_policies = false;
                asks(w);
            },
            true,
        ),
        ("it asks for a policy", asks, false),
        (
            "it has finished",
            |w| w.pod("apps/a", 2).phase = Phase::Finished,
            false,
        ),
        (
            "it is another node's",
            |w| w.pod("apps/a", 2).node = Some("there".to_owned()),
            false,
        ),
        (
            "it is not scheduled, and here",
            |w| w.pod("apps/a", 2).node = None,
            true,
        ),
        (
            "another pod has the interface too, unsteered as well",
            |w| share(w, None),
            true,
        ),
        (
            "another pod has the interface too, and asks for a policy",
            |w| share(w, Some(Steering::Policy("p".to_owned()))),
            false,
        ),
        (
            "its interface is the node's own",
            |w| w.pod("apps/a", 2).addresses = vec![ip("192.0.2.77")],
            false,
        ),
    ];
    for (what, change, expected) in rows {
        let mut world = World::new();
        world.policy("p", vec![rule(None, None)]);
        world.pod("apps/a", 2);
        change(&mut world);
        let unsteered = world.resolve().unsteered;
        assert_eq!(unsteered.contains(&veth(2)), expected, "{what}");
        assert!(!unsteered.contains(&2), "{what}: the uplink");
    }
}

fn asks(world: &mut World) {
    world.pod("apps/a", 2).steering = Some(Steering::Policy("p".to_owned()));
}

/// A second pod behind the first one's interface.
fn share(world: &mut World, steering: Option<Steering>) {
    world.pod("apps/b", 3).steering = steering;
    for route in &mut world.node.routes {
        if route.ifindex == veth(3) {
            route.ifindex = veth(2);
        }
    }
}
