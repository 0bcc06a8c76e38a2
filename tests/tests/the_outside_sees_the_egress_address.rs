//! Whatever node a pod is on, the outside sees the egress address that its policy chooses, and nothing else.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Result, ensure};
use egress_tests::{
    ClusterStage,
    client::whoami,
    cluster::{
        BLUE, ClusterShape, ELSEWHERE, Egress, GATEWAY_NODE, INTERNAL, INTERNET_HOST, NodeSetup,
        PARTNER, RED, Seen, Underlay, usual, usual_gateways,
    },
    ping::ping,
    resources::{Via, namespace, pod, policy},
    server::Whoami,
    sniffer::Content,
    wait,
};

/// One pod has two egress addresses for two destinations, and two policies share one address.
#[test]
fn policies_decide_which_one() -> Result<()> {
    ClusterStage::usual()?.play(decide)
}

#[test]
fn nodes_may_reach_each_other_by_ipv6_alone() -> Result<()> {
    let shape = ClusterShape {
        underlay: Underlay::V6,
        ..ClusterShape::default()
    };
    ClusterStage::of(&shape)?.play(|stage| {
        for (name, destination, egress) in [
            ("web", INTERNAL, RED),
            ("web", ELSEWHERE, BLUE),
            ("app", INTERNAL, RED),
        ] {
            stage.expect(name, destination, Seen::As(egress))?;
        }
        ensure!(stage.sniffed()?.encapsulated() > 0);
        stage.expect_no_drops()
    })
}

fn decide(stage: &mut ClusterStage) -> Result<()> {
    stage.permit(BLUE, &[INTERNAL]);
    for (name, destination, seen) in [
        ("web", INTERNAL, Seen::As(RED)),
        ("web", ELSEWHERE, Seen::As(BLUE)),
        ("app", INTERNAL, Seen::As(RED)),
        ("batch", ELSEWHERE, Seen::As(BLUE)),
        // The firewall admits red alone.
        ("batch", INTERNAL, Seen::Refused),
        ("plain", PARTNER, Seen::AsNode),
    ] {
        stage.expect(name, destination, seen)?;
    }
    // Who was refused was seen by the firewall, with the other address.
    let refused: BTreeSet<IpAddr> = stage.cluster.refused()?.into_iter().collect();
    assert_eq!(refused, BLUE.addresses().into());
    ensure!(stage.sniffed()?.encapsulated() > 0);
    stage.expect_no_drops()
}

#[test]
fn a_gateway_on_the_pods_own_node_encapsulates_nothing() -> Result<()> {
    let shape = ClusterShape {
        pods: vec![("near", GATEWAY_NODE)],
        ..ClusterShape::default()
    };
    ClusterStage::of(&shape)?.play(|stage| {
        stage.expect("near", INTERNAL, Seen::As(RED))?;
        stage.expect("near", ELSEWHERE, Seen::As(BLUE))?;
        for address in ELSEWHERE.addresses() {
            ping(stage.host("near")?, address)?;
        }
        assert_eq!(stage.sniffed()?.encapsulated(), 0);
        stage.expect_no_drops()
    })
}

/// Without any gateway object: a pod that only holds an address.
#[test]
fn a_gateway_pod_lends_its_address() -> Result<()> {
    let shape = ClusterShape {
        pods: vec![("web", "worker-1"), ("holder", GATEWAY_NODE)],
        ..ClusterShape::default()
    };
    let stage = ClusterStage::new(
        &shape,
        |cluster| {
            let code = [("egress-code", "pods")];
            Ok(namespace("default", &[])
                + &namespace("shop", &[("egressGatewayPolicy", "all")])
                + &policy("all", &[("", Via::Code("pods"))])
                + &pod("shop", cluster.pod("web")?, &[], &[])
                + &pod("default", cluster.pod("holder")?, &[], &code))
        },
        |_| {},
    )?;
    stage.play(|stage| {
        let holder = stage.pod("holder")?.clone();
        let egress = Egress {
            name: "holder",
            v4: holder.v4,
            v6: holder.v6,
        };
        stage.expect("web", ELSEWHERE, Seen::As(egress))?;
        // Its own address stays the pod's: who talks to it is answered.
        stage.permit(egress, &[INTERNET_HOST]);
        let _own = Whoami::start(&holder.host)?;
        for address in egress.addresses() {
            ping(&stage.cluster.internet, address)?;
            whoami(&stage.cluster.internet, address)?;
        }
        stage.expect_no_drops()
    })
}

#[test]
fn no_interface_relaxes_its_reverse_path_filter() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        decide(stage)?;
        for node in &stage.cluster.nodes {
            node.host.expect_strict_reverse_paths()?;
        }
        Ok(())
    })
}

/// A node that dies takes nothing with it that another cannot carry.
#[test]
fn an_address_moves_to_another_node() -> Result<()> {
    let shape = ClusterShape {
        nodes: vec!["worker-1", "gw-1", "gw-2"],
        pods: vec![("web", "worker-1")],
        ..ClusterShape::default()
    };
    ClusterStage::of(&shape)?.play(|stage| {
        stage.permit_at("gw-2", RED, &[INTERNAL]);
        stage.expect("web", INTERNAL, Seen::As(RED))?;
        let elsewhere = usual_gateways().replacen("node: gw-1", "node: gw-2", 1);
        stage
            .resources
            .write("all.yaml", &(usual(&stage.cluster) + &elsewhere))?;
        wait::until("gw-2 has the address, and gw-1 no more", || {
            for address in RED.addresses() {
                ensure!(stage.uplink_addresses("gw-2")?.contains(&address));
                ensure!(!stage.uplink_addresses("gw-1")?.contains(&address));
            }
            Ok(())
        })?;
        for address in INTERNAL.addresses() {
            // The segment has been told: nobody waits for an old entry to age.
            stage.wait_until_seen("web", address, Seen::As(RED))?;
        }
        // What leaves with the address now, leaves there.
        let sent = stage.sniffed()?.sent;
        for (source, to) in RED.addresses().into_iter().zip(INTERNAL.addresses()) {
            let by_new = sent.keys().any(|sent| {
                matches!(sent.content, Content::Plain { source: from, destination, .. }
                    if sent.node == "gw-2" && (from, destination) == (source, to))
            });
            ensure!(by_new, "gw-2 sent nothing from {source} to {to}: {sent:?}");
        }
        Ok(())
    })
}

#[test]
fn without_a_key_nothing_leaves() -> Result<()> {
    let keyless = |node: &mut NodeSetup<'_>| node.setup.arguments.clear();
    let stage = ClusterStage::new(
        &ClusterShape::default(),
        |cluster| Ok(usual(cluster) + &usual_gateways()),
        keyless,
    )?;
    stage.play(|stage| {
        stage.wait_until_gone("web", ELSEWHERE)?;
        stage.wait_for_drops("worker-1", "NoGateway", 2)?;
        let status = stage.agent("worker-1")?.get("/status")?.1;
        ensure!(status.contains("key"), "the reason is not told: {status}");
        Ok(())
    })
}
