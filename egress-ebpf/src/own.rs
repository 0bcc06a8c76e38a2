//! Flows that pods started themselves: what seems to open such a one from outside is not believed.
//!
//! Not an LRU map: a flood would push out what has to be known, and nobody would be told. Where a bucket is too small
//! for a pod's flows, one word takes every flow of that pod there for its own instead, so that whatever floods it,
//! nothing goes around a gateway for it, and other pods' flows are what they were.

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
    let mut free = Forgotten::new(NONE);
    let mut of_pod = Forgotten::new(NONE);
    for index in 0..OwnFlows::FLOWS {
        let known = read(bucket, index);
        if flow.is(known) {
            // Written once a second, so that the cache line stays where it is read.
            if known != flow.word(now) {
                write(bucket, index, flow.word(now));
            }
            return !OwnFlow::is_alive(known, now);
        }
        if !OwnFlow::is_alive(known, now) {
            if free.get() == NONE {
                free.set(index as u32);
            }
        } else if flow.is_of_pod(known) && (of_pod.get() == NONE || flow.is_any(known)) {
            of_pod.set(index as u32);
        }
    }
    if free.get() != NONE {
        write(
            bucket,
            free.get() as usize & OwnFlows::FLOWS,
            flow.word(now),
        );
    } else if of_pod.get() != NONE {
        // From now on one word stands for that flow, for this one, and for all that have no other.
        write(
            bucket,
            of_pod.get() as usize & OwnFlows::FLOWS,
            flow.any(now),
        );
    } else if !share(bucket, flow.word(now), now) {
        crowd(bucket, now);
    }
    true
}

/// Makes one word of two of another pod, and puts `word` in the other one's place. Says whether a pod had two.
#[inline(never)]
fn share(bucket: *mut OwnFlows, word: u64, now: u32) -> bool {
    let mut kept = Forgotten::new(NONE);
    let mut given = Forgotten::new(NONE);
    for index in 1..OwnFlows::FLOWS {
        for other in 0..index {
            if OwnFlow::are_of_one_pod(read(bucket, index), read(bucket, other)) {
                kept.set(other as u32);
                given.set(index as u32);
            }
        }
    }
    if given.get() == NONE {
        return false;
    }
    let kept = kept.get() as usize & OwnFlows::FLOWS;
    write(bucket, kept, OwnFlow::any_beside(read(bucket, kept), now));
    write(bucket, given.get() as usize & OwnFlows::FLOWS, word);
    true
}

/// Notes that a flow which is remembered is in use, and says whether one was.
///
/// With `certain`, the flow is known to be a pod's own: one that has no word of its own keeps alive what stands for
/// it. What anybody may have sent does not, or it would keep closed what it knocks at.
#[inline(never)]
pub(crate) fn keep(key: &ReplyKey, certain: bool) -> bool {
    let flow = OwnFlow::new(key);
    let Some(bucket) = OWN_FLOWS.get_ptr_mut(flow.bucket) else {
        return false;
    };
    let now = now();
    let mut any = Forgotten::new(NONE);
    for index in 0..OwnFlows::FLOWS {
        let known = read(bucket, index);
        if flow.is(known) {
            let alive = OwnFlow::is_alive(known, now);
            if alive && known != flow.word(now) {
                write(bucket, index, flow.word(now));
            }
            return alive;
        }
        if flow.is_any(known) && OwnFlow::is_alive(known, now) {
            any.set(index as u32);
        }
    }
    if !certain {
        return false;
    }
    if any.get() != NONE {
        let index = any.get() as usize & OwnFlows::FLOWS;
        if read(bucket, index) != flow.any(now) {
            write(bucket, index, flow.any(now));
        }
        return true;
    }
    let crowded = crowded(bucket);
    let pushed_out = OwnFlow::is_alive(crowded, now);
    if pushed_out && crowded != now.into() {
        crowd(bucket, now);
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
    if OwnFlow::is_alive(crowded(bucket), now) {
        return true;
    }
    for index in 0..OwnFlows::FLOWS {
        let known = read(bucket, index);
        if (flow.is(known) || flow.is_any(known)) && OwnFlow::is_alive(known, now) {
            return true;
        }
    }
    false
}

/// No index of a bucket.
const NONE: u32 = OwnFlows::FLOWS as u32;
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
fn crowded(bucket: *mut OwnFlows) -> u64 {
    // SAFETY: an aligned word of an array element, which is always there.
    unsafe { core::ptr::read_volatile(&raw const (*bucket).crowded) }
}

/// Takes every flow of the bucket for a pod's own, for as long as one may live.
#[inline(always)]
fn crowd(bucket: *mut OwnFlows, now: u32) {
    // SAFETY: as in `crowded`.
    unsafe { core::ptr::write_volatile(&raw mut (*bucket).crowded, now.into()) };
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
