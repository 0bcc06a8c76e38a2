//! Rows of the policy matrix: wanted ones as runs of one number, and live ones as the lines that they take.
//!
//! A policy says something of its own about few of all prefixes, and those are neighbours where they nest. So a wanted row is short
//! whatever its length, and a live one may be sparse.

mod held;
#[cfg(test)]
mod tests;

use egress_common::cells::SparseLine;

pub use self::held::{Cells, Sparse};
use crate::state::{Extent, Limits};

/// A policy's number for every prefix, in the order of the prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    places: u32,
    /// Where a number begins, and which: sorted, no two neighbours alike, the first at 0.
    runs: Box<[(u32, u16)]>,
    common: u16,
    others: u32,
    highest: u16,
    lines: u32,
    sparse: bool,
}

impl Row {
    /// A row of so many places, from the runs that it is made of, in order; what is before the first is zero.
    ///
    /// Neighbours may be alike, and empty: of several that begin at one place the last one counts.
    #[must_use]
    pub fn new(places: u32, given: impl IntoIterator<Item = (u32, u16)>, limits: &Limits) -> Self {
        let mut runs: Vec<(u32, u16)> = Vec::new();
        if places > 0 {
            runs.push((0, 0));
        }
        for (from, number) in given.into_iter().filter(|(from, _)| *from < places) {
            while runs.last().is_some_and(|(last, _)| *last >= from) {
                runs.pop();
            }
            if runs.last().is_none_or(|(_, last)| *last != number) {
                runs.push((from, number));
            }
        }
        let mut row = Self {
            places,
            runs: runs.into(),
            lines: Extent::lines_given(places),
            ..Self::default()
        };
        row.count();
        if row.lines >= limits.sparse_from {
            let classes = || row.others().map(|(place, _)| place);
            if let Some(shift) = shift_for(classes, row.others, row.lines / 2) {
                row.lines = 1 << shift;
                row.sparse = true;
            }
        }
        row
    }

    fn count(&mut self) {
        let mut lengths: Vec<(u16, u32)> = self
            .lengths()
            .map(|(from, until, number)| (number, until - from))
            .collect();
        lengths.sort_unstable();
        let mut most = 0;
        for of_number in lengths.chunk_by(|a, b| a.0 == b.0) {
            let length = of_number.iter().map(|(_, length)| length).sum();
            // Of equally common ones the lowest.
            if length > most {
                (self.common, most) = (of_number[0].0, length);
            }
        }
        self.others = self.places - most;
        self.highest = lengths.last().map_or(0, |(number, _)| *number);
    }

    /// First place, the place after the last, and number of each run.
    fn lengths(&self) -> impl Iterator<Item = (u32, u32, u16)> + '_ {
        let ends = self.runs.iter().skip(1).map(|(from, _)| *from);
        self.runs
            .iter()
            .zip(ends.chain([self.places]))
            .map(|((from, number), until)| (*from, until, *number))
    }

    /// The number at a place, or 0 where there is none.
    #[must_use]
    pub fn number(&self, place: u32) -> u16 {
        if place >= self.places {
            return 0;
        }
        let after = self.runs.partition_point(|(from, _)| *from <= place);
        after.checked_sub(1).map_or(0, |run| self.runs[run].1)
    }

    /// All numbers, in order.
    pub fn cells(&self) -> impl Iterator<Item = u16> + '_ {
        self.lengths()
            .flat_map(|(from, until, number)| (from..until).map(move |_| number))
    }

    /// The commonest number.
    #[must_use]
    pub const fn common(&self) -> u16 {
        self.common
    }

    /// The places that have another number than the commonest, and which.
    pub fn others(&self) -> impl Iterator<Item = (u32, u16)> + '_ {
        self.lengths()
            .filter(|(_, _, number)| *number != self.common)
            .flat_map(|(from, until, number)| (from..until).map(move |place| (place, number)))
    }

    /// The highest number.
    #[must_use]
    pub const fn highest(&self) -> u16 {
        self.highest
    }

    /// Lines that it will take, if classes are given out in the order of the prefixes.
    #[must_use]
    pub const fn lines(&self) -> u32 {
        self.lines
    }

    /// Whether it takes less room as a sparse one.
    #[must_use]
    pub const fn is_sparse(&self) -> bool {
        self.sparse
    }
}

/// How many lines, as a power of two, a sparse row takes that has these classes with numbers of their own; none if that is more
/// than `most`.
pub(crate) fn shift_for<I: Iterator<Item = u32>>(
    classes: impl Fn() -> I,
    count: u32,
    most: u32,
) -> Option<u32> {
    const ENTRIES: usize = SparseLine::ENTRIES;
    let least = count.div_ceil(u32::try_from(ENTRIES).ok()?);
    let mut shift = least.max(1).next_power_of_two().ilog2();
    let mut taken: Vec<u8> = Vec::new();
    while 1_u32 << shift <= most {
        taken.clear();
        taken.resize(1 << shift, 0);
        let fits = classes().all(|class| {
            let line = &mut taken[egress_common::cells::sparse_line(class, shift) as usize];
            *line += 1;
            usize::from(*line) <= ENTRIES
        });
        if fits {
            return Some(shift);
        }
        shift += 1;
    }
    None
}
