//! Egress network policies that select steered pods, and would never see what those send to gateways.

use std::collections::BTreeSet;

use super::Findings;
use crate::{
    model::{Model, NetworkPolicy, Steering, Target},
    resources::ObjectId,
};

/// Pods that a finding names before it only counts.
const NAMED: usize = 3;

/// Looks at every network policy that judges what pods send, in order.
pub(super) fn lint(findings: &mut Findings<'_>, model: &Model) {
    let ids = findings.places.keys();
    let ids: Vec<ObjectId> = ids
        .filter(|id| id.kind.is_network_policy())
        .cloned()
        .collect();
    for id in ids {
        let policy = model.network_policies.get(&id.to_string());
        let Some(message) = policy.and_then(|policy| fault(model, policy)) else {
            continue;
        };
        let help = "exclude the pods from it; else the agent drops what they send to gateways (PolicyEnforcement), or \
                    redirects it past this policy with `--accept-networkpolicy-bypass`";
        findings.add(&id, None, message, help);
    }
}

fn fault(model: &Model, policy: &NetworkPolicy) -> Option<String> {
    let pods = model.pods.iter().filter(|(name, pod)| {
        let namespace = || model.namespaces.get(&name.namespace);
        let steering = pod
            .steering
            .as_ref()
            .or_else(|| namespace()?.steering.as_ref());
        steering.is_some_and(|steering| redirects(model, steering))
            && !pod.host_network
            && policy.selects(model, name, pod)
    });
    let pods: BTreeSet<String> = pods.map(|(name, _)| name.to_string()).collect();
    if !pods.is_empty() {
        let named = listed(&pods);
        return Some(format!(
            "it selects pods whose egress policy sends packets to gateways, past this policy: {named}"
        ));
    }
    // The pods themselves are often nowhere in files.
    let namespaces = model.namespaces.iter().filter(|(name, namespace)| {
        let steering = namespace.steering.as_ref();
        steering.is_some_and(|steering| redirects(model, steering)) && policy.reaches(model, name)
    });
    let namespaces: BTreeSet<String> = namespaces.map(|(name, _)| name.clone()).collect();
    (!namespaces.is_empty()).then(|| {
        format!(
            "it may select pods of namespaces whose egress policy sends packets to gateways, past this policy: {}",
            listed(&namespaces)
        )
    })
}

/// Whether pods that ask for this have packets redirected.
fn redirects(model: &Model, steering: &Steering) -> bool {
    match steering {
        Steering::Gateways(_) => true,
        Steering::Policy(name) => model.policies.get(name).is_some_and(|policy| {
            let mut rules = policy.rules.iter();
            rules.any(|rule| matches!(rule.target, Target::Gateways(_)))
        }),
        Steering::Invalid => false,
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    let shown: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &more
}
