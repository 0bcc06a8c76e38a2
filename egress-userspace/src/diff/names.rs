//! Which counter belongs to which policy and member: stable while in use, never reused at once.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
};

use egress_common::counter::NO_POLICY;

use super::{PlanError, space::Space};
use crate::state::{DesiredState, KernelState, Limits, MemberLabel, Names, VerdictSpec};

/// The ids of everything that a desired state names.
pub(super) struct Assigned<'a> {
    pub(super) policies: HashMap<&'a str, u32>,
    pub(super) members: HashMap<&'a Arc<MemberLabel>, u32>,
    pub(super) retired_policies: Vec<(String, u32)>,
    pub(super) retired_members: Vec<(Arc<MemberLabel>, u32)>,
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
        let policies = desired.profiles.iter().map(|p| p.policy.as_str());
        let labels = desired
            .profiles
            .iter()
            .flat_map(|profile| profile.verdicts.iter())
            .flat_map(VerdictSpec::members)
            .map(|member| &member.label);
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
        let members = self.members.iter();
        let mut members: Vec<_> = members.map(|(l, id)| (Arc::clone(l), *id)).collect();
        members.sort_unstable_by_key(|(_, id)| *id);
        Names {
            policies: self
                .policies
                .iter()
                .map(|(name, id)| ((*name).to_owned(), *id))
                .collect(),
            members,
            ..Names::default()
        }
    }
}

/// No id: there is never room for so many.
const NONE: u32 = u32::MAX;

/// Ids of wanted names, and what is retired.
type Ids<'a, N> = (HashMap<&'a N, u32>, Vec<(<N as ToOwned>::Owned, u32)>);

/// Wanted names may repeat. New ones get their ids in their own order, whatever order they come in.
fn assign<'a, 'n, N>(
    wanted: impl Iterator<Item = &'a N>,
    known: impl Iterator<Item = (&'n (impl Borrow<N> + 'n), u32)> + Clone,
    held: impl Iterator<Item = u32>,
    reserved: Option<u32>,
    limit: u32,
    what: &'static str,
) -> Result<Ids<'a, N>, PlanError>
where
    N: Ord + Hash + ToOwned + ?Sized + 'a,
{
    let mut used: Vec<u32> = known
        .clone()
        .map(|(_, id)| id)
        .chain(held)
        .chain(reserved)
        .collect();
    used.sort_unstable();
    used.dedup();
    let mut space = Space::new(0, limit, used.into_iter().map(|id| (id, 1)));
    let mut ids: HashMap<&N, u32> = wanted.map(|name| (name, NONE)).collect();
    // A list that was damaged may name one id twice: the first keeps it.
    let mut taken = Vec::new();
    let mut take = |id: u32| {
        let place = id as usize;
        if taken.len() <= place {
            taken.resize(place + 1, false);
        }
        !std::mem::replace(&mut taken[place], true)
    };
    if let Some(id) = reserved {
        take(id);
    }
    let mut retired = Vec::new();
    for (name, id) in known {
        let name = name.borrow();
        match ids.get_mut(name) {
            Some(place) if *place == NONE && id < limit && take(id) => *place = id,
            Some(_) => {}
            None => retired.push((name.to_owned(), id)),
        }
    }
    let unnamed = ids.iter().filter(|(_, id)| **id == NONE);
    let fresh: BTreeSet<&N> = unnamed.map(|(name, _)| *name).collect();
    for name in fresh {
        let id = space.take(1).ok_or(PlanError { what, room: limit })?;
        ids.insert(name, id);
    }
    Ok((ids, retired))
}
