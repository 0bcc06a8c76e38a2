//! What policies and annotations turn into.

use std::time::Instant;

use super::*;

#[test]
fn rules_are_sorted_and_their_gateways_found() {
    let mut world = World::new();
    world.steered("apps/web", 2, "p");
    world.gateway("egress/red-2", "code=red", &["192.0.2.22"]);
    world.gateway("egress/red-1", "code=red", &["192.0.2.21", "2001:db8::21"]);
    world.gateway("egress/blue", "code=blue", &["192.0.2.31"]);
    world.gateway("apps/red-3", "code=red", &["192.0.2.23"]);
    world.policy(
        "p",
        vec![
            rule(Some("203.0.113.0/24"), Some(in_egress("code == 'red'"))),
            rule(Some("10.0.0.0/8"), None),
            rule(None, Some(in_egress("code == 'blue'"))),
        ],
    );
    let resolved = world.resolve();
    let expected = [
        "default -> blue",
        "10.0.0.0/8 -> local",
        "203.0.113.0/24 -> red-1,red-2",
    ];
    assert_eq!(rules(&resolved, "apps/web"), expected);
    assert_eq!(resolved.warnings, BTreeSet::new());
    assert_eq!(
        resolved.pod_states,
        [(name("apps/web"), PodState::Steered)].into()
    );
    let pod = &resolved.pods[&name("apps/web")];
    assert_eq!(
        (pod.ifindex, pod.interface.as_str(), pod.policy.as_str()),
        (veth(2), "veth2", "p")
    );
    let way = |next_hop| Way::NextHop {
        next_hop: ip(next_hop),
        ifindex: 2,
        mtu: 1500,
        replies: Replies::Recorded,
    };
    assert_eq!(
        resolved.gateways[&name("egress/red-1")],
        GatewayStatus::Up(vec![way("192.0.2.21"), way("2001:db8::21")])
    );
    assert_eq!(
        resolved.gateways.len(),
        4,
        "those that nobody uses are told of too"
    );
}

#[test]
fn what_cannot_be_followed_drops() {
    let mut world = World::new();
    world.steered("apps/missing", 2, "nowhere");
    world.pod("apps/invalid", 3).steering = Some(Steering::Invalid);
    world.steered("apps/nobody", 4, "p");
    world.steered("apps/down", 5, "q");
    world.policy("p", vec![rule(None, Some(in_egress("code == 'green'")))]);
    world.policy("q", vec![rule(None, Some(in_egress("code == 'red'")))]);
    world.gateway("egress/red", "code=red", &["198.51.100.1"]);
    let resolved = world.resolve();
    assert_eq!(rules(&resolved, "apps/missing"), ["drop PolicyMissing"]);
    assert_eq!(rules(&resolved, "apps/invalid"), ["drop PolicyInvalid"]);
    assert_eq!(rules(&resolved, "apps/nobody"), ["default -> "]);
    assert_eq!(rules(&resolved, "apps/down"), ["default -> "]);
    assert_eq!(
        resolved.pod_states[&name("apps/missing")],
        PodState::PolicyMissing
    );
    assert_eq!(
        resolved.pod_states[&name("apps/invalid")],
        PodState::PolicyMissing
    );
    assert_eq!(resolved.pod_states[&name("apps/nobody")], PodState::Steered);
    assert_warned(&resolved, &["policy nowhere does not exist"]);
    assert_warned(
        &resolved,
        &["policy p, rule default", "no gateway", "code == "],
    );
    assert_warned(
        &resolved,
        &[
            "policy q, rule default",
            "none of the gateways with \"",
            "is usable from this node",
        ],
    );
    let GatewayStatus::Down(reason) = &resolved.gateways[&name("egress/red")] else {
        panic!("up: {resolved:#?}");
    };
    assert!(reason.contains("router 192.0.2.1"), "{reason}");
}

