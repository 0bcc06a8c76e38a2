//! Plain frames of the overlay go past the stack of both nodes, unless somebody wants them to take it; a node that does it
//! and one that does not understand each other.

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    ClusterStage,
    cluster::{
        BLUE, ClusterShape, ELSEWHERE, GATEWAY_NODE, NodeSetup, OVERLAY_PORT, Seen, usual,
        usual_gateways,
    },
    wait,
};

const WORKER: &str = "worker-1";
const DEVICE_ONLY: &[&str] = &["--overlay-fast-path=false"];
/// What UDP counts of a probe's frame: those go by the device.
const PROBE: u32 = 76;

fn stage(device_only: &[&str]) -> Result<ClusterStage> {
    let stage = ClusterStage::new(
        &ClusterShape::default(),
        |cluster| Ok(usual(cluster) + &usual_gateways()),
        |node: &mut NodeSetup<'_>| {
            for name in device_only {
                node.arguments_on(name, DEVICE_ONLY);
            }
        },
    )?;
    for node in [WORKER, GATEWAY_NODE] {
        stage.node(node)?.host.nft(&format!(
            "table inet watch {{
               counter stack {{}}
               chain made {{
                 type filter hook output priority 0;
                 udp dport {OVERLAY_PORT} udp length != {PROBE} counter name stack
               }}
               chain taken {{
                 type filter hook prerouting priority -450;
                 udp dport {OVERLAY_PORT} udp length != {PROBE} counter name stack
               }}
             }}"
        ))?;
    }
    Ok(stage)
}

/// Frames that a node's stack has made or got.
fn of_stack(stage: &ClusterStage, node: &str) -> Result<u64> {
    Ok(stage.node(node)?.host.counter("stack")?.packets)
}

/// Says whether frames of a request and its answer took a node's stack.
fn take_stack(stage: &ClusterStage, node: &str) -> Result<bool> {
    let before = of_stack(stage, node)?;
    for address in ELSEWHERE.addresses() {
        stage.expect_at("web", address, Seen::As(BLUE))?;
    }
    Ok(of_stack(stage, node)? != before)
}

#[test]
fn whatever_the_other_node_does() -> Result<()> {
    for device_only in [&[][..], &[WORKER], &[GATEWAY_NODE]] {
        stage(device_only)?.play(|stage| {
            stage.permit(BLUE, &[ELSEWHERE]);
            for node in [WORKER, GATEWAY_NODE] {
                let takes = take_stack(stage, node)?;
                ensure!(
                    takes == device_only.contains(&node),
                    "{node}, with {device_only:?}: by the stack: {takes}"
                );
            }
            stage.expect_no_drops()
        })?;
    }
    Ok(())
}

/// What is to be encrypted must not go past who does that.
#[test]
fn not_while_there_are_ipsec_policies() -> Result<()> {
    stage(&[])?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let policy = "src 198.51.100.98 dst 198.51.100.99 dir out";
        for (command, takes_stack) in [
            (
                format!("xfrm policy add {policy} tmpl proto esp mode transport"),
                true,
            ),
            (format!("xfrm policy delete {policy}"), false),
        ] {
            stage.node(WORKER)?.host.ip(&command).context("a policy")?;
            wait::until("the agent has heard of it", || {
                let takes = take_stack(stage, WORKER)?;
                ensure!(takes == takes_stack, "by the stack: {takes}");
                Ok(())
            })?;
            ensure!(!take_stack(stage, GATEWAY_NODE)?);
        }
        stage.expect_no_drops()
    })
}
