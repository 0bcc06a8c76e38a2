//! The start of a frame, which the kernel has to have in one piece, and what every hop changes in it.

use aya_ebpf::helpers::{bpf_csum_update, bpf_skb_pull_data};
use egress_common::DropReason;

use super::{IPV4_TTL, IPV6_HOP_LIMIT, L3, Packet};
use crate::direct::{self, Place};

impl Packet<'_> {
    /// The first `LENGTH` bytes of the frame, which the kernel is asked to have in one piece unless it has.
    ///
    /// # Errors
    /// `Malformed` if the frame is shorter, `RedirectFailed` if the kernel has no memory for that.
    #[inline(always)]
    pub(crate) fn start_of_frame<const LENGTH: usize>(&self) -> Result<Place<LENGTH>, DropReason> {
        if let Some(start) = direct::start(self) {
            return Ok(start);
        }
        let length = u32::try_from(LENGTH).map_err(|_| DropReason::Malformed)?;
        if self.ctx.len() < length {
            return Err(DropReason::Malformed);
        }
        // SAFETY: the kernel passes a valid context; no pointer into the packet is kept anywhere.
        match unsafe { bpf_skb_pull_data(self.skb(), length) } {
            0 => direct::start(self).ok_or(DropReason::Malformed),
            _ => Err(DropReason::RedirectFailed),
        }
    }

    /// Lowers an IPv4 TTL by one and mends the header checksum.
    #[inline(always)]
    pub(crate) fn lower_ttl(&self) -> Result<(), DropReason> {
        const AT: usize = (L3 + IPV4_TTL) as usize;
        let start = self.start_of_frame::<{ AT + 4 }>()?;
        let [ttl, protocol, a, b] = start.word::<AT>().to_ne_bytes();
        let lowered = ttl.wrapping_sub(1);
        let change = change(half([ttl, protocol]), half([lowered, protocol]));
        // The header's sum stays what it was, so a CHECKSUM_COMPLETE skb needs no mending.
        let [a, b] = (!folded(u32::from(!half([a, b])) + change)).to_ne_bytes();
        start.set_word::<AT>(u32::from_ne_bytes([lowered, protocol, a, b]));
        Ok(())
    }

    /// Lowers an IPv6 hop limit by one.
    #[inline(always)]
    pub(crate) fn lower_hop_limit(&self) -> Result<(), DropReason> {
        // The payload's length and the next header are before it.
        const AT: usize = (L3 + IPV6_HOP_LIMIT) as usize - 3;
        let start = self.start_of_frame::<{ AT + 4 }>()?;
        let [a, b, next_header, hop_limit] = start.word::<AT>().to_ne_bytes();
        let lowered = hop_limit.wrapping_sub(1);
        start.set_word::<AT>(u32::from_ne_bytes([a, b, next_header, lowered]));
        let change = change(half([next_header, hop_limit]), half([next_header, lowered]));
        // No checksum in the header: the skb's own, where it has one, changes.
        // SAFETY: the kernel passes a valid context.
        unsafe { bpf_csum_update(self.skb(), change) };
        Ok(())
    }
}

/// Two bytes as a number of sums, in the order of memory (RFC 1071, 2.B).
#[inline(always)]
const fn half(bytes: [u8; 2]) -> u16 {
    u16::from_ne_bytes(bytes)
}

/// What a ones' complement sum grows by where `old` becomes `new` (RFC 1624, 3).
#[inline(always)]
fn change(old: u16, new: u16) -> u32 {
    u32::from(!old) + u32::from(new)
}

/// A sum of up to four numbers of 16 bits as one of 16.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the carry is added in before"
)]
const fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
