//! Which counter belongs to which policy and member: stable while in use, never reused at once.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::counter::NO_POLICY;

use super::{PlanError, space::Space};
use crate::state::{DesiredState, KernelState, Limits, MemberLabel, Names, VerdictSpec};

/// The ids of everything that a desired state names.
pub(super) struct Assigned<'a> {
    pub(super) policies: BTreeMap<&'a str, u32>,
    pub(super) members: BTreeMap<&'a MemberLabel, u32>,
    pub(super) retired_policies: Vec<(String, u32)>,
    pub(super) retired_members: Vec<(MemberLabel, u32)>,
}

impl<'a> Assigned<'a> {
    /// Keeps the ids of names that are still wanted, gives new ones to new names, and retires the rest.
    ///
    /// An id that the maps hold or that is retired here is nobody's new id, known by name or not.
    pub(super) fn new(
        kernel: &KernelState,
        names: &Names,
        desired: &'a DesiredState,
        limits: &Limits,
    ) -> Result<Self, PlanError> {
        let policies: BTreeSet<&str> = desired.profiles.iter().map(|p| p.policy.as_str()).collect();
        let labels: BTreeSet<&MemberLabel> = desired
            .profiles
            .iter()
            .flat_map(|profile| &profile.verdicts)
            .flat_map(VerdictSpec::members)
            .map(|member| &member.label)
            .collect();
        let counted = kernel.blocks.values().flatten().map(|v| v.policy);
        let (policies, retired_policies) = assign(
            policies,
            names.policies.iter().map(|(name, id)| (name, *id)),
            counted,
            Some(NO_POLICY),
            limits.policies,
            "policies",
        )?;
        let (members, retired_members) = assign(
            labels,
            names.members.iter().map(|(label, id)| (label, *id)),
            kernel.members.values().map(|member| member.counter),
            None,
            limits.members,
            "member counters",
        )?;
        Ok(Self {
            policies,
            members,
            retired_policies,
            retired_members,
        })
    }

    /// As they are kept beside the maps.
    pub(super) fn names(&self) -> Names {
        Names {
            policies: self
                .policies
                .iter()
                .map(|(name, id)| ((*name).to_owned(), *id))
                .collect(),
            members: self
                .members
                .iter()
                .map(|(label, id)| ((*label).clone(), *id))
                .collect(),
            ..Names::default()
        }
    }
}

/// Ids of wanted names, and what is retired.
type Ids<'a, N> = (BTreeMap<&'a N, u32>, Vec<(<N as ToOwned>::Owned, u32)>);

fn assign<'a, 'n, N>(
    wanted: BTreeSet<&'a N>,
    known: impl Iterator<Item = (&'n (impl std::borrow::Borrow<N> + 'n), u32)> + Clone,
    held: impl Iterator<Item = u32>,
    reserved: Option<u32>,
    limit: u32,
    what: &'static str,
) -> Result<Ids<'a, N>, PlanError>
where
    N: Ord + ToOwned + ?Sized + 'a,
{
    let used: BTreeSet<u32> = known
        .clone()
        .map(|(_, id)| id)
        .chain(held)
        .chain(reserved)
        .collect();
    let mut space = Space::new(0, limit, used.into_iter().map(|id| (id, 1)));
    let mut kept: BTreeMap<&N, u32> = BTreeMap::new();
    // A list that was damaged may name one id twice: the first keeps it.
    let mut taken = BTreeSet::from_iter(reserved);
    let mut retired = Vec::new();
    for (name, id) in known {
        let name = name.borrow();
        match wanted.get(name) {
            Some(wanted) if id < limit && !kept.contains_key(name) && taken.insert(id) => {
                kept.insert(*wanted, id);
            }
            Some(_) => {}
            None => retired.push((name.to_owned(), id)),
        }
    }
    for name in wanted {
        if !kept.contains_key(name) {
            let id = space.take(1).ok_or(PlanError { what, room: limit })?;
            kept.insert(name, id);
        }
    }
    Ok((kept, retired))
}
