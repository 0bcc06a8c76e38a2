//! Gateways that go: one that is drained keeps its connections, one that dies is left within a second of silence, and
//! nothing leaks meanwhile.

mod dead;
mod drained;

use std::time::Duration;

use anyhow::{Result, ensure};
use egress_tests::{
    ClusterStage,
    cluster::{BLUE, ClusterShape, ELSEWHERE, Egress, RED, SHOP, gateway_spec},
    resources::{Via, namespace, pod, policy},
    scrape::Metrics,
    services::allow_many_files,
};

/// The gateways of the group, and where each is.
const PAIR: [(Egress, &str); 2] = [(RED, "gw-1"), (BLUE, "gw-2")];
/// How long a gateway must answer before it is used again.
const UP_AFTER: Duration = Duration::from_millis(200);

#[test]
fn gateways_are_drained_and_left() -> Result<()> {
    allow_many_files(4000)?;
    stage()?.play(|stage| {
        drained::old_connections_stay_and_new_ones_go_elsewhere(stage)?;
        dead::traffic_is_on_another_member_within_a_second_of_silence(stage, 6)?;
        dead::what_began_meanwhile_stays(stage)?;
        dead::who_is_dead_stays_dead_over_restarts(stage)?;
        dead::without_another_member_nothing_leaks(stage)
    })
}

#[test]
#[ignore = "soak: twenty gateways die"]
fn gateways_are_left_always() -> Result<()> {
    stage()?.play(|stage| dead::traffic_is_on_another_member_within_a_second_of_silence(stage, 20))
}

/// Three nodes: one with pods, and two with a gateway each, which have answered.
fn stage() -> Result<ClusterStage> {
    let shape = ClusterShape {
        nodes: vec!["worker-1", "gw-1", "gw-2"],
        pods: vec![("web", "worker-1")],
        ..ClusterShape::default()
    };
    let mut stage = ClusterStage::new(
        &shape,
        |cluster| {
            Ok([
                namespace("default", &[]),
                namespace("shop", &[("egressGatewayPolicy", SHOP)]),
                policy(SHOP, &[("", Via::Code("pair"))]),
                pod("shop", cluster.pod("web")?, &[], &[]),
            ]
            .concat())
        },
        |setup| setup.arguments(&["--probe-up-after", "200ms", "--nat-timeout", "tcp-close=1"]),
    )?;
    for (egress, node) in PAIR {
        stage.permit_at(node, egress, &[ELSEWHERE]);
    }
    stage.resources.write("gateways.yaml", &gateways("", ""))?;
    for (_, node) in PAIR {
        let up = |metrics: &Metrics| {
            ensure!(metrics.sum("egress_gateway_up", &[]) == PAIR.len() as u64);
            Ok(())
        };
        stage.agent(node)?.wait_for_metrics("both are up", up)?;
    }
    stage
        .agent("worker-1")?
        .wait_for_metrics("both gateways have answered", |metrics| {
            let answers = metrics
                .matching("egress_gateway_probe_seconds", &[])
                .count();
            ensure!(answers == PAIR.len(), "{answers} have");
            Ok(())
        })?;
    wait_until_up(&stage, &[RED, BLUE])?;
    Ok(stage)
}

/// The gateways of the group; red with these lines in its metadata and its spec.
fn gateways(metadata: &str, more: &str) -> String {
    let [red, blue] = PAIR.map(|(egress, node)| {
        let spec = format!(
            "  node: {node}\n  egressIPs: [{}, \"{}\"]\n  interface: eth0\n",
            egress.v4, egress.v6
        );
        let more = if egress == RED { more } else { "" };
        gateway_spec(egress.name, "pair", &(spec + more))
    });
    red.replace("spec:\n", &format!("{metadata}spec:\n")) + &blue
}

/// Waits until the worker can use these gateways, and no other.
fn wait_until_up(stage: &ClusterStage, up: &[Egress]) -> Result<()> {
    stage.agent("worker-1")?.wait_for_metrics(
        "gateways are up and down as they should be",
        |metrics| {
            for (egress, _) in PAIR {
                let is_up = metrics.sum("egress_gateway_up", &[("gateway", egress.name)]) == 1;
                ensure!(is_up == up.contains(&egress), "{} up: {is_up}", egress.name);
            }
            Ok(())
        },
    )?;
    Ok(())
}
