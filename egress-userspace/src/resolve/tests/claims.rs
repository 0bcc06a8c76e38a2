//! Egress addresses and numbers that more than one gateway claims, or that are somebody else's.

use super::{
    egress::{here, only_way, ports},
    *,
};
use crate::gateway_id::gateway_id;

#[test]
fn an_egress_address_is_the_first_gateways_by_name() {
    let mut world = World::new();
    world.steered("apps/web", 2, "p");
    world.policy("p", vec![rule(None, Some(in_egress("all()")))]);
    world.egress("egress/b", "here", &["203.0.113.10"]);
    world.egress("egress/a", "there", &["203.0.113.11", "2001:db8:5::10"]);
    world.egress("egress/c", "here", &["203.0.113.12", "2001:db8:5::10"]);
    // Not the second's: it is refused as a whole.
    world.egress("egress/d", "here", &["203.0.113.12"]);
    world.egress("egress/e", "here", &["203.0.113.10"]);
    world.egress("egress/z", "here", &["10.0.0.3"]);
    world.pod("egress/pod", 3);
    let resolved = world.resolve();
    assert_down(&resolved, "egress/c", &["2001:db8:5::10", "egress/a"]);
    assert_down(&resolved, "egress/e", &["203.0.113.10", "egress/b"]);
    assert_down(&resolved, "egress/z", &["10.0.0.3", "egress/pod"]);
    assert_eq!(rules(&resolved, "apps/web"), ["default -> b,d,pod"]);
    // A pod that is no gateway now claims nothing, but its address stays its own while it lives.
    let pod = world.model.pods.get_mut(&name("egress/pod")).unwrap();
    pod.ready = false;
    assert_eq!(rules(&world.resolve(), "apps/web"), ["default -> b,d"]);
    let pod = world.model.pods.get_mut(&name("egress/pod")).unwrap();
    pod.phase = Phase::Finished;
    assert_eq!(rules(&world.resolve(), "apps/web"), ["default -> b,d,z"]);
}

#[test]
fn an_egress_address_that_is_anothers_is_refused() {
    type Change = fn(&mut World);
    let rows: &[(&str, Change, &[&str])] = &[
        ("nobody's", |_| {}, &[]),
        (
            "another node's",
            |world| world.node_object("there", &["203.0.113.10"]),
            &["203.0.113.10", "the node there"],
        ),
        (
            "a live pod's",
            |world| world.pod("apps/db", 5).addresses = vec![ip("203.0.113.10")],
            &["203.0.113.10", "the pod apps/db"],
        ),
        (
            "a live pod's on another node",
            |world| {
                let pod = world.pod("apps/db", 5);
                pod.addresses = vec![ip("203.0.113.10")];
                pod.node = Some("there".to_owned());
            },
            &["203.0.113.10", "the pod apps/db"],
        ),
        (
            "a finished pod's",
            |world| {
                let pod = world.pod("apps/db", 5);
                pod.addresses = vec![ip("203.0.113.10")];
                pod.phase = Phase::Finished;
            },
            &[],
        ),
        (
            "its node's, which a pod shares",
            |world| {
                world.node_object("here", &["203.0.113.10"]);
                ports(world, 61_000, 62_000);
                let pod = world.pod("apps/db", 5);
                pod.addresses = vec![ip("203.0.113.10")];
                pod.host_network = true;
            },
            &[],
        ),
    ];
    for (what, change, parts) in rows {
        let mut world = World::new();
        world.egress("egress/red", "here", &["203.0.113.10"]);
        change(&mut world);
        let resolved = world.resolve();
        if parts.is_empty() {
            only_way(&resolved, "egress/red");
        } else {
            assert_down(&resolved, "egress/red", parts);
            assert!(resolved.translation.addresses.is_empty(), "{what}");
        }
    }
}

#[test]
fn a_refused_egress_address_is_not_claimed() {
    let mut world = World::new();
    world.steered("apps/web", 2, "p");
    world.policy("p", vec![rule(None, Some(in_egress("all()")))]);
    world.egress("egress/a", "here", &["10.0.0.3"]);
    world.pod("egress/pod", 3);
    let resolved = world.resolve();
    assert_down(&resolved, "egress/a", &["10.0.0.3", "the pod egress/pod"]);
    assert_eq!(only_way(&resolved, "egress/pod"), here("10.0.0.3", 2, 1500));
}

#[test]
fn two_names_that_amount_to_one_number_are_one_gateway() {
    // Found by trying out names: SHA-256 of both begins alike.
    let (one, other) = ("egress/gw-55722", "egress/gw-68574");
    assert_eq!(gateway_id(&name(one)), gateway_id(&name(other)));
    let mut world = World::new();
    world.gateway(other, "", &["192.0.2.22"]);
    assert!(matches!(
        world.resolve().gateways[&name(other)],
        GatewayStatus::Up(_)
    ));
    world.egress(one, "here", &["203.0.113.10"]);
    let resolved = world.resolve();
    only_way(&resolved, one);
    assert_down(&resolved, other, &["same number", one, "rename"]);
}
