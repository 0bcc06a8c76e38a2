//! A bucket as it lies in its map: callers' indices are below its length.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use egress_common::table::{Bucket, KEY_WORDS, Key, PROTOCOL_WORD, Record, Value};

/// Whether the entry's key is this one.
#[inline(always)]
pub(super) fn is_key(bucket: *mut Bucket, index: usize, key: &Key) -> bool {
    let wanted = key.as_ptr();
    let key = record(bucket, index).cast::<u32>();
    for pair in 0..PROTOCOL_WORD / 2 {
        // SAFETY: aligned words of 64 bits within an array's element and a `Look`. Read one by one, since all of a key
        // at once would lie on the stack.
        let differs = unsafe {
            core::ptr::read_volatile(key.cast::<u64>().add(pair))
                != core::ptr::read_volatile(wanted.cast::<u64>().add(pair))
        };
        if differs {
            return false;
        }
    }
    // SAFETY: likewise, the words that are left; of the one with the protocol the half that has it.
    unsafe {
        let word = |at: usize| {
            core::ptr::read_volatile(key.add(at)) ^ core::ptr::read_volatile(wanted.add(at))
        };
        let half = |words: *const u32| {
            u32::from(core::ptr::read_volatile(
                words.add(PROTOCOL_WORD).cast::<u16>(),
            ))
        };
        word(PROTOCOL_WORD - 1) | (half(key) ^ half(wanted)) | word(KEY_WORDS - 1) == 0
    }
}

/// Whether the entry says the same.
#[inline(always)]
pub(super) fn is_value(bucket: *mut Bucket, index: usize, wanted: &Value) -> bool {
    let mut differences = 0;
    for (word, wanted) in wanted.iter().enumerate() {
        differences |= value(bucket, index, word) ^ wanted;
    }
    differences == 0
}

/// The second at which the entry was found settled the last time, see [`PROTOCOL_WORD`].
#[inline(always)]
pub(super) fn seen(bucket: *mut Bucket, index: usize) -> u16 {
    // SAFETY: an aligned half of a word within an array's element.
    unsafe { core::ptr::read_volatile(seen_at(bucket, index)) }
}

#[inline(always)]
pub(super) fn set_seen(bucket: *mut Bucket, index: usize, second: u16) {
    // SAFETY: as in `seen`. Without the lock: what else stands there is not touched, whoever's it is by now.
    unsafe { core::ptr::write_volatile(seen_at(bucket, index), second) };
}

#[inline(always)]
fn seen_at(bucket: *mut Bucket, index: usize) -> *mut u16 {
    record(bucket, index)
        .cast::<u16>()
        .wrapping_add(PROTOCOL_WORD * 2 + 1)
}

/// An entry, which starts with its key.
#[inline(always)]
pub(super) fn record(bucket: *mut Bucket, index: usize) -> *mut Record {
    // SAFETY: within an array's element: callers' indices are below the length.
    unsafe { (&raw mut (*bucket).records).cast::<Record>().add(index) }
}

#[inline(always)]
pub(super) fn print(bucket: *mut Bucket, index: usize) -> u32 {
    // SAFETY: an aligned word within an array's element; so in those that follow.
    unsafe { core::ptr::read_volatile((&raw const (*bucket).prints).cast::<u32>().add(index)) }
}

#[inline(always)]
pub(super) fn set_print(bucket: *mut Bucket, index: usize, print: u32) {
    // SAFETY: as in `print`.
    unsafe {
        core::ptr::write_volatile((&raw mut (*bucket).prints).cast::<u32>().add(index), print);
    }
}

#[inline(always)]
pub(super) fn until(bucket: *mut Bucket, index: usize) -> u32 {
    // SAFETY: as in `print`.
    unsafe { core::ptr::read_volatile((&raw const (*bucket).untils).cast::<u32>().add(index)) }
}

#[inline(always)]
pub(super) fn owner_at(bucket: *mut Bucket, index: usize) -> u32 {
    // SAFETY: as in `print`.
    unsafe { core::ptr::read_volatile((&raw const (*bucket).owners).cast::<u32>().add(index)) }
}

#[inline(always)]
pub(super) fn state(bucket: *mut Bucket, index: usize) -> u8 {
    // SAFETY: a byte within an array's element.
    unsafe { core::ptr::read_volatile((&raw const (*bucket).states).cast::<u8>().add(index)) }
}

#[inline(always)]
pub(super) fn value(bucket: *mut Bucket, index: usize, word: usize) -> u32 {
    // SAFETY: as in `print`.
    unsafe {
        let words = (&raw const (*record(bucket, index)).value).cast::<u32>();
        core::ptr::read_volatile(words.add(word))
    }
}

#[inline(always)]
pub(super) fn lock(bucket: *mut Bucket) {
    // SAFETY: the lock of an array's element, which is let go in the same function.
    unsafe { bpf_spin_lock((&raw mut (*bucket).lock).cast()) };
}

#[inline(always)]
pub(super) fn unlock(bucket: *mut Bucket) {
    // SAFETY: as in `lock`.
    unsafe { bpf_spin_unlock((&raw mut (*bucket).lock).cast()) };
}

/// The same number, of which the compiler knows nothing: a loop that counts with it is not unrolled, which would take
/// a stack of its own.
#[inline(always)]
pub(super) fn rolled(index: usize) -> usize {
    let mut index = index;
    // SAFETY: a move of a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) index, options(pure, nomem, nostack));
    }
    index
}
