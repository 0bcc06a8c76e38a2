//! Counters and where they lie.

use crate::{drop::DropReason, map_type};

/// Packets and bytes, of one CPU.
///
/// Packets are those of the wire: an aggregated skb counts as its segments (`gso_segs`). Bytes are those
/// of the IP packets, headers included, each segment with its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// IP packets.
    pub packets: u64,
    /// Bytes of those packets from the IP header on.
    pub bytes: u64,
}
map_type!(Count, size = 16, align = 8);

/// The policy id that stands for "no policy": a spoofed source belongs to none.
pub const NO_POLICY: u32 = 0;

/// Why a packet went on to the kernel's own routing.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PassKind {
    /// A rule without gateway, or the cluster's own prefixes.
    Local = 0,
    /// No rule matched.
    Unmatched = 1,
}

/// Kinds of pass there are.
pub const PASS_KINDS: u32 = 2;

/// Index into `PASS_COUNTS`.
#[inline(always)]
pub const fn pass_index(policy: u32, kind: PassKind) -> u32 {
    policy.wrapping_mul(PASS_KINDS).wrapping_add(kind as u32)
}

/// Index into `DROP_COUNTS`.
#[inline(always)]
pub const fn drop_index(policy: u32, reason: DropReason) -> u32 {
    policy
        .wrapping_mul(DropReason::COUNT)
        .wrapping_add(reason as u32)
}
