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
    /// It answers a connection that came in to the pod.
    Inbound = 2,
}

impl PassKind {
    /// Every kind, in order of number.
    pub const ALL: &[Self] = &[Self::Local, Self::Unmatched, Self::Inbound];

    /// The kind as metrics and tables spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Unmatched => "unmatched",
            Self::Inbound => "inbound",
        }
    }
}

/// Kinds of pass there are.
pub const PASS_KINDS: u32 = 3;
const _: () = assert!(PassKind::ALL.len() == PASS_KINDS as usize);

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

/// Which way a translated packet goes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From a pod to a remote.
    Out = 0,
    /// From a remote to a pod.
    Back = 1,
}

impl Direction {
    /// Both, in order of number.
    pub const ALL: &[Self] = &[Self::Out, Self::Back];
}

/// Directions there are.
pub const DIRECTIONS: u32 = 2;
const _: () = assert!(Direction::ALL.len() == DIRECTIONS as usize);

/// Index into `GATEWAY_COUNTS`.
#[inline(always)]
pub const fn gateway_index(counter: u32, direction: Direction) -> u32 {
    counter
        .wrapping_mul(DIRECTIONS)
        .wrapping_add(direction as u32)
}

/// What the datapath tells a sender about a packet that it could not send on.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// Fragmentation needed (RFC 1191), or packet too big (RFC 4443, 3.2).
    TooBig = 0,
    /// Time exceeded (RFC 792; RFC 4443, 3.3).
    TimeExceeded = 1,
}

impl Answer {
    /// Every kind, in order of number: the indices of `ANSWER_COUNTS`.
    pub const ALL: &[Self] = &[Self::TooBig, Self::TimeExceeded];
}
