//! Tables of flows that sources share fairly: no flood of one source's takes the place of another's.
//!
//! Not LRU maps, which forget whatever is old, whoever's it is. What a packet of a pod, or of anybody outside, can
//! make is bounded bucket by bucket (`egress_common::table`): a source that fills a bucket gives its own up.

#![expect(
    clippy::cast_possible_truncation,
    reason = "indices of eight, states of a byte, and seconds of a century"
)]

mod bucket;
mod place;
mod tables;

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::btf_map,
};
use egress_common::{
    Addr, Family,
    keys::{ReplyKey, ReplyPath},
    pod::{Choice, FlowKey},
    table::{self, Bucket, KEY_WORDS, Key, State, VALUE_WORDS, Value, WAYS, life},
};

pub(crate) use self::tables::Table;

use self::{
    bucket::{
        is_key, is_value, lock, print, record, rolled, seen, set_print, set_seen, state, unlock,
        until, value,
    },
    place::{best, crowded_out, free},
};
use crate::{
    packet::Packet,
    parse::{Ip, protocol},
    verifier::escape,
};

/// What would not fit the stack, of which a chain of calls has 512 bytes.
///
/// Softirqs do not interrupt each other on a CPU, and no program runs within another.
#[btf_map]
static LOOK: PerCpuArray<Look, 1> = PerCpuArray::new();

/// TCP's flags (RFC 9293, 3.1).
pub(crate) const FIN: u32 = 0x01;
pub(crate) const SYN: u32 = 0x02;
pub(crate) const RST: u32 = 0x04;
pub(crate) const ACK: u32 = 0x10;
/// In place of TCP's flags: another protocol.
pub(crate) const NOT_TCP: u32 = 0x100;

/// Where they lie in a TCP header.
const TCP_FLAGS: u32 = 13;
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// The last index of a bucket, as a mask.
const _: () = assert!(WAYS == 8, "a mask of seven stays within a bucket");
const LAST: u32 = 7;

/// What is looked for or entered, and what was found.
#[repr(C, align(8))]
pub(crate) struct Look {
    pub(crate) key: Key,
    pub(crate) value: Value,
    /// The second at which an entry ends.
    pub(crate) until: u32,
    /// Its [`State`].
    pub(crate) state: u32,
    /// The present second, as of `tick`.
    pub(crate) now: u32,
    /// TCP's flags of the packet, or [`NOT_TCP`].
    pub(crate) flags: u32,
    known: u32,
    print: u32,
    index: u32,
    /// The [`Table`] by its number, and where in it the bucket is.
    table: u32,
    bucket: u32,
    /// Whose account it is on.
    owner: u32,
    /// The tick of the kernel's clock at which this CPU last asked for the time.
    tick: u64,
    /// The best place so far for what is entered. Here the verifier loses sight of it, so that all ways through a
    /// search are one.
    best: u64,
}

/// What was found of a flow: nothing, an entry of another value, the same.
const NEW: u32 = 0;
const CHANGED: u32 = 1;
const KNOWN: u32 = 2;

/// This CPU's place for a look-up: what it holds is forgotten by the next one.
#[inline(always)]
pub(crate) fn look() -> Option<&'static mut Look> {
    let place = LOOK.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element; callers are done with it before they call who takes it again.
    Some(unsafe { &mut *place })
}

/// What a table remembers.
///
/// # Safety
/// It is `repr(C)` of so many integers of 32 bits, or of what has any bits, without padding.
pub(crate) unsafe trait Words {
    const WORDS: usize;
}

// SAFETY: an index, two MACs of six bytes, and an index.
unsafe impl Words for ReplyPath {
    const WORDS: usize = 5;
}

// SAFETY: two integers.
unsafe impl Words for Choice {
    const WORDS: usize = 2;
}

/// Whose account an entry is on: the address at this word of a [`Look`].
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Payer {
    /// The first of the key.
    First = 0,
    /// The second of the key.
    Second = 4,
    /// The one that the value starts with.
    Value = KEY_WORDS as u32,
}

