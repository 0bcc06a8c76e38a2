//! Gateways with egress addresses that no node would take as they are.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{Findings, namespace_labels, object_id};
use crate::{
    model::{EgressAddresses, Exit, GatewaySelector, Labels, Model, ObjectName},
    resources::{Kind, ObjectId},
};

/// Looks at every `EgressGateway` with egress addresses, in order of name.
pub(super) fn lint(findings: &mut Findings<'_>, model: &Model) {
    let mut owners: BTreeMap<IpAddr, &ObjectName> = BTreeMap::new();
    for (name, gateway) in &model.gateways {
        let Exit::Node(egress) = &gateway.exit else {
            continue;
        };
        let id = object_id(Kind::EgressGateway, Some(&name.namespace), &name.name);
        for address in &egress.addresses {
            let owner = *owners.entry(*address).or_insert(name);
            if owner != name {
                let message =
                    format!("{address} is the gateway {owner}'s already: this one is never used");
                findings.add(
                    &id,
                    None,
                    message,
                    "give each gateway an address of its own",
                );
            }
        }
        lint_node(findings, &id, model, egress);
        lint_probes(findings, &id, model, egress);
    }
}

/// A rule of one family needs a gateway that has an address of it; of pods, nobody knows before they run.
pub(super) fn lint_family(
    findings: &mut Findings<'_>,
    id: &ObjectId,
    part: usize,
    model: &Model,
    selector: &GatewaySelector,
    destination: IpNet,
) {
    let is_v4 = |address: &IpAddr| address.is_ipv4();
    let wanted = matches!(destination, IpNet::V4(_));
    let mut found = false;
    for (namespace, labels, addresses) in exits(model) {
        let is_searched = || match &selector.namespaces {
            Some(namespaces) => namespaces.matches(&namespace_labels(model, namespace)),
            None => true,
        };
        if !selector.gateways.matches(labels) || !is_searched() {
            continue;
        }
        if addresses.is_empty() || addresses.iter().any(|address| is_v4(address) == wanted) {
            return;
        }
        found = true;
    }
    if found {
        let family = if wanted { "IPv4" } else { "IPv6" };
        let message = format!(
            "rule {destination}: no gateway that it selects has an {family} address: the packets are dropped"
        );
        let help = format!("give a gateway an {family} address, or correct the destination");
        findings.add(id, Some(part), message, &help);
    }
}

/// What can be a gateway, with its addresses.
fn exits(model: &Model) -> impl Iterator<Item = (&str, &Labels, &[IpAddr])> {
    let pods = model.pods.iter().filter(|(_, pod)| !pod.host_network);
    let pods = pods.map(|(name, pod)| (&name.namespace, &pod.labels, &pod.addresses));
    let gateways = model.gateways.iter().map(|(name, gateway)| {
        let addresses = match &gateway.exit {
            Exit::NextHops { addresses, .. } => addresses,
            Exit::Node(egress) => &egress.addresses,
        };
        (&name.namespace, &gateway.labels, addresses)
    });
    pods.chain(gateways)
        .map(|(namespace, labels, addresses)| (namespace.as_str(), labels, addresses.as_slice()))
}

/// Where nobody has an address, nobody takes what answers a probe.
fn lint_probes(
    findings: &mut Findings<'_>,
    id: &ObjectId,
    model: &Model,
    egress: &EgressAddresses,
) {
    let node = model.nodes.get(&egress.node);
    let is_nodes = |address| node.is_some_and(|node| node.addresses.contains(address));
    let alone = egress.addresses.iter().find(|address| !is_nodes(address));
    if let Some(address) = alone
        && egress.probes.is_some()
        && !egress.assign
    {
        let message = format!(
            "spec.probes are asked from {address}, which the agent does not put on an interface (assign: false): unless \
             something else does, the gateway is refused"
        );
        let help = "remove `assign: false`, or see to it that the node has the address";
        findings.add(id, None, message, help);
    }
}

fn lint_node(findings: &mut Findings<'_>, id: &ObjectId, model: &Model, egress: &EgressAddresses) {
    let node = &egress.node;
    let Some(known) = model.nodes.get(node) else {
        // Who validates gateways alone need not have the nodes at hand.
        if !model.nodes.is_empty() {
            let message = format!("spec.node is {node}, and there is no Node of that name");
            let help = "add the Node to the resources, or correct the name";
            findings.add(id, None, message, help);
        }
        return;
    };
    for address in &egress.addresses {
        if egress.ports.is_none() && known.addresses.contains(address) {
            let message = format!(
                "{address} is an address of the node {node} anyway, which needs ports that are the gateway's alone"
            );
            let help =
                "set spec.portRange to ports that nothing on the node uses, or use another address";
            findings.add(id, None, message, help);
        }
    }
}
