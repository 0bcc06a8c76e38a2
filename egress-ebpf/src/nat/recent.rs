//! What became of a connection's packets a moment ago: all of it in one line of a cache.
//!
//! Most packets follow another of their connection within a second, which says all that there is to know of them: the
//! port, and the next hop. The hop is asked for again after a second. All of it is forgotten when the time of `NAT_OUT`'s
//! entry is due to be written again ([`refresh`]), and when the connection changes its state or goes.

use core::arch::asm;

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use egress_common::{
    gateway::{Egress, GatewayId},
    nat::{NatOutKey, NatState, RECENT_LINES, RecentKey, recent_lines, recent_sum},
    table::{folded, ports, product},
};

use super::{
    Scratch,
    route::UNKNOWN,
    state::{NANOSECONDS, refresh},
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
    /// When the hop was asked for, and for how long from then on the rest is good: see [`times`]. Zero where nothing is known.
    times: u64,
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
    let [first, _] = recent_lines(recent_sum(&key));
    if let Some(line) = line(first) {
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

/// What is known of the connection of a pod's packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Recalled {
    /// Nothing.
    Nothing = 0,
    /// `s.out.egress_port`.
    Port = 1,
    /// That and `s.next_hop`.
    All = 2,
}

/// Fills in what the connection of a pod's packet became a moment ago, as far as that is known.
///
/// The caller has read the header above IP.
#[inline(never)]
pub(super) fn recall(s: &mut Scratch, egress: &Egress, index: u32, origin: u32) -> Recalled {
    if !is_plain(s) {
        return Recalled::Nothing;
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
    for place in recent_lines(sum) {
        let Some(line) = line(place) else {
            return Recalled::Nothing;
        };
        // SAFETY: aligned words within an array's element, here and below.
        let (said, times, hop, check_sum) = unsafe {
            (
                core::ptr::read_volatile(&raw const (*line).facts),
                core::ptr::read_volatile(&raw const (*line).times),
                core::ptr::read_volatile(&raw const (*line).hop),
                core::ptr::read_volatile(&raw const (*line).sum),
            )
        };
        #[expect(clippy::cast_possible_truncation, reason = "its lowest half")]
        let port = said as u16;
        let age = age(times, s.now);
        // SAFETY: likewise.
        if unsafe { differs(line, key) } | (said ^ facts(port, s.ip.protocol, origin, index)) != 0
            || age >= good_for(times)
            || check_sum != check(sum, said, times, hop)
        {
            continue;
        }
        s.out.egress_port.0 = port.to_ne_bytes();
        if age < HOP_GOOD_FOR && find_hop(s, hop) {
            return Recalled::All;
        }
        s.recalled = times;
        s.recalled_sum = sum;
        s.recalled_line = place;
        return Recalled::Port;
    }
    Recalled::Nothing
}

/// Notes `s.next_hop` for the connection of which [`recall`] knew but the port.
///
/// If its line is another's by now, or partly, the sum will say so.
#[inline(never)]
pub(super) fn renew(s: &Scratch) {
    let Some(line) = line(s.recalled_line) else {
        return;
    };
    // SAFETY: aligned words within an array's element, here and below.
    let (facts, noted) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*line).facts),
            core::ptr::read_volatile(&raw const (*line).times),
        )
    };
    if noted != s.recalled {
        // Forgotten meanwhile, most likely.
        return;
    }
    let left = good_for(noted).saturating_sub(age(noted, s.now));
    let times = times(s.now, left);
    let hop = note_hop(s);
    let check = check(s.recalled_sum, facts, times, hop);
    // SAFETY: likewise.
    unsafe {
        core::ptr::write_volatile(&raw mut (*line).times, times);
        core::ptr::write_volatile(&raw mut (*line).hop, hop);
        core::ptr::write_volatile(&raw mut (*line).sum, check);
    }
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
    let [first, second] = recent_lines(sum);
    let (Some(first), Some(second)) = (line(first), line(second)) else {
        return;
    };
    // SAFETY: aligned words within an array's element.
    let line = if unsafe { is_free(first, key, s.now) || !is_free(second, key, s.now) } {
        first
    } else {
        second
    };
    let port = u16::from_ne_bytes(s.out.egress_port.0);
    let facts = facts(port, s.out_key.protocol, origin, index);
    let silent = s.now.saturating_sub(s.out.last_seen);
    let left = refresh(s.out.state).saturating_sub(silent) >> UNIT;
    let times = times(s.now, left);
    let hop = note_hop(s);
    let check = check(sum, facts, times, hop);
    // SAFETY: aligned words within an array's element.
    unsafe {
        for (pair, (low, high)) in key.into_iter().enumerate() {
            core::ptr::write_volatile(&raw mut (*line).key[pair], joined(low, high));
        }
        core::ptr::write_volatile(&raw mut (*line).facts, facts);
        core::ptr::write_volatile(&raw mut (*line).times, times);
        core::ptr::write_volatile(&raw mut (*line).hop, hop);
        core::ptr::write_volatile(&raw mut (*line).sum, check);
    }
}

