//! What a root of IPv4 with several prefixes leads to: `2 ^ n` lines of 64 bytes, of which the `n` bits behind the root's
//! choose one.
//!
//! A line has up to eight leaves, as the root would have them: of all prefixes that contain an address of the line's or are
//! in it, the longest first, and then zeroes. So one that is shorter than what leads to a line is in several. Where there are
//! more than eight, the eighth word leads to one more line with the rest.
//!
//! What is in a line is never changed where packets may read it: all lines of a root are written anew.

use super::{LEAF, Reader, TAG, Word};

/// Units of a line.
pub const LINE_UNITS: u32 = 8;
/// Lines in a segment, which are the elements of its map.
pub const SEGMENT_LINES: u32 = super::SEGMENT_UNITS / LINE_UNITS;
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
    for _ in 0..2 {
        #[expect(clippy::cast_possible_truncation, reason = "some bits of 64")]
        let number = (high >> 1 >> (64 - (word.0 >> 60))) as u32;
        let Some(line) = trie.line(word.unit() / LINE_UNITS + number) else {
            return super::BROKEN;
        };
        for half in [0, LINE_UNITS / 2] {
            word = first::<R>(&line, half, high);
            if word.0 & TAG == LEAF {
                return word.told();
            }
        }
        if word.0 == 0 {
            return 0;
        }
    }
    0
}

/// Of the four words from there on, the first that is the start of these bits, as one is that leads to a line; or 0.
///
/// Without a branch for each: which of them it is, no processor could foretell.
#[inline(always)]
fn first<R: Reader>(line: &R::Line, from: u32, high: u64) -> Word {
    let mut found = 0;
    for index in (from..from + LINE_UNITS / 2).rev() {
        let word = Word(R::word(line, index));
        let differs = ((word.0 ^ high) >> 1) >> (63 - word.length());
        // All bits if nothing differs, else none: what differs has no highest bit.
        #[expect(
            clippy::cast_possible_wrap,
            clippy::cast_sign_loss,
            reason = "bits are shifted"
        )]
        let same = R::kept(((differs.wrapping_sub(1) as i64) >> 63) as u64);
        found ^= (found ^ word.0) & same;
    }
    Word(found)
}