#[test]
fn selector_annotations_amount_to_a_policy() {
    let mut world = World::new();
    world.gateway("apps/red", "code=red", &["192.0.2.21"]);
    world.gateway("egress/red", "code=red", &["192.0.2.22"]);
    let own = Steering::Gateways(select(None, "code=='red'"));
    world.pod("apps/a", 2).steering = Some(own.clone());
    world.pod("apps/b", 3).steering = Some(own.clone());
    world.pod("egress/c", 4).steering = Some(own);
    world.pod("apps/d", 5).steering = Some(Steering::Gateways(in_egress("code == 'red'")));
    let resolved = world.resolve();
    let name_of = |pod: &str| resolved.pods[&name(pod)].policy.clone();
    assert!(
        name_of("apps/a").starts_with("selector:"),
        "{}",
        name_of("apps/a")
    );
    assert_eq!(name_of("apps/a"), name_of("apps/b"));
    assert_ne!(name_of("apps/a"), name_of("apps/d"));
    for (pod, gateway) in [
        ("apps/a", "apps/red"),
        ("egress/c", "egress/red"),
        ("apps/d", "egress/red"),
    ] {
        let Fate::Rules(rules) = &resolved.pods[&name(pod)].fate else {
            panic!("{pod} is dropped");
        };
        let Action::Gateways(gateways) = &rules[0].action else {
            panic!("{pod} is local");
        };
        assert_eq!((rules.len(), gateways.len()), (1, 1));
        assert_eq!(gateways[0].name, name(gateway), "{pod}");
    }
}

#[test]
fn pods_that_are_told_the_same_share_it() {
    let mut world = World::new();
    for n in 1..=3 {
        world.gateway(
            &format!("egress/red-{n}"),
            "code=red",
            &[&format!("192.0.2.2{n}")],
        );
    }
    world.policy("all", vec![rule(None, Some(in_egress("code == 'red'")))]);
    world.policy(
        "one",
        vec![rule(None, Some(at_most(1, in_egress("code == 'red'"))))],
    );
    for n in 2..40 {
        world.steered(&format!("apps/all-{n}"), n, "all");
        world.steered(&format!("apps/one-{n}"), 1000 + n, "one");
    }
    let resolved = world.resolve();
    let mut lists: Vec<&Arc<[EffectiveRule]>> = Vec::new();
    for pod in resolved.pods.values() {
        let Fate::Rules(rules) = &pod.fate else {
            panic!("dropped");
        };
        if !lists.iter().any(|known| Arc::ptr_eq(known, rules)) {
            assert!(!lists.contains(&rules) || pod.policy != "all");
            lists.push(rules);
        }
    }
    assert_eq!(lists.len(), 1 + 3);
}

#[test]
fn max_next_hops_is_chosen_after_usability_and_preference() {
    let mut world = World::new();
    for n in 1..=6 {
        let hop = if n <= 3 {
            format!("192.0.2.2{n}")
        } else {
            format!("198.51.100.{n}")
        };
        world.gateway(&format!("egress/red-{n}"), "code=red", &[&hop]);
    }
    world.policy(
        "p",
        vec![rule(None, Some(at_most(2, in_egress("code == 'red'"))))],
    );
    for n in 2..100 {
        world.steered(&format!("apps/pod-{n}"), n, "p");
    }
    let resolved = world.resolve();
    let mut seen = BTreeMap::new();
    for pod in resolved.pods.keys() {
        *seen
            .entry(rules(&resolved, &pod.to_string()).concat())
            .or_insert(0) += 1;
    }
    let pairs = ["red-1,red-2", "red-1,red-3", "red-2,red-3"].map(|p| format!("default -> {p}"));
    assert_eq!(
        seen.keys().collect::<Vec<_>>(),
        pairs.iter().collect::<Vec<_>>(),
        "{seen:?}"
    );

    // Its pods move to another; nobody else notices.
    world.model.gateways.remove(&name("egress/red-2"));
    let after = world.resolve();
    for pod in resolved.pods.keys() {
        let before = rules(&resolved, &pod.to_string()).concat();
        let now = rules(&after, &pod.to_string()).concat();
        assert_eq!(now, "default -> red-1,red-3");
        assert!(before.contains("red-2") || before == now);
    }
}

