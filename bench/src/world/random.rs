//! Numbers that look random and are the same in every run.

/// A generator of `SplitMix64` (Steele, Lea and Flood, 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "random bits have no value to lose"
    )]
    pub(crate) const fn bits32(&mut self) -> u32 {
        self.number() as u32
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "random bits have no value to lose"
    )]
    pub(crate) const fn bits16(&mut self) -> u16 {
        self.number() as u16
    }

    /// A number below `limit`, which is not zero.
    pub(crate) const fn below32(&mut self, limit: u32) -> u32 {
        self.bits32() % limit
    }

    /// The same of places.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "what is left of a division by a place is a place"
    )]
    pub(crate) const fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }
}
