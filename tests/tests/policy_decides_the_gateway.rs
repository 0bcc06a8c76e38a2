//! A policy decides over the way of every packet: the longest matching destination wins.

use std::net::IpAddr;

use anyhow::Result;
use egress_tests::{
    Stage,
    client::whoami,
    resources::{Via, gateway, namespace, pod, policy},
    server::Whoami,
    stage::From,
    topology::{ELSEWHERE, INTERNAL, RED_NETWORK, Shape},
};

#[test]
fn the_examples_do_what_their_comments_say() -> Result<()> {
    let stage = Stage::of_examples()?;
    let rows = [
        ("web", INTERNAL, From::Pod),
        ("web", RED_NETWORK, From::Gateway("red")),
        ("web", ELSEWHERE, From::Gateway("blue")),
        ("batch", INTERNAL, From::Pod),
        ("batch", RED_NETWORK, From::Gateway("red")),
        ("batch", ELSEWHERE, From::Gateway("red")),
        ("plain", INTERNAL, From::Pod),
        ("plain", RED_NETWORK, From::Node),
        ("plain", ELSEWHERE, From::Node),
    ];
    for (pod, destination, from) in rows {
        stage.expect(pod, destination, from)?;
    }
    assert_eq!(stage.metrics()?.all_dropped().len(), 0);
    Ok(())
}

#[test]
fn the_longest_prefix_wins_in_any_order() -> Result<()> {
    let mut rules = [
        ("192.0.2.80/32", Via::Code("blue")),
        ("192.0.2.0/24", Via::Code("red")),
        ("192.0.0.0/16", Via::Local),
        ("", Via::Code("blue")),
        ("2001:db8:2::80/128", Via::Code("blue")),
        ("2001:db8:2::/64", Via::Code("red")),
        ("2001:db8::/32", Via::Local),
    ];
    let stage = Stage::new(&Shape::default(), |scene| {
        let forwards = policy("forwards", &rules);
        rules.reverse();
        let backwards = policy("backwards", &rules);
        let annotation = |policy| [("egressGatewayPolicy", policy)];
        Ok(namespace("default", &[])
            + &forwards
            + &backwards
            + &gateway(scene.gateway("red")?, "red", "")
            + &gateway(scene.gateway("blue")?, "blue", "")
            + &pod("default", scene.pod("web")?, &annotation("forwards"), &[])
            + &pod(
                "default",
                scene.pod("batch")?,
                &annotation("backwards"),
                &[],
            ))
    })?;
    stage.scene.internet.ip("addr add 192.0.2.81/32 dev lo
         addr add 192.0.3.80/32 dev lo
         addr add 2001:db8:2::81/128 dev lo nodad
         addr add 2001:db8:3::80/128 dev lo nodad
         ")?;
    for pod in ["web", "batch"] {
        for (address, from) in [
            ("192.0.2.80", From::Gateway("blue")),
            ("192.0.2.81", From::Gateway("red")),
            ("192.0.3.80", From::Node),
            ("198.51.100.80", From::Gateway("blue")),
            ("2001:db8:2::80", From::Gateway("blue")),
            ("2001:db8:2::81", From::Gateway("red")),
            ("2001:db8:3::80", From::Node),
        ] {
            stage.expect_at(pod, address.parse()?, from)?;
        }
    }
    Ok(())
}

#[test]
fn what_no_rule_matches_is_routed_as_ever() -> Result<()> {
    let stage = Stage::new(&Shape::default(), |scene| {
        let rules = [
            ("192.0.2.0/24", Via::Code("red")),
            ("2001:db8:2::/48", Via::Code("red")),
        ];
        Ok(namespace("default", &[])
            + &policy("some", &rules)
            + &gateway(scene.gateway("red")?, "red", "")
            + &pod(
                "default",
                scene.pod("web")?,
                &[("egressGatewayPolicy", "some")],
                &[],
            ))
    })?;
    stage.expect("web", RED_NETWORK, From::Gateway("red"))?;
    stage.expect("web", ELSEWHERE, From::Node)?;
    stage.expect("web", INTERNAL, From::Pod)
}

#[test]
fn the_cluster_is_local_unless_a_rule_is_as_specific() -> Result<()> {
    let stage = Stage::new(&Shape::default(), |scene| {
        let wide = [
            ("10.0.0.0/8", Via::Code("red")),
            ("fd00::/8", Via::Code("red")),
        ];
        let exact = [
            ("10.70.0.0/16", Via::Code("red")),
            ("fd00:70::/32", Via::Code("red")),
        ];
        Ok(namespace("default", &[])
            + &policy("wide", &wide)
            + &policy("exact", &exact)
            + &gateway(scene.gateway("red")?, "red", "")
            + &pod(
                "default",
                scene.pod("web")?,
                &[("egressGatewayPolicy", "wide")],
                &[],
            )
            + &pod(
                "default",
                scene.pod("batch")?,
                &[("egressGatewayPolicy", "exact")],
                &[],
            ))
    })?;
    // Behind the red gateway there is another host of that address.
    stage
        .scene
        .internet
        .ip("addr add 10.70.0.80/32 dev lo\naddr add fd00:70::80/128 dev lo nodad\n")?;
    stage.expect("web", INTERNAL, From::Pod)?;
    stage.expect("batch", INTERNAL, From::Gateway("red"))
}

#[test]
fn a_pods_annotation_overrides_its_namespaces() -> Result<()> {
    let stage = Stage::new(&Shape::default(), |scene| {
        let selector = [
            ("selector", "egress-code == 'red'"),
            ("namespaceSelector", "projectcalico.org/name == 'default'"),
        ];
        Ok(namespace("default", &[])
            + &namespace("shop", &[("egressGatewayPolicy", "blue")])
            + &policy("blue", &[("", Via::Code("blue"))])
            + &gateway(scene.gateway("red")?, "red", "")
            + &gateway(scene.gateway("blue")?, "blue", "")
            + &pod("shop", scene.pod("web")?, &[], &[])
            + &pod("shop", scene.pod("batch")?, &selector, &[]))
    })?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
    // The annotation's form speaks of everything, but never of the cluster.
    stage.expect("batch", INTERNAL, From::Pod)
}

#[test]
fn neighbours_the_node_and_callers_are_reached_by_plain_routing() -> Result<()> {
    let stage = Stage::of_examples()?;
    let (web, batch, plain) = (stage.pod("web")?, stage.pod("batch")?, stage.pod("plain")?);
    let _on_the_node = Whoami::start(&stage.scene.node)?;
    let _in_pods = [Whoami::start(&web.host)?, Whoami::start(&plain.host)?];
    for address in ["172.18.0.2", "172.19.0.2", "fd00:18::2", "fd00:19::2"] {
        stage.expect_at("web", address.parse()?, From::Pod)?;
    }
    for (from, to) in [(web, plain), (batch, plain), (plain, web), (batch, web)] {
        for address in [to.v4.into(), to.v6.into()] {
            stage.expect_at(from.name, address, From::Pod)?;
        }
    }
    // A caller from the cluster gets its answer: the pod's reply is local traffic.
    for address in [IpAddr::from(web.v4), IpAddr::from(web.v6)] {
        whoami(&stage.scene.internal, address)?;
        whoami(&stage.scene.node, address)?;
    }
    assert_eq!(stage.metrics()?.all_dropped().len(), 0);
    Ok(())
}
