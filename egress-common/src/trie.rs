//! The prefix trie: address → class of the longest prefix that contains it, for both families.
//!
//! What packets of many flows cost is the cache lines that they touch, so a look-up passes few, and all of a trie are
//! few. The first 13 bits of an address choose a *root*. It is one word, and a word says all that there is to say of
//! what is below it: nothing; a *leaf*, one prefix that is alone there, with its class; a *node*, where prefixes branch;
//! or a *record* of bits that leave no choice and are too many for a leaf, or lead to a node.
//!
//! A node has up to 16 children, which the next four bits choose from, and prefixes that end there, of up to three of
//! them (a tree bitmap: Eatherton, Varghese and Dittia, "Tree bitmap: hardware/software IP lookups with incremental
//! updates", 2004). Its word says which of them there are, and where its *block* begins: the words of the children that
//! there are, and then the classes. Blocks are aligned to a power of two that they are not larger than, so that one of
//! up to 64 bytes is in one line, and no word is ever in two. That the roots take 13 bits has /16, /24, /32 and so on
//! end in the node that their neighbours end in, where each is four bytes.
//!
//! Where a root of IPv4 has several prefixes, its word leads to *lines* in place of all that (see [`lines`]): the next few
//! bits choose one, which has all prefixes that are left, so that there is no other line to wait for.
//!
//! Prefixes of up to 13 bits *cover* roots, each of which has the class of the longest one beside it.
//!
//! All that a packet reads at once is one aligned 64-bit word, so it sees each change wholly or not at all. Lines, blocks and
//! records lie in segments of units of 8 bytes, which userspace adds as they are needed.

mod bits;
pub mod lines;

use self::{
    bits::{below_highest, ends_around, ones},
    lines::{LINE_UNITS, Lines},
};
use crate::addr::{Addr, Family};

/// Bits of an address that choose a root.
pub const ROOT_BITS: u32 = 13;
/// Roots: those of IPv4, and then those of IPv6.
pub const ROOTS: u32 = 2 << ROOT_BITS;
/// Words of the table of roots: behind the roots, what covers them, two to a word, the lower half first.
pub const ROOT_WORDS: u32 = ROOTS + ROOTS / 2;
/// Bits that choose a child of a node.
pub const STRIDE: u32 = 4;
/// Children that a node can have.
pub const CHILDREN: u32 = 1 << STRIDE;
/// Bits that a leaf has room for.
pub const LEAF_BITS: u32 = 25;
const _: () = assert!(32 - ROOT_BITS <= LEAF_BITS);
/// Bits that a record stands for at most: two of them reach from the roots to an address's end.
pub const RECORD_BITS: u32 = 58;
const _: () = assert!(2 * RECORD_BITS >= 128 - ROOT_BITS && RECORD_BITS <= 64 - 6);
/// Units of a record: its [`Path`], and then the word that it leads to.
pub const RECORD_UNITS: u32 = 2;
/// Units in a segment, as a power of two: a segment holds 1 MiB.
pub const SEGMENT_SHIFT: u32 = 17;
/// Units in a segment.
pub const SEGMENT_UNITS: u32 = 1 << SEGMENT_SHIFT;
/// Segments there can be: 8 GiB, more than as many prefixes can need as a map may be told to have room for.
pub const MAX_SEGMENTS: u32 = 8192;
const _: () = assert!(SEGMENT_UNITS as u64 * MAX_SEGMENTS as u64 <= 1 << 31);

/// Words that a look-up can pass below a root: all but the last take four bits at least.
const MOST_STEPS: u32 = (128 - ROOT_BITS).div_ceil(STRIDE) + 1;

/// In a word's two lowest bits: what it is.
const TAG: u64 = 3;
const NODE: u64 = 1;
const LEAF: u64 = 2;
const RECORD: u64 = 3;
/// In a path, below its bits: how many those are.
const LENGTH: u64 = 63;

/// All that is below a place: 0 for nothing, else by its two lowest bits one of these, from the highest bit on.
///
/// | | 16 bits | 15 bits | 31 bits | 2 bits |
/// | --- | --- | --- | --- | --- |
/// | node | which children there are, by number | which prefixes end here | first unit of the block | 1 |
/// | record | 0 | 0 | its first unit | 3 |
///
/// | | 25 bits | 5 bits | 32 bits | 2 bits |
/// | --- | --- | --- | --- | --- |
/// | leaf | the rest of the prefix, the highest first | how long it is | class and one | 2 |
///
/// | | 4 bits | 27 bits | 31 bits | 2 bits |
/// | --- | --- | --- | --- | --- |
/// | lines | how many bits choose one, and one | 0 | first unit of the first | 0 |
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word(pub u64);

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing is below.
    Nothing,
    /// One prefix is.
    Leaf(Leaf),
    /// Prefixes branch.
    Node(Node),
    /// A record, by its first unit.
    Record(u32),
    /// Lines with all prefixes: only roots lead to some, and lines to one more.
    Lines(Lines),
}

