//! What numbers counted, under the names that they had.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use egress_common::{
    DropReason,
    counter::{Count, Direction, NO_POLICY, PassKind},
};

use super::{Numbers, Reading, Series, with_nobody};
use crate::{
    model::ObjectName,
    state::{MemberLabel, Names},
};

/// Reasons that belong to no policy: exported from zero on, so that a first drop shows as an increase.
const NOBODYS_REASONS: [DropReason; 5] = [
    DropReason::SpoofedSource,
    DropReason::NotPlainIp,
    DropReason::Malformed,
    DropReason::StateMissing,
    DropReason::RedirectFailed,
];
/// Reasons that every policy exports from zero on.
const POLICYS_REASONS: [DropReason; 2] = [DropReason::PolicyMissing, DropReason::NoGateway];
/// Reasons that every gateway of this node exports from zero on.
const GATEWAYS_REASONS: [DropReason; 3] = [
    DropReason::NatExhausted,
    DropReason::SourceQuota,
    DropReason::NatNoState,
];

/// What every number said last, under which name, and what that name has in all.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) series: Series,
    /// How often names have changed.
    pub(super) moment: u64,
    members: BTreeMap<u32, Live<Arc<MemberLabel>, ()>>,
    /// Labels whose numbers were given to others since names were retired last.
    dispossessed: Vec<Arc<MemberLabel>>,
    policies: BTreeMap<u32, Live<String, OfPolicy>>,
    gateways: BTreeMap<u32, Live<ObjectName, OfGateway>>,
}

/// The counters that a policy's number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum OfPolicy {
    Dropped(DropReason),
    Passed(PassKind),
}

/// The counters that a gateway's number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum OfGateway {
    Dropped(DropReason),
    Translated(Direction),
}

/// A number in use.
#[derive(Debug)]
struct Live<L, K> {
    label: L,
    /// What each of its counters said last: few, in the order in which they were met.
    last: Vec<(K, Count)>,
    /// Whether counters that were never read start from zero, and not from their first reading.
    from_zero: bool,
    /// The moment at which it was named or read on its own: readings that began before say nothing of it.
    since: u64,
}

impl<L, K: PartialEq> Live<L, K> {
    fn new(label: L, from_zero: bool, since: u64) -> Self {
        Self {
            label,
            last: Vec::new(),
            from_zero,
            since,
        }
    }

    /// What a counter gained since the reading before.
    fn gained(&mut self, counter: K, now: Count) -> Count {
        let start = self.from_zero.then(Count::default);
        match self.last.iter_mut().find(|(known, _)| *known == counter) {
            Some((_, last)) => gain(Some(std::mem::replace(last, now)), now),
            None => {
                self.last.push((counter, now));
                gain(start, now)
            }
        }
    }
}

