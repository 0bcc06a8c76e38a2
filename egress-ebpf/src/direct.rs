//! Headers read and written where they lie, which costs a fraction of what the kernel's helpers do: of what almost every
//! packet is. Of what is not in one piece, or too far from the start, callers ask the helpers.
//!
//! Numbers are as they lie in memory. What others share of a packet the kernel makes its own before the program begins
//! (`bpf_unclone_prologue`).

use core::arch::asm;

use crate::{packet::Packet, verifier::Forgotten};

/// How far headers are looked for: the verifier wants a bound.
const NEAR: u32 = 255;
/// The MACs of a frame.
const MACS: usize = 12;

/// `LENGTH` bytes of a packet in one piece.
///
/// Good until a helper is called that may move them: the verifier refuses what comes later.
#[derive(Clone, Copy)]
pub(crate) struct Place<const LENGTH: usize>(usize);

/// The first bytes of the frame, if they are in one piece.
#[inline(always)]
pub(crate) fn start<const LENGTH: usize>(packet: &Packet<'_>) -> Option<Place<LENGTH>> {
    within(packet, packet.ctx.data())
}

/// The bytes at `offset`, if they are in one piece and not far from the start.
#[inline(always)]
pub(crate) fn at<const LENGTH: usize>(packet: &Packet<'_>, offset: u32) -> Option<Place<LENGTH>> {
    // As a bound of a pointer the offset would matter to the verifier wherever it came from.
    let offset = Forgotten::new(offset).get();
    if offset > NEAR {
        return None;
    }
    within(packet, packet.ctx.data() + offset as usize)
}

#[inline(always)]
fn within<const LENGTH: usize>(packet: &Packet<'_>, at: usize) -> Option<Place<LENGTH>> {
    // Of `at < end`, into which the compiler would turn the other, the verifier learns nothing.
    const { assert!(LENGTH > 1) }
    (at + LENGTH <= packet.ctx.data_end()).then_some(Place(at))
}

/// A read and a write of one width, whatever the address: the compiler would take them byte by byte.
macro_rules! access {
    ($get:ident, $set:ident, $type:ty, $width:literal) => {
        #[inline(always)]
        pub(crate) fn $get<const AT: usize>(self) -> $type {
            const { assert!(AT + size_of::<$type>() <= LENGTH) }
            let value: u64;
            // SAFETY: a load of what the kernel has in one piece; the verifier checks it again.
            unsafe {
                asm!(
                    concat!("{value} = *(", $width, " *)({place} + {at})"),
                    value = out(reg) value,
                    place = in(reg) self.0,
                    at = const AT,
                    options(readonly, nostack),
                );
            }
            // SAFETY: the load is that wide, so there is nothing above to take off.
            unsafe { core::hint::assert_unchecked(value <= <$type>::MAX as u64) };
            #[expect(clippy::cast_possible_truncation, reason = "as wide as the load")]
            let value = value as $type;
            value
        }

        #[inline(always)]
        pub(crate) fn $set<const AT: usize>(self, value: $type) {
            const { assert!(AT + size_of::<$type>() <= LENGTH) }
            // SAFETY: a store to what the kernel has in one piece, and the packet alone; the verifier checks it again.
            unsafe {
                asm!(
                    concat!("*(", $width, " *)({place} + {at}) = {value}"),
                    value = in(reg) u64::from(value),
                    place = in(reg) self.0,
                    at = const AT,
                    options(nostack),
                );
            }
        }
    };
}

impl<const LENGTH: usize> Place<LENGTH> {
    access!(byte, set_byte, u8, "u8");
    access!(half, set_half, u16, "u16");
    access!(word, set_word, u32, "u32");
}

/// The MACs of the frame, destination, then source, in three words.
#[inline(always)]
pub(crate) fn macs(packet: &Packet<'_>) -> Option<[u32; 3]> {
    let frame = start::<MACS>(packet)?;
    Some([frame.word::<0>(), frame.word::<4>(), frame.word::<8>()])
}

/// Three words, as `ReplyPath` has a pod's and the host's MAC, of a frame that the pod sends.
#[inline(always)]
pub(crate) fn reply_macs(packet: &Packet<'_>) -> Option<[u32; 3]> {
    let frame = start::<MACS>(packet)?;
    let (host, pod) = (frame.half::<0>(), frame.half::<10>());
    let middle = if cfg!(target_endian = "little") {
        u32::from(pod) | u32::from(host) << 16
    } else {
        u32::from(pod) << 16 | u32::from(host)
    };
    Some([frame.word::<6>(), middle, frame.word::<2>()])
}

/// Writes what [`macs`] reads, and says whether it could.
#[inline(always)]
pub(crate) fn set_macs(packet: &Packet<'_>, words: [u32; 3]) -> bool {
    let Some(frame) = start::<MACS>(packet) else {
        return false;
    };
    frame.set_word::<0>(words[0]);
    frame.set_word::<4>(words[1]);
    frame.set_word::<8>(words[2]);
    true
}

/// A checksum after one of the words that it covers has changed (RFC 1624, 3).
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the carries are added in before"
)]
pub(crate) fn mended(sum: u16, old: u32, new: u32) -> u16 {
    let sum = u64::from(!sum) + u64::from(!old) + u64::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// What a sum over words grows by where they become others.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the carries are added in before"
)]
pub(crate) fn growth(old: [u32; 4], new: [u32; 4]) -> u32 {
    let mut sum = 0;
    for (old, new) in old.into_iter().zip(new) {
        sum += u64::from(!old) + u64::from(new);
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}