/// One prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// What is left of it: its bits, the highest first, and zeroes.
    pub bits: u64,
    /// How many bits that is: up to [`LEAF_BITS`].
    pub length: u32,
    /// Its class and one.
    pub told: u32,
}

/// A place where prefixes branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Bit *n* is set if there is a child that the bits *n* lead to.
    pub children: u16,
    /// Bit *n* is set if a prefix of the bits *n*, without the highest 1, ends here: bit 1 for none, 2 for `0`, 3 for
    /// `1`, 4 for `00`, up to 15 for `111`. Bit 0 is never set.
    pub ends: u16,
    /// The first unit of its block: the children's words, and then classes and one, two to a unit, the lower half first.
    pub unit: u32,
}

impl Node {
    /// Units of its block.
    #[must_use]
    pub const fn units(&self) -> u32 {
        self.children.count_ones() + self.ends.count_ones().div_ceil(2)
    }
}

impl Word {
    /// Nothing is below.
    pub const EMPTY: Self = Self(0);

    /// The word that says this.
    #[must_use]
    pub const fn new(meaning: Meaning) -> Self {
        Self(match meaning {
            Meaning::Nothing => 0,
            Meaning::Leaf(Leaf { bits, length, told }) => {
                let shift = 64 - LEAF_BITS;
                bits >> shift << shift | (length as u64) << 34 | (told as u64) << 2 | LEAF
            }
            Meaning::Node(Node {
                children,
                ends,
                unit,
            }) => (children as u64) << 48 | (ends as u64) << 32 | (unit as u64) << 2 | NODE,
            Meaning::Record(unit) => (unit as u64) << 2 | RECORD,
            Meaning::Lines(Lines { bits, unit }) => (bits as u64 + 1) << 60 | (unit as u64) << 2,
        })
    }

    /// What it says.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "those bits are wanted")]
    pub const fn meaning(self) -> Meaning {
        match self.0 & TAG {
            NODE => Meaning::Node(Node {
                children: (self.0 >> 48) as u16,
                ends: (self.0 >> 32) as u16 & !1,
                unit: self.unit(),
            }),
            LEAF => Meaning::Leaf(Leaf {
                bits: self.0 >> (64 - LEAF_BITS) << (64 - LEAF_BITS),
                length: self.length(),
                told: self.told(),
            }),
            RECORD => Meaning::Record(self.unit()),
            _ => match (self.0 >> 60).checked_sub(1) {
                Some(bits) => Meaning::Lines(Lines {
                    bits: bits as u32,
                    unit: self.unit(),
                }),
                None => Meaning::Nothing,
            },
        }
    }

    /// Of a node, a record or lines.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "those bits are wanted")]
    const fn unit(self) -> u32 {
        (self.0 >> 2) as u32 & (u32::MAX >> 1)
    }

    /// Of a leaf.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "those bits are wanted")]
    const fn told(self) -> u32 {
        (self.0 >> 2) as u32
    }

    /// Of a leaf.
    #[inline(always)]
    const fn length(self) -> u32 {
        (self.0 >> 34) as u32 & 31
    }
}

/// The first word of a record: the bits that it stands for, the highest first, and how many.
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
        is_start(self.0, self.length(), bits)
    }
}

/// Whether the first `length` bits, 63 at most, are the same.
#[inline(always)]
const fn is_start(start: u64, length: u32, bits: u64) -> bool {
    ((start ^ bits) >> 1) >> (63 - length) == 0
}

/// An address as the trie reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The number of its root.
    pub root: u32,
    /// The bits behind the first 13.
    pub high: u64,
    /// The bits behind the first 77, and zeroes.
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
    /// A line of a segment.
    type Line;
    /// A word of the table of roots.
    fn root(&self, number: u32) -> Option<u64>;
    /// A line, by its number.
    fn line(&self, line: u32) -> Option<Self::Line>;
    /// A word of a line; of `index`, the three lowest bits count.
    fn word(line: &Self::Line, index: u32) -> u64;
    /// The same value, of which no compiler knows where it comes from: it would make branches of arithmetic.
    #[inline(always)]
    fn kept(value: u64) -> u64 {
        value
    }
    /// A unit.
    #[inline(always)]
    fn unit(&self, unit: u32) -> Option<u64> {
        self.line(unit / LINE_UNITS)
            .map(|line| Self::word(&line, unit % LINE_UNITS))
    }
}

