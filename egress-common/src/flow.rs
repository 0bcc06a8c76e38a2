//! How a flow is turned into a number, on both sides of the kernel boundary.

use crate::addr::{Addr, WireU16};

/// What tells one flow from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source address: the pod's.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port, or the identifier of an ICMP echo; zero where the protocol has neither.
    pub source_port: WireU16,
    /// Destination port; zero where the protocol has none.
    pub destination_port: WireU16,
    /// IP protocol number.
    pub protocol: u8,
}

impl Flow {
    /// A well-mixed 32-bit hash of the flow, the same on every node and in every run.
    ///
    /// Multiply-and-xor over the words, closed by the finalizer of `MurmurHash3` (Appleby, public domain).
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        let s = self.source.words();
        let d = self.destination.words();
        let ports = u32::from_ne_bytes([
            self.source_port.0[0],
            self.source_port.0[1],
            self.destination_port.0[0],
            self.destination_port.0[1],
        ]);
        let mut h = mix(0x9e37_79b9, s[0]);
        h = mix(h, s[1]);
        h = mix(h, s[2]);
        h = mix(h, s[3]);
        h = mix(h, d[0]);
        h = mix(h, d[1]);
        h = mix(h, d[2]);
        h = mix(h, d[3]);
        h = mix(h, ports);
        h = mix(h, self.protocol as u32);
        finish(h)
    }
}

#[inline(always)]
const fn mix(h: u32, word: u32) -> u32 {
    let k = word
        .wrapping_mul(0xcc9e_2d51)
        .rotate_left(15)
        .wrapping_mul(0x1b87_3593);
    (h ^ k)
        .rotate_left(13)
        .wrapping_mul(5)
        .wrapping_add(0xe654_6b64)
}

#[inline(always)]
const fn finish(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}
