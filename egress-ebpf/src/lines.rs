//! The line store: 16-bit cells in segments that userspace adds as they are needed.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps},
    macros::btf_map,
};
use egress_common::cells::{CELLS_PER_LINE, CellAddress, Line, MAX_SEGMENTS, SEGMENT_LINES};

#[btf_map]
static LINES: ArrayOfMaps<Array<Line, { SEGMENT_LINES as usize }>, { MAX_SEGMENTS as usize }> =
    ArrayOfMaps::new();

/// Cell `index` of the extent that starts at `first_line`.
#[inline(always)]
pub(crate) fn cell(first_line: u32, index: u32) -> Option<u16> {
    let at = CellAddress::new(first_line, index);
    let line = LINES.get_value(at.segment, &at.line)?;
    // The mask repeats what `CellAddress` did, where the verifier sees it.
    line.0.get((at.cell % CELLS_PER_LINE) as usize).copied()
}
