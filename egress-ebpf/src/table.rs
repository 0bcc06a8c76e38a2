//! Tables of flows that sources share fairly: no flood of one source's takes the place of another's.
//!
//! Not LRU maps, which forget whatever is old, whoever's it is. What a packet of a pod, or of anybody outside, can
//! make is bounded bucket by bucket (`egress_common::table`): a source that fills a bucket gives its own up.

#![expect(
    clippy::cast_possible_truncation,
    reason = "indices of eight, states of a byte, and seconds of a century"
)]

mod bucket;
mod look;
mod place;
mod tables;

use egress_common::table::{Bucket, KEY_WORDS, State, VALUE_WORDS, WAYS, life};

pub(crate) use self::{
    look::{Look, Payer, Words, look},
    tables::Table,
};

use self::{
    bucket::{
        is_key, is_value, lock, print, record, rolled, seen, set_print, set_seen, state, unlock,
        until, value,
    },
    look::{KNOWN, NEW, owner, read},
    place::{best, crowded_out, free},
};
use crate::{
    packet::Packet,
    parse::{Ip, protocol},
    verifier::escape,
};

/// TCP's flags (RFC 9293, 3.1).
pub(crate) const FIN: u32 = 0x01;
pub(crate) const SYN: u32 = 0x02;
pub(crate) const RST: u32 = 0x04;
pub(crate) const ACK: u32 = 0x10;
/// In place of TCP's flags: another protocol.
pub(crate) const NOT_TCP: u32 = 0x100;

/// Where they lie in a TCP header.
const TCP_FLAGS: u32 = 13;

/// The last index of a bucket, as a mask.
const _: () = assert!(WAYS == 8, "a mask of seven stays within a bucket");
const LAST: u32 = 7;

/// Whether the flow that is looked for says what `look` has been told, and has been noted in this very second: then there
/// is nothing more to note of a packet that changes no state. All this is told by one line of a cache.
#[inline(always)]
pub(crate) fn is_noted(bucket: *mut Bucket, look: &Look) -> bool {
    let index = look.home() & LAST as usize;
    seen(bucket, index) == look.now as u16
        && is_key(bucket, index, &look.key)
        && is_value(bucket, index, &look.value)
}

/// Fills in what a flow says that has been noted in this very second, and says whether it was found so. There is nothing
/// more to note of a packet that changes no state.
#[inline(always)]
pub(crate) fn recall(bucket: *mut Bucket, look: &mut Look) -> bool {
    let index = look.home() & LAST as usize;
    if seen(bucket, index) != look.now as u16 || !is_key(bucket, index, &look.key) {
        return false;
    }
    for word in 0..VALUE_WORDS {
        look.value[word] = value(bucket, index, word);
    }
    // As in `find_in`; that it was seen may have been said of the flow that was here before.
    print(bucket, index) == look.print
}

/// Finds the entry of the key: fills in value, state and end, and says whether there is one.
///
/// Without the lock: an entry that is being moved is not found, and what is found is of its key.
#[inline(always)]
pub(crate) fn find(look: &mut Look) -> bool {
    escape(look);
    egress_table_find() != 0
}

/// Global (`verifier`): so many loops in each of their states would be followed for each place that looks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_table_find() -> u32 {
    let Some(look) = look() else {
        return 0;
    };
    look.same_bucket()
        .is_some_and(|bucket| find_in(bucket, look))
        .into()
}

#[inline(always)]
fn find_in(bucket: *mut Bucket, look: &mut Look) -> bool {
    let mut index = 0;
    while index < WAYS {
        if print(bucket, index) == look.print && is_key(bucket, index, &look.key) {
            for word in 0..VALUE_WORDS {
                look.value[word] = value(bucket, index, word);
            }
            look.state = u32::from(state(bucket, index));
            look.until = until(bucket, index);
            look.index = index as u32;
            // Whoever gives the place to another flow takes the print away first.
            if print(bucket, index) == look.print {
                return true;
            }
        }
        index = rolled(index + 1);
    }
    false
}

/// Says that the entry that was found lives for so many seconds more.
#[inline(always)]
pub(crate) fn touch(bucket: *mut Bucket, look: &Look, seconds: u32) {
    let until = look.now.wrapping_add(seconds);
    // Never lowered without the lock, since the entry may be another flow's by now.
    if look.until < until {
        // SAFETY: an aligned word within an array's element; the mask is that of a bucket.
        unsafe {
            let untils = (&raw mut (*bucket).untils).cast::<u32>();
            core::ptr::write_volatile(untils.add((look.index & LAST) as usize), until);
        }
    }
}

/// Puts the entry that was found into another state, in which it lives for so many seconds.
#[inline(never)]
pub(crate) fn turn(bucket: *mut Bucket, look: &Look, state: u32, seconds: u32) {
    let index = (look.index & LAST) as usize;
    lock(bucket);
    if print(bucket, index) == look.print {
        set_seen(bucket, index, look.now.wrapping_sub(1) as u16);
        // SAFETY: within an array's element; the mask is that of a bucket.
        unsafe {
            (*bucket).states.as_mut_ptr().add(index).write(state as u8);
            let untils = (&raw mut (*bucket).untils).cast::<u32>();
            untils.add(index).write(look.now.wrapping_add(seconds));
        }
    }
    unlock(bucket);
}

/// Removes the entry that was found.
#[inline(never)]
pub(crate) fn remove(bucket: *mut Bucket, look: &Look) {
    let index = (look.index & LAST) as usize;
    lock(bucket);
    if print(bucket, index) == look.print {
        set_seen(bucket, index, look.now.wrapping_sub(1) as u16);
        set_print(bucket, index, 0);
    }
    unlock(bucket);
}

