//! Flows that pods started themselves: what seems to open such a one from outside is not believed.
//!
//! Not an LRU map: a flood would push out what has to be known, and nobody would be told. A bucket that is
//! too small takes every flow for a pod's own instead, so that whatever floods it, nothing goes around a
//! gateway for it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "indices of seven, and seconds of a century"
)]

use aya_ebpf::{btf_maps::Array, helpers::bpf_ktime_get_ns, macros::btf_map};
use egress_common::{
    keys::ReplyKey,
    maps::capacity,
    pod::{OwnFlow, OwnFlows},
};

#[btf_map]
static OWN_FLOWS: Array<OwnFlows, { capacity::OWN_FLOWS as usize }> = Array::new();

use crate::verifier::Forgotten;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Remembers that a pod has sent a packet of its own flow, and says whether the flow was unknown.
#[inline(never)]
pub(crate) fn remember(key: &ReplyKey) -> bool {
    let flow = OwnFlow::new(key);
    let Some(bucket) = OWN_FLOWS.get_ptr_mut(flow.bucket) else {
        return true;
    };
    let now = now();
    let mut place = Forgotten::new(0);
    let mut oldest = Forgotten::new(u32::MAX);
    for index in 0..OwnFlows::FLOWS {
        let known = read(bucket, index);
        let second = known as u32;
        if flow.is(known) {
            place.set(index as u32);
            // Written once a second, so that the cache line stays where it is read.
            if second == now {
                return false;
            }
            break;
        }
        if second < oldest.get() {
            oldest.set(second);
            place.set(index as u32);
        }
    }
    // The mask is for the verifier.
    let index = place.get() as usize & OwnFlows::FLOWS;
    let replaced = read(bucket, index);
    write(bucket, index, flow.word(now));
    let alive = OwnFlow::is_alive(replaced, now);
    let known = flow.is(replaced);
    if alive && !known {
        // SAFETY: an aligned word of an array element, which is always there.
        unsafe { core::ptr::write_volatile(&raw mut (*bucket).crowded, now.into()) };
    }
    !(alive && known)
}

/// Notes that a flow which is remembered is in use, and says whether one was.
///
/// With `certain`, the flow is known to be a pod's own: one that was pushed out keeps its bucket crowded.
/// What anybody may have sent does not, or it would keep closed what it knocks at.
#[inline(never)]
pub(crate) fn keep(key: &ReplyKey, certain: bool) -> bool {
    let flow = OwnFlow::new(key);
    let Some(bucket) = OWN_FLOWS.get_ptr_mut(flow.bucket) else {
        return false;
    };
    let now = now();
    for index in 0..OwnFlows::FLOWS {
        let known = read(bucket, index);
        if flow.is(known) {
            let alive = OwnFlow::is_alive(known, now);
            if alive && known as u32 != now {
                write(bucket, index, flow.word(now));
            }
            return alive;
        }
    }
    // SAFETY: as in `remember`.
    let crowded = unsafe { core::ptr::read_volatile(&raw const (*bucket).crowded) };
    let pushed_out = certain && OwnFlow::is_alive(crowded, now);
    if pushed_out && crowded != now.into() {
        // SAFETY: as in `remember`.
        unsafe { core::ptr::write_volatile(&raw mut (*bucket).crowded, now.into()) };
    }
    pushed_out
}

/// Whether a pod may have started the flow, and not long ago.
#[inline(never)]
pub(crate) fn may_be(key: &ReplyKey) -> bool {
    let flow = OwnFlow::new(key);
    let Some(bucket) = OWN_FLOWS.get_ptr_mut(flow.bucket) else {
        return true;
    };
    let now = now();
    // SAFETY: as in `remember`.
    let crowded = unsafe { core::ptr::read_volatile(&raw const (*bucket).crowded) };
    if OwnFlow::is_alive(crowded, now) {
        return true;
    }
    for index in 0..OwnFlows::FLOWS {
        let known = read(bucket, index);
        if flow.is(known) {
            return OwnFlow::is_alive(known, now);
        }
    }
    false
}

const _: () = assert!(
    OwnFlows::FLOWS == 7 && size_of::<OwnFlows>() == 64,
    "a mask of seven stays within a bucket"
);

/// Seconds of `CLOCK_MONOTONIC`, from one on: zero stands for never.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: a helper without arguments.
    let seconds = unsafe { bpf_ktime_get_ns() } / SECOND;
    // An uptime of 136 years fits.
    (seconds as u32).max(1)
}

#[inline(always)]
fn read(bucket: *mut OwnFlows, index: usize) -> u64 {
    // SAFETY: an aligned word within an array element, read at once; the callers' loops end below its length.
    unsafe { core::ptr::read_volatile((&raw const (*bucket).flows).cast::<u64>().add(index)) }
}

#[inline(always)]
fn write(bucket: *mut OwnFlows, index: usize, word: u64) {
    // SAFETY: as in `read`. Of two CPUs that write one word at once, one is forgotten: two flows would have
    // to start in one bucket within nanoseconds.
    unsafe { core::ptr::write_volatile((&raw mut (*bucket).flows).cast::<u64>().add(index), word) };
}
