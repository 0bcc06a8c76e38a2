//! The counters are what the far end counts, packet by packet and byte by byte.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use egress_tests::{
    Stage,
    client::{Conversation, send_datagrams},
    server::ECHO_PORT,
    stage::From,
    topology::{ELSEWHERE, INTERNAL, RED_NETWORK},
};

#[test]
fn gateways_count_the_same() -> Result<()> {
    let stage = Stage::of_examples()?;
    for pod in &stage.scene.pods {
        // So that what is one packet for the sender is one packet on every wire.
        pod.host.ip("link set eth0 gso_max_segs 1\n")?;
    }
    for pod in ["web", "batch"] {
        let host = &stage.pod(pod)?.host;
        for destination in [RED_NETWORK, ELSEWHERE, INTERNAL] {
            for address in destination.addresses() {
                let to = SocketAddr::new(address, ECHO_PORT);
                for size in [4, 100, 1400] {
                    send_datagrams(host, to, 30, size)?;
                }
                // Larger than the MTU: what is sent are fragments.
                send_datagrams(host, to, 3, 4000)?;
                let talk = Conversation::start(host, address)?;
                talk.go_on(20)?;
                talk.end()?;
            }
        }
    }
    let metrics = stage
        .agent()?
        .wait_for_metrics("the counters agree", |metrics| {
            for gateway in &stage.scene.gateways {
                let seen = gateway.host.counter("from_pods")?;
                let labels = [("gateway", gateway.name)];
                let packets = metrics.sum("egress_gateway_packets_total", &labels);
                let bytes = metrics.sum("egress_gateway_bytes_total", &labels);
                ensure!(
                    (packets, bytes) == (seen.packets, seen.bytes),
                    "{}: {packets} packets and {bytes} bytes are counted, {seen:?} arrived",
                    gateway.name
                );
            }
            Ok(())
        })?;
    // Each rule has its own: 96 datagrams of each family at least.
    for (policy, rule, gateway) in [
        ("egw-policy", "192.0.2.0/24", "red"),
        ("egw-policy", "2001:db8:2::/48", "red"),
        ("egw-policy", "default", "blue"),
    ] {
        let labels = [
            ("policy", policy),
            ("rule", rule),
            ("gateway", gateway),
            ("namespace", "default"),
        ];
        let packets = metrics.sum("egress_gateway_packets_total", &labels);
        ensure!(packets > 96, "{labels:?}: {packets}\n{metrics}");
    }
    ensure!(metrics.sum("egress_local_packets_total", &[("policy", "egw-policy")]) > 192);
    ensure!(
        metrics.all_dropped().is_empty(),
        "{:?}",
        metrics.all_dropped()
    );
    stage.expect("plain", ELSEWHERE, From::Node)
}

#[test]
fn the_agent_tells_about_itself() -> Result<()> {
    let stage = Stage::of_examples()?;
    let metrics = stage.metrics()?;
    let one = |name, labels: &[(&str, &str)]| {
        let value = metrics.sum(name, labels);
        ensure!(value == 1, "{name} {labels:?} is {value}:\n{metrics}");
        Ok(())
    };
    one("egress_last_apply_success", &[])?;
    one("egress_build_info", &[])?;
    for gateway in ["red", "blue"] {
        one(
            "egress_gateway_up",
            &[("gateway", gateway), ("namespace", "default")],
        )?;
    }
    for pod in ["web", "batch"] {
        let interface = &stage.pod(pod)?.interface;
        one(
            "egress_program_attached",
            &[("interface", interface), ("program", "egress_from_pod")],
        )?;
    }
    one(
        "egress_program_attached",
        &[("interface", "eth1"), ("program", "egress_from_gateway")],
    )?;
    ensure!(metrics.sum("egress_pods", &[("state", "steered")]) == 2);
    ensure!(metrics.sum("egress_map_entries", &[("map", "PODS")]) == 4);
    ensure!(metrics.sum("egress_map_capacity", &[("map", "PODS")]) >= 4096);
    ensure!(metrics.sum("egress_last_apply_timestamp_seconds", &[]) > 1_600_000_000);
    ensure!(metrics.sum("egress_apply_duration_seconds_count", &[]) > 0);
    for path in ["/livez", "/readyz", "/status"] {
        let (status, body) = stage.agent()?.get(path)?;
        ensure!(status == 200, "{path} says {status} {body}");
    }
    let (status, _) = stage.agent()?.get("/nowhere")?;
    ensure!(status == 404);
    Ok(())
}