impl Totals {
    /// The members of `names` whose numbers nobody has yet, or others. There may be a hundred thousand, and mostly few
    /// differ.
    pub(super) fn unlike<'n>(&self, names: &'n Names) -> Vec<&'n (Arc<MemberLabel>, u32)> {
        let mut live = self.members.iter().peekable();
        let mut last = None;
        let is_unlike = |member: &&(Arc<MemberLabel>, u32)| {
            let (label, id) = member;
            let known = if last.replace(*id) < Some(*id) {
                while live.next_if(|(known, _)| *known < id).is_some() {}
                live.peek()
                    .filter(|(known, _)| *known == id)
                    .map(|(_, live)| *live)
            } else {
                self.members.get(id)
            };
            known.is_none_or(|live| live.label != *label)
        };
        names.members.iter().filter(is_unlike).collect()
    }

    /// Names numbers, with these members, and gives those that are new. These start from zero, or else from their first
    /// reading.
    pub(super) fn name(
        &mut self,
        names: &Names,
        members: &[&(Arc<MemberLabel>, u32)],
        from_zero: bool,
    ) -> Numbers {
        let now = self.moment;
        let mut fresh = Numbers::default();
        for (label, id) in members {
            match self.members.get_mut(id) {
                Some(live) if live.label == *label => continue,
                Some(live) => {
                    let before = std::mem::replace(&mut live.label, Arc::clone(label));
                    self.dispossessed.push(before);
                    live.since = now;
                }
                None => {
                    let label = Arc::clone(label);
                    self.members.insert(*id, Live::new(label, from_zero, now));
                    fresh.members.insert(*id);
                }
            }
            let label = Arc::clone(&self.members[id].label);
            self.series.members.entry(label).or_default();
        }
        for (label, id) in with_nobody(names) {
            match self.policies.get_mut(&id) {
                Some(live) if live.label == label => continue,
                Some(live) => {
                    label.clone_into(&mut live.label);
                    live.since = now;
                }
                None => {
                    let live = Live::new(label.to_owned(), from_zero, now);
                    self.policies.insert(id, live);
                    fresh.policies.insert(id);
                }
            }
            self.export_policy(label, id);
        }
        for (label, id) in &names.gateways {
            match self.gateways.get_mut(id) {
                Some(live) if live.label == *label => continue,
                Some(live) => {
                    live.label.clone_from(label);
                    live.since = now;
                }
                None => {
                    let live = Live::new(label.clone(), from_zero, now);
                    self.gateways.insert(*id, live);
                    fresh.gateways.insert(*id);
                }
            }
            self.export_gateway(label);
        }
        fresh
    }

    /// The numbers that have another name by now than these names give them.
    pub(super) fn changing_hands(
        &self,
        names: &Names,
        members: &[&(Arc<MemberLabel>, u32)],
    ) -> Numbers {
        let mut moved = Numbers::default();
        for (label, id) in members {
            if self
                .members
                .get(id)
                .is_some_and(|live| live.label != *label)
            {
                moved.members.insert(*id);
            }
        }
        for (label, id) in with_nobody(names) {
            if self
                .policies
                .get(&id)
                .is_some_and(|live| live.label != label)
            {
                moved.policies.insert(id);
            }
        }
        for (label, id) in &names.gateways {
            if self
                .gateways
                .get(id)
                .is_some_and(|live| live.label != *label)
            {
                moved.gateways.insert(*id);
            }
        }
        moved
    }

    /// The numbers that `names` does not name.
    pub(super) fn retiring(&self, names: &Names) -> Numbers {
        let members = names.members.iter().map(|(_, id)| *id).collect();
        let policies = with_nobody(names).map(|(_, id)| id).collect();
        let gateways = names.gateways.values().copied().collect();
        Numbers {
            members: others(&self.members, members),
            policies: others(&self.policies, policies),
            gateways: others(&self.gateways, gateways),
        }
    }

    /// Shows from zero on what is worth an alert.
    fn export_policy(&mut self, label: &str, id: u32) {
        let reasons: &[DropReason] = if id == NO_POLICY {
            &NOBODYS_REASONS
        } else {
            &POLICYS_REASONS
        };
        for reason in reasons {
            let key = (label.to_owned(), *reason);
            self.series.drops.entry(key).or_default();
        }
        if id != NO_POLICY {
            for &kind in PassKind::ALL {
                let key = (label.to_owned(), kind);
                self.series.passes.entry(key).or_default();
            }
        }
    }

    fn export_gateway(&mut self, label: &ObjectName) {
        for reason in GATEWAYS_REASONS {
            let key = (label.clone(), reason);
            self.series.gateway_drops.entry(key).or_default();
        }
        for &direction in Direction::ALL {
            let key = (label.clone(), direction);
            self.series.translated.entry(key).or_default();
        }
    }

    /// Adds what these numbers gained since the reading before, according to one that began at that moment.
    pub(super) fn add(&mut self, reading: &Reading, numbers: &Numbers, began: u64) {
        let series = &mut self.series;
        for (id, now) in &reading.members {
            if let Some(live) = self.members.get_mut(id).filter(|live| live.since <= began) {
                let gained = live.gained((), *now);
                grow(&mut series.members, &live.label, gained);
            }
        }
        for (id, reason, now) in &reading.drops {
            if let Some(live) = self.policies.get_mut(id).filter(|live| live.since <= began) {
                let gained = live.gained(OfPolicy::Dropped(*reason), *now);
                if gained != Count::default() {
                    grow(&mut series.drops, &(live.label.clone(), *reason), gained);
                }
            }
        }
        for (id, kind, now) in &reading.passes {
            if let Some(live) = self.policies.get_mut(id).filter(|live| live.since <= began) {
                let gained = live.gained(OfPolicy::Passed(*kind), *now);
                if gained != Count::default() {
                    grow(&mut series.passes, &(live.label.clone(), *kind), gained);
                }
            }
        }
        for (id, direction, now) in &reading.translated {
            if let Some(live) = self.gateways.get_mut(id).filter(|live| live.since <= began) {
                let gained = live.gained(OfGateway::Translated(*direction), *now);
                let key = (live.label.clone(), *direction);
                grow(&mut series.translated, &key, gained);
            }
        }
        for (id, reason, now) in &reading.gateway_drops {
            if let Some(live) = self.gateways.get_mut(id).filter(|live| live.since <= began) {
                let gained = live.gained(OfGateway::Dropped(*reason), *now);
                let key = (live.label.clone(), *reason);
                grow(&mut series.gateway_drops, &key, gained);
            }
        }
        series.answers.extend(reading.answers.iter().copied());
        // A source may leave out counters that are zero, so all of these were read now.
        for id in &numbers.policies {
            if let Some(live) = self.policies.get_mut(id).filter(|live| live.since <= began) {
                live.from_zero = true;
                live.since = began;
            }
        }
        for id in &numbers.gateways {
            if let Some(live) = self.gateways.get_mut(id).filter(|live| live.since <= began) {
                live.from_zero = true;
                live.since = began;
            }
        }
        for id in &numbers.members {
            if let Some(live) = self.members.get_mut(id).filter(|live| live.since <= began) {
                live.since = began;
            }
        }
    }

    /// Forgets the numbers that `names` does not name, and the series that never counted anything.
    pub(super) fn retain(&mut self, names: &Names, retiring: &Numbers) {
        let mut unnamed = std::mem::take(&mut self.dispossessed);
        for id in &retiring.members {
            unnamed.extend(self.members.remove(id).map(|live| live.label));
        }
        for id in &retiring.policies {
            self.policies.remove(id);
        }
        for id in &retiring.gateways {
            self.gateways.remove(id);
        }
        self.forget_members(unnamed, names);

        let policy = |policy: &str| policy.is_empty() || names.policies.contains_key(policy);
        let gateway = |gateway: &ObjectName| names.gateways.contains_key(gateway);
        let series = &mut self.series;
        keep(&mut series.drops, |(label, _)| policy(label));
        keep(&mut series.passes, |(label, _)| policy(label));
        keep(&mut series.translated, |(label, _)| gateway(label));
        keep(&mut series.gateway_drops, |(label, _)| gateway(label));
    }

    /// Forgets series of members that have lost their numbers, have none by another either, and never counted anything.
    fn forget_members(&mut self, unnamed: Vec<Arc<MemberLabel>>, names: &Names) {
        let mut unnamed: BTreeSet<Arc<MemberLabel>> = unnamed.into_iter().collect();
        let series = &mut self.series.members;
        unnamed.retain(|label| series.get(label).is_some_and(|c| *c == Count::default()));
        let Some(one) = unnamed.first() else {
            return;
        };
        // Mostly they are of one policy, and other policies' names are not looked at for long.
        let policy = one.policy.clone();
        let of_one = unnamed.iter().all(|label| label.policy == policy);
        for (label, _) in &names.members {
            if !of_one || label.policy == policy {
                unnamed.remove(label);
            }
        }
        for label in &unnamed {
            series.remove(label);
        }
    }

    /// Every number in use.
    pub(super) fn numbers(&self) -> Numbers {
        Numbers {
            members: self.members.keys().copied().collect(),
            policies: self.policies.keys().copied().collect(),
            gateways: self.gateways.keys().copied().collect(),
        }
    }
}

