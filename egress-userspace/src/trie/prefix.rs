//! Prefixes of both families as the trie has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::{Addr, Family, trie::ROOT_BITS};
use ipnet::IpNet;

/// A prefix, or with all its bits an address.
///
/// In order, a prefix is right before all that it contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    family: Family,
    /// From the highest on; zeroes beyond the length.
    bits: u128,
    length: u8,
}

impl Prefix {
    /// The first `length` bits of `bits`, which has an address's first bit as its highest.
    #[must_use]
    pub const fn new(family: Family, bits: u128, length: u32) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an address has 128 bits at most"
        )]
        let short = length as u8;
        Self {
            family,
            bits: masked(bits, length),
            length: short,
        }
    }

    /// Its family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Its bits, the first one highest, and zeroes.
    #[must_use]
    pub const fn bits(&self) -> u128 {
        self.bits
    }

    /// How many bits it has.
    #[must_use]
    pub const fn length(&self) -> u32 {
        self.length as u32
    }

    /// Whether it contains another.
    #[must_use]
    pub const fn contains(&self, other: &Self) -> bool {
        self.length <= other.length
            && self.family as u8 == other.family as u8
            && masked(other.bits, self.length()) == self.bits
    }

    /// Its first `length` bits.
    #[must_use]
    pub const fn first(&self, length: u32) -> Self {
        Self::new(self.family, self.bits, length)
    }

    /// The number of its root: of a short one, of the first.
    #[must_use]
    pub(super) const fn root(&self) -> u32 {
        let first = (self.bits >> (128 - ROOT_BITS)) as u32;
        match self.family {
            Family::V4 => first,
            Family::V6 => 1 << ROOT_BITS | first,
        }
    }

    /// The prefix that a root stands for.
    pub(super) const fn of_root(number: u32) -> Self {
        let family = if number >> ROOT_BITS == 0 {
            Family::V4
        } else {
            Family::V6
        };
        let bits = (number as u128) << (128 - ROOT_BITS);
        Self::new(family, bits, ROOT_BITS)
    }

    /// So many bits from that one on, right-aligned.
    pub(super) const fn slice(&self, from: u32, length: u32) -> u64 {
        if length == 0 {
            return 0;
        }
        #[expect(clippy::cast_possible_truncation, reason = "those bits are wanted")]
        let bits = (self.bits << from >> (128 - length)) as u64;
        bits
    }

    /// With so many more bits, right-aligned in `bits`.
    pub(super) const fn and(&self, bits: u64, length: u32) -> Self {
        let to = self.length() + length;
        Self::new(self.family, self.bits | (bits as u128) << (128 - to), to)
    }

    /// How many bits the two begin with in common.
    pub(super) fn common(&self, other: &Self) -> u32 {
        (self.bits ^ other.bits)
            .leading_zeros()
            .min(self.length())
            .min(other.length())
    }

    /// As a network; none if it has more bits than its family.
    #[must_use]
    pub fn net(&self) -> Option<IpNet> {
        let address = match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from((self.bits >> 96) as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(self.bits)),
        };
        IpNet::new(address, self.length).ok()
    }

    /// The first address of it, as packets carry it.
    #[must_use]
    pub fn address(&self) -> Addr {
        match self.family {
            Family::V4 => Addr::v4(((self.bits >> 96) as u32).to_be_bytes()),
            Family::V6 => Addr::v6(self.bits.to_be_bytes()),
        }
    }
}

impl From<&IpNet> for Prefix {
    fn from(net: &IpNet) -> Self {
        let length = net.prefix_len().into();
        match net {
            IpNet::V4(net) => {
                let bits = u128::from(u32::from(net.network())) << 96;
                Self::new(Family::V4, bits, length)
            }
            IpNet::V6(net) => Self::new(Family::V6, u128::from(net.network()), length),
        }
    }
}

const fn masked(bits: u128, length: u32) -> u128 {
    match length {
        0 => 0,
        length => bits >> (128 - length) << (128 - length),
    }
}
