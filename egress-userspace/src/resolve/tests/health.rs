//! What silence and drains mean for groups.

use super::*;
use crate::{
    health::MAX_TARGETS,
    model::{Probe, ProbeKind, Probes, Url},
};

/// Three gateways on other nodes, and a pod that uses all of them.
fn world() -> World {
    let mut world = World::new();
    world.with_overlay();
    world.steered("apps/web", 2, "p");
    world.policy("p", vec![rule(None, Some(in_egress("all()")))]);
    for (n, gateway) in ["egress/a", "egress/b", "egress/c"].into_iter().enumerate() {
        let node = format!("there-{n}");
        world.node_object(&node, &[&format!("192.0.2.{}", 20 + n)]);
        world.egress(gateway, &node, &[&format!("203.0.113.{n}")]);
    }
    world
}

fn subject(world: &World, gateway: &str) -> Subject {
    let asked = world.resolve().subjects;
    let found = asked
        .iter()
        .find(|(_, names)| names.contains(&name(gateway)));
    found.unwrap().0.clone()
}

/// The members of the pod's one rule, with their standing.
fn members(world: &World) -> Vec<(String, Standing)> {
    match &world.resolve().pods[&name("apps/web")].fate {
        Fate::Rules(rules) => match &rules[0].action {
            Action::Gateways(gateways) => gateways
                .iter()
                .map(|gateway| (gateway.name.name.clone(), gateway.standing))
                .collect(),
            other @ (Action::Local | Action::Drop(_)) => panic!("{other:?}"),
        },
        Fate::Drop(reason) => panic!("{reason:?}"),
    }
}

#[test]
fn who_does_not_answer_is_in_no_group() {
    use Standing::{Remaining, Serving};
    let mut world = world();
    let all = ["a", "b", "c"].map(|name| (name.to_owned(), Serving));
    assert_eq!(members(&world), all);
    assert_eq!(world.resolve().subjects.len(), 3);
    for (gateway, left) in [
        ("egress/a", &[("b", Serving), ("c", Serving)][..]),
        // Who comes back finds the flows that began meanwhile where they began.
        ("egress/b", &[("c", Remaining)]),
        ("egress/c", &[]),
    ] {
        let silent = subject(&world, gateway);
        world.faults.insert(silent, "it is silent".to_owned());
        let left: Vec<_> = left
            .iter()
            .map(|(name, standing)| ((*name).to_owned(), *standing))
            .collect();
        assert_eq!(members(&world), left);
        let resolved = world.resolve();
        assert_down(&resolved, gateway, &["it is silent"]);
        // It is asked all the same: how else would it come back?
        assert_eq!(resolved.subjects.len(), 3);
    }
}

#[test]
fn a_group_of_one_by_choice_remembers_nothing() {
    let mut world = world();
    world.policy("p", vec![rule(None, Some(at_most(1, in_egress("all()"))))]);
    assert_eq!(members(&world)[0].1, Standing::Serving);
}

#[test]
fn next_hops_are_asked_for_each_family() {
    let mut world = World::new();
    world.gateway("egress/g", "", &["192.0.2.77", "2001:db8::77"]);
    world.gateway("egress/h", "", &["192.0.2.77"]);
    let resolved = world.resolve();
    let asked: Vec<usize> = resolved.subjects.values().map(BTreeSet::len).collect();
    assert_eq!(asked, [2, 1]);
    let (silent, _) = resolved.subjects.first_key_value().unwrap();
    world
        .faults
        .insert(silent.clone(), "it is silent".to_owned());
    let resolved = world.resolve();
    assert_down(&resolved, "egress/h", &["it is silent"]);
    assert_warned(&resolved, &["egress/g", "one family only", "it is silent"]);
}

/// A gateway of this node that asks the outside in both ways, and one of another node.
fn probed() -> World {
    let mut world = world();
    let url = Url {
        text: "http://198.51.100.1/".to_owned(),
        server: "198.51.100.1:80".parse().unwrap(),
        host: "198.51.100.1".to_owned(),
        path: "/".to_owned(),
    };
    let (interval, timeout) = (Duration::from_secs(5), Duration::from_secs(15));
    let probes = Probes {
        icmp: Some(Probe {
            targets: vec![ip("198.51.100.1"), ip("198.51.100.2")],
            interval,
            timeout,
        }),
        http: Some(Probe {
            targets: vec![url],
            interval,
            timeout,
        }),
    };
    world.egress("egress/h", "here", &["203.0.113.77"]);
    for gateway in ["egress/a", "egress/h"] {
        match &mut world.gateway_mut(gateway).exit {
            Exit::Node(egress) => egress.probes = Some(probes.clone()),
            Exit::NextHops { .. } => panic!("{gateway} has next hops"),
        }
    }
    world
}

fn outside(gateway: &str, by: ProbeKind) -> Subject {
    Subject::Outside {
        name: name(gateway),
        by,
    }
}

