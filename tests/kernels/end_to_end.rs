//! Three nodes, their agents, and pods whose traffic leaves by an egress address.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Mutex,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Cluster, ClusterStage, Host,
    client::{Frame, Wire, datagram_socket},
    cluster::{
        BLUE, ClusterShape, ELSEWHERE, Egress, GATEWAY_NODE, INTERNAL, RED, Seen, usual,
        usual_gateways,
    },
    machine,
    ping::ping,
    server::ECHO_PORT,
    wait,
};
use serde_json::Value;

/// The node whose agent attaches by clsact filters, whatever the kernel has.
const CLSACT_NODE: &str = "worker-2";

#[test]
fn pods_leave_by_their_egress_address() -> Result<()> {
    let shape = ClusterShape {
        pods: vec![
            ("web", "worker-1"),
            ("app", CLSACT_NODE),
            ("near", GATEWAY_NODE),
        ],
        ..ClusterShape::default()
    };
    let before = Mutex::new(Vec::new());
    let start = Instant::now();
    let mut stage = ClusterStage::new(
        &shape,
        |cluster| {
            *before
                .lock()
                .map_err(|_poisoned| anyhow::anyhow!("no inventory"))? = inventory(cluster)?;
            Ok(usual(cluster) + &usual_gateways())
        },
        |node| {
            // A virtual machine has little memory for three nodes' tables.
            node.arguments(&["--nat-connections", "8192", "--max-replies", "4096"]);
            node.arguments(&["--max-inbound", "4096", "--max-flows", "4096"]);
            node.arguments_on(CLSACT_NODE, &["--attach-mode", "clsact"]);
        },
    )?;
    let ready = start.elapsed().as_secs_f64();
    machine::measured("ready-seconds", &format!("{ready:.1}"))?;
    machine::measured("attached", &attach_modes(&stage)?.join("+"))?;

    for (pod, destination, egress) in [
        ("web", INTERNAL, RED),
        ("web", ELSEWHERE, BLUE),
        ("app", ELSEWHERE, RED),
        ("near", ELSEWHERE, BLUE),
    ] {
        stage.expect(pod, destination, Seen::As(egress))?;
        for address in destination.addresses() {
            ping(stage.host(pod)?, address).with_context(|| format!("{pod} pings {address}"))?;
        }
    }
    for (pod, egress) in [("web", BLUE), ("app", RED), ("near", BLUE)] {
        for address in ELSEWHERE.addresses() {
            datagrams_come_from(&stage, pod, address, egress)?;
        }
    }
    ensure!(stage.sniffed()?.encapsulated() > 0);
    stage.expect_no_drops()?;
    for node in ["worker-1", CLSACT_NODE] {
        wrong_sources_go_nowhere(&stage, node)?;
    }
    stage.verify()?;

    stage.terminate()?;
    stage.expect("web", ELSEWHERE, Seen::As(BLUE))?;
    stage.verify()?;
    stage.detach()?;
    let after = inventory(&stage.cluster)?;
    let before = before
        .into_inner()
        .map_err(|_poisoned| anyhow::anyhow!("no inventory"))?;
    ensure!(
        before == after,
        "before the agents came:\n{}\nafter they are detached:\n{}",
        before.join("\n"),
        after.join("\n")
    );
    machine::measured("end-to-end", "ok")
}

/// How the nodes' programs are attached: each mechanism once.
fn attach_modes(stage: &ClusterStage) -> Result<Vec<String>> {
    let mut modes = Vec::new();
    for (pod, expected) in [("web", None), ("app", Some("clsact"))] {
        let pod = stage.pod(pod)?;
        let programs = stage.node(pod.node)?.host.programs_on(&pod.interface)?;
        // What TCX runs is told by the kernel, filters are listed by `tc`.
        let mode = if programs
            .iter()
            .any(|line| line.starts_with("Ingress program"))
        {
            "tcx"
        } else {
            "clsact"
        };
        ensure!(
            programs.iter().any(|line| line.contains("egress_from_pod"))
                && expected.is_none_or(|expected| mode == expected),
            "{} on {}: {programs:?}",
            pod.interface,
            pod.node
        );
        if !modes.iter().any(|known| known == mode) {
            modes.push(mode.to_owned());
        }
    }
    Ok(modes)
}

/// Checks that the far end of a pod's datagrams hears the egress address, and that its echo gets back.
fn datagrams_come_from(
    stage: &ClusterStage,
    pod: &str,
    address: IpAddr,
    egress: Egress,
) -> Result<()> {
    let socket = datagram_socket(stage.host(pod)?, SocketAddr::new(address, ECHO_PORT))?;
    let said = format!("{pod} to {address}");
    socket.send(said.as_bytes())?;
    wait::until("the datagram arrives", || {
        let seen = stage.outside.internet_datagrams.seen();
        let found = seen
            .iter()
            .find(|datagram| datagram.payload == said.as_bytes())
            .with_context(|| format!("nobody heard {said:?}"))?;
        ensure!(
            found.from.ip().to_canonical() == egress.like(address),
            "{said}: heard from {}",
            found.from
        );
        Ok(())
    })
}

/// Has a pod claim addresses that are not its own, and waits until all of that is dropped.
fn wrong_sources_go_nowhere(stage: &ClusterStage, node: &str) -> Result<()> {
    let pod = stage
        .cluster
        .pods
        .iter()
        .find(|pod| pod.node == node)
        .context("the node has no pod")?;
    let host = &stage.node(node)?.host;
    let wire = Wire::open(&pod.host, "eth0")?;
    let mut sent = 0;
    for address in ELSEWHERE.addresses() {
        let usual = Frame::from_pod(pod, host, address)?;
        for source in [
            [
                IpAddr::V4(Ipv4Addr::new(10, 65, 99, 9)),
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x65, 0, 0x99, 0, 0, 0, 9)),
            ],
            RED.addresses(),
        ]
        .into_iter()
        .flatten()
        .filter(|source| source.is_ipv4() == address.is_ipv4())
        {
            wire.send(&Frame { source, ..usual }.bytes()?)?;
            sent += 1;
        }
    }
    stage.wait_for_drops(node, "SpoofedSource", sent)
}

/// Everything that agents could have left on the nodes: links, addresses, programs, qdiscs, pins.
fn inventory(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in &cluster.nodes {
        let mut add = |what: String| found.push(format!("{}: {what}", node.name));
        for link in json(&node.host, &["ip", "-j", "addr"])? {
            let name = link["ifname"].as_str().context("a link without name")?;
            let addresses = link["addr_info"].as_array().map(Vec::as_slice);
            let mut addresses: Vec<_> = addresses
                .unwrap_or_default()
                .iter()
                .map(|address| format!("{}/{}", address["local"], address["prefixlen"]))
                .collect();
            addresses.sort();
            add(format!("{name} {}", addresses.join(" ")));
            for program in node.host.programs_on(name)? {
                add(format!("{name}: {program}"));
            }
        }
        add(node.host.run(&["tc", "qdisc", "show"])?);
    }
    pins(&cluster.bpffs(), &mut found)?;
    Ok(found)
}

fn pins(folder: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            // The stage makes a folder for each node; what counts is what is in it.
            pins(&path, found)?;
        } else {
            found.push(path.display().to_string());
        }
    }
    Ok(())
}

fn json(host: &Host, words: &[&str]) -> Result<Vec<Value>> {
    let text = host.run(words)?;
    serde_json::from_str(&text).with_context(|| format!("{words:?} printed {text}"))
}
