//! What later fragments have to be told of their first.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use egress_common::{
    Family,
    keys::{FragmentKey, ReplyPath},
    maps::capacity,
};

use crate::parse::Ip;

/// From a pod: the hash of the flow.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, u32, { capacity::FRAGMENTS as usize }> =
    LruHashMap::new();

/// To a pod: where the first fragment went.
#[btf_map]
static REPLY_FRAGMENTS: LruHashMap<FragmentKey, ReplyPath, { capacity::FRAGMENTS as usize }> =
    LruHashMap::new();

/// Remembers the hash of a first fragment's flow.
#[inline(always)]
pub(crate) fn remember_hash(ip: &Ip, id: u32, hash: u32) {
    // A full table makes room by forgetting the oldest; what fails here is dropped as unknown later.
    let _ = FRAGMENTS.insert(&key(ip, id), &hash, 0);
}

/// The hash that the first fragment of this datagram had.
#[inline(always)]
pub(crate) fn hash(ip: &Ip, id: u32) -> Option<u32> {
    // SAFETY: a word; an entry that is evicted and reused meanwhile gives another flow's hash of the
    // same group, never an address.
    unsafe { FRAGMENTS.get(&key(ip, id)) }.copied()
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
