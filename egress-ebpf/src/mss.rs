//! The segment size that a TCP connection starts with: no larger than what the overlay carries, or every
//! reply would have to be refused first.

use egress_common::{DropReason, Family};

use crate::{
    packet::Packet,
    parse::{self, Fragment, Ip, protocol},
    verifier::ForgottenByte,
};

/// Headers that the maximum segment size leaves out (RFC 9293, 3.7.1): IP's and TCP's without options.
const HEADERS_V4: u32 = 40;
const HEADERS_V6: u32 = 60;
/// Where a TCP header has its length, beside the flags, and its checksum (RFC 9293, 3.1).
const LENGTH_FLAGS: u32 = 12;
const CHECKSUM: u32 = 16;
const SYN: u8 = 0x02;
/// Options that fit a TCP header: 40 bytes of one each.
const MAX_OPTIONS: u32 = 40;
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_MSS: u8 = 2;

/// Lowers the maximum segment size of a SYN to what packets of `mtu` bytes carry; it is never raised.
///
/// A packet whose options end in the middle of one is left as it is: what it means is between the two ends.
#[inline(always)]
pub(crate) fn clamp(packet: &Packet<'_>, ip: &Ip, mtu: u32) -> Result<(), DropReason> {
    if ip.protocol != protocol::TCP || matches!(ip.fragment, Fragment::Later(_)) {
        return Ok(());
    }
    match parse::load_within::<[u8; 2]>(packet, ip.l4 + LENGTH_FLAGS, ip.end()) {
        Some([_, flags]) if flags & SYN != 0 => lower(packet, ip, mtu),
        _ => Ok(()),
    }
}

/// A function of its own, for the sake of its callers' stack.
#[inline(never)]
fn lower(packet: &Packet<'_>, ip: &Ip, mtu: u32) -> Result<(), DropReason> {
    let headers = match ip.family {
        Family::V4 => HEADERS_V4,
        Family::V6 => HEADERS_V6,
    };
    let most = u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
    let Some(length) = packet.load::<u8>(ip.l4 + LENGTH_FLAGS) else {
        return Ok(());
    };
    let end = ip.end().min(ip.l4 + u32::from(length >> 4) * 4);
    let mut place = ForgottenByte::new();
    let mut at = 20;
    for _ in 0..MAX_OPTIONS {
        at = place.forget(at);
        // Nothing that is shorter holds what is looked for.
        let Some(option) = parse::load_within::<[u8; 4]>(packet, ip.l4 + at, end) else {
            return Ok(());
        };
        match option {
            [OPTION_END, ..] => return Ok(()),
            [OPTION_NOTHING, ..] => at += 1,
            [OPTION_MSS, 4, high, low] => {
                let told = [high, low];
                if u16::from_be_bytes(told) <= most {
                    return Ok(());
                }
                return write(packet, ip.l4, at + 2, told, most.to_be_bytes());
            }
            [_, 0 | 1, ..] => return Ok(()),
            [_, length, ..] => at += u32::from(length),
        }
    }
    Ok(())
}

/// Writes two bytes at the offset `at` of a TCP header, and mends its checksum.
#[inline(always)]
fn write(
    packet: &Packet<'_>,
    l4: u32,
    at: u32,
    old: [u8; 2],
    new: [u8; 2],
) -> Result<(), DropReason> {
    // At an odd offset the bytes belong to two words of the sum, in each of them on the other side.
    let word = |[first, second]: [u8; 2]| {
        if at.is_multiple_of(2) {
            u16::from_ne_bytes([first, second])
        } else {
            u16::from_ne_bytes([second, first])
        }
    };
    packet
        .ctx
        .l4_csum_replace(
            (l4 + CHECKSUM) as usize,
            word(old).into(),
            word(new).into(),
            2,
        )
        .map_err(|_| DropReason::RedirectFailed)?;
    // Together with its checksum, the sum of the packet stays what it was.
    packet
        .ctx
        .store((l4 + at) as usize, &new, 0)
        .map_err(|_| DropReason::RedirectFailed)
}