impl Look {
    /// Fills in the key of a flow between two addresses, and gives its bucket: what [`Look::set_reply`] and
    /// [`Look::bucket`] do, in one go.
    #[inline(always)]
    pub(crate) fn seek(
        &mut self,
        table: Table,
        first: &Addr,
        second: &Addr,
        ports: u32,
        protocol: u8,
    ) -> Option<*mut Bucket> {
        let [a, b, c, d] = first.words();
        let sum = self.put_pair(0, a, b);
        let sum = sum.wrapping_add(self.put_pair(1, c, d));
        let [a, b, c, d] = second.words();
        let sum = sum.wrapping_add(self.put_pair(2, a, b));
        let sum = sum.wrapping_add(self.put_pair(3, c, d));
        let protocol = u32::from_le(protocol.into());
        let sum = sum.wrapping_add(self.put_pair(4, ports, protocol));
        // Of the last, which is zero, the product is zero.
        write(&mut self.key[KEY_WORDS - 1], 0);
        self.refresh();
        self.at(table, table::folded(sum))
    }

    /// Puts two words of the key at once, as they are read again, and gives their product.
    #[inline(always)]
    fn put_pair(&mut self, pair: usize, low: u32, high: u32) -> u64 {
        let (low_at, high_at) = if cfg!(target_endian = "little") {
            (0, 32)
        } else {
            (32, 0)
        };
        let word = u64::from(low) << low_at | u64::from(high) << high_at;
        // SAFETY: the key starts what is aligned to eight, and callers' pairs are within it.
        unsafe { core::ptr::write_volatile(self.key.as_mut_ptr().cast::<u64>().add(pair), word) };
        table::product(pair, low, high)
    }

    /// Fills in the key of a recorded connection.
    #[inline(always)]
    pub(crate) fn set_reply(&mut self, key: &ReplyKey) {
        // SAFETY: `repr(C)`, ten words without padding, in the order of `ReplyKey::words`.
        unsafe { copy((&raw const *key).cast(), self.key.as_mut_ptr(), 10) };
        write(&mut self.key[10], 0);
    }

    /// Fills in the key of a flow of a group.
    #[inline(always)]
    pub(crate) fn set_flow(&mut self, key: &FlowKey) {
        // SAFETY: `repr(C)`, eleven words without padding, in the order of `FlowKey::words`.
        unsafe { copy((&raw const *key).cast(), self.key.as_mut_ptr(), 11) };
    }

    /// Fills in the key of a datagram in fragments.
    ///
    /// RFC 791 tells datagrams apart by protocol too, RFC 8200 does not: there a later fragment may name an
    /// extension header where the first has been read beyond it.
    #[inline(always)]
    pub(crate) fn set_fragment(&mut self, ip: &Ip, id: u32) {
        let protocol = match ip.family {
            Family::V4 => ip.protocol,
            Family::V6 => 0,
        };
        // SAFETY: addresses are four words each.
        unsafe {
            copy((&raw const ip.source).cast(), self.key.as_mut_ptr(), 4);
            let destination = self.key.as_mut_ptr().add(4);
            copy((&raw const ip.destination).cast(), destination, 4);
        }
        write(&mut self.key[8], id);
        write(&mut self.key[9], protocol.into());
        write(&mut self.key[10], 0);
    }

    /// Fills in what is to be remembered of a flow that was found or not, for `note` or `enter`.
    #[inline(always)]
    pub(crate) fn put<T: Words>(&mut self, value: &T, found: bool) {
        let words: *const u32 = (&raw const *value).cast();
        let mut known = if found { KNOWN } else { NEW };
        for index in 0..T::WORDS {
            // SAFETY: the trait's promise.
            let word = unsafe { core::ptr::read_volatile(words.add(index)) };
            if read(&self.value[index]) != word {
                write(&mut self.value[index], word);
                if found {
                    known = CHANGED;
                }
            }
        }
        write(&mut self.known, known);
    }