#[test]
fn the_outside_is_asked_by_the_gateways_own_node_alone() {
    let mut world = probed();
    let resolved = world.resolve();
    let asking: Vec<_> = resolved.probed.keys().collect();
    assert_eq!(asking, [&name("egress/h")]);
    let from = &resolved.probed[&name("egress/h")].from;
    assert_eq!(from.len(), 1);
    assert_eq!(from[0].address, ip("203.0.113.77"));
    let address = |resolved: &Resolved| resolved.translation.addresses[&ip("203.0.113.77")].is_down;
    assert!(!address(&resolved));
    // Somebody else's fault is nothing to it.
    for (subject, down) in [
        (outside("egress/a", ProbeKind::Icmp), &[][..]),
        (outside("egress/h", ProbeKind::Icmp), &["no echo"]),
        (outside("egress/h", ProbeKind::Http), &["no echo; no page"]),
    ] {
        let fault = match subject.kind() {
            "icmp" => "no echo",
            _ => "no page",
        };
        assert_eq!(resolved.subjects.contains_key(&subject), !down.is_empty());
        world.faults.insert(subject, fault.to_owned());
        let resolved = world.resolve();
        // Other nodes are told, what comes back is translated, and the outside is asked all the same.
        assert_eq!(address(&resolved), !down.is_empty());
        assert_eq!(resolved.probed.len(), 1);
        if down.is_empty() {
            assert_eq!(members(&world).len(), 4);
        } else {
            assert_down(&resolved, "egress/h", down);
            assert_eq!(members(&world).len(), 3);
        }
    }
}

#[test]
fn probes_that_could_not_be_answered_are_refused() {
    let mut world = probed();
    match &mut world.gateway_mut("egress/h").exit {
        Exit::Node(egress) => egress.assign = false,
        Exit::NextHops { .. } => panic!("next hops"),
    }
    let resolved = world.resolve();
    assert_down(
        &resolved,
        "egress/h",
        &["203.0.113.77 is on no interface", "assign: false"],
    );
    assert!(resolved.probed.is_empty());
    assert!(resolved.translation.addresses.is_empty());
}

#[test]
fn a_node_asks_so_many_and_no_more() {
    let mut world = probed();
    let gateway = world.gateway_mut("egress/h").clone();
    let most = MAX_TARGETS / 3;
    for n in 0..most {
        let mut other = gateway.clone();
        if let Exit::Node(egress) = &mut other.exit {
            egress.addresses = vec![ip(&format!("203.0.112.{n}"))];
        }
        world
            .model
            .gateways
            .insert(name(&format!("egress/n{n:03}")), other);
    }
    let resolved = world.resolve();
    assert_eq!(resolved.probed.len(), most);
    assert_warned(&resolved, &["egress/n041", "are not run"]);
    let status = &resolved.gateways[&name("egress/n041")];
    assert!(matches!(status, GatewayStatus::Up(_)), "{status:?}");
}

#[test]
fn who_is_drained_stays_until_its_time_is_over() {
    let mut world = world();
    for leaving in [Leaving::Asked, Leaving::Terminating] {
        world.gateway_mut("egress/b").leaving = leaving;
        world.gateway_mut("egress/b").drain_timeout = Some(Duration::from_secs(7));
        let resolved = world.resolve();
        assert_eq!(members(&world)[1].1, Standing::Draining);
        let draining = [(name("egress/b"), Some(Duration::from_secs(7)))];
        assert_eq!(resolved.draining, draining.into());
    }
    let over = Subject::Drained {
        name: name("egress/b"),
    };
    world.faults.insert(over, "its time is over".to_owned());
    assert_down(&world.resolve(), "egress/b", &["its time is over"]);
    assert_eq!(members(&world).len(), 2);
    // Somebody's fault of before means nothing to who is not drained any more.
    world.gateway_mut("egress/b").leaving = Leaving::No;
    assert_eq!(members(&world).len(), 3);
}

#[test]
fn a_pod_that_terminates_holds_its_address_ready_or_not() {
    for (leaving, ready, meaning, usable) in [
        (Leaving::No, false, PodGateways::Translate, false),
        (Leaving::Asked, false, PodGateways::Translate, false),
        (Leaving::Asked, true, PodGateways::Translate, true),
        (Leaving::Terminating, false, PodGateways::Translate, true),
        (Leaving::Terminating, false, PodGateways::Forward, false),
        (Leaving::Terminating, true, PodGateways::Forward, true),
    ] {
        let mut world = World::new();
        world.settings.pod_gateways = meaning;
        world.steered("apps/web", 2, "p");
        world.policy("p", vec![rule(None, Some(in_egress("all()")))]);
        let pod = world.pod("egress/holder", 9);
        (pod.leaving, pod.ready) = (leaving, ready);
        let status = &world.resolve().gateways[&name("egress/holder")];
        let is_up = matches!(status, GatewayStatus::Up(_));
        assert_eq!(is_up, usable, "{leaving:?} {ready} {meaning:?}: {status:?}");
    }
}

#[test]
fn without_gateways_a_rule_does_what_it_says() {
    let fallback = |selector| OnFailure::Fallback(in_egress(selector));
    for (on_failure, while_up, while_silent, warned) in [
        (
            OnFailure::Drop,
            "default -> a",
            "default -> ",
            "are dropped",
        ),
        (
            OnFailure::Local,
            "default -> a",
            "default -> local",
            "onFailure",
        ),
        (
            fallback("has(spare)"),
            "default -> a",
            "default -> b,c",
            "onFailure",
        ),
        (
            fallback("has(nothing)"),
            "default -> a",
            "default -> ",
            "onFailure",
        ),
    ] {
        let mut world = world();
        for gateway in ["egress/b", "egress/c"] {
            world.gateway_mut(gateway).labels = labels("spare=yes");
        }
        let mut rule = rule(None, Some(in_egress("!has(spare)")));
        rule.on_failure = on_failure;
        world.policy("p", vec![rule]);
        assert_eq!(rules(&world.resolve(), "apps/web"), [while_up]);
        let silent = subject(&world, "egress/a");
        world.faults.insert(silent, "it is silent".to_owned());
        let resolved = world.resolve();
        assert_eq!(rules(&resolved, "apps/web"), [while_silent]);
        assert_warned(&resolved, &["none of the gateways", warned]);
    }
}
