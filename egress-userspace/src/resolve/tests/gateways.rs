//! Which gateways there are and which can be used.

use super::*;

#[test]
fn gateway_pods_that_forward_are_next_hops_when_they_can_be() {
    let mut world = World::new();
    world.settings.pod_gateways = PodGateways::Forward;
    world.steered("apps/web", 2, "p");
    world.policy("p", vec![rule(None, Some(in_egress("code == 'red'")))]);
    let rows: &[(&str, u32, fn(&mut Pod), Result<(), &str>)] = &[
        ("egress/ready", 10, |_| {}, Ok(())),
        (
            "egress/unready",
            11,
            |pod| pod.ready = false,
            Err("not ready"),
        ),
        (
            "egress/host",
            12,
            |pod| pod.host_network = true,
            Err("shares the node's network"),
        ),
        (
            "egress/no-address",
            13,
            |pod| pod.addresses.clear(),
            Err("no address"),
        ),
        (
            "egress/remote",
            14,
            |pod| {
                pod.node = Some("there".to_owned());
                pod.addresses = vec![IpAddr::from([198, 51, 100, 7])];
            },
            Err("another node"),
        ),
        (
            "egress/remote-on-link",
            15,
            |pod| {
                pod.node = Some("there".to_owned());
                pod.addresses = vec![IpAddr::from([192, 0, 2, 77])];
            },
            Ok(()),
        ),
        (
            "egress/hinted",
            16,
            |pod| {
                pod.addresses = vec![IpAddr::from([10, 77, 0, 1])];
                pod.interface = Some("veth16".to_owned());
            },
            Ok(()),
        ),
        ("egress/unscheduled", 17, |pod| pod.node = None, Ok(())),
    ];
    for (text, n, change, _) in rows {
        let pod = world.pod(text, *n);
        pod.labels = labels("code=red");
        change(pod);
    }
    let finished = world.pod("egress/finished", 18);
    finished.labels = labels("code=red");
    finished.phase = Phase::Finished;
    let resolved = world.resolve();
    for (text, _, _, expected) in rows {
        match (&resolved.gateways[&name(text)], expected) {
            (GatewayStatus::Up(ways), Ok(())) => assert_eq!(ways.len(), 1, "{text}"),
            (GatewayStatus::Down(reason), Err(part)) => {
                assert!(reason.contains(part), "{text}: {reason}");
            }
            (status, _) => panic!("{text}: {status:?}"),
        }
    }
    assert!(!resolved.gateways.contains_key(&name("egress/finished")));
    let expected = ["default -> hinted,ready,remote-on-link,unscheduled"];
    assert_eq!(rules(&resolved, "apps/web"), expected);
    let GatewayStatus::Up(ways) = &resolved.gateways[&name("egress/hinted")] else {
        panic!("down");
    };
    assert_eq!(ways[0].ifindex(), veth(16));
}

#[test]
fn a_gateway_pod_is_never_steered_itself() {
    let mut world = World::new();
    let steering = Some(Steering::Policy("p".to_owned()));
    world.model.namespaces.get_mut("egress").unwrap().steering = steering;
    world.policy("p", vec![rule(None, Some(in_egress("code == 'red'")))]);
    world.policy("unused", vec![rule(None, Some(in_egress("all()")))]);
    world.pod("egress/red", 10).labels = labels("code=red");
    world.steered("egress/own", 11, "p").labels = labels("code=red");
    world.steered("egress/unready", 12, "p").labels = labels("code=red");
    world
        .model
        .pods
        .get_mut(&name("egress/unready"))
        .unwrap()
        .ready = false;
    world.pod("egress/app", 13);
    let resolved = world.resolve();
    assert_eq!(
        resolved.pods.keys().collect::<Vec<_>>(),
        [&name("egress/app")]
    );
    for pod in ["egress/red", "egress/own", "egress/unready"] {
        assert_eq!(resolved.pod_states[&name(pod)], PodState::Gateway, "{pod}");
    }
    assert_warned(&resolved, &["egress/own", "never redirected"]);
    assert!(!resolved.warnings.iter().any(|w| w.contains("egress/red")));
}

#[test]
fn local_gateways_are_preferred_while_there_is_one() {
    let mut world = World::new();
    world.steered("apps/web", 2, "p");
    let nearest = GatewaySelector {
        preference: Preference::NodeLocal,
        ..in_egress("code == 'red'")
    };
    world.policy("p", vec![rule(None, Some(nearest))]);
    world.gateway("egress/box", "code=red", &["192.0.2.21"]);
    for n in 10..12 {
        world.pod(&format!("egress/local-{n}"), n).labels = labels("code=red");
    }
    world.with_overlay();
    world.node_object("there", &["192.0.2.77"]);
    let remote = world.pod("egress/remote", 12);
    remote.labels = labels("code=red");
    remote.node = Some("there".to_owned());
    assert_eq!(
        rules(&world.resolve(), "apps/web"),
        ["default -> local-10,local-11"]
    );
    world
        .model
        .pods
        .get_mut(&name("egress/local-10"))
        .unwrap()
        .ready = false;
    assert_eq!(rules(&world.resolve(), "apps/web"), ["default -> local-11"]);
    world
        .model
        .pods
        .get_mut(&name("egress/local-11"))
        .unwrap()
        .ready = false;
    assert_eq!(
        rules(&world.resolve(), "apps/web"),
        ["default -> box,remote"]
    );
}

#[test]
fn a_gateway_with_half_its_ways_is_up_and_warned_of() {
    let mut world = World::new();
    world.gateway("egress/half", "", &["192.0.2.21", "2001:db8:9::1"]);
    world.gateway("egress/none", "", &[]);
    world
        .gateway("egress/device", "", &["192.0.2.22"])
        .interface = Some("eth7".to_owned());
    world.gateway("egress/self", "", &["192.0.2.10"]);
    let resolved = world.resolve();
    assert!(
        matches!(&resolved.gateways[&name("egress/half")], GatewayStatus::Up(ways) if ways.len() == 1)
    );
    assert_warned(
        &resolved,
        &["egress/half", "one family only", "2001:db8:9::1"],
    );
    for (gateway, part) in [
        ("none", "spec.nextHops"),
        ("device", "eth7"),
        ("self", "this node"),
    ] {
        let status = &resolved.gateways[&ObjectName::new("egress", gateway)];
        assert!(
            matches!(status, GatewayStatus::Down(why) if why.contains(part)),
            "{status:?}"
        );
    }
}

#[test]
fn a_name_is_one_gateway() {
    let mut world = World::new();
    world.steered("apps/web", 2, "p");
    world.policy("p", vec![rule(None, Some(in_egress("code == 'red'")))]);
    world.gateway("egress/red", "code=red", &["192.0.2.21"]);
    world.pod("egress/red", 3).labels = labels("code=red");
    let resolved = world.resolve();
    assert_eq!(rules(&resolved, "apps/web"), ["default -> red"]);
    assert_warned(&resolved, &["both called egress/red"]);
}

#[test]
fn namespaces_that_no_source_tells_of_have_their_names() {
    let mut world = World::new();
    world.model.namespaces.clear();
    world.steered("apps/web", 2, "p");
    world.gateway("egress/red", "code=red", &["192.0.2.21"]);
    world.policy("p", vec![rule(None, Some(in_egress("code == 'red'")))]);
    assert_eq!(rules(&world.resolve(), "apps/web"), ["default -> red"]);
}
