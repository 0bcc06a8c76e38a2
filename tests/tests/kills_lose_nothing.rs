//! Agents that are killed at random moments, also while they start, cost no packet, no count and no wrong address.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    ClusterStage, Stage,
    cluster::{BLUE, GATEWAY_NODE},
    paced::{PacedServer, Traffic},
    packets::random::Random,
    topology::ELSEWHERE,
};

const KILLS: u32 = 20;
/// An agent may live so long before the next kill: shorter than its start now, longer then.
const SLICE: Duration = Duration::from_millis(900);
const SOAK: Duration = Duration::from_secs(6);

#[test]
fn of_next_hops() -> Result<()> {
    next_hops(SLICE)
}

#[test]
#[ignore = "soak: a minute of traffic"]
fn of_next_hops_for_a_minute() -> Result<()> {
    next_hops(SOAK)
}

#[test]
fn of_egress_addresses_on_both_nodes() -> Result<()> {
    egress_addresses(SLICE)
}

#[test]
#[ignore = "soak: a minute of traffic"]
fn of_egress_addresses_on_both_nodes_for_a_minute() -> Result<()> {
    egress_addresses(SOAK)
}

fn next_hops(longest: Duration) -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let addresses = ELSEWHERE.addresses();
    let server = PacedServer::start(&stage.scene.internet, &addresses)?;
    let traffic = Traffic::start(&stage.pod("web")?.host, &addresses)?;

    let mut random = Random::new();
    for _ in 0..KILLS {
        pause(&mut random, longest);
        stage.agent.take().context("no agent")?.kill()?;
        pause(&mut random, longest / 4);
        stage.agent = Some(stage.setup.spawn()?);
    }
    stage
        .agent
        .as_mut()
        .context("no agent")?
        .wait_until_ready()?;

    let gateway = stage.gateway("blue")?;
    traffic.end(&server, |address| gateway.egress_like(address))?;
    stage.wait_until_counted()?;
    let dropped = stage.metrics()?.all_dropped();
    ensure!(dropped.is_empty(), "{dropped:?}");
    assert_eq!(stage.scene.internet.counter("leaked")?.packets, 0);
    assert_eq!(stage.scene.internet.counter("by_node")?.packets, 0);
    Ok(())
}

fn egress_addresses(longest: Duration) -> Result<()> {
    const NODES: [&str; 2] = ["worker-1", GATEWAY_NODE];
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let addresses = ELSEWHERE.addresses();
        let server = PacedServer::start(&stage.cluster.internet, &addresses)?;
        let web = stage.host("web")?.clone();
        // What is one packet here is one packet on the uplink too.
        web.ip("link set eth0 gso_max_segs 1\n")?;
        let traffic = Traffic::start(&web, &addresses)?;

        let mut random = Random::new();
        for kill in 0..KILLS {
            pause(&mut random, longest);
            // One of them, the other, both.
            let victims = match kill % 3 {
                0 => &NODES[..1],
                1 => &NODES[1..],
                _ => &NODES[..],
            };
            for node in victims {
                stage.kill(node)?;
            }
            pause(&mut random, longest / 4);
            for node in victims {
                stage.spawn(node)?;
            }
        }
        stage.wait_until_ready()?;

        let end = traffic.end(&server, |address| BLUE.like(address));
        let drops = NODES.map(|node| Ok::<_, anyhow::Error>(stage.metrics(node)?.all_dropped()));
        end.with_context(|| format!("dropped on {NODES:?}: {drops:?}"))?;
        stage.wait_until_counted("worker-1", BLUE, &addresses)?;
        stage.expect_no_drops()
    })
}

fn pause(random: &mut Random, longest: Duration) {
    let share = u32::try_from(random.below(1000)).unwrap_or(0);
    // A moment that nothing announces is what this is about.
    thread::sleep(longest * share / 1000);
}
