//! Which units are in use: blocks of 8 to 256 bytes, each a power of two, and aligned to its size; and runs of those of
//! 256 bytes.

use std::collections::BTreeSet;

use egress_common::trie::SEGMENT_UNITS;

use super::lines::MOST_UNITS;

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

/// What is to be taken at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// Changes of single prefixes, other than in lines.
    pub(super) changes: u32,
    /// Chunks of lines.
    pub(super) in_runs: u32,
}

impl Need {
    /// That of one removal.
    pub(super) const REMOVAL: Self = Self {
        changes: 1,
        in_runs: chunks(MOST_UNITS),
    };

    /// Room for so many changes of single prefixes, too.
    pub(super) fn add_changes(&mut self, changes: usize) {
        let changes = u32::try_from(changes).unwrap_or(u32::MAX);
        self.changes = self.changes.saturating_add(changes);
    }

    /// Room for lines of so many units, too.
    pub(super) const fn add_lines(&mut self, units: u32) {
        self.in_runs = self.in_runs.saturating_add(chunks(units));
    }
}

const fn chunks(units: u32) -> u32 {
    rounded(units).div_ceil(CHUNK_UNITS)
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
            room.free_between(end, unit);
            room.units += u64::from(rounded(units));
            end = unit + rounded(units);
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

    /// Segments that have to be there before so much is taken.
    pub(super) fn segments_wanted(&self, need: Need) -> u32 {
        let free = u32::try_from(self.free[SIZES - 1].len()).unwrap_or(u32::MAX);
        let single = most(need.changes).saturating_sub(free);
        // No run may fit where others were.
        (self.chunks + need.in_runs.saturating_add(single)).div_ceil(CHUNKS_PER_SEGMENT)
    }

    /// Units in use.
    pub(super) fn units(&self) -> u64 {
        self.units
    }

    /// The first of so many new units.
    pub(super) fn take(&mut self, units: u32) -> u32 {
        self.units += u64::from(rounded(units));
        if units > CHUNK_UNITS {
            return self.take_run(units.div_ceil(CHUNK_UNITS));
        }
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
        first
    }

    /// The first of so many chunks in a row: the first ones that are free, or new ones.
    fn take_run(&mut self, chunks: u32) -> u32 {
        let (mut first, mut count) = (0, 0);
        for chunk in &self.free[SIZES - 1] {
            if *chunk != first + count * CHUNK_UNITS {
                (first, count) = (*chunk, 0);
            }
            count += 1;
            if count == chunks {
                break;
            }
        }
        if count == chunks {
            for number in 0..chunks {
                self.free[SIZES - 1].remove(&(first + number * CHUNK_UNITS));
            }
            return first;
        }
        self.chunks += chunks;
        (self.chunks - chunks) * CHUNK_UNITS
    }

    /// Nothing leads there any more, but packets in flight may be there.
    pub(super) fn retire(&mut self, unit: u32, units: u32) {
        self.retired.push((unit, units));
    }

    /// All packets that were in flight have ended: what was given back may be taken.
    pub(super) fn settle(&mut self) {
        for (unit, units) in std::mem::take(&mut self.retired) {
            self.units -= u64::from(rounded(units));
            if units > CHUNK_UNITS {
                let chunks = (unit..unit + units).step_by(CHUNK_UNITS as usize);
                self.free[SIZES - 1].extend(chunks);
            } else {
                self.give_back(unit, size(units));
            }
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

/// Units that so many take.
pub(super) const fn rounded(units: u32) -> u32 {
    if units > CHUNK_UNITS {
        units.next_multiple_of(CHUNK_UNITS)
    } else {
        units.next_power_of_two()
    }
}

/// What the first of so many units is a multiple of.
pub(super) const fn alignment(units: u32) -> u32 {
    if units > CHUNK_UNITS {
        CHUNK_UNITS
    } else {
        units.next_power_of_two()
    }
}

/// The number of the size that so many units need, of a chunk at most.
const fn size(units: u32) -> usize {
    units.next_power_of_two().trailing_zeros() as usize
}
