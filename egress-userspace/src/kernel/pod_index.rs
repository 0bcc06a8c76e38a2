//! `POD_INDEX`, mapped into memory: what `PODS` and `POD_STATE` say, where packets find it soonest.
//!
//! What has no room is found there, so nothing is ever refused for the sake of the index.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, ensure};
use aya::maps::MapData;
use egress_common::{
    keys::PodKey,
    maps::{POD_INDEX, capacity},
    pod::{PodEntry, PodLine, addr_to_words, pod_line},
    verdict::PodState,
};
use memmap2::{MmapOptions, MmapRaw};

const LINES: usize = capacity::POD_INDEX as usize;
const ENTRIES: usize = LINES * PodLine::ENTRIES;

/// The mapped array.
pub(super) struct PodIndex {
    memory: MmapRaw,
    /// The entry of each slot that has one.
    entries: BTreeMap<u32, usize>,
    /// Entries that were cleared since the last grace period: a packet may still compare them.
    cleared: BTreeSet<usize>,
}

impl PodIndex {
    pub(super) fn map(data: &MapData) -> anyhow::Result<Self> {
        let lines = data.info()?.max_entries();
        ensure!(
            lines == capacity::POD_INDEX,
            "{POD_INDEX} has {lines} lines instead of {}",
            capacity::POD_INDEX
        );
        let memory = MmapOptions::new()
            .len(LINES * size_of::<PodLine>())
            .map_raw(data.fd().as_fd().as_raw_fd())
            .with_context(|| format!("cannot map {POD_INDEX} into memory"))?;
        Ok(Self {
            memory,
            entries: BTreeMap::new(),
            cleared: BTreeSet::new(),
        })
    }

    /// Makes the index say what these pods are, as far as there is room.
    pub(super) fn repair(&mut self, pods: &[(PodKey, u32, PodState)]) {
        let known: BTreeSet<([u64; 2], u64)> = pods
            .iter()
            .map(|(key, slot, _)| (addr_to_words(&key.addr), PodEntry::word(key.ifindex, *slot)))
            .collect();
        self.entries.clear();
        for entry in 0..ENTRIES {
            let words = self.words(entry);
            let word = words.pod.load(Ordering::Acquire);
            if word != 0 && !known.contains(&(words.addr(), word)) {
                self.clear(entry);
            }
        }
        for (key, slot, state) in pods {
            self.insert(key, *slot, *state);
        }
    }

    /// Enters a pod, if there is room where it belongs.
    pub(super) fn insert(&mut self, key: &PodKey, slot: u32, state: PodState) {
        let addr = addr_to_words(&key.addr);
        let word = PodEntry::word(key.ifindex, slot);
        let mut free = None;
        for entry in of_line(key) {
            let words = self.words(entry);
            let there = words.pod.load(Ordering::Acquire);
            if there == word && words.addr() == addr {
                words.state.store(state.0, Ordering::Release);
                self.entries.insert(slot, entry);
                return;
            }
            if there == 0 && free.is_none() && !self.cleared.contains(&entry) {
                free = Some(entry);
            }
        }
        if let Some(entry) = free {
            let words = self.words(entry);
            words.first.store(addr[0], Ordering::Relaxed);
            words.second.store(addr[1], Ordering::Relaxed);
            words.state.store(state.0, Ordering::Release);
            words.pod.store(word, Ordering::Release);
            self.entries.insert(slot, entry);
        }
    }

    /// Turns the pod of a slot. Everything written before is seen by a packet that sees this.
    pub(super) fn turn(&self, slot: u32, state: PodState) {
        if let Some(entry) = self.entries.get(&slot) {
            self.words(*entry).state.store(state.0, Ordering::Release);
        }
    }

    /// Forgets a pod, if it is there.
    pub(super) fn remove(&mut self, key: &PodKey) {
        let addr = addr_to_words(&key.addr);
        for entry in of_line(key) {
            let words = self.words(entry);
            let there = words.pod.load(Ordering::Acquire);
            if PodEntry::ifindex(there) == key.ifindex && words.addr() == addr {
                self.clear(entry);
                self.entries.remove(&PodEntry::slot(there));
            }
        }
    }

    /// Says that no packet is in flight any more that was when entries were cleared.
    pub(super) fn settled(&mut self) {
        self.cleared.clear();
    }

    fn clear(&mut self, entry: usize) {
        self.words(entry).pod.store(0, Ordering::Release);
        self.cleared.insert(entry);
    }

    fn words(&self, entry: usize) -> Words<'_> {
        assert!(entry < ENTRIES, "{POD_INDEX} has no entry {entry}");
        let at = self
            .memory
            .as_mut_ptr()
            .cast::<u64>()
            .wrapping_add(entry * (size_of::<PodEntry>() / size_of::<u64>()));
        // SAFETY: within the mapping, which `self` keeps; page-aligned plus a multiple of 8; the kernel
        // only reads it, and we only touch it through atomics.
        let [first, second, pod, state] =
            [0, 1, 2, 3].map(|word| unsafe { AtomicU64::from_ptr(at.wrapping_add(word)) });
        Words {
            first,
            second,
            pod,
            state,
        }
    }
}

/// The words of a [`PodEntry`].
struct Words<'a> {
    first: &'a AtomicU64,
    second: &'a AtomicU64,
    pod: &'a AtomicU64,
    state: &'a AtomicU64,
}

impl Words<'_> {
    fn addr(&self) -> [u64; 2] {
        [self.first, self.second].map(|word| word.load(Ordering::Relaxed))
    }
}

/// The entries where a pod may stand.
fn of_line(key: &PodKey) -> Range<usize> {
    let line = pod_line(addr_to_words(&key.addr)) as usize;
    line * PodLine::ENTRIES..(line + 1) * PodLine::ENTRIES
}
