//! Where the packet goes: destination → class, by longest prefix, one trie for all policies.

use aya_ebpf::{
    btf_maps::{LpmTrie, lpm_trie::Key},
    macros::btf_map,
};
use egress_common::{Addr, Family, maps::capacity};

#[btf_map]
static PREFIXES4: LpmTrie<[u8; 4], u32, { capacity::PREFIXES as usize }> = LpmTrie::new();

#[btf_map]
static PREFIXES6: LpmTrie<[u8; 16], u32, { capacity::PREFIXES as usize }> = LpmTrie::new();

/// The class of the longest known prefix that contains the destination.
#[inline(always)]
pub(crate) fn class(family: Family, destination: &Addr) -> Option<u32> {
    match family {
        Family::V4 => PREFIXES4
            .get(&Key::new(32, destination.v4_bytes()))
            .copied(),
        Family::V6 => PREFIXES6.get(&Key::new(128, destination.0)).copied(),
    }
}
