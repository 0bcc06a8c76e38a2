//! What later fragments of a translated datagram are told of their first.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use egress_common::{Family, keys::FragmentKey, maps::capacity, nat::NatFragment};

use super::{scratch::Scratch, state::NANOSECONDS};
use crate::egress::copy;

/// Under the addresses on the wire before they are translated.
#[btf_map]
static NAT_FRAGMENTS: LruHashMap<FragmentKey, NatFragment, { capacity::FRAGMENTS as usize }> =
    LruHashMap::new();

/// The origin of a datagram that a pod sends.
pub(super) const OUTWARD: u32 = u32::MAX;
/// The origin of a datagram that the kernel was left.
pub(super) const KERNEL: u32 = u32::MAX - 1;

/// Remembers `s.fragment` of a first fragment.
#[inline(never)]
pub(super) fn remember(s: &mut Scratch, id: u32) {
    set_key(s, id);
    s.fragment.second = second(s);
    // A full table makes room by forgetting the oldest; what fails here is dropped as unknown later.
    let _ = NAT_FRAGMENTS.insert(&s.fragment_key, &s.fragment, 0);
}

/// Fills `s.fragment` in with what the first fragment became, and says whether it was seen, and not long ago.
#[inline(never)]
pub(super) fn recall(s: &mut Scratch, id: u32) -> bool {
    set_key(s, id);
    // SAFETY: plain bytes, copied at once.
    match unsafe { NAT_FRAGMENTS.get(&s.fragment_key) } {
        Some(known) if second(s).wrapping_sub(known.second) < NatFragment::SECONDS => {
            copy(&mut s.fragment.address, &known.address);
            s.fragment.origin = known.origin;
            true
        }
        Some(_) | None => false,
    }
}

/// Now, in seconds.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "an uptime of 136 years fits"
)]
fn second(s: &Scratch) -> u32 {
    (s.now / NANOSECONDS) as u32
}

#[inline(always)]
fn set_key(s: &mut Scratch, id: u32) {
    // RFC 791 tells datagrams apart by protocol too, RFC 8200 does not.
    let protocol = match s.ip.family {
        Family::V4 => s.ip.protocol,
        Family::V6 => 0,
    };
    s.fragment_key.source = s.ip.source;
    s.fragment_key.destination = s.ip.destination;
    s.fragment_key.id = id;
    s.fragment_key.protocol = protocol;
}
