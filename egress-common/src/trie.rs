//! The prefix trie: address → class of the longest prefix that contains it, for both families.
//!
//! The first 12 bits of an address choose an *entry* of a table. An entry names the class of the longest prefix that
//! ends there, if any does, and what is below: a *node* of 16 entries that the next four bits choose from, or a
//! *record*, which stands for bits that leave no choice. A look-up goes down, and remembers the last class it met.
//!
//! All that a packet reads at once is one aligned 64-bit word, so it sees each change wholly or not at all. Nodes and
//! records lie in *units* of 16 bytes, in segments that userspace adds as they are needed.

use crate::{
    addr::{Addr, Family},
    map_type,
};

/// Bits of an address that choose an entry of the table of roots: as few as leave each family's part on eight pages. A
/// page that the processor has to look for costs more than a step further down.
pub const ROOT_BITS: u32 = 12;
/// Entries of the table of roots: those of IPv4, and then those of IPv6.
pub const ROOTS: u32 = 2 << ROOT_BITS;
/// Bits that choose an entry of a node.
pub const STRIDE: u32 = 4;
/// Entries of a node.
pub const NODE_ENTRIES: u32 = 1 << STRIDE;
/// Units of a node: 128 bytes, which it is aligned to, so that an entry is never in two cache lines.
pub const NODE_UNITS: u32 = NODE_ENTRIES / 2;
/// Bits that a record stands for at most: two of them reach from the table of roots to an address's end.
pub const RECORD_BITS: u32 = 58;
const _: () = assert!(2 * RECORD_BITS >= 128 - ROOT_BITS && RECORD_BITS <= 64 - 6);
/// Units in a segment, as a power of two: a segment holds 1 MiB.
pub const SEGMENT_SHIFT: u32 = 16;
/// Units in a segment.
pub const SEGMENT_UNITS: u32 = 1 << SEGMENT_SHIFT;
/// Segments there can be: 8 GiB, more than as many prefixes can need as a map may be told to have room for.
pub const MAX_SEGMENTS: u32 = 8192;

/// Nodes and records that a look-up can pass: each takes four bits at least of those below the table of roots.
const MOST_STEPS: u32 = (128 - ROOT_BITS) / STRIDE;
/// In a child, which otherwise is the number of a node's first unit: the unit is a record.
const RECORD: u32 = 1 << 31;
/// In a record's first word, below the bits that it stands for: how many those are.
const LENGTH: u64 = 63;

/// A map value, a quarter of a cache line: two entries of a node, or a record.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unit(pub [u64; 2]);
map_type!(Unit, size = 16, align = 8);

/// What is known where the bits so far lead: the class of the longest prefix that ends there, and what is below.
///
/// The lower half is the child: 0 for none, a node's first unit, or a record's with the highest bit set. The upper
/// half is the class and one, or 0 for none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(pub u64);
map_type!(Entry, size = 8, align = 8);

/// What is below an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// Nothing.
    None,
    /// The node that starts at this unit.
    Node(u32),
    /// The record in this unit.
    Record(u32),
}

impl Entry {
    /// No prefix, and nothing below.
    pub const EMPTY: Self = Self(0);

    /// An entry with a class and a child.
    #[must_use]
    pub const fn new(class: Option<u32>, child: Child) -> Self {
        Self::EMPTY.with_class(class).with_child(child)
    }

    /// The same with another class.
    #[must_use]
    pub const fn with_class(self, class: Option<u32>) -> Self {
        let told = match class {
            Some(class) => class as u64 + 1,
            None => 0,
        };
        Self(self.0 & 0xffff_ffff | told << 32)
    }

    /// The same with another child.
    #[must_use]
    pub const fn with_child(self, child: Child) -> Self {
        let child = match child {
            Child::None => 0,
            Child::Node(unit) => unit,
            Child::Record(unit) => unit | RECORD,
        };
        Self(self.0 & !0xffff_ffff | child as u64)
    }

    /// The class.
    #[must_use]
    pub const fn class(self) -> Option<u32> {
        self.told().checked_sub(1)
    }

    /// What is below.
    #[must_use]
    pub const fn child(self) -> Child {
        let child = self.below();
        if child == 0 {
            Child::None
        } else if child & RECORD == 0 {
            Child::Node(child)
        } else {
            Child::Record(child & !RECORD)
        }
    }

    /// The class and one, or 0.
    #[inline(always)]
    const fn told(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    const fn below(self) -> u32 {
        self.0 as u32
    }
}

/// The first word of a record: the bits that it stands for, the highest first, and how many. The second is an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path(pub u64);

impl Path {
    /// The first `length` bits of `bits`: from 1 to [`RECORD_BITS`].
    #[must_use]
    pub const fn new(bits: u64, length: u32) -> Self {
        let shift = 64 - length;
        Self(bits >> shift << shift | length as u64)
    }

    /// The bits, the highest first.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0 & !LENGTH
    }

