//! What is asked of the bits of a node's word.

/// Which prefixes that end in a node contain what these four bits lead to, of those that can.
#[inline(always)]
pub(super) const fn ends_around(number: u32) -> u32 {
    let longest = 8 | number >> 1;
    1 << longest | 1 << (longest >> 1) | 1 << (longest >> 2) | 2
}

/// All bits below the highest of the 16 lowest that is set.
#[inline(always)]
pub(super) const fn below_highest(bits: u32) -> u32 {
    let mut below = bits >> 1;
    below |= below >> 1;
    below |= below >> 2;
    below |= below >> 4;
    below | below >> 8
}

/// How many of the 15 lowest bits are set; the others are zero. There is no instruction for it in BPF.
///
/// A product puts four copies of them side by side, of which every fourth bit makes a number of its own; another adds
/// these up (Anderson, "Bit twiddling hacks", counting bits set in 14, 24, or 32-bit words).
#[inline(always)]
pub(super) const fn ones(bits: u32) -> u32 {
    const COPIES: u64 = 1 | 1 << 15 | 1 << 30 | 1 << 45;
    const NUMBERS: u64 = 0x1111_1111_1111_1111;
    let numbers = (bits as u64).wrapping_mul(COPIES) & (NUMBERS >> 4);
    (numbers.wrapping_mul(NUMBERS) >> 60) as u32
}

#[cfg(test)]
mod tests {
    use super::{
        super::{CHILDREN, STRIDE},
        *,
    };

    #[test]
    fn bits_are_counted() {
        for bits in 0..=u32::from(u16::MAX) {
            assert_eq!(ones(bits & 0x7fff) + (bits >> 15), bits.count_ones());
            let below = bits.checked_ilog2().map_or(0, |highest| (1 << highest) - 1);
            assert_eq!(below_highest(bits), below, "{bits:x}");
        }
    }

    #[test]
    fn the_ends_around_a_number_are_its_starts() {
        for number in 0..CHILDREN {
            let starts = (0..STRIDE).map(|length| 1 << length | number >> (STRIDE - length));
            let ends = starts.fold(0, |ends, start| ends | 1 << start);
            assert_eq!(ends_around(number), ends, "{number}");
        }
    }
}
