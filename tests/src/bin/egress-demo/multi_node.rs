//! Several nodes: egress addresses on one of them, pods on the others, a firewall that admits one address.

use std::net::IpAddr;

use anyhow::Result;
use egress_tests::{
    ClusterStage,
    client::whoami,
    cluster::{BLUE, ELSEWHERE, Egress, GATEWAY_NODE, INTERNAL, PARTNER, RED, namespace_of},
    topology::{Destination, Pod},
};

use crate::table;

const INTRODUCTION: &str = "\
egress demo, several nodes: an egress address that no pod's node has

Three nodes on one segment, each with its own agent; every one has strict reverse-path filters:

  shop/web, jobs/batch, lab/plain     office/app
             ┌──────────┐            ┌──────────┐            ┌──────┐ red  172.18.0.201
             │ worker-1 │            │ worker-2 │            │ gw-1 │ blue 172.18.0.202
             └────┬─────┘            └────┬─────┘            └──┬───┘
       172.18.0.11│          172.18.0.12  │         172.18.0.21 │    overlay: VXLAN, UDP 4790
                  └───────────────────────┴──┬──────────────────┘
                                          router ────────── internet   partner, elsewhere
                                             │
                                         firewall: admits 172.18.0.201 and fd00:18::201, nobody else
                                             │
                                         internal service   10.80.0.80

  shop    the internal service through red, everything else through blue
  jobs    everything through blue
  office  everything through red
  lab     is not steered: the node's own routing and address
";

/// What should become of a request.
#[derive(Clone, Copy)]
enum Expected {
    /// Answered, with this source.
    Answered(Source),
    /// Refused by the firewall, which saw this source.
    Refused(Source),
}

/// Whose address the outside should see.
#[derive(Clone, Copy)]
enum Source {
    /// An egress address.
    Egress(Egress),
    /// That of the pod's node.
    Node,
}

/// Pod, destination, and what the policies and the firewall say of it.
const ROWS: [(&str, Destination, Expected); 8] = [
    ("web", INTERNAL, Expected::Answered(Source::Egress(RED))),
    ("web", ELSEWHERE, Expected::Answered(Source::Egress(BLUE))),
    ("app", INTERNAL, Expected::Answered(Source::Egress(RED))),
    ("app", PARTNER, Expected::Answered(Source::Egress(RED))),
    ("batch", INTERNAL, Expected::Refused(Source::Egress(BLUE))),
    ("batch", ELSEWHERE, Expected::Answered(Source::Egress(BLUE))),
    ("plain", INTERNAL, Expected::Refused(Source::Node)),
    ("plain", PARTNER, Expected::Answered(Source::Node)),
];

/// Connections of the table that are shown.
const EXCERPT: usize = 12;

/// Shows everything and returns how much of it is wrong.
pub(crate) fn demo() -> Result<usize> {
    println!("{INTRODUCTION}");
    let mut stage = ClusterStage::usual()?;
    println!("Agents: egress run --node … --overlay-key-file … in the namespace of each node\n");
    let mut wrong = show_requests(&mut stage)?;
    wrong += show_uplinks(&stage)?;
    show_counters(&stage)?;
    stage.leave()?;
    Ok(wrong)
}

fn show_requests(stage: &mut ClusterStage) -> Result<usize> {
    let header = [
        "who",
        "on",
        "asks",
        "",
        "is seen as",
        "and is",
        "policy says",
        "",
    ];
    let mut table = table(&header);
    let mut wrong = 0;
    // What the firewall refused before is of no interest.
    stage.cluster.refused()?;
    for (name, destination, expected) in ROWS {
        let (Expected::Answered(source) | Expected::Refused(source)) = expected;
        match source {
            Source::Egress(egress) => stage.permit(egress, &[destination]),
            Source::Node => {
                let node = stage.pod(name)?.node;
                stage.permit_node(node, &[destination])?;
            }
        }
        for address in destination.addresses() {
            let pod = stage.pod(name)?;
            let source = source.address(stage, pod, address)?;
            let (seen, verdict) = match whoami(&pod.host, address) {
                Ok(seen) => (Some(seen), "admitted"),
                Err(_) => match stage.cluster.refused()?.first() {
                    Some(&seen) => (Some(seen), "refused"),
                    None => (None, "not answered"),
                },
            };
            let should_be = match expected {
                Expected::Answered(_) => "admitted",
                Expected::Refused(_) => "refused",
            };
            let fine = seen == Some(source) && verdict == should_be;
            wrong += usize::from(!fine);
            table.add_row([
                format!("{}/{name}", namespace_of(pod)),
                pod.node.to_owned(),
                destination.name.to_owned(),
                address.to_string(),
                seen.map_or_else(|| "nobody".to_owned(), |seen| seen.to_string()),
                verdict.to_owned(),
                format!("{source}, {should_be}"),
                if fine { "ok" } else { "FAIL" }.to_owned(),
            ]);
        }
    }
    println!("{table}");
    Ok(wrong)
}

impl Source {
    fn address(self, stage: &ClusterStage, pod: &Pod, like: IpAddr) -> Result<IpAddr> {
        Ok(match self {
            Self::Egress(egress) => egress.like(like),
            Self::Node => stage.node(pod.node)?.address_like(like),
        })
    }
}

/// What a sniffer on every uplink saw.
fn show_uplinks(stage: &ClusterStage) -> Result<usize> {
    let sniffed = stage.sniffed()?;
    println!(
        "\nA sniffer on every uplink saw {} packets between the nodes in the overlay, and",
        sniffed.encapsulated()
    );
    match stage.verify() {
        Ok(()) => {
            println!(
                "not one packet outside it whose source address is not what the policies say."
            );
            Ok(0)
        }
        Err(leaks) => {
            println!("{leaks:#}");
            Ok(1)
        }
    }
}

fn show_counters(stage: &ClusterStage) -> Result<()> {
    println!("\nThe agents' counters, scraped over HTTP:");
    let mut counters = table(&["node", "gateway", "policy", "rule", "packets", "bytes"]);
    for node in &stage.cluster.nodes {
        let metrics = stage.metrics(node.name)?;
        for sample in metrics.matching("egress_gateway_packets_total", &[]) {
            let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
            let same = ["gateway", "namespace", "policy", "rule"].map(|name| (name, label(name)));
            counters.add_row([
                node.name.to_owned(),
                format!("{}/{}", label("namespace"), label("gateway")),
                label("policy").to_owned(),
                label("rule").to_owned(),
                sample.value.to_string(),
                metrics.sum("egress_gateway_bytes_total", &same).to_string(),
            ]);
        }
    }
    println!("{counters}");

    let connections = stage.command(GATEWAY_NODE, &["dump", "nat"])?;
    println!("\negress dump nat, on {GATEWAY_NODE}:");
    let lines = connections.lines().count();
    for line in connections.lines().take(EXCERPT) {
        println!("{line}");
    }
    if lines > EXCERPT {
        println!("… {} more", lines - EXCERPT);
    }
    Ok(())
}
