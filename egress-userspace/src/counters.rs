//! What the datapath counted: readings by number, turned into series by name that never go backwards.
//!
//! The kernel counts under numbers, and a number is given out again once nothing uses it. A series must
//! outlive that: [`Counters`] adds up what each number gained between two readings, under the name
//! that the number had meanwhile. Readings of one number never overtake each other: a change of names reads
//! the few numbers that it changes under the lock, and a reading of all, which takes its time without it, says
//! nothing of those that were read meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::Context as _;
use egress_common::{
    DropReason,
    counter::{Answer, Count, Direction, NO_POLICY, PassKind},
};
use serde::Serialize;

use crate::{
    model::ObjectName,
    state::{MemberLabel, Names},
};

/// The counters of one moment, by number, summed over CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Per member.
    pub members: Vec<(u32, Count)>,
    /// Per policy and reason.
    pub drops: Vec<(u32, DropReason, Count)>,
    /// Per policy and kind of pass.
    pub passes: Vec<(u32, PassKind, Count)>,
    /// Per gateway of this node and direction.
    pub translated: Vec<(u32, Direction, Count)>,
    /// Per gateway of this node and reason.
    pub gateway_drops: Vec<(u32, DropReason, Count)>,
    /// Answers sent to those whose packets could not be sent on, per kind.
    pub answers: Vec<(Answer, u64)>,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapUse {
    /// Its name in the kernel.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries there is room for.
    pub capacity: u64,
    /// When the entries were counted, if that was not now.
    #[serde(skip)]
    pub counted: Option<Instant>,
}

/// Whoever can read the kernel's counters.
pub trait CounterSource: Send + Sync {
    /// Reads the counters of these numbers: every member's; of the policies' at least those that are not zero.
    ///
    /// # Errors
    /// When any of them cannot be read: half a reading is none.
    fn read(&self, numbers: &Numbers) -> anyhow::Result<Reading>;

    /// How full the maps are, as far as that is known: nothing is counted for the asking.
    fn map_use(&self) -> Vec<MapUse>;
}

/// The numbers whose counters are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Members.
    pub members: BTreeSet<u32>,
    /// Policies, [`NO_POLICY`] among them.
    pub policies: BTreeSet<u32>,
    /// Gateways of this node.
    pub gateways: BTreeSet<u32>,
}

impl Numbers {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.policies.is_empty() && self.gateways.is_empty()
    }
}

impl From<&Names> for Numbers {
    fn from(names: &Names) -> Self {
        Self {
            members: names.members.iter().map(|(_, id)| *id).collect(),
            policies: with_nobody(names).map(|(_, id)| id).collect(),
            gateways: names.gateways.values().copied().collect(),
        }
    }
}

/// Every series by name, as it stands at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// Per member.
    pub members: BTreeMap<Arc<MemberLabel>, Count>,
    /// Per policy and reason; the policy is empty for packets that belong to none.
    pub drops: BTreeMap<(String, DropReason), Count>,
    /// Per policy and kind of pass.
    pub passes: BTreeMap<(String, PassKind), Count>,
    /// Per gateway of this node and direction.
    pub translated: BTreeMap<(ObjectName, Direction), Count>,
    /// Per gateway of this node and reason.
    pub gateway_drops: BTreeMap<(ObjectName, DropReason), Count>,
    /// Answers sent, per kind.
    pub answers: BTreeMap<Answer, u64>,
}

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

/// The only reader of the kernel's counters.
pub struct Counters {
    source: Arc<dyn CounterSource>,
    totals: Mutex<Totals>,
    /// Held while all numbers are read: by one at a time.
    reading: Mutex<()>,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// Counters that start from what the kernel already holds for `names`: those of the agent before us.
    #[must_use]
    pub fn taking_over(source: Arc<dyn CounterSource>, names: &Names) -> Self {
        let mut totals = Totals::default();
        totals.name(names, true);
        Self {
            source,
            totals: Mutex::new(totals),
            reading: Mutex::default(),
        }
    }

    /// Learns new names; call it before the maps mention any of their numbers.
    ///
    /// What a new number holds by now belongs to whoever had it before. A number that changes hands
    /// without [`Self::retain`] in between is split at this moment. Whoever sets counters to zero does
    /// so before this call; they are better zeroed before a number is used again, since an agent that
    /// takes over cannot tell whose counts they are.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read. The names are learnt nevertheless, and their numbers
    /// count from the next reading on.
    pub fn adopt(&self, names: &Names) -> anyhow::Result<()> {
        let mut totals = self.totals();
        totals.moment += 1;
        let moved = totals.changing_hands(names);
        let before = self.read_some(&mut totals, &moved);
        let fresh = totals.name(names, false);
        before.context("reading the counters before a change")?;
        self.read_some(&mut totals, &fresh)
            .context("reading the counters that a change takes into use")
    }

