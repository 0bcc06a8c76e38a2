//! Where the packet goes: destination → class, by longest prefix, one trie for all policies and both families.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps},
    macros::btf_map,
};
use egress_common::{
    Addr, Family,
    trie::{self, Key, MAX_SEGMENTS, ROOT_WORDS, Reader, SEGMENT_LINES, lines::LINE_UNITS},
};

/// `BPF_F_MMAPABLE`: userspace changes each word with one store.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
static ROOTS: Array<u64, { ROOT_WORDS as usize }, MMAPABLE> = Array::new();

/// A line of the processor's: the memory of such maps begins at a page.
type Line = [u64; LINE_UNITS as usize];

#[btf_map]
static TRIE: ArrayOfMaps<
    Array<Line, { SEGMENT_LINES as usize }, MMAPABLE>,
    { MAX_SEGMENTS as usize },
> = ArrayOfMaps::new();

/// The class of the longest known prefix that contains the destination.
#[inline(always)]
pub(crate) fn class(family: Family, destination: &Addr) -> Option<u32> {
    let Key { root, high, low } = Key::new(family, destination);
    egress_class(root, high, low).checked_sub(1)
}

/// The class and one, or 0.
///
/// The verifier looks at the way down once, for any address, instead of once for each packet that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_class(root: u32, high: u64, low: u64) -> u32 {
    trie::find(&Maps, Key { root, high, low })
}

struct Maps;

impl Reader for Maps {
    type Line = &'static Line;

    #[inline(always)]
    fn root(&self, number: u32) -> Option<u64> {
        // SAFETY: an aligned word that userspace writes with one store; it must be read with one load.
        ROOTS
            .get(number)
            .map(|word| unsafe { core::ptr::read_volatile(word) })
    }

    #[inline(always)]
    fn line(&self, line: u32) -> Option<&'static Line> {
        TRIE.get_value(line / SEGMENT_LINES, &(line % SEGMENT_LINES))
    }

    #[inline(always)]
    fn word(line: &&'static Line, index: u32) -> u64 {
        // SAFETY: as in `root`.
        unsafe { core::ptr::read_volatile(&raw const line[(index % LINE_UNITS) as usize]) }
    }
}
