//! What the datapath counted: readings by number, turned into series by name that never go backwards.
//!
//! The kernel counts under numbers, and a number is given out again once nothing uses it. A series must
//! outlive that: [`Counters`] adds up what each number gained between two readings, under the name
//! that the number had meanwhile. Readings of one number never overtake each other: a change of names reads
//! the few numbers that it changes under the lock, and a reading of all, which takes its time without it, says
//! nothing of those that were read meanwhile.

mod totals;

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

use self::totals::Totals;
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
        let members = totals.unlike(names);
        totals.name(names, &members, true);
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
        let members = totals.unlike(names);
        let moved = totals.changing_hands(names, &members);
        let before = self.read_some(&mut totals, &moved);
        let fresh = totals.name(names, &members, false);
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
        totals.retain(names, &retiring);
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

/// The policies of `names`, and the one that stands for none.
fn with_nobody(names: &Names) -> impl Iterator<Item = (&str, u32)> {
    names
        .policies
        .iter()
        .map(|(label, id)| (label.as_str(), *id))
        .chain([("", NO_POLICY)])
}

#[cfg(test)]
pub(crate) mod tests;
