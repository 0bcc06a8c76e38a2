//! What later fragments have to be told of their first.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use egress_common::{
    Family,
    keys::{FragmentKey, ReplyPath},
    maps::capacity,
    pod::Choice,
};

use crate::{
    packet::{L3, Packet},
    parse::Ip,
};

/// From a pod: the member that the first fragment used, or that it was passed.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, Choice, { capacity::FRAGMENTS as usize }> =
    LruHashMap::new();

/// To a pod: where the first fragment went.
#[btf_map]
static REPLY_FRAGMENTS: LruHashMap<FragmentKey, ReplyPath, { capacity::FRAGMENTS as usize }> =
    LruHashMap::new();

/// Where the fields with "more fragments" lie: in an IPv4 header, and in a fragment header of eight bytes.
const IPV4_FLAGS: u32 = 6;
const EXTENSION_OFFSET: u32 = 2;
/// "More fragments" in the first of the two bytes of IPv4 (RFC 791, 3.1), the second of IPv6 (RFC 8200, 4.5).
const IPV4_MORE: u8 = 0x20;
const IPV6_MORE: u8 = 0x01;

/// Remembers what became of a first fragment from a pod.
///
/// A function of its own, for the sake of its callers' stack.
#[inline(never)]
pub(crate) fn remember(ip: &Ip, id: u32, choice: &Choice) {
    // A full table makes room by forgetting the oldest; what fails here is dropped as unknown later.
    let _ = FRAGMENTS.insert(&key(ip, id), choice, 0);
}

/// What became of the first fragment of this datagram from a pod.
#[inline(always)]
pub(crate) fn choice(ip: &Ip, id: u32) -> Option<Choice> {
    // SAFETY: plain bytes, copied at once; of an entry that is evicted and reused meanwhile, only a member
    // that the packet's own group has is ever used.
    unsafe { FRAGMENTS.get(&key(ip, id)) }.copied()
}

/// Forgets the datagram.
#[inline(always)]
pub(crate) fn forget(ip: &Ip, id: u32) {
    let _ = FRAGMENTS.remove(&key(ip, id));
}

/// Whether no fragment of the datagram comes after this later one, if they come in order.
#[inline(always)]
pub(crate) fn is_last(packet: &Packet<'_>, ip: &Ip) -> bool {
    let (at, more) = match ip.family {
        Family::V4 => (L3 + IPV4_FLAGS, IPV4_MORE),
        // What a later fragment carries starts right behind its fragment header.
        Family::V6 => (ip.l4 - 8 + EXTENSION_OFFSET + 1, IPV6_MORE),
    };
    packet.load::<u8>(at).is_none_or(|byte| byte & more == 0)
}

/// Remembers where a first fragment of a reply went.
#[inline(always)]
pub(crate) fn remember_path(ip: &Ip, id: u32, path: &ReplyPath) {
    let _ = REPLY_FRAGMENTS.insert(&key(ip, id), path, 0);
}

/// Where the first fragment of this reply went.
#[inline(always)]
pub(crate) fn path(ip: &Ip, id: u32) -> Option<ReplyPath> {
    // SAFETY: plain bytes, copied at once.
    unsafe { REPLY_FRAGMENTS.get(&key(ip, id)) }.copied()
}

#[inline(always)]
fn key(ip: &Ip, id: u32) -> FragmentKey {
    // RFC 791 tells datagrams apart by protocol too, RFC 8200 does not: there a later fragment may name
    // an extension header where the first has been read beyond it.
    let protocol = match ip.family {
        Family::V4 => ip.protocol,
        Family::V6 => 0,
    };
    FragmentKey {
        source: ip.source,
        destination: ip.destination,
        id,
        protocol,
        pad: [0; 3],
    }
}
