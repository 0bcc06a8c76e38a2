//! The line store: 16-bit cells, 32 of them to a 64-byte map value, in segments that are made on demand.
//!
//! Two tables live in it: the rows of the policy matrix (class → number) and the slots of a group
//! (hash → member). Both are an extent of consecutive lines, named by its first line.

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
