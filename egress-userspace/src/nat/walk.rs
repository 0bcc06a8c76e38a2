//! One walk over both tables of connections: which end, and which have lost their other half.
//!
//! Entries come and go meanwhile. Nothing that is said here is more than a suspicion: whoever removes looks again.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use egress_common::nat::{NatBack, NatBackKey, NatOut, NatOutKey};

use super::{SECOND, Timeouts, out_key};

/// Nanoseconds after which a half that is alone is removed: long after it can still be in the making.
pub const ORPHANED_AFTER: u64 = 60 * SECOND;

/// The halves of pods' packets as they were in one walk: of each a hash of its key, and when it was last seen.
#[derive(Debug)]
pub struct OutHalves {
    hasher: RandomState,
    halves: Vec<(u64, u64)>,
    sorted: bool,
    /// Halves that were alone in earlier walks, by hash: when that was seen first. Of both tables.
    alone: HashMap<u64, u64>,
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
        self.halves.push((self.hash(key), out.last_seen));
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

    fn hash(&self, key: &NatOutKey) -> u64 {
        self.hasher.hash_one(key)
    }

    fn find(&self, hash: u64) -> Option<usize> {
        debug_assert!(self.sorted, "a walk sorts before it looks");
        self.halves.binary_search_by_key(&hash, |half| half.0).ok()
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
        let hash = self.halves.hash(&out_key(key, back));
        let Some(place) = self.halves.find(hash) else {
            return if self.is_orphan(hash) {
                Found::Orphan
            } else {
                Found::Lives
            };
        };
        self.paired[place] = true;
        let last_seen = back.last_seen.max(self.halves.halves[place].1);
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
            .map(|(_, (hash, _))| *hash)
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
