//! Where the packet goes: destination → class, by longest prefix, one trie for all policies and both families.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps},
    macros::btf_map,
};
use egress_common::{
    Addr, Family,
    trie::{self, Key, MAX_SEGMENTS, ROOT_WORDS, Reader, SEGMENT_SHIFT, SEGMENT_UNITS},
};

/// `BPF_F_MMAPABLE`: userspace changes each word with one store.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
static ROOTS: Array<u64, { ROOT_WORDS as usize }, MMAPABLE> = Array::new();

#[btf_map]
static TRIE: ArrayOfMaps<
    Array<u64, { SEGMENT_UNITS as usize }, MMAPABLE>,
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
    #[inline(always)]
    fn root(&self, number: u32) -> Option<u64> {
        // SAFETY: an aligned word that userspace writes with one store; it must be read with one load.
        ROOTS
            .get(number)
            .map(|word| unsafe { core::ptr::read_volatile(word) })
    }

    #[inline(always)]
    fn unit(&self, unit: u32) -> Option<u64> {
        let word = TRIE.get_value(unit >> SEGMENT_SHIFT, &(unit & (SEGMENT_UNITS - 1)))?;
        // SAFETY: as in `root`.
        Some(unsafe { core::ptr::read_volatile(word) })
    }
}
