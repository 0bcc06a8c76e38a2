//! Gateways with egress addresses that no node would take as they are.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Findings, object_id};
use crate::{
    model::{EgressAddresses, Exit, Model, ObjectName},
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
