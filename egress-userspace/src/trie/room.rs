//! Which units are in use: blocks as large as a node, each one a node or up to eight records.

use std::collections::BTreeSet;

use egress_common::trie::{NODE_UNITS, SEGMENT_UNITS};

/// A node and the records that one change needs at most: two in front of a new node, two in each of two of its entries.
const RESERVE: u32 = 7;
const BLOCKS_PER_SEGMENT: u32 = SEGMENT_UNITS / NODE_UNITS;

/// The units in use. The first block is nobody's, since no child has the number 0.
#[derive(Debug)]
pub(super) struct Room {
    /// For each block up to the last one in use, a bit for each unit.
    used: Vec<u8>,
    /// Of those, the blocks without a unit in use.
    free: BTreeSet<u32>,
    /// Of those, the blocks with records, and room for more.
    partial: BTreeSet<u32>,
    /// Units in use, also those that packets in flight may still read.
    units: u64,
    /// What nothing leads to any more: first units, and how many.
    retired: Vec<(u32, u32)>,
}

impl Room {
    /// With these units in use: first ones, and how many.
    pub(super) fn new(used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut room = Self {
            used: vec![1],
            free: BTreeSet::new(),
            partial: BTreeSet::new(),
            units: 0,
            retired: Vec::new(),
        };
        for (unit, units) in used {
            let block = (unit / NODE_UNITS) as usize;
            if room.used.len() <= block {
                room.used.resize(block + 1, 0);
            }
            room.used[block] |= mask(unit, units);
            room.units += u64::from(units);
        }
        for (block, used) in (0..).zip(&room.used).skip(1) {
            match *used {
                0 => drop(room.free.insert(block)),
                u8::MAX => {}
                _ => drop(room.partial.insert(block)),
            }
        }
        room
    }

    /// Segments that have to be there before any change.
    pub(super) fn segments_wanted(&self) -> u32 {
        let free = u32::try_from(self.free.len()).unwrap_or(u32::MAX);
        let blocks = u32::try_from(self.used.len()).unwrap_or(u32::MAX);
        (blocks + RESERVE.saturating_sub(free)).div_ceil(BLOCKS_PER_SEGMENT)
    }

    /// Units in use.
    pub(super) fn units(&self) -> u64 {
        self.units
    }

    /// The first unit of a new node.
    pub(super) fn take_node(&mut self) -> u32 {
        let block = self.take_block();
        self.used[block as usize] = u8::MAX;
        self.units += u64::from(NODE_UNITS);
        block * NODE_UNITS
    }

    /// The unit of a new record.
    pub(super) fn take_record(&mut self) -> u32 {
        let block = match self.partial.first() {
            Some(block) => *block,
            None => {
                let block = self.take_block();
                self.partial.insert(block);
                block
            }
        };
        let used = &mut self.used[block as usize];
        let place = used.trailing_ones();
        *used |= 1 << place;
        if *used == u8::MAX {
            self.partial.remove(&block);
        }
        self.units += 1;
        block * NODE_UNITS + place
    }

    fn take_block(&mut self) -> u32 {
        self.free.pop_first().unwrap_or_else(|| {
            self.used.push(0);
            u32::try_from(self.used.len() - 1).unwrap_or(u32::MAX)
        })
    }

    /// Nothing leads there any more, but packets in flight may be there.
    pub(super) fn retire(&mut self, unit: u32, units: u32) {
        self.retired.push((unit, units));
    }

    /// All packets that were in flight have ended: what was given back may be taken.
    pub(super) fn settle(&mut self) {
        for (unit, units) in std::mem::take(&mut self.retired) {
            let block = unit / NODE_UNITS;
            let used = &mut self.used[block as usize];
            *used &= !mask(unit, units);
            if *used == 0 {
                self.partial.remove(&block);
                self.free.insert(block);
            } else {
                self.partial.insert(block);
            }
            self.units -= u64::from(units);
        }
        while self.used.last() == Some(&0) {
            self.used.pop();
            self.free.pop_last();
        }
    }
}

fn mask(unit: u32, units: u32) -> u8 {
    let all = if units >= NODE_UNITS {
        u8::MAX
    } else {
        (1 << units) - 1
    };
    all << (unit % NODE_UNITS)
}