/// The class and one of the longest prefix that contains the address, 0 if none does, and [`BROKEN`] where a word
/// names something that is not there.
#[inline(always)]
pub fn find<R: Reader>(trie: &R, key: Key) -> u32 {
    let Key {
        root,
        mut high,
        mut low,
    } = key;
    let Some(first) = trie.root(root) else {
        return BROKEN;
    };
    let mut word = Word(first);
    // The last node where prefixes end that contain the address, and which do.
    let mut passed = Word::EMPTY;
    let mut ends = 0;
    if word.0 & TAG == 0 && word.0 != 0 {
        let told = lines::find(trie, word, high);
        if told != 0 {
            return told;
        }
        word = Word::EMPTY;
    }
    for _ in 0..MOST_STEPS {
        let tag = word.0 & TAG;
        let (next, length) = if tag == NODE {
            let number = (high >> (64 - STRIDE)) as u32;
            let here = (word.0 >> 32) as u32 & ends_around(number);
            if here != 0 {
                passed = word;
                ends = here;
            }
            let children = (word.0 >> 48) as u32;
            if children >> number & 1 == 0 {
                break;
            }
            let before = ones(children & ((1 << number) - 1));
            (trie.unit(word.unit() + before), STRIDE)
        } else if tag == LEAF {
            if is_start(word.0, word.length(), high) {
                return word.told();
            }
            break;
        } else if tag == RECORD {
            // Both are in one line: records are aligned to what they take.
            let Some(line) = trie.line(word.unit() / LINE_UNITS) else {
                return BROKEN;
            };
            let path = Path(R::word(&line, word.unit() % LINE_UNITS));
            if !path.is_start_of(high) {
                break;
            }
            (
                Some(R::word(&line, word.unit() % LINE_UNITS + 1)),
                path.length(),
            )
        } else {
            break;
        };
        let Some(next) = next else {
            return BROKEN;
        };
        word = Word(next);
        high = high << length | low >> ((64 - length) & 63);
        low <<= length;
    }
    let (pair, half) = if ends == 0 {
        (trie.root(ROOTS + root / 2), root)
    } else {
        let number = ones((passed.0 >> 32) as u32 & 0xffff & below_highest(ends));
        let children = (passed.0 >> 48) as u32;
        let first = passed.unit() + ones(children & 0x7fff) + (children >> 15);
        (trie.unit(first + number / 2), number)
    };
    #[expect(clippy::cast_possible_truncation, reason = "one half is wanted")]
    pair.map_or(BROKEN, |pair| (pair >> (32 * (half & 1))) as u32)
}

/// What [`find`] gives where the maps contradict each other: as a class, one that no row has a cell for.
pub const BROKEN: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_they_were_told() {
        let last = (1 << 31) - 1;
        for meaning in [
            Meaning::Nothing,
            Meaning::Leaf(Leaf {
                bits: 0,
                length: 0,
                told: 1,
            }),
            Meaning::Leaf(Leaf {
                bits: !0 << (64 - LEAF_BITS),
                length: LEAF_BITS,
                told: u32::MAX - 1,
            }),
            Meaning::Node(Node {
                children: 1,
                ends: 2,
                unit: 0,
            }),
            Meaning::Node(Node {
                children: u16::MAX,
                ends: !1,
                unit: last,
            }),
            Meaning::Record(0),
            Meaning::Record(last),
            Meaning::Lines(Lines { bits: 0, unit: 0 }),
            Meaning::Lines(Lines {
                bits: lines::MOST_BITS,
                unit: last - 7,
            }),
        ] {
            let word = Word::new(meaning);
            assert_eq!(word.meaning(), meaning);
            assert_eq!(word == Word::EMPTY, meaning == Meaning::Nothing);
        }
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
        assert!(is_start(bits, 0, !bits));
    }

    #[test]
    fn keys_hold_every_bit() {
        assert_eq!(
            Key::new(Family::V4, &Addr::v4([192, 0, 2, 80])),
            Key {
                root: 0x1800,
                high: 0x0_0250 << 45,
                low: 0
            }
        );
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        assert_eq!(
            Key::new(Family::V6, &Addr::v6(bytes)),
            Key {
                root: 0x2020,
                high: 0x4060_80a0_c0e1_0121,
                low: 0x4161_81a1_c1e2_0000
            }
        );
    }
}
