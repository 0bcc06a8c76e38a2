//! Which counter belongs to which policy and member: stable while in use, never reused at once.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap, HashSet},
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

use egress_common::counter::NO_POLICY;

use super::{PlanError, space::Space};
use crate::state::{DesiredState, KernelState, Limits, MemberLabel, Names, VerdictSpec};

/// The ids of everything that a desired state names.
pub(super) struct Assigned<'a> {
    pub(super) policies: HashMap<&'a str, u32>,
    members: Members<'a>,
    pub(super) retired_policies: Vec<(String, u32)>,
    pub(super) retired_members: Vec<(Arc<MemberLabel>, u32)>,
}

/// Every wanted label, by its address in memory: most are known from there.
type Members<'a> = HashMap<usize, (&'a Arc<MemberLabel>, u32), BuildHasherDefault<ByAddress>>;

/// Ids of wanted members, and those that are retired.
type MembersAndRetired<'a> = (Members<'a>, Vec<(Arc<MemberLabel>, u32)>);

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
        let counted = kernel.blocks.values().flatten().map(|v| v.policy);
        let (policies, retired_policies) = assign(
            policies,
            names.policies.iter().map(|(name, id)| (name, *id)),
            counted,
            Some(NO_POLICY),
            limits.policies,
            "policies",
        )?;
        let (members, retired_members) = assign_members(kernel, names, desired, limits)?;
        Ok(Self {
            policies,
            members,
            retired_policies,
            retired_members,
        })
    }

    /// The id of a member that the desired state names.
    pub(super) fn member(&self, label: &Arc<MemberLabel>) -> u32 {
        self.members[&address(label)].1
    }

    /// As they are kept beside the maps.
    pub(super) fn names(&self) -> Names {
        let mut by_id: Vec<Option<&Arc<MemberLabel>>> = Vec::new();
        for (label, id) in self.members.values() {
            let place = *id as usize;
            if by_id.len() <= place {
                by_id.resize(place + 1, None);
            }
            by_id[place] = Some(label);
        }
        let members = (0..).zip(by_id);
        Names {
            policies: self
                .policies
                .iter()
                .map(|(name, id)| ((*name).to_owned(), *id))
                .collect(),
            members: members
                .filter_map(|(id, label)| Some((Arc::clone(label?), id)))
                .collect(),
            ..Names::default()
        }
    }
}

/// Ids of members, and which are retired. Names that are wanted in the very place where they are known are not compared.
fn assign_members<'a>(
    kernel: &KernelState,
    names: &Names,
    desired: &'a DesiredState,
    limits: &Limits,
) -> Result<MembersAndRetired<'a>, PlanError> {
    let labels = || {
        let verdicts = desired.profiles.iter().flat_map(|p| p.verdicts.iter());
        verdicts
            .flat_map(VerdictSpec::members)
            .map(|member| &member.label)
    };
    let held = || kernel.members.values().map(|member| member.counter);
    let known = || names.members.iter().map(|(label, id)| (label, *id));
    let what = "member counters";
    let in_order = names.members.is_sorted_by(|a, b| a.1 < b.1);
    if !in_order
        || names
            .members
            .last()
            .is_some_and(|(_, id)| *id >= limits.members)
    {
        let (ids, retired) = assign(labels(), known(), held(), None, limits.members, what)?;
        let members = labels().map(|label| (address(label), (label, ids[label])));
        return Ok((members.collect(), retired));
    }
    let named: HashMap<usize, u32, BuildHasherDefault<ByAddress>> =
        known().map(|(label, id)| (address(label), id)).collect();
    let mut members = Members::default();
    let mut strangers = Vec::new();
    for label in labels() {
        members.entry(address(label)).or_insert_with(|| {
            let id = named.get(&address(label)).copied();
            if id.is_none() {
                strangers.push(label);
            }
            (label, id.unwrap_or(NONE))
        });
    }
    if !strangers.is_empty() {
        // Nobody else's labels can be theirs.
        let policies: HashSet<&str> = strangers.iter().map(|l| l.policy.as_str()).collect();
        let mut ids: HashMap<&Arc<MemberLabel>, u32> = HashMap::new();
        for (label, id) in known().filter(|(label, _)| policies.contains(label.policy.as_str())) {
            ids.entry(label).or_insert(id);
        }
        let fresh = strangers.iter().filter(|label| !ids.contains_key(*label));
        let fresh: BTreeSet<&Arc<MemberLabel>> = fresh.copied().collect();
        if !fresh.is_empty() {
            let used = known().map(|(_, id)| id).chain(held());
            let mut space = space(used, limits.members);
            for label in fresh {
                let room = limits.members;
                let id = space.take(1).ok_or(PlanError { what, room })?;
                ids.insert(label, id);
            }
        }
        for label in strangers {
            members.insert(address(label), (label, ids[label]));
        }
    }
    let last = names.members.last().map_or(0, |(_, id)| *id as usize + 1);
    let mut wanted = vec![false; last];
    for (_, id) in members.values() {
        if let Some(wanted) = wanted.get_mut(*id as usize) {
            *wanted = true;
        }
    }
    let retired = known().filter(|(_, id)| !wanted[*id as usize]);
    let retired = retired.map(|(label, id)| (Arc::clone(label), id)).collect();
    Ok((members, retired))
}

fn address(label: &Arc<MemberLabel>) -> usize {
    Arc::as_ptr(label).addr()
}

/// A hash of an address, which is hardly ever anybody's choice.
#[derive(Default)]
struct ByAddress(u64);

impl Hasher for ByAddress {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_usize(usize::from(*byte));
        }
    }

    fn write_usize(&mut self, address: usize) {
        let mixed = (self.0 ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed.rotate_left(32);
    }
}

/// The ids below a limit that are not in use.
fn space(used: impl Iterator<Item = u32>, limit: u32) -> Space {
    let mut used: Vec<u32> = used.collect();
    // Most are there in order.
    used.sort();
    used.dedup();
    Space::new(0, limit, used.into_iter().map(|id| (id, 1)))
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
    let used = known.clone().map(|(_, id)| id).chain(held).chain(reserved);
    let mut space = space(used, limit);
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
