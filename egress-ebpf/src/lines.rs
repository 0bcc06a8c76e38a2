//! The line store: 16-bit cells in segments that userspace adds as they are needed.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps},
    macros::btf_map,
};
use egress_common::cells::{
    CELLS_PER_LINE, CellAddress, Line, MAX_SEGMENTS, RowPlace, SEGMENT_LINES, SparseLine,
};

/// `BPF_F_MMAPABLE`, for what else it does: a segment's memory begins at a page, so that a line is one of the processor's.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
static LINES: ArrayOfMaps<
    Array<Line, { SEGMENT_LINES as usize }, MMAPABLE>,
    { MAX_SEGMENTS as usize },
> = ArrayOfMaps::new();

/// Cell `index` of the extent that starts at `first_line`.
#[inline(always)]
pub(crate) fn cell(first_line: u32, index: u32) -> Option<u16> {
    let at = CellAddress::new(first_line, index);
    of_line(line(at)?, at)
}

/// The number of a class in a row of either form.
#[inline(always)]
pub(crate) fn number(row: RowPlace, class: u32) -> Option<u16> {
    let at = row.address(class);
    let line = line(at)?;
    if row.is_sparse() {
        // SAFETY: both are 64 bytes of plain numbers, aligned alike.
        let line = unsafe { &*core::ptr::from_ref(line).cast::<SparseLine>() };
        return Some(line.number(class));
    }
    of_line(line, at)
}

#[inline(always)]
fn line(at: CellAddress) -> Option<&'static Line> {
    LINES.get_value(at.segment, &at.line)
}

#[inline(always)]
fn of_line(line: &Line, at: CellAddress) -> Option<u16> {
    // The mask repeats what `CellAddress` did, where the verifier sees it.
    line.0.get((at.cell % CELLS_PER_LINE) as usize).copied()
}