    /// What was found.
    #[inline(always)]
    pub(crate) fn get<T: Words>(&self, value: &mut T) {
        // SAFETY: the trait's promise.
        unsafe { copy(self.value.as_ptr(), (&raw mut *value).cast(), T::WORDS) };
    }

    /// The bucket of the key in a table.
    #[inline(always)]
    pub(crate) fn bucket(&mut self, table: Table) -> Option<*mut Bucket> {
        let hash = prepare(self);
        self.at(table, hash)
    }

    #[inline(always)]
    fn at(&mut self, table: Table, hash: u32) -> Option<*mut Bucket> {
        self.print = table::print(hash);
        self.table = table as u32;
        self.bucket = table.index(hash);
        table.bucket(self.bucket)
    }

    /// Brings the present second up to date.
    #[inline(always)]
    fn refresh(&mut self) {
        // Of all that is done here, asking the clock would take longest: a tick of the kernel has one answer.
        // SAFETY: a helper without arguments.
        let tick = unsafe { bpf_jiffies64() };
        if tick != self.tick {
            self.tick = tick;
            // SAFETY: likewise.
            self.now = (unsafe { bpf_ktime_get_ns() } / SECOND) as u32;
        }
    }

    /// Where the entry of the key is, if nothing else was there before it.
    #[inline(always)]
    pub(in crate::table) fn home(&self) -> usize {
        table::home(self.print)
    }

    /// The bucket that [`Look::bucket`] gave last, for a function that the verifier looks at by itself.
    #[inline(always)]
    fn same_bucket(&self) -> Option<*mut Bucket> {
        Table::of(read(&self.table))?.bucket(read(&self.bucket))
    }

    /// Whether what was found has not ended.
    #[inline(always)]
    pub(crate) fn is_alive(&self) -> bool {
        self.until > self.now
    }

    /// Whether what was found is in this state.
    #[inline(always)]
    pub(crate) fn is(&self, state: State) -> bool {
        self.state == state as u32
    }
}

/// Fills in print and time, and gives the hash of the key.
///
/// A function of its own: all words of the key at once would lie on the caller's stack.
#[inline(never)]
fn prepare(look: &mut Look) -> u32 {
    look.refresh();
    table::hash(&look.key)
}

/// Whether the flow that is looked for says `value`, and has been noted in this very second: then there is nothing more
/// to note of a packet that changes no state. All this is told by one line of a cache.
#[inline(always)]
pub(crate) fn is_noted(bucket: *mut Bucket, look: &Look, value: &Value) -> bool {
    let index = look.home() & LAST as usize;
    seen(bucket, index) == look.now as u16
        && is_key(bucket, index, &look.key)
        && is_value(bucket, index, value)
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

/// Who pays, as `egress_common::table::owner` has it.
#[inline(always)]
fn owner(look: &Look, payer: Payer) -> u32 {
    let mut address = [0; 4];
    let words = look.key.as_ptr();
    for (index, word) in address.iter_mut().enumerate() {
        // SAFETY: the value stands right behind the key.
        *word = unsafe { core::ptr::read_volatile(words.add(payer as usize + index)) };
    }
    table::owner(&address)
}

/// Copies words one by one, or all would lie on the stack.
#[inline(always)]
unsafe fn copy(from: *const u32, to: *mut u32, words: usize) {
    for index in 0..words {
        // SAFETY: the caller's promise.
        unsafe {
            core::ptr::write_volatile(to.add(index), core::ptr::read_volatile(from.add(index)))
        };
    }
}

#[inline(always)]
fn write(place: &mut u32, word: u32) {
    // SAFETY: a reference.
    unsafe { core::ptr::write_volatile(place, word) };
}

/// A word, read where it is written.
#[inline(always)]
fn read(word: &u32) -> u32 {
    // SAFETY: a reference.
    unsafe { core::ptr::read_volatile(word) }
}
