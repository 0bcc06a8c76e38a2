//! The YAML that the cluster's agents read: the same files on every node.

use std::net::IpAddr;

use super::{BLUE, Cluster, Egress, INTERNAL, Node, RED, Underlay};
use crate::{
    resources::{Via, namespace, pod, policy},
    topology::Pod,
};

/// The policy of the namespace `shop`: the internal service through red, everything else through blue.
pub const SHOP: &str = "shop-policy";
/// The policy of the namespace `jobs`: everything through blue.
pub const JOBS: &str = "jobs-policy";
/// The policy of the namespace `office`: everything through red.
pub const OFFICE: &str = "office-policy";

/// The nodes, by the addresses that they reach each other by.
#[must_use]
pub fn node_resources(cluster: &Cluster) -> String {
    let describe = |node: &Node| {
        let mut addresses = vec![IpAddr::V6(node.v6)];
        if cluster.shape.underlay == Underlay::Dual {
            addresses.insert(0, node.v4.into());
        }
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| format!("{{type: InternalIP, address: \"{address}\"}}"))
            .collect();
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {}\nspec:\n  podCIDRs: [10.65.{number}.0/24, \"fd00:65:0:{number}::/64\"]\nstatus:\n  addresses: [{}]\n",
            node.name,
            addresses.join(", "),
            number = node.number
        )
    };
    cluster.nodes.iter().map(describe).collect()
}

/// A gateway with an egress address on a node, and further lines of its spec.
#[must_use]
pub fn egress_gateway(egress: Egress, node: &str, more: &str) -> String {
    gateway_spec(
        egress.name,
        egress.name,
        &format!(
            "  node: {node}\n  egressIPs: [{}, \"{}\"]\n  interface: eth0\n{more}",
            egress.v4, egress.v6
        ),
    )
}

/// A gateway in the namespace `default` with the label `egress-code` and these lines as its spec.
#[must_use]
pub fn gateway_spec(name: &str, code: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata:\n  name: {name}\n  namespace: default\n  labels: {{egress-code: {code}}}\nspec:\n{spec}"
    )
}

/// The namespace of a pod in the usual resources.
#[must_use]
pub const fn namespace_of(pod: &Pod) -> &'static str {
    match pod.name.as_bytes() {
        b"web" | b"near" => "shop",
        b"batch" => "jobs",
        b"app" => "office",
        _ => "lab",
    }
}

/// Two egress addresses on `gw-1`; the namespaces `shop`, `jobs` and `office` with a policy each, and `lab`
/// without one.
#[must_use]
pub fn usual(cluster: &Cluster) -> String {
    let internal = [
        format!("{}/32", INTERNAL.v4),
        format!("{}/128", INTERNAL.v6),
    ];
    let by = |name| [("egressGatewayPolicy", name)];
    let pods: String = cluster
        .pods
        .iter()
        .map(|found| pod(namespace_of(found), found, &[], &[]))
        .collect();
    [
        namespace("default", &[]),
        namespace("shop", &by(SHOP)),
        namespace("jobs", &by(JOBS)),
        namespace("office", &by(OFFICE)),
        namespace("lab", &[]),
        policy(
            SHOP,
            &[
                (&internal[0], Via::Code(RED.name)),
                (&internal[1], Via::Code(RED.name)),
                ("", Via::Code(BLUE.name)),
            ],
        ),
        policy(JOBS, &[("", Via::Code(BLUE.name))]),
        policy(OFFICE, &[("", Via::Code(RED.name))]),
        pods,
    ]
    .concat()
}
