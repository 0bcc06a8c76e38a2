//! The counters are what the far end counts, packet by packet and byte by byte.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Host, Stage,
    agent::HTTP,
    client::{Conversation, datagram_socket, send_datagrams},
    scrape::{Metrics, ask},
    server::ECHO_PORT,
    stage::From,
    topology::{Destination, ELSEWHERE, INTERNAL, RED_NETWORK},
    wait::PATIENCE,
};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

/// Waits until the agent has counted for each gateway what the gateway has.
fn wait_until_gateways_agree(stage: &Stage) -> Result<Metrics> {
    stage
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
        })
}

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
    let metrics = wait_until_gateways_agree(&stage)?;
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

/// What a pod hands over as one is cut into packets only behind the programs: they count what will be.
#[test]
fn aggregates_count_as_the_packets_that_they_become() -> Result<()> {
    let stage = Stage::of_examples()?;
    // The node's cable to the gateways takes no aggregates: the gateways' rules see each packet.
    stage.scene.node.ip("link set eth1 gso_max_segs 1\n")?;
    for pod in ["web", "batch"] {
        let host = &stage.pod(pod)?.host;
        for address in [ELSEWHERE, RED_NETWORK]
            .iter()
            .flat_map(Destination::addresses)
        {
            let to = SocketAddr::new(address, ECHO_PORT);
            exchange(host, to, 40)?;
            let socket = datagram_socket(host, to)?;
            setsockopt(&socket, UdpGsoSegment, &1000)?;
            // Ten full packets, and a last one that is not.
            socket.send(&[7; 10_500])?;
        }
    }
    wait_until_gateways_agree(&stage)?;
    // And aggregates they were: what left the pods were far fewer.
    let mut handed_over = 0;
    for pod in ["web", "batch"] {
        let host = &stage.pod(pod)?.host;
        let text = host.run(&["ip", "-j", "-s", "link", "show", "dev", "eth0"])?;
        let link: serde_json::Value = serde_json::from_str(&text)?;
        let packets = &link[0]["stats64"]["tx"]["packets"];
        handed_over += packets.as_u64().context("ip printed no number")?;
    }
    let mut arrived = 0;
    for gateway in &stage.scene.gateways {
        arrived += gateway.host.counter("from_pods")?.packets;
    }
    ensure!(
        arrived > 2 * handed_over,
        "{arrived} packets became of {handed_over}"
    );
    assert_eq!(stage.metrics()?.all_dropped().len(), 0);
    Ok(())
}

/// Sends blocks to the echo server and reads them back.
fn exchange(host: &Host, to: SocketAddr, blocks: usize) -> Result<()> {
    let mut stream = host.enter(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let block = vec![7; 1 << 16];
    let mut back = vec![0; block.len()];
    for _ in 0..blocks {
        stream.write_all(&block)?;
        stream.read_exact(&mut back)?;
    }
    Ok(())
}

#[test]
fn series_outlive_their_policy_and_go_on() -> Result<()> {
    let stage = Stage::of_examples()?;
    let series = |metrics: &Metrics| {
        let labels = [("policy", "egw-policy"), ("rule", "default")];
        metrics.sum("egress_gateway_packets_total", &labels)
    };
    let to = SocketAddr::new(ELSEWHERE.v4.into(), ECHO_PORT);
    let web = &stage.pod("web")?.host;
    send_datagrams(web, to, 40, 100)?;
    let count_is = |count: u64| {
        stage.agent()?.wait_for_metrics("the counter", |metrics| {
            let found = series(metrics);
            ensure!(found == count, "it is {found}, not {count}");
            Ok(())
        })
    };
    count_is(40)?;
    let policy = std::fs::read_to_string(stage.resources.directory().join("policy.yaml"))?;
    for round in 1..4 {
        stage.resources.remove("policy.yaml")?;
        stage
            .agent()?
            .wait_for_metrics("the policy is gone", |metrics| {
                ensure!(series(metrics) == 40 * round, "the counter moved");
                ensure!(metrics.sum("egress_pods", &[("state", "policy_missing")]) == 1);
                Ok(())
            })?;
        stage.resources.write("policy.yaml", &policy)?;
        stage
            .agent()?
            .wait_for_metrics("the policy is back", |metrics| {
                ensure!(series(metrics) == 40 * round, "the counter moved");
                ensure!(metrics.sum("egress_pods", &[("state", "policy_missing")]) == 0);
                Ok(())
            })?;
        send_datagrams(web, to, 40, 100)?;
        count_is(40 * (round + 1))?;
    }
    Ok(())
}

#[test]
fn scrapers_get_the_format_that_they_ask_for() -> Result<()> {
    let stage = Stage::of_examples()?;
    let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = "text/plain; version=0.0.4; charset=utf-8";
    for (accept, expected) in [
        (&[][..], text),
        (&[("Accept", "*/*")], text),
        (&[("Accept", "text/plain;version=0.0.4")], text),
        (
            // As Prometheus asks.
            &[(
                "Accept",
                "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            )],
            open,
        ),
    ] {
        let answer = ask(&stage.scene.node, HTTP, "/metrics", accept)?;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.content_type.as_deref(), Some(expected), "{accept:?}");
        // The end mark is what tells a whole scrape from a broken one, in the one format that has it.
        assert_eq!(answer.body.ends_with("# EOF\n"), expected == open);
        let metrics = Metrics::parse(&answer.body)?;
        assert_eq!(metrics.sum("egress_build_info", &[]), 1, "{accept:?}");
    }
    Ok(())
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
