//! The line store: 16-bit cells, 32 of them to a 64-byte map value, in segments that are made on demand.
//!
//! Two tables live in it: the rows of the policy matrix (class → number) and the slots of a group
//! (hash → member). Both are an extent of consecutive lines, named by its first line. A row in which one number is by far the
//! commonest may be *sparse*: a hash of the classes that have another ([`RowPlace`], [`SparseLine`]).

use crate::map_type;

/// Cells in a line.
pub const CELLS_PER_LINE: u32 = 32;
/// Lines in a segment, as a power of two: a segment holds 1 MiB.
pub const SEGMENT_SHIFT: u32 = 14;
/// Lines in a segment.
pub const SEGMENT_LINES: u32 = 1 << SEGMENT_SHIFT;
/// Segments there can be: 4 GiB.
pub const MAX_SEGMENTS: u32 = 4096;
/// Slots of a group: at this size a share strays from its weight by about 0.4 percentage points.
pub const SLOTS: u32 = 16384;
/// Lines of a group's slot table.
pub const SLOT_LINES: u32 = SLOTS / CELLS_PER_LINE;

/// One map value of the line store, as long as a cache line.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line(pub [u16; CELLS_PER_LINE as usize]);
map_type!(Line, size = 64, align = 8);

impl Line {
    /// A line of zeroes.
    pub const ZERO: Self = Self([0; CELLS_PER_LINE as usize]);
}

/// Where cell `index` of the extent that starts at `first_line` lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellAddress {
    /// Index into the outer map.
    pub segment: u32,
    /// Line within the segment.
    pub line: u32,
    /// Cell within the line.
    pub cell: u32,
}

impl CellAddress {
    /// The address of cell `index` of the extent that starts at `first_line`.
    #[inline(always)]
    pub const fn new(first_line: u32, index: u32) -> Self {
        let line = first_line.wrapping_add(index / CELLS_PER_LINE);
        Self {
            segment: line >> SEGMENT_SHIFT,
            line: line & (SEGMENT_LINES - 1),
            cell: index % CELLS_PER_LINE,
        }
    }
}

/// Where a row is, and in which form: the upper half of a pod's word.
///
/// The lower 27 bits are the first line; above them is 0 for a dense row, or how often the lines of a sparse one double, and one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPlace(pub u32);

/// Bits of a row's first line.
const LINE_BITS: u32 = 27;
const _: () = assert!(MAX_SEGMENTS * SEGMENT_LINES <= 1 << LINE_BITS);

impl RowPlace {
    /// A row with a cell for each class, from this line on.
    #[inline(always)]
    pub const fn dense(first_line: u32) -> Self {
        Self(first_line)
    }

    /// A row of `1 << shift` [`SparseLine`]s, from this line on. There are at most `1 << 26`.
    #[inline(always)]
    pub const fn sparse(first_line: u32, shift: u32) -> Self {
        Self(first_line | (shift + 1) << LINE_BITS)
    }

    /// The first line.
    #[inline(always)]
    pub const fn first_line(self) -> u32 {
        self.0 & ((1 << LINE_BITS) - 1)
    }

    /// For a sparse row, its lines as a power of two.
    #[inline(always)]
    pub const fn shift(self) -> Option<u32> {
        (self.0 >> LINE_BITS).checked_sub(1)
    }

    /// Whether the row is sparse.
    #[inline(always)]
    pub const fn is_sparse(self) -> bool {
        self.0 >> LINE_BITS != 0
    }

    /// Where the number of a class is: of a sparse row, any cell of the line that has it.
    #[inline(always)]
    pub const fn address(self, class: u32) -> CellAddress {
        match self.shift() {
            None => CellAddress::new(self.first_line(), class),
            Some(shift) => {
                let line = self.first_line() + sparse_line(class, shift);
                CellAddress::new(line, 0)
            }
        }
    }
}

/// The line, of `1 << shift`, in which a sparse row has a class.
///
/// Classes that follow each other are spread evenly (Knuth, The Art of Computer Programming, 6.4: Fibonacci hashing).
#[inline(always)]
pub const fn sparse_line(class: u32, shift: u32) -> u32 {
    let product = class.wrapping_mul(0x9e37_79b9) as u64;
    // Shifted as 64 bits, so that a shift by all 32 gives 0.
    #[expect(clippy::cast_possible_truncation, reason = "of 32 bits some are left")]
    let line = (product >> (32 - shift % 32)) as u32;
    line
}

