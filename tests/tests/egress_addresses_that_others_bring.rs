//! Egress addresses that no agent puts anywhere: one that routing brings to its node, and the node's own.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use anyhow::{Result, ensure};
use egress_tests::{
    ClusterStage,
    client::whoami,
    cluster::{
        ClusterShape, ELSEWHERE, Egress, GATEWAY_NODE, INTERNET_HOST, RED, Seen, egress_gateway,
        greeted, usual,
    },
    ping::ping,
    services::{Callers, Crowd, Greeter},
};

const SSH: u16 = 22;
const RANGE: RangeInclusive<u16> = 40_000..=49_999;
const CALLS: usize = 20;

/// Of no prefix that anybody is connected to.
const ROUTED: Egress = Egress {
    name: "blue",
    v4: Ipv4Addr::new(172, 18, 1, 7),
    v6: Ipv6Addr::new(0xfd00, 0x18, 1, 0, 0, 0, 0, 7),
};

#[test]
fn routing_brings_it() -> Result<()> {
    let stage = ClusterStage::new(
        &ClusterShape::default(),
        |cluster| {
            let gateway = cluster.node(GATEWAY_NODE)?;
            cluster.fabric.ip(&format!(
                "route add {} via {}\nroute add {} via {}\n",
                ROUTED.v4, gateway.v4, ROUTED.v6, gateway.v6
            ))?;
            Ok(usual(cluster) + &egress_gateway(ROUTED, GATEWAY_NODE, "  assign: false\n"))
        },
        |_| {},
    )?;
    stage.play(|stage| {
        stage.expect("web", ELSEWHERE, Seen::As(ROUTED))?;
        for address in ELSEWHERE.addresses() {
            ping(stage.host("web")?, address)?;
        }
        for address in ROUTED.addresses() {
            let there = stage.uplink_addresses(GATEWAY_NODE)?;
            ensure!(!there.contains(&address), "{address} is among {there:?}");
        }
        stage.expect_no_drops()
    })
}

/// The node goes on with what it does with its address, and pods have a range of its ports.
#[test]
fn the_node_shares_its_own() -> Result<()> {
    let gateway = Egress {
        name: "blue",
        v4: Ipv4Addr::new(172, 18, 0, 21),
        v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x21),
    };
    let stage = ClusterStage::new(
        &ClusterShape::default(),
        |cluster| {
            let node = cluster.node(GATEWAY_NODE)?;
            ensure!(node.uplink_addresses()?.contains(&gateway.v4.into()));
            node.host.sysctl(&[
                ("ipv4/ip_local_port_range", "32768 39999"),
                ("ipv4/ping_group_range", "0 2147483647"),
            ])?;
            let shared = egress_gateway(gateway, GATEWAY_NODE, "  portRange: \"40000-49999\"\n");
            Ok(usual(cluster) + &egress_gateway(RED, GATEWAY_NODE, "") + &shared)
        },
        |_| {},
    )?;
    stage.play(|stage| {
        stage.sniff_services(&[SSH])?;
        let node = stage.node(GATEWAY_NODE)?.clone();
        let _sshd = Greeter::start(&node.host, SSH)?;
        let crowd = Crowd::start(&stage.cluster.internet)?;
        let (mut known, mut open) = (0, Vec::new());
        // What answers who calls the node's address.
        stage.permit(gateway, &[INTERNET_HOST]);
        stage.expect("web", ELSEWHERE, Seen::As(gateway))?;
        for (address, outside) in ELSEWHERE
            .addresses()
            .into_iter()
            .zip(INTERNET_HOST.addresses())
        {
            ping(stage.host("web")?, address)?;
            let callers = Callers::connect(stage.host("web")?, address, CALLS)?;
            known += CALLS;
            let seen = crowd.wait_for(known)?;
            ensure!(
                seen.iter().all(|from| RANGE.contains(&from.port())),
                "ports of the node are among {seen:?}"
            );
            // The node's own connections and services, and echo in both directions.
            assert_eq!(whoami(&node.host, address)?, gateway.like(address));
            ping(&node.host, address)?;
            let own = gateway.like(outside);
            ping(&stage.cluster.internet, own)?;
            ensure!(greeted(&stage.cluster.internet, SocketAddr::new(own, SSH))?);
            callers.say()?;
            crowd.answer(known - CALLS)?;
            callers.hear()?;
            open.push(callers);
        }
        stage.expect_no_drops()
    })
}