#[test]
fn where_pods_are_steered_it_is_known_why_a_prefix_is_local() {
    let mut world = World::new();
    world.model.cluster_prefixes = [net("192.0.2.0/24")].into();
    world.assigned = [ip("203.0.113.10")].into();
    world.node.addresses.push((2, net("203.0.113.10/32")));
    world.policy("p", vec![rule(None, None)]);
    world.pod("apps/b", 3);
    assert!(world.resolve().translation.locals.is_empty());
    world.steered("apps/a", 2, "p");
    let resolved = world.resolve();
    let locals = &resolved.translation.locals;
    assert!(locals.keys().eq(&resolved.cluster_prefixes));
    for (prefix, why) in [
        ("192.0.2.0/24", Some(Local::Cluster)),
        ("192.0.2.10/32", Some(Local::Node)),
        ("2001:db8::10/128", Some(Local::Node)),
        ("10.0.0.3/32", Some(Local::Cluster)),
        ("224.0.0.0/4", Some(Local::Cluster)),
        ("203.0.113.10/32", None),
    ] {
        assert_eq!(locals.get(&net(prefix)).copied(), why, "{prefix}");
    }
}

#[test]
fn cluster_prefixes_are_what_the_cluster_owns() {
    let mut world = World::new();
    world.model.cluster_prefixes = [net("10.96.0.0/12")].into();
    world.settings.local_cidrs = vec![net("172.16.0.0/12")];
    let node = |addresses: &[&str], cidr: &str| Node {
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        pod_cidrs: vec![net(cidr)],
    };
    world.model.nodes = [
        ("here".to_owned(), node(&["192.0.2.10"], "10.0.0.0/24")),
        (
            "there".to_owned(),
            node(&["198.51.100.2", "172.16.3.4"], "fd00:1::/64"),
        ),
    ]
    .into();
    world.pod("apps/covered", 2);
    world.pod("apps/elsewhere", 3).addresses =
        vec![ip("10.50.0.1"), ip("fd00:2::1"), ip("fd00:1::1")];
    world.pod("apps/finished", 4).addresses = vec![ip("10.50.0.2")];
    world
        .model
        .pods
        .get_mut(&name("apps/finished"))
        .unwrap()
        .phase = Phase::Finished;
    world.node.addresses.extend([
        (1, net("127.0.0.1/8")),
        (3, net("10.60.0.0/31")),
        (2, net("fe80::5/64")),
    ]);
    let expected = [
        // Built in.
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::1/128",
        "fe80::/10",
        "ff00::/8",
        // Configured, and of nodes.
        "10.96.0.0/12",
        "172.16.0.0/12",
        "10.0.0.0/24",
        "fd00:1::/64",
        // Known pods that nothing covers, and known nodes.
        "10.50.0.1/32",
        "fd00:2::1/128",
        "198.51.100.2/32",
        "172.16.3.4/32",
        // This node's own.
        "192.0.2.10/32",
        "192.0.2.255/32",
        "2001:db8::10/128",
        "10.60.0.0/32",
    ];
    assert_eq!(
        world.resolve().cluster_prefixes,
        expected.into_iter().map(net).collect()
    );
}

/// Not a benchmark: it catches work that grows with pods × rules × gateways. Optimized it takes a tenth.
#[test]
fn a_large_node_resolves_quickly() {
    let mut world = World::new();
    for n in 0..100 {
        let hop = format!("192.0.2.{}", 100 + n);
        world.gateway(
            &format!("egress/gw-{n:03}"),
            &format!("code=c{} all=yes", n % 10),
            &[&hop],
        );
    }
    for p in 0..10 {
        let rules = (0..100)
            .map(|n| {
                let selector = in_egress(&format!("code == 'c{}' || all == 'yes'", n % 10));
                rule(
                    Some(&format!("203.{p}.{n}.0/24")),
                    Some(at_most(2, selector)),
                )
            })
            .collect();
        world.policy(&format!("p{p}"), rules);
    }
    for n in 0..1000 {
        world.steered(&format!("apps/pod-{n}"), 1 + n, &format!("p{}", n % 10));
    }
    let begin = Instant::now();
    let resolved = world.resolve();
    let took = begin.elapsed();
    assert_eq!(resolved.pods.len(), 1000);
    assert!(took.as_secs() < 5, "{took:?}");
}