/// A line of a sparse row: some classes with their numbers, and the number of all that are in no line.
///
/// What is looked up is found in one line or not at all. An entry keeps its place as long as a prefix has its class, since a
/// packet may read the line while it is written again.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SparseLine {
    /// Classes, and one; 0 is none.
    pub classes: [u32; SparseLine::ENTRIES],
    /// Their numbers.
    pub numbers: [u16; SparseLine::ENTRIES],
    /// The number of all others, the same in each line of a row.
    pub common: u16,
    /// Always zero.
    pub pad: u16,
}
map_type!(SparseLine, size = 64, align = 8);

impl SparseLine {
    /// Classes of a line.
    pub const ENTRIES: usize = 10;

    /// The number of a class that belongs in this line.
    #[inline(always)]
    pub const fn number(&self, class: u32) -> u16 {
        let mut entry = 0;
        while entry < Self::ENTRIES {
            if self.classes[entry] == class.wrapping_add(1) {
                return self.numbers[entry];
            }
            entry += 1;
        }
        self.common
    }

    /// What a line of the store says as a line of a sparse row.
    pub fn from_line(line: &Line) -> Self {
        let (classes, rest) = line.0.split_at(2 * Self::ENTRIES);
        let (numbers, rest) = rest.split_at(Self::ENTRIES);
        let mut read = Self {
            common: rest[0],
            pad: rest[1],
            ..Self::default()
        };
        for (class, halves) in read.classes.iter_mut().zip(classes.chunks_exact(2)) {
            let ([a, b], [c, d]) = (halves[0].to_ne_bytes(), halves[1].to_ne_bytes());
            *class = u32::from_ne_bytes([a, b, c, d]);
        }
        read.numbers.copy_from_slice(numbers);
        read
    }

    /// The same as a line of the store.
    pub fn to_line(&self) -> Line {
        let mut line = Line::ZERO;
        let (classes, rest) = line.0.split_at_mut(2 * Self::ENTRIES);
        for (class, halves) in self.classes.iter().zip(classes.chunks_exact_mut(2)) {
            let [a, b, c, d] = class.to_ne_bytes();
            halves[0] = u16::from_ne_bytes([a, b]);
            halves[1] = u16::from_ne_bytes([c, d]);
        }
        let (numbers, rest) = rest.split_at_mut(Self::ENTRIES);
        numbers.copy_from_slice(&self.numbers);
        rest[0] = self.common;
        rest[1] = self.pad;
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_rows_say_their_line_and_form() {
        let last = MAX_SEGMENTS * SEGMENT_LINES - 1;
        for line in [0, 1, 8, 16_384, last] {
            let dense = RowPlace::dense(line);
            assert_eq!((dense.first_line(), dense.shift()), (line, None));
            for shift in [0, 1, 7, 26] {
                let sparse = RowPlace::sparse(line, shift);
                assert_eq!((sparse.first_line(), sparse.shift()), (line, Some(shift)));
            }
        }
        assert_eq!(RowPlace::dense(8).address(33), CellAddress::new(8, 33));
    }

    #[test]
    fn classes_that_follow_each_other_are_spread() {
        for (shift, from) in [(0, 0), (3, 0), (7, 5000), (10, 1_000_000)] {
            let mut lines = [0_u32; 1024];
            for class in from..from + (4 << shift) {
                lines[sparse_line(class, shift) as usize] += 1;
            }
            let most = lines.iter().max().copied();
            assert!(
                most <= Some(8),
                "{most:?} of 4 in one of {} lines",
                1 << shift
            );
            assert!(lines[1 << shift..].iter().all(|count| *count == 0));
        }
    }

    #[test]
    fn lines_are_read_as_they_were_written() {
        let mut line = SparseLine {
            common: 7,
            ..SparseLine::default()
        };
        assert_eq!(line.number(0), 7);
        for (n, class) in (1..).zip(&mut line.classes) {
            *class = 0x0102_0304 * n;
        }
        for (n, number) in (0x0506..).zip(&mut line.numbers) {
            *number = n;
        }
        assert_eq!(SparseLine::from_line(&line.to_line()), line);
        assert_eq!(line.number(0x0102_0303), 0x0506);
        assert_eq!(line.number(10 * 0x0102_0304 - 1), 0x0506 + 9);
        assert_eq!(line.number(9), 7);
    }
}
