//! What became of a connection's packets a moment ago: all of it in one line of a cache.
//!
//! Most packets follow another of their connection within a second, which says all that there is to know of them: the
//! port, and the next hop. It is forgotten when the time of `NAT_OUT`'s entry is due to be written again ([`REFRESH`]),
//! so that routes are asked once a second for each connection, and when the connection changes its state or goes.

use core::arch::asm;

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use egress_common::{
    gateway::{Egress, GatewayId},
    nat::{NatOutKey, NatState, RECENT_LINES, RecentKey, recent_line, recent_sum},
    table::{folded, ports, product},
};

use super::{
    Scratch,
    route::UNKNOWN,
    state::REFRESH,
    upper::{kind, tcp},
};
use crate::{
    egress::{copy, same},
    parse::{Fragment, Ip},
};

/// Next hops, found by their hash.
const HOPS: u32 = 256;
/// `BPF_F_MMAPABLE`: nobody maps it, but its lines begin where a page does.
const ALIGNED: usize = 1 << 10;

#[btf_map]
static NAT_RECENT: Array<Line, { RECENT_LINES as usize }, ALIGNED> = Array::new();

/// What most next hops are: few. A line names one by its hash.
#[btf_map]
static NAT_HOPS: Array<[u64; 2], { HOPS as usize }> = Array::new();

/// A packet of a connection, and what it became.
///
/// CPUs write it without a lock, and none trusts what it reads before its sum is right.
#[repr(C, align(8))]
struct Line {
    /// The words of pod, remote, both ports and gateway, two at a time.
    key: [u64; 5],
    /// See [`facts`].
    facts: u64,
    /// That of the connection's entry in `NAT_OUT`; zero where nothing is known.
    last_seen: u64,
    /// The [`hash_of_hop`], or one of the constants.
    hop: u32,
    /// Over all of this: see [`check`].
    sum: u32,
}
const _: () = assert!(size_of::<Line>() == 64);

/// The packet's destination is the next hop.
const HOP_ITSELF: u32 = 1;
/// The kernel is to find it.
const HOP_BY_KERNEL: u32 = 2;
/// Set in every other.
const HOP_IS_HASH: u32 = 4;

/// Has what the connection of a pod's packet became a moment ago be fetched, which takes as long as all that happens before
/// it is asked for. `ports` are what stands first above IP.
#[inline(always)]
pub(super) fn expect(ip: &Ip, ports: u32, gateway: GatewayId) {
    let (pod, remote) = (ip.source.words(), ip.destination.words());
    let key: RecentKey = [
        (pod[0], pod[1]),
        (pod[2], pod[3]),
        (remote[0], remote[1]),
        (remote[2], remote[3]),
        (ports, gateway.0),
    ];
    if let Some(line) = line(recent_sum(&key)) {
        // SAFETY: a load of an aligned word within an array's element, which nobody waits for.
        unsafe {
            asm!(
                "{word} = *(u64 *)({line} + 0)",
                word = out(reg) _,
                line = in(reg) line,
                options(readonly, nostack),
            );
        }
    }
}

/// Fills in what the connection of a pod's packet became a moment ago, with the packet's next hop, and says whether that
/// is known: `s.out.egress_port`, `s.next_hop`.
///
/// The caller has read the header above IP.
#[inline(never)]
pub(super) fn recall(s: &mut Scratch, egress: &Egress, index: u32, origin: u32) -> bool {
    if !is_plain(s) {
        return false;
    }
    let (pod, remote) = (s.ip.source.words(), s.ip.destination.words());
    let ports = ports(s.upper.source_port, s.upper.destination_port);
    let key: RecentKey = [
        (pod[0], pod[1]),
        (pod[2], pod[3]),
        (remote[0], remote[1]),
        (remote[2], remote[3]),
        (ports, egress.gateway.0),
    ];
    let sum = recent_sum(&key);
    let Some(line) = line(sum) else {
        return false;
    };
    let mut differs = 0;
    for (pair, (low, high)) in key.into_iter().enumerate() {
        // SAFETY: aligned words within an array's element, here and below.
        let word = unsafe { core::ptr::read_volatile(&raw const (*line).key[pair]) };
        differs |= word ^ joined(low, high);
    }
    // SAFETY: likewise.
    let (said, last_seen, hop, check_sum) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*line).facts),
            core::ptr::read_volatile(&raw const (*line).last_seen),
            core::ptr::read_volatile(&raw const (*line).hop),
            core::ptr::read_volatile(&raw const (*line).sum),
        )
    };
    #[expect(clippy::cast_possible_truncation, reason = "its lowest half")]
    let port = said as u16;
    differs |= said ^ facts(port, s.ip.protocol, origin, index);
    if differs != 0
        || s.now.saturating_sub(last_seen) >= REFRESH
        || check_sum != check(sum, said, last_seen, hop)
    {
        return false;
    }
    s.out.egress_port.0 = port.to_ne_bytes();
    find_hop(s, hop)
}

