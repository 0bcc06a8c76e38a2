//! One walk over both tables of connections: which end, and which have lost their other half.
//!
//! Entries come and go meanwhile. Nothing that is said here is more than a suspicion: whoever removes looks again.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use egress_common::{
    nat::{NatBack, NatBackKey, NatOut, NatOutKey},
    overlay::ORIGIN_KERNEL,
};

use super::{SECOND, Timeouts, back_key, out_key};

/// Nanoseconds after which a half that is alone is removed: long after it can still be in the making.
pub const ORPHANED_AFTER: u64 = 60 * SECOND;

/// The halves of pods' packets as they were in one walk.
#[derive(Debug)]
pub struct OutHalves {
    hasher: RandomState,
    halves: Vec<OutHalf>,
    sorted: bool,
    /// Halves that were alone in earlier walks, by a hash of their keys: when that was seen first. Of both tables.
    alone: HashMap<u64, u64>,
}

/// What is kept of the half of a pod's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OutHalf {
    /// A hash of its key.
    hash: u64,
    /// A hash of the key that its other half has.
    other: u64,
    last_seen: u64,
}

/// What a walk makes of a reply's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A connection.
    Lives,
    /// A connection that has been silent for too long.
    Expired,
    /// A half that has been alone for too long.
    Orphan,
}

impl Default for OutHalves {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            halves: Vec::new(),
            sorted: true,
            alone: HashMap::new(),
        }
    }
}

impl OutHalves {
    /// Forgets the halves of the walk before, but not which of them were alone.
    pub fn begin(&mut self) {
        self.halves.clear();
        self.sorted = true;
    }

    /// Learns a half.
    pub fn learn(&mut self, key: &NatOutKey, out: &NatOut) {
        self.halves.push(OutHalf {
            hash: self.hasher.hash_one(key),
            other: self.hasher.hash_one(back_key(key, out)),
            last_seen: out.last_seen,
        });
        self.sorted = false;
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.halves.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.halves.is_empty()
    }

    /// The half that belongs to a reply's: the one that its key leads to, if that leads back.
    fn find(&self, key: &NatOutKey, other: u64) -> Option<usize> {
        debug_assert!(self.sorted, "a walk sorts before it looks");
        let hash = self.hasher.hash_one(key);
        let found = self.halves.binary_search_by_key(&hash, |half| half.hash);
        found
            .ok()
            .filter(|place| self.halves[*place].other == other)
    }
}

/// The second part of a walk: replies' entries are held against the halves that it learned.
#[derive(Debug)]
pub struct Walk<'a> {
    halves: &'a mut OutHalves,
    /// Which of the halves have a reply's entry.
    paired: Vec<bool>,
    /// The halves that are alone now.
    alone: HashMap<u64, u64>,
    timeouts: Timeouts,
    now: u64,
}

impl<'a> Walk<'a> {
    /// Goes on with the halves that were learned; `now` is in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn new(halves: &'a mut OutHalves, timeouts: Timeouts, now: u64) -> Self {
        if !halves.sorted {
            halves.halves.sort_unstable();
            halves.sorted = true;
        }
        Self {
            paired: vec![false; halves.halves.len()],
            alone: HashMap::new(),
            halves,
            timeouts,
            now,
        }
    }

    /// What is to become of a reply's entry.
    pub fn back(&mut self, key: &NatBackKey, back: &NatBack) -> Found {
        if back.origin == ORIGIN_KERNEL {
            // It never has another half, and its time was set by who made it.
            return match self.timeouts.left(back.state, back.last_seen, self.now) {
                Some(_) => Found::Lives,
                None => Found::Expired,
            };
        }
        let own = self.halves.hasher.hash_one(key);
        let Some(place) = self.halves.find(&out_key(key, back), own) else {
            return if self.is_orphan(own) {
                Found::Orphan
            } else {
                Found::Lives
            };
        };
        self.paired[place] = true;
        let last_seen = back.last_seen.max(self.halves.halves[place].last_seen);
        match self.timeouts.left(back.state, last_seen, self.now) {
            Some(_) => Found::Lives,
            None => Found::Expired,
        }
    }

    /// Whether a half, which is alone, has been so for too long.
    fn is_orphan(&mut self, hash: u64) -> bool {
        let since = self.halves.alone.get(&hash).copied().unwrap_or(self.now);
        self.alone.insert(hash, since);
        self.now.saturating_sub(since) >= ORPHANED_AFTER
    }

    /// Ends the walk. Gives the pods' halves that have been alone for too long, by hash.
    #[must_use]
    pub fn finish(mut self) -> Orphans {
        let single: Vec<u64> = self
            .paired
            .iter()
            .zip(&self.halves.halves)
            .filter(|(paired, _)| !**paired)
            .map(|(_, half)| half.hash)
            .collect();
        let hashes = single
            .into_iter()
            .filter(|hash| self.is_orphan(*hash))
            .collect();
        self.halves.alone = self.alone;
        Orphans {
            hasher: self.halves.hasher.clone(),
            hashes,
        }
    }
}

/// Pods' halves to be removed, known by hash alone: few, if any.
#[derive(Debug)]
pub struct Orphans {
    hasher: RandomState,
    hashes: Vec<u64>,
}

impl Orphans {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether this is one of them.
    #[must_use]
    pub fn contains(&self, key: &NatOutKey) -> bool {
        self.hashes.contains(&self.hasher.hash_one(key))
    }
}
