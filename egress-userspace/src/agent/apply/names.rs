//! What the numbers in the maps are called, before, during and after an apply.

use std::{collections::BTreeSet, net::IpAddr};

use super::Plans;
use crate::{diff::Change, state::Names};

/// What counts in a map by its number.
pub(super) enum Number {
    Member(u32),
    Policy(u32),
    Gateway(u32),
}

/// Numbers that `after` names and `before` did not.
pub(super) fn fresh(before: &Names, after: &Names) -> Vec<Number> {
    let mut known: Vec<u32> = before.members.iter().map(|(_, id)| *id).collect();
    known.sort_unstable();
    let members = after.members.iter().map(|(_, id)| *id);
    let members = members.filter(|id| known.binary_search(id).is_err());
    let known: BTreeSet<u32> = before.policies.values().copied().collect();
    let policies = after
        .policies
        .values()
        .copied()
        .filter(|id| !known.contains(id));
    let known: BTreeSet<u32> = before.gateways.values().copied().collect();
    let gateways = after
        .gateways
        .values()
        .copied()
        .filter(|id| !known.contains(id));
    members
        .map(Number::Member)
        .chain(policies.map(Number::Policy))
        .chain(gateways.map(Number::Gateway))
        .collect()
}

/// What is named while packets of both states are on their way.
pub(super) fn union(before: &Names, plans: &Plans) -> Names {
    let mut both = plans.names.clone();
    let policy = &plans.policy;
    both.members.extend(policy.retired_members.iter().cloned());
    both.members.sort_unstable_by_key(|(_, id)| *id);
    both.gateways
        .extend(plans.translation.retired_gateways.iter().cloned());
    for (policy, id) in &policy.retired_policies {
        debug_assert!(
            before.policies.contains_key(policy),
            "only what was named is retired"
        );
        both.policies.insert(policy.clone(), *id);
    }
    both
}

/// A change in a few words, whatever its size.
pub(crate) fn describe(change: &Change) -> String {
    match change {
        Change::WriteLines { first_line, lines } => {
            format!("write {} lines from {first_line}", lines.len())
        }
        Change::WriteMember { id, .. } => format!("write member {id}"),
        Change::WriteVerdicts { base, verdicts } => {
            format!("write {} verdicts from {base}", verdicts.len())
        }
        Change::InsertPrefix { prefix, class } => format!("publish {prefix} as class {class}"),
        Change::TurnPod { slot, state } => {
            format!(
                "turn slot {slot} to row {} and rules {}",
                state.row().first_line(),
                state.rule_base()
            )
        }
        Change::InsertPod { key, slot } => format!(
            "add pod {} on interface {} as slot {slot}",
            IpAddr::from(key.addr),
            key.ifindex
        ),
        Change::RemovePod { key } => format!(
            "remove pod {} on interface {}",
            IpAddr::from(key.addr),
            key.ifindex
        ),
        Change::RemovePrefix { prefix } => format!("withdraw {prefix}"),
        Change::Grace => "wait for packets in flight".to_owned(),
    }
}
