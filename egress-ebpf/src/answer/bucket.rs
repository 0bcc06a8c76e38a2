//! How many answers a source may have: fifty at once, and a hundred in a second.

use aya_ebpf::{btf_maps::Array, helpers::bpf_ktime_get_ns, macros::btf_map};
use egress_common::{Addr, maps::capacity};

/// Nanoseconds from one answer to the next.
const INTERVAL: u64 = 10_000_000;
/// Nanoseconds by which answers may come early: fifty at once.
const EARLY: u64 = 49 * INTERVAL;

const _: () = assert!(capacity::ANSWER_BUCKETS.is_power_of_two());

/// When the next answer is due, in nanoseconds of `CLOCK_MONOTONIC`, if they come at an even pace.
#[btf_map]
static ANSWER_BUCKETS: Array<u64, { capacity::ANSWER_BUCKETS as usize }> = Array::new();

/// Whether the source may have another answer now, which is then counted as given.
///
/// The generic cell rate algorithm (ITU-T I.371): a bucket of tokens in one word. Two CPUs at once may
/// give an answer more than there should be, which harms nobody.
#[inline(always)]
pub(super) fn take(source: &Addr) -> bool {
    let Some(bucket) = ANSWER_BUCKETS.get_ptr_mut(index(source)) else {
        return false;
    };
    // SAFETY: an aligned word of a map that is never freed; other CPUs load and store it whole.
    let due = unsafe { core::ptr::read_volatile(bucket) };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if due > now + EARLY {
        return false;
    }
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(bucket, due.max(now) + INTERVAL) };
    true
}

/// The source's bucket: the upper bits of a product, which all bits of the address have moved.
#[inline(always)]
fn index(source: &Addr) -> u32 {
    let [a, b, c, d] = *super::words(source);
    let front = u64::from(a) | (u64::from(b) << 32);
    let back = u64::from(d) | (u64::from(c) << 32);
    // The golden ratio's bits (Knuth, The Art of Computer Programming 3, 6.4).
    let mixed = (front.rotate_left(32) ^ back).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "as many bits as an index has are left"
    )]
    let index = (mixed >> (64 - capacity::ANSWER_BUCKETS.trailing_zeros())) as u32;
    index
}
