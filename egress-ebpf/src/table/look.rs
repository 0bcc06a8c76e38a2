//! What is looked for in a table, and what was found: more than the stack has room for.

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::btf_map,
};
use egress_common::{
    Addr, Family,
    keys::{ReplyKey, ReplyPath},
    pod::{Choice, FlowKey},
    table::{self, Bucket, KEY_WORDS, Key, State, Value},
};

use super::tables::Table;
use crate::parse::Ip;

/// What would not fit the stack, of which a chain of calls has 512 bytes.
///
/// Softirqs do not interrupt each other on a CPU, and no program runs within another.
#[btf_map]
static LOOK: PerCpuArray<Look, 1> = PerCpuArray::new();

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

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
    pub(super) known: u32,
    pub(super) print: u32,
    pub(super) index: u32,
    /// The [`Table`] by its number, and where in it the bucket is.
    pub(super) table: u32,
    pub(super) bucket: u32,
    /// Whose account it is on.
    pub(super) owner: u32,
    /// The tick of the kernel's clock at which this CPU last asked for the time.
    pub(super) tick: u64,
    /// The best place so far for what is entered. Here the verifier loses sight of it, so that all ways through a
    /// search are one.
    pub(super) best: u64,
}

/// What was found of a flow: nothing, an entry of another value, the same.
pub(super) const NEW: u32 = 0;
const CHANGED: u32 = 1;
pub(super) const KNOWN: u32 = 2;

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

    /// Fills in what is to be remembered, to be compared with what is.
    #[inline(always)]
    pub(crate) fn tell(&mut self, value: Value) {
        for (place, word) in self.value.iter_mut().zip(value) {
            write(place, word);
        }
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
    pub(super) fn home(&self) -> usize {
        table::home(self.print)
    }

    /// The bucket that [`Look::bucket`] gave last, for a function that the verifier looks at by itself.
    #[inline(always)]
    pub(super) fn same_bucket(&self) -> Option<*mut Bucket> {
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

/// Who pays, as `egress_common::table::owner` has it.
#[inline(always)]
pub(super) fn owner(look: &Look, payer: Payer) -> u32 {
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
pub(super) fn read(word: &u32) -> u32 {
    // SAFETY: a reference.
    unsafe { core::ptr::read_volatile(word) }
}
