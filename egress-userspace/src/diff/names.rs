//! Which counter belongs to which policy and member: stable while in use, never reused at once.

use std::{
    borrow::Borrow,
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

use egress_common::counter::NO_POLICY;

use super::{PlanError, memo::Memo, space::Space};
use crate::state::{DesiredState, KernelState, Limits, MemberLabel, Names, Profile, VerdictSpec};

/// The ids of everything that a desired state names.
pub(super) struct Assigned<'a> {
    pub(super) policies: HashMap<&'a str, u32>,
    members: Members<'a>,
    retired_policies: Vec<(String, u32)>,
}

/// The ids of members.
struct Members<'a> {
    /// Labels by their addresses in memory: all of those profiles that are not remembered.
    by_address: HashMap<usize, (&'a Arc<MemberLabel>, u32), BuildHasherDefault<ByAddress>>,
    /// All wanted ones, in the order of their ids.
    names: Vec<(Arc<MemberLabel>, u32)>,
    retired: Vec<(Arc<MemberLabel>, u32)>,
    by_label: OnceCell<HashMap<Arc<MemberLabel>, u32>>,
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
        memo: &Memo,
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
        let members = Members::new(kernel, names, desired, limits, memo)?;
        Ok(Self {
            policies,
            members,
            retired_policies,
        })
    }

    /// The id of a member that the desired state names.
    pub(super) fn member(&self, label: &Arc<MemberLabel>) -> u32 {
        let members = &self.members;
        match members.by_address.get(&address(label)) {
            Some((_, id)) => *id,
            None => {
                let by_label = members
                    .by_label
                    .get_or_init(|| members.names.iter().cloned().collect());
                by_label[label]
            }
        }
    }

    /// As they are kept beside the maps, and what is retired of members and of policies.
    pub(super) fn finish(self) -> (Names, Retired) {
        let policies = self.policies.into_iter();
        let names = Names {
            policies: policies.map(|(name, id)| (name.to_owned(), id)).collect(),
            members: self.members.names,
            ..Names::default()
        };
        let retired = Retired {
            members: self.members.retired,
            policies: self.retired_policies,
        };
        (names, retired)
    }
}

/// Names that nobody wants any more.
pub(super) struct Retired {
    pub(super) members: Vec<(Arc<MemberLabel>, u32)>,
    pub(super) policies: Vec<(String, u32)>,
}

/// Members of profiles.
fn labels<'a>(
    profiles: impl Iterator<Item = &'a Profile>,
) -> impl Iterator<Item = &'a Arc<MemberLabel>> {
    let verdicts = profiles.flat_map(|profile| profile.verdicts.iter());
    verdicts
        .flat_map(VerdictSpec::members)
        .map(|member| &member.label)
}

impl<'a> Members<'a> {
    /// What profiles name that are remembered is not looked at: the ids are.
    fn new(
        kernel: &KernelState,
        names: &Names,
        desired: &'a DesiredState,
        limits: &Limits,
        memo: &Memo,
    ) -> Result<Self, PlanError> {
        let known = || names.members.iter().map(|(label, id)| (label, *id));
        let held = || kernel.members.values().map(|member| member.counter);
        let in_order = names.members.is_sorted_by(|a, b| a.1 < b.1);
        let last = names.members.last().map_or(0, |(_, id)| *id as usize + 1);
        if !in_order || last > limits.members as usize {
            return Self::damaged(names, desired, limits, held());
        }

        let mut named = vec![false; last];
        for (_, id) in known() {
            named[id as usize] = true;
        }
        let mut wanted = vec![false; last];
        let mut unknown: Vec<&Profile> = Vec::new();
        for profile in &desired.profiles {
            let is_named = |id: &u32| named.get(*id as usize) == Some(&true);
            match memo.members(profile).filter(|ids| ids.iter().all(is_named)) {
                Some(ids) => ids.iter().for_each(|id| wanted[*id as usize] = true),
                None => unknown.push(profile),
            }
        }
        let mut by_address = HashMap::default();
        for label in labels(unknown.into_iter()) {
            by_address.entry(address(label)).or_insert((label, NONE));
        }
        let ids = identify(names, &wanted, &by_address, limits, held())?;
        // As they are wanted now, so that those are let go which were known by the same names.
        let mut anew: BTreeMap<u32, &Arc<MemberLabel>> = BTreeMap::new();
        for (label, id) in by_address.values_mut() {
            *id = ids[*label];
            anew.insert(*id, *label);
        }
        let mut all = Vec::with_capacity(names.members.len() + anew.len());
        let mut retired = Vec::new();
        let mut anew = anew.into_iter().peekable();
        for (label, id) in known() {
            while let Some((id, label)) = anew.next_if(|(new, _)| *new < id) {
                all.push((Arc::clone(label), id));
            }
            if let Some((id, label)) = anew.next_if(|(new, _)| *new == id) {
                all.push((Arc::clone(label), id));
            } else if wanted[id as usize] {
                all.push((Arc::clone(label), id));
            } else {
                retired.push((Arc::clone(label), id));
            }
        }
        all.extend(anew.map(|(id, label)| (Arc::clone(label), id)));
        Ok(Self {
            by_address,
            names: all,
            retired,
            by_label: OnceCell::new(),
        })
    }

