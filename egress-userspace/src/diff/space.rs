//! First-fit allocation of ids: what is free is whatever nothing live occupies.

use std::collections::BTreeMap;

use egress_common::cells::{MAX_SEGMENTS, SEGMENT_LINES, SLOT_LINES};

use crate::state::{KernelState, Limits};

/// Lines that there can be.
pub(super) const MAX_LINES: u32 = MAX_SEGMENTS * SEGMENT_LINES;

/// Ids that nothing live has.
pub(super) struct Room {
    pub(super) lines: Space,
    pub(super) verdicts: Space,
    pub(super) members: Space,
    pub(super) slots: Space,
}

impl Room {
    pub(super) fn new(live: &KernelState, limits: &Limits) -> Self {
        let rows = live.rows.iter();
        let rows = rows.map(|(place, row)| (place.first_line(), row.lines));
        let tables = live.slot_tables.keys().map(|first| (*first, SLOT_LINES));
        let blocks = live.blocks.iter().map(|(base, block)| {
            let length = u32::try_from(block.len()).unwrap_or(u32::MAX);
            (*base, length)
        });
        let one = |id: &u32| (*id, 1);
        Self {
            lines: Space::new(0, MAX_LINES, rows.chain(tables)),
            verdicts: Space::new(0, limits.verdicts, blocks),
            members: Space::new(0, limits.members, live.members.keys().map(one)),
            slots: Space::new(0, limits.pods, live.pods.values().map(one)),
        }
    }
}

/// The free ids below a limit, as ranges.
#[derive(Debug)]
pub(super) struct Space {
    free: BTreeMap<u32, u32>,
}

impl Space {
    /// Everything from `first` to below `limit` that `used` ranges of (start, length) leave free.
    pub(super) fn new(first: u32, limit: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut used: Vec<(u32, u32)> = used.into_iter().collect();
        used.sort_unstable();
        let mut free = BTreeMap::new();
        let mut start = first;
        for (from, length) in used {
            let from = from.min(limit);
            if from > start {
                free.insert(start, from - start);
            }
            start = start.max(from.saturating_add(length));
        }
        if limit > start {
            free.insert(start, limit - start);
        }
        Self { free }
    }

    /// The lowest `length` consecutive ids.
    pub(super) fn take(&mut self, length: u32) -> Option<u32> {
        let (start, room) = self
            .free
            .iter()
            .find(|(_, room)| **room >= length)
            .map(|(start, room)| (*start, *room))?;
        self.free.remove(&start);
        if room > length {
            self.free.insert(start + length, room - length);
        }
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_gap_that_fits() {
        let mut space = Space::new(0, 20, [(2, 3), (8, 1), (4, 2)]);
        assert_eq!(space.take(3), Some(9));
        assert_eq!(space.take(2), Some(0));
        assert_eq!(space.take(2), Some(6));
        assert_eq!(space.take(9), None);
        assert_eq!(space.take(8), Some(12));
        assert_eq!(space.take(1), None);
    }

    #[test]
    fn what_lies_beyond_the_limit_is_no_room() {
        let mut space = Space::new(1, 4, [(3, 10), (50, 2)]);
        assert_eq!(space.take(2), Some(1));
        assert_eq!(space.take(1), None);
    }
}
