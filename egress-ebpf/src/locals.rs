//! What is local whatever a policy says, and the mark of what is let through for that reason alone.

use aya_ebpf::{
    btf_maps::{LpmTrie, lpm_trie::Key},
    macros::btf_map,
};
use egress_common::{Addr, gateway::LOCAL_NODE, maps::capacity};

use crate::settings;

#[btf_map]
static LOCALS4: LpmTrie<[u8; 4], u32, { capacity::PREFIXES as usize }> = LpmTrie::new();

#[btf_map]
static LOCALS6: LpmTrie<[u8; 16], u32, { capacity::PREFIXES as usize }> = LpmTrie::new();

/// What becomes of packets that are for the cluster's own prefixes.
pub(crate) struct Marking {
    /// The one bit of the mark; zero if nothing is marked.
    pub(crate) bit: u32,
    /// Whether everything by which they might leave the cluster has somebody who looks at it.
    pub(crate) guarded: bool,
}

/// How they are marked; without settings they are not.
#[inline(always)]
pub(crate) fn marking() -> Marking {
    settings::get().map_or(
        Marking {
            bit: 0,
            guarded: true,
        },
        |settings| Marking {
            bit: settings.local_mark,
            guarded: settings.unguarded == 0,
        },
    )
}

/// The one bit of the mark; zero if nothing is marked.
#[inline(always)]
pub(crate) fn mark() -> u32 {
    settings::get().map_or(0, |settings| settings.local_mark)
}

/// Whether an address is the cluster's own, or nobody's to steer, whoever asks.
#[inline(always)]
pub(crate) fn is_cluster(addr: &Addr) -> bool {
    found(addr).is_some()
}

/// Whether this node itself has the address.
#[inline(always)]
pub(crate) fn is_node(addr: &Addr) -> bool {
    found(addr) == Some(LOCAL_NODE)
}

#[inline(always)]
fn found(addr: &Addr) -> Option<u32> {
    if addr.is_v4() {
        LOCALS4.get(&Key::new(32, addr.v4_bytes())).copied()
    } else {
        LOCALS6.get(&Key::new(128, addr.0)).copied()
    }
}