/// Notes what the connection of `s.out_key` became, which `s.out` says, and its next hop.
#[inline(never)]
pub(super) fn note(s: &Scratch, index: u32, origin: u32) {
    // Of these, a packet that is plain changes nothing.
    let is_steady =
        s.out.state == NatState::TcpEstablished as u8 || s.out.state > NatState::TcpClose as u8;
    if !is_steady || !is_plain(s) || origin > MOST || index > MOST {
        return;
    }
    let key = s.out_key.recent();
    let sum = recent_sum(&key);
    let Some(line) = line(sum) else {
        return;
    };
    let hop = note_hop(s);
    let port = u16::from_ne_bytes(s.out.egress_port.0);
    let facts = facts(port, s.out_key.protocol, origin, index);
    // SAFETY: aligned words within an array's element.
    unsafe {
        for (pair, (low, high)) in key.into_iter().enumerate() {
            core::ptr::write_volatile(&raw mut (*line).key[pair], joined(low, high));
        }
        core::ptr::write_volatile(&raw mut (*line).facts, facts);
        core::ptr::write_volatile(&raw mut (*line).last_seen, s.out.last_seen);
        core::ptr::write_volatile(&raw mut (*line).hop, hop);
        let check = check(sum, facts, s.out.last_seen, hop);
        core::ptr::write_volatile(&raw mut (*line).sum, check);
    }
}

/// Forgets what the connection became: it has changed, or is no more.
#[inline(never)]
pub(super) fn forget(key: &NatOutKey) {
    if let Some(line) = line(recent_sum(&key.recent())) {
        // SAFETY: an aligned word within an array's element; if it is another connection's by now, that is looked up
        // once more.
        unsafe { core::ptr::write_volatile(&raw mut (*line).last_seen, 0) };
    }
}

/// Whether the packet is one that opens and closes nothing, and that no later fragment depends on.
#[inline(always)]
fn is_plain(s: &Scratch) -> bool {
    matches!(s.ip.fragment, Fragment::Whole)
        && !s.ip.is_authenticated
        && s.upper.kind <= kind::ECHO_REQUEST
        && s.upper.tcp & (tcp::SYN | tcp::FIN | tcp::RST) == 0
}

#[inline(always)]
const fn joined(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

#[inline(always)]
fn line(sum: u64) -> Option<*mut Line> {
    NAT_RECENT.get_ptr_mut(recent_line(sum))
}

/// The largest index that a line has room for.
const MOST: u32 = 0xffff;

/// The port that the outside sees, as it lies in memory, protocol, the pod's node, and the egress address by its index:
/// one of them that changes has another.
#[inline(always)]
const fn facts(port: u16, protocol: u8, origin: u32, egress: u32) -> u64 {
    port as u64 | (protocol as u64) << 16 | (egress as u64 & 0xffff) << 24 | (origin as u64) << 40
}

/// What tells a line that is whole from one of which two CPUs wrote parts.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "words are cut to their halves"
)]
const fn check(sum: u64, facts: u64, last_seen: u64, hop: u32) -> u32 {
    let facts = product(5, facts as u32, (facts >> 32) as u32);
    let seen = product(0, last_seen as u32, (last_seen >> 32) as u32);
    let sum = sum.rotate_left(31).wrapping_add(facts);
    folded(sum.wrapping_add(seen).wrapping_add(product(1, hop, 0)))
}

/// Fills `s.next_hop` in, and says whether the hop is still known.
#[inline(always)]
fn find_hop(s: &mut Scratch, hop: u32) -> bool {
    match hop {
        HOP_ITSELF => copy(&mut s.next_hop, &s.ip.destination),
        HOP_BY_KERNEL => copy(&mut s.next_hop, &UNKNOWN),
        _ => {
            let Some(place) = NAT_HOPS.get(hop_index(hop)) else {
                return false;
            };
            // SAFETY: aligned words of an array's element, which another CPU may write.
            let words = unsafe { core::ptr::read_volatile(place) };
            // SAFETY: 16 bytes that are aligned to four, of which any are an address.
            unsafe {
                core::ptr::from_mut(&mut s.next_hop)
                    .cast::<[u64; 2]>()
                    .write_unaligned(words);
            }
            // Another one may have its place by now, or half of it.
            return hash_of_hop(words) == hop;
        }
    }
    true
}

/// Notes `s.next_hop`, and gives what a line calls it.
#[inline(always)]
fn note_hop(s: &Scratch) -> u32 {
    if same(&s.next_hop, &UNKNOWN) {
        return HOP_BY_KERNEL;
    }
    if same(&s.next_hop, &s.ip.destination) {
        return HOP_ITSELF;
    }
    let [a, b, c, d] = s.next_hop.words();
    let words = [joined(a, b), joined(c, d)];
    let hop = hash_of_hop(words);
    if let Some(place) = NAT_HOPS.get_ptr_mut(hop_index(hop)) {
        // SAFETY: an array's element; whoever reads it sees by its hash whether all of it is there.
        unsafe {
            if core::ptr::read_volatile(place) != words {
                core::ptr::write_volatile(place, words);
            }
        }
    }
    hop
}

#[inline(always)]
const fn hop_index(hop: u32) -> u32 {
    (hop >> 8) % HOPS
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the words' halves")]
const fn hash_of_hop([first, second]: [u64; 2]) -> u32 {
    let sum = product(0, first as u32, (first >> 32) as u32);
    let sum = sum.wrapping_add(product(1, second as u32, (second >> 32) as u32));
    folded(sum) | HOP_IS_HASH
}