    /// How many they are.
    #[inline(always)]
    #[must_use]
    pub const fn length(self) -> u32 {
        (self.0 & LENGTH) as u32
    }

    #[inline(always)]
    const fn is_start_of(self, bits: u64) -> bool {
        (self.0 ^ bits) >> ((64 - self.length()) & 63) == 0
    }
}

/// An address as the trie reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The number of its entry among the roots.
    pub root: u32,
    /// The bits from the thirteenth on.
    pub high: u64,
    /// The bits from the 77th on, and zeroes.
    pub low: u64,
}

impl Key {
    /// Of an address of that family.
    #[inline(always)]
    #[must_use]
    pub const fn new(family: Family, addr: &Addr) -> Self {
        let [a, b, c, d] = addr.words();
        match family {
            Family::V4 => {
                let bits = u32::from_be(d);
                Self {
                    root: bits >> (32 - ROOT_BITS),
                    high: (bits as u64) << (32 + ROOT_BITS),
                    low: 0,
                }
            }
            Family::V6 => {
                let first = (u32::from_be(a) as u64) << 32 | u32::from_be(b) as u64;
                let second = (u32::from_be(c) as u64) << 32 | u32::from_be(d) as u64;
                Self {
                    root: 1 << ROOT_BITS | (first >> (64 - ROOT_BITS)) as u32,
                    high: first << ROOT_BITS | second >> (64 - ROOT_BITS),
                    low: second << ROOT_BITS,
                }
            }
        }
    }
}

/// Reads the trie: each word at once.
pub trait Reader {
    /// An entry of the table of roots.
    fn root(&self, number: u32) -> Option<Entry>;
    /// One of the two entries of a unit of a node.
    fn entry(&self, unit: u32, half: u32) -> Option<Entry>;
    /// A record.
    fn record(&self, unit: u32) -> Option<(Path, Entry)>;
}

/// The class and one of the longest prefix that contains the address, 0 if none does, and [`BROKEN`] where an entry
/// names something that is not there.
#[inline(always)]
pub fn find<R: Reader>(trie: &R, key: Key) -> u32 {
    let Key {
        root,
        mut high,
        mut low,
    } = key;
    let Some(mut entry) = trie.root(root) else {
        return BROKEN;
    };
    let mut found = entry.told();
    for _ in 0..MOST_STEPS {
        let child = entry.below();
        if child == 0 {
            break;
        }
        let length = if child & RECORD == 0 {
            let number = (high >> (64 - STRIDE)) as u32;
            let Some(next) = trie.entry(child + (number >> 1), number & 1) else {
                return BROKEN;
            };
            entry = next;
            STRIDE
        } else {
            let Some((path, next)) = trie.record(child & !RECORD) else {
                return BROKEN;
            };
            if !path.is_start_of(high) {
                break;
            }
            entry = next;
            path.length()
        };
        high = high << length | low >> ((64 - length) & 63);
        low <<= length;
        if entry.told() != 0 {
            found = entry.told();
        }
    }
    found
}

/// What [`find`] gives where the maps contradict each other: as a class, one that no row has a cell for.
pub const BROKEN: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_say_what_they_were_told() {
        for class in [None, Some(0), Some(7), Some(u32::MAX - 2)] {
            for child in [
                Child::None,
                Child::Node(8),
                Child::Record(9),
                Child::Record((1 << 29) - 1),
            ] {
                let entry = Entry::new(class, child);
                assert_eq!((entry.class(), entry.child()), (class, child));
                assert_eq!(entry.with_class(None).child(), child);
                assert_eq!(entry.with_child(Child::None).class(), class);
            }
        }
        assert_eq!(Entry::new(None, Child::None), Entry::EMPTY);
    }

    #[test]
    fn paths_are_the_start_of_what_begins_with_them() {
        let bits = 0xc000_0280_0000_0000;
        for (length, other, is_start) in [
            (1, 0x8000_0000_0000_0000, true),
            (4, 0xcfff_0000_0000_0000, true),
            (24, 0xc000_02ff_ffff_ffff, true),
            (25, 0xc000_027f_ffff_ffff, false),
            (58, bits | 0x3f, true),
            (58, bits | 0x40, false),
        ] {
            let path = Path::new(bits, length);
            assert_eq!(path.length(), length);
            assert_eq!(path.is_start_of(other), is_start, "{length} {other:x}");
        }
    }

    #[test]
    fn keys_hold_every_bit() {
        assert_eq!(
            Key::new(Family::V4, &Addr::v4([192, 0, 2, 80])),
            Key {
                root: 0xc00,
                high: 0x0_0250 << 44,
                low: 0
            }
        );
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        assert_eq!(
            Key::new(Family::V6, &Addr::v6(bytes)),
            Key {
                root: 0x1010,
                high: 0x2030_4050_6070_8090,
                low: 0xa0b0_c0d0_e0f1_0000
            }
        );
    }
}