/// Forgets what the connection became: it has changed, or is no more.
#[inline(never)]
pub(super) fn forget(key: &NatOutKey) {
    for place in recent_lines(recent_sum(&key.recent())) {
        if let Some(line) = line(place) {
            // SAFETY: an aligned word within an array's element; if it is another connection's, that is looked up once more.
            unsafe { core::ptr::write_volatile(&raw mut (*line).times, 0) };
        }
    }
}

/// Not zero if the line is another connection's.
///
/// # Safety
/// It must be an element of the array.
#[inline(always)]
unsafe fn differs(line: *const Line, key: RecentKey) -> u64 {
    let mut differs = 0;
    for (pair, (low, high)) in key.into_iter().enumerate() {
        // SAFETY: an aligned word within it.
        let word = unsafe { core::ptr::read_volatile(&raw const (*line).key[pair]) };
        differs |= word ^ joined(low, high);
    }
    differs
}

/// Whether the line is the connection's own, or nobody's any more.
///
/// # Safety
/// It must be an element of the array.
#[inline(always)]
unsafe fn is_free(line: *const Line, key: RecentKey, now: u64) -> bool {
    // SAFETY: an aligned word within it.
    let times = unsafe { core::ptr::read_volatile(&raw const (*line).times) };
    // SAFETY: the caller says so.
    age(times, now) >= good_for(times) || unsafe { differs(line, key) } == 0
}

/// Times in a line are in units of 2^20 ns, a good millisecond.
const UNIT: u32 = 20;
/// Bits that say for how long it is good.
const GOOD: u32 = 24;
/// For how long a hop is good.
const HOP_GOOD_FOR: u64 = NANOSECONDS >> UNIT;

/// The time `now`, in nanoseconds, and for how many units from then on the line is good: less than 2^24.
#[inline(always)]
const fn times(now: u64, good_for: u64) -> u64 {
    (now >> UNIT) << GOOD | good_for
}

/// Units since the hop was asked for.
#[inline(always)]
const fn age(times: u64, now: u64) -> u64 {
    (now >> UNIT).saturating_sub(times >> GOOD)
}

#[inline(always)]
const fn good_for(times: u64) -> u64 {
    times & ((1 << GOOD) - 1)
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
fn line(index: u32) -> Option<*mut Line> {
    NAT_RECENT.get_ptr_mut(index)
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
const fn check(sum: u64, facts: u64, times: u64, hop: u32) -> u32 {
    let facts = product(5, facts as u32, (facts >> 32) as u32);
    let times = product(0, times as u32, (times >> 32) as u32);
    let sum = sum.rotate_left(31).wrapping_add(facts);
    folded(sum.wrapping_add(times).wrapping_add(product(1, hop, 0)))
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