/// Enters what `look` says on the account of `payer`, in place of an entry of the same key if there is one, and says
/// whether there was room.
#[inline(always)]
pub(crate) fn enter(look: &mut Look, payer: Payer) -> bool {
    look.owner = owner(look, payer);
    escape(look);
    egress_table_enter() != 0
}

/// Global, as [`egress_table_find`] is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_table_enter() -> u32 {
    let Some(look) = look() else {
        return 0;
    };
    look.same_bucket()
        .is_some_and(|bucket| enter_in(bucket, look))
        .into()
}

#[inline(always)]
fn enter_in(bucket: *mut Bucket, look: &mut Look) -> bool {
    let owner = read(&look.owner);
    look.best = 0;
    lock(bucket);
    free(bucket, look);
    if best(look) == 0 {
        crowded_out(bucket, look, owner);
    }
    let best = best(look);
    if best != 0 {
        let index = (best as u32 & LAST) as usize;
        set_seen(bucket, index, look.now.wrapping_sub(1) as u16);
        set_print(bucket, index, 0);
        fill(bucket, index, look, owner);
        set_print(bucket, index, look.print);
    }
    unlock(bucket);
    best != 0
}

/// Whether a packet with these flags leaves a flow that is settled in its state.
#[inline(always)]
pub(crate) const fn is_plain(flags: u32) -> bool {
    flags & (SYN | FIN | RST) == 0
}

/// TCP's flags of a packet that is no later fragment, or [`NOT_TCP`].
#[inline(always)]
pub(crate) fn flags(packet: &Packet<'_>, ip: &Ip) -> u32 {
    if ip.protocol != protocol::TCP {
        return NOT_TCP;
    }
    packet.byte(ip.l4 + TCP_FLAGS).map_or(0, u32::from)
}

/// Notes a packet of the pod's of the flow that was looked for, with what `put` has put. Says whether there was room.
#[inline(never)]
pub(crate) fn note(bucket: *mut Bucket, look: &mut Look, payer: Payer) -> bool {
    let flags = look.flags;
    if look.known == KNOWN {
        follow(bucket, look);
        return true;
    }
    if look.known == NEW {
        look.state = if flags & NOT_TCP == 0 && flags & (FIN | RST) != 0 {
            State::Closing as u32
        } else {
            State::New as u32
        };
        let seconds = life::of(flags & NOT_TCP == 0, State::New);
        look.until = look.now.wrapping_add(seconds);
    }
    enter(look, payer)
}

/// Says that a packet of the pod's has used the entry that was found.
#[inline(always)]
fn follow(bucket: *mut Bucket, look: &Look) {
    let flags = look.flags;
    let is_tcp = flags & NOT_TCP == 0;
    let mut next = State::Settled;
    if is_tcp {
        if flags & (FIN | RST) != 0 {
            next = State::Closing;
        } else if flags & (SYN | ACK) == SYN {
            // Its ports are used again, or the SYN is repeated.
            next = State::New;
        } else if look.is(State::Closing) {
            next = State::Closing;
        }
    }
    let seconds = life::of(is_tcp, next);
    if look.is(next) || (look.is(State::Settled) && matches!(next, State::New)) {
        touch(bucket, look, seconds);
        settled(bucket, look, next);
    } else {
        turn(bucket, look, next as u32, seconds);
    }
}

/// Says that a flow which is settled, and stays so, was noted.
#[inline(always)]
fn settled(bucket: *mut Bucket, look: &Look, next: State) {
    if look.is(State::Settled) && matches!(next, State::Settled) {
        set_seen(bucket, (look.index & LAST) as usize, look.now as u16);
    }
}

/// Says that an answer has used the entry that was found.
#[inline(always)]
pub(crate) fn answered(bucket: *mut Bucket, look: &Look) {
    let flags = look.flags;
    let is_tcp = flags & NOT_TCP == 0;
    if look.is(State::New) {
        let next = if is_tcp && flags & RST != 0 {
            State::Closing
        } else {
            State::Settled
        };
        return turn(bucket, look, next as u32, life::of(is_tcp, next));
    }
    let seconds = if look.is(State::Settled) {
        life::of(is_tcp, State::Settled)
    } else {
        life::of(is_tcp, State::Closing)
    };
    touch(bucket, look, seconds);
    settled(bucket, look, State::Settled);
}

/// Writes all of an entry but its print.
#[inline(always)]
fn fill(bucket: *mut Bucket, index: usize, look: &Look, owner: u32) {
    // SAFETY: within an array's element, whose lock is held; callers' indices are below its length.
    unsafe {
        let record = record(bucket, index);
        let key = (&raw mut (*record).key).cast::<u32>();
        for word in 0..KEY_WORDS {
            core::ptr::write_volatile(key.add(word), read(&look.key[word]));
        }
        let value = (&raw mut (*record).value).cast::<u32>();
        for word in 0..VALUE_WORDS {
            core::ptr::write_volatile(value.add(word), read(&look.value[word]));
        }
        let untils = (&raw mut (*bucket).untils).cast::<u32>();
        core::ptr::write_volatile(untils.add(index), look.until);
        let owners = (&raw mut (*bucket).owners).cast::<u32>();
        core::ptr::write_volatile(owners.add(index), owner);
        let states = (&raw mut (*bucket).states).cast::<u8>();
        core::ptr::write_volatile(states.add(index), look.state as u8);
    }
}
