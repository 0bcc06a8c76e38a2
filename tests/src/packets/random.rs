//! Random numbers from a seed that can be named again.

use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};

/// The variable that names a seed again.
pub const SEED: &str = "EGRESS_TEST_SEED";

/// A generator of `SplitMix64` (Steele, Lea and Flood, 2014).
pub struct Random(u64);

impl Random {
    /// Starts from the seed of the environment or of the clock, and prints it: cargo shows it on failure.
    pub fn new() -> Self {
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let seed = match env::var(SEED).map(|text| text.parse()) {
            Ok(Ok(seed)) => seed,
            Ok(Err(error)) => panic!("{SEED} is no number: {error}"),
            Err(_) => clock.as_secs() ^ (u64::from(clock.subsec_nanos()) << 32),
        };
        println!("{SEED}={seed}");
        Self(seed)
    }

    /// Starts from this seed.
    #[must_use]
    pub const fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Sixteen random bits.
    pub fn next_u16(&mut self) -> u16 {
        let bytes = self.next_u64().to_be_bytes();
        u16::from_be_bytes([bytes[0], bytes[1]])
    }

    /// One random byte.
    pub fn next_u8(&mut self) -> u8 {
        self.next_u64().to_be_bytes()[0]
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap();
        usize::try_from(self.next_u64() % bound).unwrap()
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