    /// Of a list that may name one id twice, or ids that there is no room for.
    fn damaged(
        names: &Names,
        desired: &'a DesiredState,
        limits: &Limits,
        held: impl Iterator<Item = u32>,
    ) -> Result<Self, PlanError> {
        let labels = || labels(desired.profiles.iter());
        let known = names.members.iter().map(|(label, id)| (label, *id));
        let (ids, retired) = assign(labels(), known, held, None, limits.members, COUNTERS)?;
        let by_id: BTreeMap<u32, &Arc<MemberLabel>> =
            ids.iter().map(|(label, id)| (*id, *label)).collect();
        let by_id = by_id.into_iter();
        Ok(Self {
            by_address: labels()
                .map(|label| (address(label), (label, ids[label])))
                .collect(),
            names: by_id.map(|(id, label)| (Arc::clone(label), id)).collect(),
            retired,
            by_label: OnceCell::new(),
        })
    }
}

/// The ids of labels that are wanted and not remembered, when others want these ids.
fn identify<'a>(
    names: &'a Names,
    wanted: &[bool],
    strangers: &HashMap<usize, (&'a Arc<MemberLabel>, u32), BuildHasherDefault<ByAddress>>,
    limits: &Limits,
    held: impl Iterator<Item = u32>,
) -> Result<HashMap<&'a Arc<MemberLabel>, u32>, PlanError> {
    let mut ids: HashMap<&Arc<MemberLabel>, u32> = HashMap::new();
    if strangers.is_empty() {
        return Ok(ids);
    }
    let known = || names.members.iter().map(|(label, id)| (label, *id));
    // Most likely they are those that nobody else wants any more.
    for (label, id) in known().filter(|(_, id)| !wanted[*id as usize]) {
        ids.entry(label).or_insert(id);
    }
    let mut unknown: Vec<&Arc<MemberLabel>> = strangers.values().map(|(label, _)| *label).collect();
    unknown.retain(|label| !ids.contains_key(*label));
    if unknown.is_empty() {
        return Ok(ids);
    }
    // Nobody else's labels can be theirs.
    let policies: BTreeSet<&str> = unknown.iter().map(|l| l.policy.as_str()).collect();
    let others = known().filter(|(_, id)| wanted[*id as usize]);
    for (label, id) in others.filter(|(label, _)| policies.contains(label.policy.as_str())) {
        ids.entry(label).or_insert(id);
    }
    let fresh: BTreeSet<&Arc<MemberLabel>> = unknown
        .into_iter()
        .filter(|label| !ids.contains_key(*label))
        .collect();
    if !fresh.is_empty() {
        let used = known().map(|(_, id)| id).chain(held);
        let mut space = space(used, limits.members);
        for label in fresh {
            let (what, room) = (COUNTERS, limits.members);
            let id = space.take(1).ok_or(PlanError { what, room })?;
            ids.insert(label, id);
        }
    }
    Ok(ids)
}

/// What there may be no room for.
const COUNTERS: &str = "member counters";

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
