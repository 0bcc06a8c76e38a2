//! A bucket as it lies in its map: callers' indices are below its length.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use egress_common::table::{Bucket, KEY_WORDS, Key, Record};

/// Whether the entry's key is this one.
#[inline(always)]
pub(super) fn is_key(bucket: *mut Bucket, index: usize, key: &Key) -> bool {
    let wanted = key.as_ptr();
    let key = record(bucket, index).cast::<u32>();
    for pair in 0..KEY_WORDS / 2 {
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
    // SAFETY: likewise, the word that is left.
    unsafe {
        core::ptr::read_volatile(key.add(KEY_WORDS - 1))
            == core::ptr::read_volatile(wanted.add(KEY_WORDS - 1))
    }
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
