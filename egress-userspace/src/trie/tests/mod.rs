//! The trie against a longest match over a list, between any two words that it writes, and wherever it breaks off.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test may fail loudly, and random bits have no value to lose"
)]

mod changes;
mod lines;
mod memory;
mod readers;
mod together;
mod worked;

use std::collections::BTreeMap;

use egress_common::{Addr, Family};

use super::{Prefix, Trie};
use memory::Memory;

/// Numbers that are the same in every run of a test with this seed.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    /// Seeded by the variable `EGRESS_TEST_SEED`, or by the time.
    fn new() -> Self {
        let seed = std::env::var("EGRESS_TEST_SEED").map_or_else(
            |_| {
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
                now.as_nanos() as u64
            },
            |seed| seed.parse().unwrap(),
        );
        println!("EGRESS_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        // Marsaglia's xorshift64*.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u32) -> u32 {
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }

    fn once_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }

    /// A prefix of a small world, where many contain each other or share their first bits.
    fn prefix(&mut self) -> Prefix {
        if self.once_in(3) {
            // All over one root.
            let bits = 0x2008_0000 | self.below(1 << 19);
            return Prefix::new(Family::V4, u128::from(bits) << 96, 13 + self.below(20));
        }
        let (family, longest) = if self.once_in(2) {
            (Family::V4, 32)
        } else {
            (Family::V6, 128)
        };
        let length = match self.below(8) {
            // The shortest have many roots.
            0 if self.once_in(8) => self.below(17),
            0 => 10 + self.below(7),
            1 => 12 + self.below(10),
            2 | 3 => 24 + self.below(9),
            4 => longest,
            _ => 12 + self.below(longest - 11),
        };
        Prefix::new(family, self.bits(), length.min(longest))
    }

    /// An address's bits: of few bytes that vary, each of few values.
    fn bits(&mut self) -> u128 {
        let mut bytes = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for _ in 0..self.below(3) {
            let values = [0, 1, 0x0f, 0x10, 0x80, 0xff];
            bytes[self.below(16) as usize] = values[self.below(6) as usize];
        }
        if self.once_in(3) {
            bytes[self.below(5) as usize] = self.next() as u8;
        }
        u128::from_be_bytes(bytes)
    }

    /// An address in or near a prefix.
    fn address_near(&mut self, prefix: &Prefix) -> Prefix {
        let bits = match prefix.family() {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let below = u128::MAX.checked_shr(prefix.length()).unwrap_or(0);
        let mut address = prefix.bits()
            | match self.below(4) {
                0 => 0,
                1 => u128::MAX,
                _ => (u128::from(self.next()) << 64 | u128::from(self.next())) & self.bits(),
            } & below;
        if self.once_in(4) {
            address ^= 1 << (127 - self.below(bits));
        }
        Prefix::new(prefix.family(), address, bits)
    }
}

/// The longest match over all prefixes.
fn naive(prefixes: &BTreeMap<Prefix, u32>, address: &Prefix) -> Option<u32> {
    (0..=address.length())
        .rev()
        .find_map(|length| prefixes.get(&address.first(length)).copied())
}

fn answer(trie: &Trie<Memory>, address: &Prefix) -> Option<u32> {
    trie.class(address.family(), &address.address())
}

fn net(text: &str) -> Prefix {
    let net: ipnet::IpNet = text.parse().unwrap();
    Prefix::from(&net)
}

/// An address as packets carry it.
fn address(text: &str) -> (Family, Addr) {
    let address: std::net::IpAddr = text.parse().unwrap();
    let family = if address.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    (family, Addr::from(address))
}
