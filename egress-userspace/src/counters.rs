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
    counter::{Count, NO_POLICY, PassKind},
};
use serde::Serialize;

use crate::state::{MemberLabel, Names};

/// The counters of one moment, by number, summed over CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Per member.
    pub members: Vec<(u32, Count)>,
    /// Per policy and reason.
    pub drops: Vec<(u32, DropReason, Count)>,
    /// Per policy and kind of pass.
    pub passes: Vec<(u32, PassKind, Count)>,
    /// How full the maps are.
    pub maps: Vec<MapUse>,
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
}

/// The numbers whose counters are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Members.
    pub members: BTreeSet<u32>,
    /// Policies, [`NO_POLICY`] among them.
    pub policies: BTreeSet<u32>,
}

impl From<&Names> for Numbers {
    fn from(names: &Names) -> Self {
        Self {
            members: names.members.iter().map(|(_, id)| *id).collect(),
            policies: with_nobody(names).map(|(_, id)| id).collect(),
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
        totals.name(names, Some(Count::default()));
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
        totals.name(names, None);
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
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = self.source.read(&totals.numbers())?;
        totals.add(&reading);
        Ok((totals.series.clone(), reading.maps))
    }
}

/// What every number said last, under which name, and what that name has in all.
#[derive(Debug, Default)]
struct Totals {
    series: Series,
    members: BTreeMap<u32, Live<MemberLabel>>,
    policies: BTreeMap<u32, Policy>,
}

/// A number in use.
#[derive(Debug)]
struct Live<L> {
    label: L,
    /// What it said last; nothing is known before the first reading.
    last: Option<Count>,
}

/// A policy's number in use, which stands for several counters.
#[derive(Debug)]
struct Policy {
    label: String,
    drops: BTreeMap<DropReason, Count>,
    passes: BTreeMap<PassKind, Count>,
    /// Whether counters that were never read start from zero, and not from their first reading.
    from_zero: bool,
    read: bool,
}

impl Totals {
    /// Names numbers. Those that are new start from `start`, or where that is nothing from their first reading.
    fn name(&mut self, names: &Names, start: Option<Count>) {
        for (label, id) in &names.members {
            self.series.members.entry(label.clone()).or_default();
            let live = self.members.entry(*id).or_insert_with(|| Live {
                label: label.clone(),
                last: start,
            });
            live.label.clone_from(label);
        }
        for (label, id) in with_nobody(names) {
            let policy = self.policies.entry(id).or_insert_with(|| Policy {
                label: label.to_owned(),
                drops: BTreeMap::new(),
                passes: BTreeMap::new(),
                from_zero: start.is_some(),
                read: false,
            });
            label.clone_into(&mut policy.label);
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
    }

    /// Adds what the numbers gained since the reading before.
    fn add(&mut self, reading: &Reading) {
        for (id, now) in &reading.members {
            if let Some(live) = self.members.get_mut(id) {
                let gained = gain(live.last.replace(*now), *now);
                grow(&mut self.series.members, &live.label, gained);
            }
        }
        for (id, reason, now) in &reading.drops {
            if let Some(policy) = self.policies.get_mut(id) {
                let gained = gain(policy.last_drop(*reason), *now);
                policy.drops.insert(*reason, *now);
                // Most of the pairs are zero for ever, and no series.
                if gained != Count::default() {
                    let key = (policy.label.clone(), *reason);
                    grow(&mut self.series.drops, &key, gained);
                }
            }
        }
        for (id, kind, now) in &reading.passes {
            if let Some(policy) = self.policies.get_mut(id) {
                let gained = gain(policy.last_pass(*kind), *now);
                policy.passes.insert(*kind, *now);
                if gained != Count::default() {
                    let key = (policy.label.clone(), *kind);
                    grow(&mut self.series.passes, &key, gained);
                }
            }
        }
        // A source may leave out pairs that are zero, so all of them were read now.
        for policy in self.policies.values_mut() {
            policy.read = true;
        }
    }

    /// Forgets the numbers that `names` does not name, and the series that never counted anything.
    fn retain(&mut self, names: &Names) {
        let members: BTreeMap<u32, &MemberLabel> =
            names.members.iter().map(|(l, id)| (*id, l)).collect();
        self.members.retain(|id, _| members.contains_key(id));
        let policies: BTreeMap<u32, &str> = with_nobody(names).map(|(l, id)| (id, l)).collect();
        self.policies.retain(|id, _| policies.contains_key(id));

        let known = |policy: &str| policy.is_empty() || names.policies.contains_key(policy);
        let labels: BTreeSet<&MemberLabel> = members.values().copied().collect();
        self.series
            .members
            .retain(|label, count| *count != Count::default() || labels.contains(label));
        self.series
            .drops
            .retain(|(policy, _), count| *count != Count::default() || known(policy));
        self.series
            .passes
            .retain(|(policy, _), count| *count != Count::default() || known(policy));
    }

    /// Every number in use.
    fn numbers(&self) -> Numbers {
        Numbers {
            members: self.members.keys().copied().collect(),
            policies: self.policies.keys().copied().collect(),
        }
    }
}

impl Policy {
    fn last_drop(&self, reason: DropReason) -> Option<Count> {
        self.drops.get(&reason).copied().or(self.start())
    }

    fn last_pass(&self, kind: PassKind) -> Option<Count> {
        self.passes.get(&kind).copied().or(self.start())
    }

    fn start(&self) -> Option<Count> {
        (self.from_zero || self.read).then(Count::default)
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

fn grow<K: Ord + Clone>(series: &mut BTreeMap<K, Count>, key: &K, gained: Count) {
    let total = series.entry(key.clone()).or_default();
    total.packets = total.packets.saturating_add(gained.packets);
    total.bytes = total.bytes.saturating_add(gained.bytes);
}

#[cfg(test)]
pub(crate) mod tests;
