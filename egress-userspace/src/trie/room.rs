//! Which units are in use: blocks of 8 to 256 bytes, each a power of two, and aligned to its size.

use std::collections::BTreeSet;

use egress_common::trie::SEGMENT_UNITS;

/// Sizes that there are: 1 unit, 2, 4, and so on.
const SIZES: usize = 6;
/// Units of a chunk, the largest of them: a node with all that it can have takes 24.
const CHUNK_UNITS: u32 = 1 << (SIZES - 1);
const CHUNKS_PER_SEGMENT: u32 = SEGMENT_UNITS / CHUNK_UNITS;

/// Chunks that so many changes can take at most. Of each comes one node, at most, and three times two records: in front
/// of it, and in each of two places below. All that is free of other sizes meanwhile is less than one.
const fn most(changes: u32) -> u32 {
    changes.saturating_mul(2).saturating_add(8)
}

/// The units in use.
#[derive(Debug)]
pub(super) struct Room {
    /// Of each size, the first units of what is free.
    free: [BTreeSet<u32>; SIZES],
    /// Chunks up to the last one in use.
    chunks: u32,
    /// Units in use, also those that packets in flight may still read.
    units: u64,
    /// What nothing leads to any more: first units, and how many.
    retired: Vec<(u32, u32)>,
}

impl Room {
    /// With these units in use: first ones, and how many.
    pub(super) fn new(mut used: Vec<(u32, u32)>) -> Self {
        let mut room = Self {
            free: Default::default(),
            chunks: 0,
            units: 0,
            retired: Vec::new(),
        };
        used.sort_unstable();
        let mut end = 0;
        for (unit, units) in used {
            let taken = 1 << size(units);
            room.free_between(end, unit);
            room.units += taken;
            end = unit + (1 << size(units));
        }
        room.chunks = end.div_ceil(CHUNK_UNITS);
        room.free_between(end, room.chunks * CHUNK_UNITS);
        room
    }

    fn free_between(&mut self, mut from: u32, to: u32) {
        while from < to {
            let aligned = from.trailing_zeros().min(CHUNK_UNITS.ilog2());
            let fits = (to - from).ilog2().min(aligned);
            self.free[fits as usize].insert(from);
            from += 1 << fits;
        }
    }

    /// Segments that have to be there before so many changes.
    pub(super) fn segments_wanted(&self, changes: u32) -> u32 {
        let free = u32::try_from(self.free[SIZES - 1].len()).unwrap_or(u32::MAX);
        let new = most(changes).saturating_sub(free);
        (self.chunks + new).div_ceil(CHUNKS_PER_SEGMENT)
    }

    /// Units in use.
    pub(super) fn units(&self) -> u64 {
        self.units
    }

    /// The first of so many new units.
    pub(super) fn take(&mut self, units: u32) -> u32 {
        let size = size(units);
        let larger = (size..SIZES).find_map(|size| Some((size, self.free[size].pop_first()?)));
        let (mut from, first) = larger.unwrap_or_else(|| {
            self.chunks += 1;
            (SIZES - 1, (self.chunks - 1) * CHUNK_UNITS)
        });
        while from > size {
            from -= 1;
            self.free[from].insert(first + (1 << from));
        }
        self.units += 1 << size;
        first
    }

    /// Nothing leads there any more, but packets in flight may be there.
    pub(super) fn retire(&mut self, unit: u32, units: u32) {
        self.retired.push((unit, units));
    }

    /// All packets that were in flight have ended: what was given back may be taken.
    pub(super) fn settle(&mut self) {
        for (unit, units) in std::mem::take(&mut self.retired) {
            let size = size(units);
            self.units -= 1 << size;
            self.give_back(unit, size);
        }
        while let Some(last) = self.chunks.checked_sub(1)
            && self.free[SIZES - 1].remove(&(last * CHUNK_UNITS))
        {
            self.chunks = last;
        }
    }

    fn give_back(&mut self, mut unit: u32, mut size: usize) {
        while size < SIZES - 1 && self.free[size].remove(&(unit ^ 1 << size)) {
            unit &= !(1 << size);
            size += 1;
        }
        self.free[size].insert(unit);
    }
}

/// The number of the size that so many units need.
const fn size(units: u32) -> usize {
    units.next_power_of_two().trailing_zeros() as usize
}
