//! IPv6 extension headers (RFC 8200, 4).

use egress_common::{DropReason, WireU16};

use super::{Fragment, Ip, protocol};
use crate::packet::Packet;

/// Extension headers that are walked before a packet is refused: each kind that RFC 8200, 4.1 lists,
/// and the second destination options header.
const MAX_EXTENSIONS: u32 = 8;

/// The first eight bytes of any extension header; `rest` is the identification of a fragment header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Extension {
    next_header: u8,
    length: u8,
    fragment_offset: WireU16,
    rest: u32,
}

/// Walks to the header above IPv6, or to the end of what a later fragment has.
#[inline(always)]
pub(super) fn walk(packet: &Packet<'_>, ip: &mut Ip) -> Result<(), DropReason> {
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(ip.protocol) {
            return Ok(());
        }
        let header: Extension = packet.load(ip.l4).ok_or(DropReason::Malformed)?;
        let kind = ip.protocol;
        ip.protocol = header.next_header;
        ip.l4 += match kind {
            protocol::FRAGMENT => {
                let offset = header.fragment_offset.get();
                if offset >> 3 != 0 {
                    ip.fragment = Fragment::Later(header.rest);
                    ip.l4 += 8;
                    return Ok(());
                }
                // RFC 6946: offset 0 without "more" is an atomic fragment, a whole packet.
                if offset & 1 != 0 {
                    ip.fragment = Fragment::First(header.rest);
                }
                8
            }
            // RFC 8200, 4.4: the fourth byte counts the segments that are left to visit.
            protocol::ROUTING if header.fragment_offset.0[1] != 0 => {
                return Err(DropReason::SourceRouted);
            }
            // RFC 4302, 2.2: the length is in words of four bytes, less two.
            protocol::AUTHENTICATION => {
                ip.is_authenticated = true;
                (u32::from(header.length) + 2) * 4
            }
            _ => (u32::from(header.length) + 1) * 8,
        };
    }
    if is_extension(ip.protocol) {
        Err(DropReason::Malformed)
    } else {
        Ok(())
    }
}

#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
    )
}