    /// Retires every number that `names` does not name; call it after the last packet that could count there.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read. The numbers are retired nevertheless, with what the
    /// reading before this one said.
    pub fn retain(&self, names: &Names) -> anyhow::Result<()> {
        let mut totals = self.totals();
        totals.moment += 1;
        let retiring = totals.retiring(names);
        let read = self.read_some(&mut totals, &retiring);
        totals.retain(names);
        read.context("reading the counters that a change retires")
    }

    /// Reads the kernel's counters: every series, and how full the maps are. Nobody who changes names waits for it.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read. There are no series then, rather than stale ones.
    pub fn read(&self) -> anyhow::Result<(Series, Vec<MapUse>)> {
        let _one_at_a_time = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let (numbers, began) = {
            let totals = self.totals();
            (totals.numbers(), totals.moment)
        };
        let reading = self.source.read(&numbers)?;
        let mut totals = self.totals();
        totals.add(&reading, &numbers, began);
        Ok((totals.series.clone(), self.source.map_use()))
    }

    /// Reads some numbers, while nobody else can.
    fn read_some(&self, totals: &mut Totals, numbers: &Numbers) -> anyhow::Result<()> {
        if !numbers.is_empty() {
            let reading = self.source.read(numbers)?;
            totals.add(&reading, numbers, totals.moment);
        }
        Ok(())
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every number said last, under which name, and what that name has in all.
#[derive(Debug, Default)]
struct Totals {
    series: Series,
    /// How often names have changed.
    moment: u64,
    members: BTreeMap<u32, Live<Arc<MemberLabel>, ()>>,
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
    /// Names numbers, and gives those that are new. These start from zero, or else from their first reading.
    fn name(&mut self, names: &Names, from_zero: bool) -> Numbers {
        let now = self.moment;
        let mut fresh = Numbers::default();
        for (label, id) in &names.members {
            match self.members.get_mut(id) {
                Some(live) if live.label == *label => continue,
                Some(live) => {
                    live.label = Arc::clone(label);
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
    fn changing_hands(&self, names: &Names) -> Numbers {
        let mut moved = Numbers::default();
        for (label, id) in &names.members {
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
    fn retiring(&self, names: &Names) -> Numbers {
        let named = Numbers::from(names);
        let others = |mine: Vec<u32>, named: &BTreeSet<u32>| {
            mine.into_iter().filter(|id| !named.contains(id)).collect()
        };
        Numbers {
            members: others(self.members.keys().copied().collect(), &named.members),
            policies: others(self.policies.keys().copied().collect(), &named.policies),
            gateways: others(self.gateways.keys().copied().collect(), &named.gateways),
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
    fn add(&mut self, reading: &Reading, numbers: &Numbers, began: u64) {
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
    fn retain(&mut self, names: &Names) {
        let members: BTreeMap<u32, &Arc<MemberLabel>> =
            names.members.iter().map(|(l, id)| (*id, l)).collect();
        self.members.retain(|id, _| members.contains_key(id));
        let policies: BTreeMap<u32, &str> = with_nobody(names).map(|(l, id)| (id, l)).collect();
        self.policies.retain(|id, _| policies.contains_key(id));
        let gateways: BTreeSet<u32> = names.gateways.values().copied().collect();
        self.gateways.retain(|id, _| gateways.contains(id));

        let policy = |policy: &str| policy.is_empty() || names.policies.contains_key(policy);
        let gateway = |gateway: &ObjectName| names.gateways.contains_key(gateway);
        let labels: BTreeSet<&Arc<MemberLabel>> = members.values().copied().collect();
        let series = &mut self.series;
        keep(&mut series.members, |label| labels.contains(label));
        keep(&mut series.drops, |(label, _)| policy(label));
        keep(&mut series.passes, |(label, _)| policy(label));
        keep(&mut series.translated, |(label, _)| gateway(label));
        keep(&mut series.gateway_drops, |(label, _)| gateway(label));
    }

    /// Every number in use.
    fn numbers(&self) -> Numbers {
        Numbers {
            members: self.members.keys().copied().collect(),
            policies: self.policies.keys().copied().collect(),
            gateways: self.gateways.keys().copied().collect(),
        }
    }
}

/// The policies of `names`, and the one that stands for none.
fn with_nobody(names: &Names) -> impl Iterator<Item = (&str, u32)> {
    names
        .policies
        .iter()
        .map(|(label, id)| (label.as_str(), *id))
        .chain([("", NO_POLICY)])
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

#[cfg(test)]
pub(crate) mod tests;
