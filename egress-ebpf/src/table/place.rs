//! Which place of a bucket a newcomer takes: whose lock is held.

use egress_common::table::{Bucket, State, WAYS};

use super::{
    Look,
    bucket::{is_key, owner_at, print, rolled, state, until},
};

/// Entries of one source from which on it gives one to another source: of those that are not settled, and of others.
const FEW: u64 = 2;
const HALF: u64 = 4;

/// Looks for an entry of the same key, an empty place, or what ended first: of places that are as good, the one that the
/// key's hash names, or the next after it.
#[inline(always)]
pub(super) fn free(bucket: *mut Bucket, look: &mut Look) {
    let mut step = 0;
    while step < WAYS {
        let index = (look.home() + step) & (WAYS - 1);
        let (print, until) = (print(bucket, index), until(bucket, index));
        if print == look.print && is_key(bucket, index, &look.key) {
            rank(look, 3 << 40, index);
        } else if print == 0 {
            rank(look, 2 << 40, index);
        } else if until <= look.now {
            rank(look, (1 << 40) | (u64::from(u32::MAX - until) << 4), index);
        }
        step = rolled(step + 1);
    }
}

/// Looks for the entry of a full bucket that has to give way to one of `owner`: first what is not settled, of who has
/// most here; what ends first of these. To who has half of the bucket nobody gives way that has less.
#[inline(always)]
pub(super) fn crowded_out(bucket: *mut Bucket, look: &mut Look, owner: u32) {
    // Whoever comes is counted with what comes.
    let comes = of(bucket, owner) + 1;
    let above_half = HALF.wrapping_sub(comes) >> 63;
    let mut index = 0;
    while index < WAYS {
        let whose = owner_at(bucket, index);
        let own = is_same(whose, owner);
        let count = of(bucket, whose) + own;
        let settled = is_same(u32::from(state(bucket, index)), State::Settled as u32);
        let few = FEW + settled * (HALF - FEW);
        // One branch, since each is two ways to follow for the verifier: a difference below zero has the upper bit.
        let less = (count.wrapping_sub(comes) >> 63) & above_half;
        let too_few = (count.wrapping_sub(few) >> 63) | less;
        if own | (1 - too_few) != 0 {
            let age = u64::from(u32::MAX - until(bucket, index));
            let order = ((1 - settled) << 60) | (count << 48) | (own << 44) | (age << 4) | 8;
            rank(look, order, index);
        }
        index = rolled(index + 1);
    }
}

/// How many entries are on this account.
#[inline(always)]
fn of(bucket: *mut Bucket, owner: u32) -> u64 {
    let mut count = 0;
    let mut index = 0;
    while index < WAYS {
        count += is_same(owner_at(bucket, index), owner);
        index = rolled(index + 1);
    }
    count
}

/// Takes the place if its rank is the best so far. Ranks leave their lower three bits to the index.
#[inline(always)]
fn rank(look: &mut Look, rank: u64, index: usize) {
    if rank > best(look) {
        // SAFETY: a field of our own.
        unsafe { core::ptr::write_volatile(&raw mut look.best, rank | index as u64) };
    }
}

#[inline(always)]
pub(super) fn best(look: &Look) -> u64 {
    // SAFETY: a field of our own.
    unsafe { core::ptr::read_volatile(&raw const look.best) }
}

/// One if two words are the same, else zero: a comparison would be two ways to follow for the verifier.
#[inline(always)]
fn is_same(a: u32, b: u32) -> u64 {
    (u64::from(a ^ b).wrapping_sub(1)) >> 63
}
