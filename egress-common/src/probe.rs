//! Probes of gateways on other nodes: what is known of each, and where what they carry lies.
//!
//! ```text
//!  inner Ethernet header | gateway (4, host order) | padding (4) | when it was sent (8, host order)
//! ```
//!
//! A reply is the same frame with other MACs. Nobody but its sender reads what it carries.

use crate::map_type;

/// The ethertype of probes: IEEE 802, local experiments, so that no host takes one for a packet.
pub const ETHERTYPE: u16 = 0x88b5;
/// Where in the frame the gateway stands; it is read by the program that sends the probe.
pub const GATEWAY_AT: u32 = 14;
/// Where in the frame the time stands at which it was sent.
pub const SENT_AT: u32 = 22;
/// Length of a probe without its frame check: the least that Ethernet has.
pub const LENGTH: usize = 60;

/// What is known of a gateway on another node: the value of `PROBES`.
///
/// Userspace makes the entry; from then on programs alone write it, in place. Times are in nanoseconds of
/// `CLOCK_MONOTONIC`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// When the last probe was sent; zero before the first.
    pub asked: u64,
    /// When the last reply came; zero before the first.
    pub heard: u64,
    /// How long it took.
    pub round_trip: u64,
    /// The gateway's node, from which alone a reply counts: an index of `NODE_STATE`.
    pub node: u32,
    /// Probes that were sent since.
    pub unanswered: u32,
}
map_type!(Probe, size = 32, align = 8);