/// The numbers in use that are not among the named ones.
fn others<L>(live: &BTreeMap<u32, L>, mut named: Vec<u32>) -> BTreeSet<u32> {
    named.sort_unstable();
    let mut named = named.into_iter().peekable();
    let is_other = |id: &&u32| {
        while named.next_if(|named| named < id).is_some() {}
        named.peek() != Some(*id)
    };
    live.keys().filter(is_other).copied().collect()
}

/// What a counter gained; one that went backwards was set to zero meanwhile.
fn gain(last: Option<Count>, now: Count) -> Count {
    match last {
        None => Count::default(),
        Some(last) if now.packets < last.packets || now.bytes < last.bytes => now,
        Some(last) => Count {
            packets: now.packets - last.packets,
            bytes: now.bytes - last.bytes,
        },
    }
}

/// Adds to a series. Most counters are zero for ever, and no series unless they are exported from zero on.
fn grow<K: Ord + Clone>(series: &mut BTreeMap<K, Count>, key: &K, gained: Count) {
    if gained == Count::default() {
        return;
    }
    let total = series.entry(key.clone()).or_default();
    total.packets = total.packets.saturating_add(gained.packets);
    total.bytes = total.bytes.saturating_add(gained.bytes);
}

/// Keeps the series that are known or have counted anything.
fn keep<K: Ord>(series: &mut BTreeMap<K, Count>, known: impl Fn(&K) -> bool) {
    series.retain(|key, count| *count != Count::default() || known(key));
}
