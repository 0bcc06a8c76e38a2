//! The start of a frame, read and written where it lies: the helpers cost more than all else that is done with it.

use core::arch::asm;

use aya_ebpf::helpers::{bpf_csum_update, bpf_skb_pull_data};
use egress_common::DropReason;

use super::{IPV4_TTL, IPV6_HOP_LIMIT, L3, Packet};

/// The first `LENGTH` bytes of a frame, in one piece.
///
/// Good until a helper is called that may move them: the verifier refuses what comes later.
pub(crate) struct Start<const LENGTH: usize>(usize);

impl<const LENGTH: usize> Start<LENGTH> {
    /// The four bytes at `AT`, as they lie in memory, whatever the address: the compiler would take them one by one.
    #[inline(always)]
    pub(crate) fn word<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= LENGTH) }
        let word: u64;
        // SAFETY: a load of what the kernel has in one piece; the verifier checks it again.
        unsafe {
            asm!(
                "{word} = *(u32 *)({start} + {at})",
                word = out(reg) word,
                start = in(reg) self.0,
                at = const AT,
                options(readonly, nostack),
            );
        }
        // SAFETY: the load has 32 bits, so there is nothing above them to take off.
        unsafe { core::hint::assert_unchecked(word <= u32::MAX as u64) };
        #[expect(clippy::cast_possible_truncation, reason = "it has 32 bits")]
        let word = word as u32;
        word
    }

    /// Writes four bytes at `AT`, as [`Start::word`] reads them.
    #[inline(always)]
    fn set_word<const AT: usize>(&mut self, word: u32) {
        const { assert!(AT + 4 <= LENGTH) }
        // SAFETY: a store to what the kernel has in one piece, and made the packet's own before the program began
        // (`bpf_unclone_prologue`); the verifier checks it again.
        unsafe {
            asm!(
                "*(u32 *)({start} + {at}) = {word}",
                word = in(reg) u64::from(word),
                start = in(reg) self.0,
                at = const AT,
                options(nostack),
            );
        }
    }
}

impl Packet<'_> {
    /// The first `LENGTH` bytes of the frame, if the kernel has them in one piece.
    #[inline(always)]
    fn start<const LENGTH: usize>(&self) -> Option<Start<LENGTH>> {
        let at = self.ctx.data();
        (at + LENGTH <= self.ctx.data_end()).then_some(Start(at))
    }

    /// The same, once the kernel was asked to have them so.
    ///
    /// # Errors
    /// `Malformed` if the frame is shorter, `RedirectFailed` if the kernel has no memory for that.
    #[inline(always)]
    pub(crate) fn start_of_frame<const LENGTH: usize>(&self) -> Result<Start<LENGTH>, DropReason> {
        if let Some(start) = self.start() {
            return Ok(start);
        }
        let length = u32::try_from(LENGTH).map_err(|_| DropReason::Malformed)?;
        if self.ctx.len() < length {
            return Err(DropReason::Malformed);
        }
        // SAFETY: the kernel passes a valid context; no pointer into the packet is kept anywhere.
        match unsafe { bpf_skb_pull_data(self.skb(), length) } {
            0 => self.start().ok_or(DropReason::Malformed),
            _ => Err(DropReason::RedirectFailed),
        }
    }

    /// Lowers an IPv4 TTL by one and mends the header checksum.
    #[inline(always)]
    pub(crate) fn lower_ttl(&self) -> Result<(), DropReason> {
        const AT: usize = (L3 + IPV4_TTL) as usize;
        let mut start = self.start_of_frame::<{ AT + 4 }>()?;
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
        let mut start = self.start_of_frame::<{ AT + 4 }>()?;
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
