//! When ports or quotas run out, packets are dropped and counted, nothing leaves untranslated, and what ends
//! makes room again.

use std::{net::IpAddr, net::SocketAddr, net::TcpStream, time::Duration};

use anyhow::{Result, ensure};
use egress_tests::{
    ClusterStage,
    cluster::{
        BLUE, ClusterShape, ELSEWHERE, GATEWAY_NODE, NodeSetup, PARTNER, Seen, usual,
        usual_gateways,
    },
    services::{CROWD_PORT, Callers, Crowd},
    wait,
};

const PORTS: usize = 10;
/// So that what is reset goes with the next sweep.
const SHORT: [&str; 2] = ["--nat-timeout", "tcp-close=1"];

fn stage(arguments: &[&str]) -> Result<ClusterStage> {
    ClusterStage::new(
        &ClusterShape::default(),
        |cluster| Ok(usual(cluster) + &usual_gateways()),
        |node: &mut NodeSetup<'_>| node.arguments_on(GATEWAY_NODE, arguments),
    )
}

/// One more connection, which nobody answers.
fn refused(stage: &ClusterStage, pod: &str, to: IpAddr) -> Result<()> {
    let address = SocketAddr::new(to, CROWD_PORT);
    let connection = stage
        .host(pod)?
        .enter(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()))?;
    ensure!(!connection, "{pod} could connect to {to} once more");
    Ok(())
}

#[test]
fn ports() -> Result<()> {
    let narrow = ["--nat-port-range", "40000-40009"];
    stage(&[narrow, SHORT].concat())?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE, PARTNER]);
        let crowd = Crowd::start(&stage.cluster.internet)?;
        let mut known = 0;
        for (round, address) in ELSEWHERE.addresses().into_iter().enumerate() {
            let callers = Callers::connect(stage.host("web")?, address, PORTS)?;
            known += PORTS;
            let seen = crowd.wait_for(known)?;
            ensure!(
                seen.iter()
                    .all(|from| (40000..=40009).contains(&from.port())),
                "{seen:?}"
            );
            let before = stage.dropped(GATEWAY_NODE, "NatExhausted")?;
            refused(stage, "web", address)?;
            refused(stage, "batch", address)?;
            stage.wait_for_drops(GATEWAY_NODE, "NatExhausted", before + 2)?;
            let exhausted = stage
                .metrics(GATEWAY_NODE)?
                .sum("egress_nat_exhausted_total", &[]);
            ensure!(exhausted >= before + 2, "{exhausted}");
            // What is there goes on, and another remote has ports of its own.
            callers.say()?;
            crowd.answer(known - PORTS)?;
            callers.hear()?;
            let other = PARTNER.addresses()[round];
            stage.expect_at("web", other, Seen::As(BLUE))?;
            // What is reset makes room.
            callers.reset()?;
            let again = wait::until("ports are free again", || {
                Callers::connect(stage.host("batch")?, address, PORTS)
            })?;
            again.say()?;
            again.reset()?;
            known = crowd.settle()?;
        }
        Ok(())
    })
}

#[test]
fn a_sources_quota() -> Result<()> {
    let narrow = ["--nat-source-quota", "10"];
    stage(&[narrow, SHORT].concat())?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let _crowd = Crowd::start(&stage.cluster.internet)?;
        for address in ELSEWHERE.addresses() {
            let before = stage.dropped(GATEWAY_NODE, "SourceQuota")?;
            let callers = Callers::connect(stage.host("web")?, address, PORTS)?;
            refused(stage, "web", address)?;
            stage.wait_for_drops(GATEWAY_NODE, "SourceQuota", before + 1)?;
            // Nobody else suffers.
            stage.expect_at("batch", address, Seen::As(BLUE))?;
            // What is reset makes room.
            callers.reset()?;
            wait::until("the source may connect again", || {
                Callers::connect(stage.host("web")?, address, PORTS)?.reset()
            })?;
        }
        Ok(())
    })
}

/// The table of connections itself, which all pods and both families share.
#[test]
fn the_table() -> Result<()> {
    const ROOM: usize = 64;
    let room = ROOM.to_string();
    let small = ["--nat-connections", &room, "--nat-source-quota", &room];
    stage(&[&small[..], &SHORT].concat())?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let crowd = Crowd::start(&stage.cluster.internet)?;
        let [v4, v6] = ELSEWHERE.addresses();
        let some = Callers::connect(stage.host("web")?, v4, ROOM / 2)?;
        let others = Callers::connect(stage.host("batch")?, v6, ROOM / 2)?;
        crowd.wait_for(ROOM)?;
        for (number, address) in (1..).zip([v4, v6]) {
            refused(stage, "web", address)?;
            stage.wait_for_drops(GATEWAY_NODE, "NatExhausted", number)?;
        }
        stage
            .agent(GATEWAY_NODE)?
            .wait_for_metrics("the full table is shown", |metrics| {
                let there = metrics.sum("egress_nat_connections", &[]);
                let room = metrics.sum("egress_nat_capacity", &[]);
                let full = u64::try_from(ROOM)?;
                ensure!((there, room) == (full, full), "{there} of {room}");
                Ok(())
            })?;
        // What is there goes on, whoever has what.
        for callers in [&some, &others] {
            callers.say()?;
        }
        crowd.answer(0)?;
        for callers in [&some, &others] {
            callers.hear()?;
        }
        // What is reset makes room, for the other family too.
        some.reset()?;
        wait::until("there is room again", || {
            Callers::connect(stage.host("batch")?, v6, ROOM / 2)?.reset()
        })
    })
}
