//! What a root of IPv4 with several prefixes leads to: `2 ^ n` lines of 64 bytes, of which the `n` bits behind the root's
//! choose one.
//!
//! A line has up to eight leaves, as the root would have them: of all prefixes that contain an address of the line's or are
//! in it, the longest first, and then zeroes. So one that is shorter than what leads to a line is in several. Where there are
//! more than eight, the eighth word leads to one more line with the rest.
//!
//! What is in a line is never changed where packets may read it: all lines of a root are written anew.

use super::{LEAF, Reader, TAG, Word, is_start};

/// Units of a line.
pub const LINE_UNITS: u32 = 8;
/// Bits that choose one of a root's lines, at most.
pub const MOST_BITS: u32 = 8;
/// Prefixes that a line and the one behind it have room for: one of the words is what leads there.
pub const MOST_IN_LINE: usize = 2 * LINE_UNITS as usize - 1;

/// Lines in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    /// How many bits choose one.
    pub bits: u32,
    /// The first unit of the first one.
    pub unit: u32,
}

/// The class and one of the longest prefix that contains the address with these bits behind the root's, 0 if none does.
#[inline(always)]
pub(super) fn find<R: Reader>(trie: &R, mut word: Word, high: u64) -> u32 {
    // A line, and the one behind it.
    'lines: for _ in 0..2 {
        #[expect(clippy::cast_possible_truncation, reason = "some bits of 64")]
        let number = (high >> 1 >> (64 - (word.0 >> 60))) as u32;
        let Some(line) = trie.line(word.unit() / LINE_UNITS + number) else {
            return super::BROKEN;
        };
        for index in 0..LINE_UNITS {
            word = Word(R::word(&line, index));
            // What is no leaf has no bits, and is the start of all.
            if !is_start(word.0, word.length(), high) {
                continue;
            }
            match word.0 {
                0 => return 0,
                leaf if leaf & TAG == LEAF => return word.told(),
                _ => continue 'lines,
            }
        }
        return 0;
    }
    0
}
