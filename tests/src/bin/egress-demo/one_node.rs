//! One node with gateways of their own: the example policies.

use std::{net::IpAddr, path::Path};

use anyhow::{Result, ensure};
use egress_tests::{
    Agent, Scene,
    agent::Setup,
    client::whoami,
    scrape::Metrics,
    server::Whoami,
    topology::{
        Destination, ELSEWHERE, Gateway, INTERNAL, NODE, NODE_V4, NODE_V6, Pod, RED_NETWORK,
    },
};

use crate::table;

const INTRODUCTION: &str = "\
egress demo: which source address does the outside see?

A throw-away network of namespaces on this machine:

  shop/web  ──┐                    ┌──────── internal host      10.70.0.80
  lab/batch ──┤   ┌────────┐    ┌──┴───┐
  lab/plain ──┴───┤  node  ├────┤router├──────────────────────┐
                  └───┬────┘    └──────┘                      │
             eBPF     │ DMZ     ┌──────┐ 203.0.113.11    ┌────┴─────┐ red network 192.0.2.80
             chooses  ├─────────┤ red  ├─────────────────┤ internet │
                      │         └──────┘                 │          │ elsewhere 198.51.100.80
                      │         ┌──────┐ 203.0.113.12    │          │
                      └─────────┤ blue ├─────────────────┤          │
                                └──────┘                 └──────────┘
  shop/web   follows the policy egw-policy: the cluster directly, the red network through red, all else through blue
  lab/batch  has a selector annotation: everything outside the cluster goes through red
  lab/plain  is not steered: the node's own routing and address
";

/// What a pod's traffic outside the cluster should come from.
#[derive(Clone, Copy)]
enum Expected {
    /// The pod's own address.
    Pod,
    /// The node's address.
    Node,
    /// A gateway's egress address.
    Gateway(&'static str),
}

/// Pod, namespace, destination, and what the examples say of it.
const ROWS: [(&str, &str, Destination, Expected); 9] = [
    ("shop", "web", INTERNAL, Expected::Pod),
    ("shop", "web", RED_NETWORK, Expected::Gateway("red")),
    ("shop", "web", ELSEWHERE, Expected::Gateway("blue")),
    ("lab", "batch", INTERNAL, Expected::Pod),
    ("lab", "batch", RED_NETWORK, Expected::Gateway("red")),
    ("lab", "batch", ELSEWHERE, Expected::Gateway("red")),
    ("lab", "plain", INTERNAL, Expected::Pod),
    ("lab", "plain", RED_NETWORK, Expected::Node),
    ("lab", "plain", ELSEWHERE, Expected::Node),
];

/// Shows everything and returns how much of it is wrong.
pub(crate) fn demo(resources: &Path) -> Result<usize> {
    println!("{INTRODUCTION}");
    let scene = Scene::new()?;
    let _internal = Whoami::start(&scene.internal)?;
    let _internet = Whoami::start(&scene.internet)?;
    let setup = Setup::new(&scene, resources)?;
    println!("Policies and gateways: {}", resources.display());
    println!("Agent: egress run --node {NODE} … in the node's namespace\n");
    let agent = setup.start()?;

    let mut wrong = show_addresses(&scene)?;
    wrong += show_counters(&scene, &agent)?;
    agent.terminate()?;
    setup.detach()?;
    Ok(wrong)
}

fn show_addresses(scene: &Scene) -> Result<usize> {
    let mut table = table(&["pod", "destination", "", "expected source", "seen", ""]);
    let mut wrong = 0;
    for (namespace, name, destination, expected) in ROWS {
        let pod = scene.pod(name)?;
        for address in destination.addresses() {
            let expected = expected.address(scene, pod, address)?;
            let seen = whoami(&pod.host, address);
            let fine = seen.as_ref().is_ok_and(|seen| *seen == expected);
            wrong += usize::from(!fine);
            table.add_row([
                format!("{namespace}/{name}"),
                destination.name.to_owned(),
                address.to_string(),
                expected.to_string(),
                seen.map_or_else(|_| "no answer".to_owned(), |seen| seen.to_string()),
                if fine { "ok" } else { "FAIL" }.to_owned(),
            ]);
        }
    }
    println!("{table}");
    Ok(wrong)
}

impl Expected {
    fn address(self, scene: &Scene, pod: &Pod, like: IpAddr) -> Result<IpAddr> {
        Ok(match (self, like) {
            (Self::Pod, _) => pod.address_like(like),
            (Self::Node, IpAddr::V4(_)) => NODE_V4.into(),
            (Self::Node, IpAddr::V6(_)) => NODE_V6.into(),
            (Self::Gateway(name), _) => scene.gateway(name)?.egress_like(like),
        })
    }
}

fn show_counters(scene: &Scene, agent: &Agent) -> Result<usize> {
    println!("\nThe agent's counters, scraped over HTTP:");
    // The last packets of a connection may still be on their way.
    let settled = agent.wait_for_metrics("the counters agree with the gateways", |metrics| {
        for gateway in &scene.gateways {
            let (counted, seen) = packets(gateway, metrics)?;
            ensure!(counted == seen, "{counted} counted, {seen} seen");
        }
        Ok(())
    });
    let metrics = match settled {
        Ok(metrics) => metrics,
        Err(_) => agent.metrics()?,
    };
    let mut counters = table(&["gateway", "policy", "rule", "packets", "bytes"]);
    for sample in metrics.matching("egress_gateway_packets_total", &[]) {
        let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
        let same = ["gateway", "namespace", "policy", "rule"].map(|name| (name, label(name)));
        counters.add_row([
            format!("{}/{}", label("namespace"), label("gateway")),
            label("policy").to_owned(),
            label("rule").to_owned(),
            sample.value.to_string(),
            metrics.sum("egress_gateway_bytes_total", &same).to_string(),
        ]);
    }
    println!("{counters}");

    println!("\nThe same, as the gateways counted it themselves with nftables:");
    let mut check = table(&["gateway", "agent's packets", "gateway's packets", ""]);
    let mut wrong = 0;
    for gateway in &scene.gateways {
        let (counted, seen) = packets(gateway, &metrics)?;
        let fine = counted == seen && seen > 0;
        wrong += usize::from(!fine);
        check.add_row([
            gateway.name.to_owned(),
            counted.to_string(),
            seen.to_string(),
            if fine { "ok" } else { "FAIL" }.to_owned(),
        ]);
    }
    println!("{check}");
    Ok(wrong)
}

fn packets(gateway: &Gateway, metrics: &Metrics) -> Result<(u64, u64)> {
    let seen = gateway.host.counter("from_pods")?;
    Ok((metrics.through(gateway.name), seen.packets))
}
