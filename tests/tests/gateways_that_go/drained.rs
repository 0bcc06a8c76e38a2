//! A gateway that is drained keeps the connections that it has, and gets no new ones.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use egress_tests::{
    ClusterStage,
    cluster::{ELSEWHERE, RED},
    services::{Callers, Crowd},
};

use super::gateways;

/// Connections before the drain.
const MANY: usize = 1000;
/// Connections after it began.
const MORE: usize = 60;

const DRAIN: &str = "  annotations: {egress.fastpath/drain: \"true\"}\n";

pub(super) fn old_connections_stay_and_new_ones_go_elsewhere(
    stage: &mut ClusterStage,
) -> Result<()> {
    let crowd = Crowd::start(&stage.cluster.internet)?;
    let remote = IpAddr::from(ELSEWHERE.v4);
    let old = Callers::connect(stage.host("web")?, remote, MANY)?;
    let seen = crowd.wait_for(MANY)?;
    let by_red = |from: &[std::net::SocketAddr]| {
        from.iter()
            .filter(|from| from.ip() == RED.like(remote))
            .count()
    };
    let its = by_red(&seen);
    ensure!(
        its > MANY / 4 && its < MANY * 3 / 4,
        "{its} of {MANY} by red"
    );

    stage
        .resources
        .write("gateways.yaml", &gateways(DRAIN, ""))?;
    let draining = [("gateway", RED.name)];
    let gateway = stage.agent("gw-1")?;
    gateway.wait_for_metrics("its connections are counted", |metrics| {
        let count = metrics.sum("egress_gateway_draining_connections", &draining);
        ensure!(count == u64::try_from(its)?, "{count} of {its}");
        Ok(())
    })?;
    // The worker has heard of it, too: new connections go to blue alone.
    stage
        .agent("worker-1")?
        .wait_for_metrics("the worker knows", |_| {
            let (_, status) = stage.agent("worker-1")?.get("/status")?;
            ensure!(status.contains("takes no new connections"), "{status}");
            Ok(())
        })?;
    let new = Callers::connect(stage.host("web")?, remote, MORE)?;
    let all = crowd.wait_for(MANY + MORE)?;
    ensure!(
        by_red(&all) == its,
        "{} new ones by red",
        by_red(&all) - its
    );
    for callers in [&old, &new] {
        callers.say()?;
    }
    crowd.answer(0)?;
    for callers in [&old, &new] {
        callers.hear()?;
    }
    assert_eq!(
        stage.metrics("gw-1")?.sum("egress_gateway_up", &[]),
        2,
        "who is drained is no less up"
    );
    old.reset()?;
    stage
        .agent("gw-1")?
        .wait_for_metrics("it is empty", |metrics| {
            let count = metrics.sum("egress_gateway_draining_connections", &draining);
            ensure!(count == 0, "{count} are left");
            Ok(())
        })?;
    stage.expect_no_drops()?;

    let more = "  drainTimeout: 1s\n";
    stage
        .resources
        .write("gateways.yaml", &gateways(DRAIN, more))?;
    stage
        .agent("worker-1")?
        .wait_for_metrics("its time is over", |metrics| {
            ensure!(metrics.sum("egress_gateway_up", &draining) == 0);
            Ok(())
        })?;
    let log = stage.agent("worker-1")?.log();
    ensure!(log.contains("drainTimeout are over"), "{log}");
    stage.resources.write("gateways.yaml", &gateways("", ""))?;
    stage
        .agent("worker-1")?
        .wait_for_metrics("it is back", |metrics| {
            ensure!(metrics.sum("egress_gateway_up", &draining) == 1);
            Ok(())
        })?;
    Ok(())
}
