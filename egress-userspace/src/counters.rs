//! What the datapath counted: readings by number, turned into series by name that never go backwards.
//!
//! The kernel counts under numbers, and a number is given out again once nothing uses it. A series must
//! outlive that: [`Counters`] adds up what each number gained between two readings, under the name
//! that the number had meanwhile. One lock covers reading and adding, so readings never overtake
//! each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
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
}

/// Whoever can read the kernel's counters.
pub trait CounterSource: Send + Sync {
    /// Reads the counters of these numbers: every member's; of the policies' at least those that are not zero.
    ///
    /// # Errors
    /// When any of them cannot be read: half a reading is none.
    fn read(&self, numbers: &Numbers) -> anyhow::Result<Reading>;

    /// Reads how full the maps are, which takes a look at every place of some.
    ///
    /// # Errors
    /// When that of any map cannot be known.
    fn map_use(&self) -> anyhow::Result<Vec<MapUse>>;
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
    pub members: BTreeMap<MemberLabel, Count>,
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
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.source.read(&totals.numbers());
        if let Ok(reading) = &before {
            totals.add(reading);
        }
        totals.name(names, false);
        before.context("reading the counters before a change")?;
        let reading = self.source.read(&totals.numbers());
        totals.add(&reading.context("reading the counters that a change takes into use")?);
        Ok(())
    }

    /// Retires every number that `names` does not name; call it after the last packet that could count there.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read. The numbers are retired nevertheless, with what the
    /// reading before this one said.
    pub fn retain(&self, names: &Names) -> anyhow::Result<()> {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = self.source.read(&totals.numbers());
        if let Ok(reading) = &reading {
            totals.add(reading);
        }
        totals.retain(names);
        reading.context("reading the counters that a change retires")?;
        Ok(())
    }

    /// Reads the kernel's counters: every series, and how full the maps are.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read. There are no series then, rather than stale ones.
    pub fn read(&self) -> anyhow::Result<(Series, Vec<MapUse>)> {
        let maps = self.source.map_use()?;
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = self.source.read(&totals.numbers())?;
        totals.add(&reading);
        Ok((totals.series.clone(), maps))
    }
}

/// What every number said last, under which name, and what that name has in all.
#[derive(Debug, Default)]
struct Totals {
    series: Series,
    members: BTreeMap<u32, Live<MemberLabel, ()>>,
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
    /// What each of its counters said last.
    last: BTreeMap<K, Count>,
    /// Whether counters that were never read start from zero, and not from their first reading.
    from_zero: bool,
}

impl<L, K: Ord> Live<L, K> {
    fn new(label: L, from_zero: bool) -> Self {
        Self {
            label,
            last: BTreeMap::new(),
            from_zero,
        }
    }

    /// What a counter gained since the reading before.
    fn gained(&mut self, counter: K, now: Count) -> Count {
        let start = self.from_zero.then(Count::default);
        gain(self.last.insert(counter, now).or(start), now)
    }
}

impl Totals {
    /// Names numbers. Those that are new start from zero, or else from their first reading.
    fn name(&mut self, names: &Names, from_zero: bool) {
        for (label, id) in &names.members {
            self.series.members.entry(label.clone()).or_default();
            let live = self
                .members
                .entry(*id)
                .or_insert_with(|| Live::new(label.clone(), from_zero));
            live.label.clone_from(label);
        }
        for (label, id) in with_nobody(names) {
            let live = self
                .policies
                .entry(id)
                .or_insert_with(|| Live::new(label.to_owned(), from_zero));
            label.clone_into(&mut live.label);
            self.export_policy(label, id);
        }
        for (label, id) in &names.gateways {
            let live = self
                .gateways
                .entry(*id)
                .or_insert_with(|| Live::new(label.clone(), from_zero));
            live.label.clone_from(label);
            self.export_gateway(label);
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

    /// Adds what the numbers gained since the reading before.
    fn add(&mut self, reading: &Reading) {
        let series = &mut self.series;
        for (id, now) in &reading.members {
            if let Some(live) = self.members.get_mut(id) {
                let gained = live.gained((), *now);
                grow(&mut series.members, live.label.clone(), gained);
            }
        }
        for (id, reason, now) in &reading.drops {
            if let Some(live) = self.policies.get_mut(id) {
                let gained = live.gained(OfPolicy::Dropped(*reason), *now);
                grow(&mut series.drops, (live.label.clone(), *reason), gained);
            }
        }
        for (id, kind, now) in &reading.passes {
            if let Some(live) = self.policies.get_mut(id) {
                let gained = live.gained(OfPolicy::Passed(*kind), *now);
                grow(&mut series.passes, (live.label.clone(), *kind), gained);
            }
        }
        for (id, direction, now) in &reading.translated {
            if let Some(live) = self.gateways.get_mut(id) {
                let gained = live.gained(OfGateway::Translated(*direction), *now);
                let key = (live.label.clone(), *direction);
                grow(&mut series.translated, key, gained);
            }
        }
        for (id, reason, now) in &reading.gateway_drops {
            if let Some(live) = self.gateways.get_mut(id) {
                let gained = live.gained(OfGateway::Dropped(*reason), *now);
                let key = (live.label.clone(), *reason);
                grow(&mut series.gateway_drops, key, gained);
            }
        }
        series.answers.extend(reading.answers.iter().copied());
        // A source may leave out counters that are zero, so all of them were read now.
        for live in self.policies.values_mut() {
            live.from_zero = true;
        }
        for live in self.gateways.values_mut() {
            live.from_zero = true;
        }
    }

    /// Forgets the numbers that `names` does not name, and the series that never counted anything.
    fn retain(&mut self, names: &Names) {
        let members: BTreeMap<u32, &MemberLabel> =
            names.members.iter().map(|(l, id)| (*id, l)).collect();
        self.members.retain(|id, _| members.contains_key(id));
        let policies: BTreeMap<u32, &str> = with_nobody(names).map(|(l, id)| (id, l)).collect();
        self.policies.retain(|id, _| policies.contains_key(id));
        let gateways: BTreeSet<u32> = names.gateways.values().copied().collect();
        self.gateways.retain(|id, _| gateways.contains(id));

        let policy = |policy: &str| policy.is_empty() || names.policies.contains_key(policy);
        let gateway = |gateway: &ObjectName| names.gateways.contains_key(gateway);
        let labels: BTreeSet<&MemberLabel> = members.values().copied().collect();
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
fn grow<K: Ord>(series: &mut BTreeMap<K, Count>, key: K, gained: Count) {
    if gained == Count::default() {
        return;
    }
    let total = series.entry(key).or_default();
    total.packets = total.packets.saturating_add(gained.packets);
    total.bytes = total.bytes.saturating_add(gained.bytes);
}

/// Keeps the series that are known or have counted anything.
fn keep<K: Ord>(series: &mut BTreeMap<K, Count>, known: impl Fn(&K) -> bool) {
    series.retain(|key, count| *count != Count::default() || known(key));
}

#[cfg(test)]
pub(crate) mod tests;
