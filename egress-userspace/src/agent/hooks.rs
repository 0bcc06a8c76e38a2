//! Which program belongs where: pure.

use std::collections::BTreeSet;

use crate::{
    kernel::{Hook, Program},
    node::NodeView,
    resolve::Resolved,
    state::{DesiredState, VerdictSpec},
};

/// The hooks that a state needs: source pods' interfaces, and those where recorded replies arrive.
#[must_use]
pub(crate) fn wanted(
    resolved: &Resolved,
    desired: &DesiredState,
    view: &NodeView,
) -> BTreeSet<Hook> {
    let gateways = reply_interfaces(desired).into_iter().filter_map(|ifindex| {
        Some(Hook {
            program: Program::FromGateway,
            ifindex,
            interface: view.links.get(&ifindex)?.name.clone(),
        })
    });
    of_pods(resolved).chain(gateways).collect()
}

/// Those of source pods' interfaces, which are known before anything is compiled.
pub(super) fn of_pods(resolved: &Resolved) -> impl Iterator<Item = Hook> {
    resolved.pods.values().map(|pod| Hook {
        program: Program::FromPod,
        ifindex: pod.ifindex,
        interface: pod.interface.clone(),
    })
}

fn reply_interfaces(desired: &DesiredState) -> BTreeSet<u32> {
    desired
        .profiles
        .iter()
        .flat_map(|profile| &profile.verdicts)
        .filter_map(|verdict| match verdict {
            VerdictSpec::Gateways(members) => Some(members),
            VerdictSpec::Unmatched | VerdictSpec::Local | VerdictSpec::Drop(_) => None,
        })
        .flatten()
        .filter_map(|member| member.way.replies_from())
        .collect()
}
