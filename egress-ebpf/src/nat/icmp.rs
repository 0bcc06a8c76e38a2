//! ICMP errors: the packet that they quote is translated as that packet was, but the other way round.

use egress_common::{Addr, DropReason, Family, gateway::Egress};

use super::{
    rewrite::{self, IPV4_DESTINATION, IPV4_SOURCE, IPV6_DESTINATION, IPV6_SOURCE},
    scratch::{SUM_NEVER_ZERO, SUM_PSEUDO, Scratch},
    state,
    upper::{self, Facts, kind},
};
use crate::{
    egress::same,
    packet::Packet,
    parse::{load_within, protocol},
};

/// Bytes of an ICMP error before the packet that it quotes (RFC 792, RFC 4443).
const HEADER: u32 = 8;
const ICMP_CHECKSUM: u32 = 2;
const IPV4_HEADER: u32 = 20;
const IPV4_CHECKSUM: u32 = 10;
const IPV6_HEADER: u32 = 40;
/// Extension headers of a quoted packet that are walked: it has been through a network that knew them.
const MAX_EXTENSIONS: u32 = 4;

/// Prepares an error that a pod sends about a packet of a connection of its own, once its quote is read.
#[inline(never)]
pub(super) fn outward(s: &mut Scratch, egress: &Egress) -> Result<(), DropReason> {
    if !same(&s.quote.destination, &s.ip.source)
        || !same(&s.quote.source, &s.ip.destination)
        || s.quote.upper.kind == kind::ECHO_REQUEST
    {
        return Err(DropReason::NatNoState);
    }
    // An echo reply has its identifier where the key has the pod's port; the remote has none.
    let is_echo = s.quote.upper.kind == kind::ECHO_REPLY;
    let (pod_port, remote_port) = if is_echo {
        (s.quote.upper.source_port, s.quote.upper.destination_port)
    } else {
        (s.quote.upper.destination_port, s.quote.upper.source_port)
    };
    s.out_key.pod = s.ip.source;
    s.out_key.remote = s.quote.source;
    s.out_key.pod_port = pod_port;
    s.out_key.remote_port = remote_port;
    s.out_key.gateway = egress.gateway;
    s.out_key.protocol = s.quote.protocol;
    state::outward_error(s, egress)?;
    let at = by_family(s.ip.family, IPV4_DESTINATION, IPV6_DESTINATION);
    s.quoted_edit.old = s.ip.source;
    s.quoted_edit.new = egress.address;
    s.quoted_edit.address_at = s.quote.at + at;
    s.quoted_edit.port_at = s.quote.upper.destination_at;
    s.quoted_edit.old_port = pod_port;
    s.quoted_edit.new_port = s.out.egress_port;
    s.quoted_edit.checksum_at = s.quote.upper.checksum_at;
    s.quoted_edit.checksum = s.quote.upper.checksum;
    Ok(())
}

/// Fills in the key of the connection that an error from the outside is about, once its quote is read, and says
/// whether the egress address may have sent what it quotes.
#[inline(always)]
pub(super) fn quotes_egress(s: &mut Scratch) -> bool {
    if !same(&s.quote.source, &s.ip.destination) || s.quote.upper.kind == kind::ECHO_REPLY {
        return false;
    }
    s.back_key.egress = s.ip.destination;
    s.back_key.remote = s.quote.destination;
    s.back_key.egress_port = s.quote.upper.source_port;
    s.back_key.remote_port = s.quote.upper.destination_port;
    s.back_key.protocol = s.quote.protocol;
    true
}

/// Prepares an error from the outside, once `s.back` is its connection.
#[inline(always)]
pub(super) fn homeward(s: &mut Scratch) {
    let at = by_family(s.ip.family, IPV4_SOURCE, IPV6_SOURCE);
    s.quoted_edit.old = s.ip.destination;
    s.quoted_edit.new = s.back.pod;
    s.quoted_edit.address_at = s.quote.at + at;
    s.quoted_edit.port_at = s.quote.upper.source_at;
    s.quoted_edit.old_port = s.quote.upper.source_port;
    s.quoted_edit.new_port = s.back.pod_port;
    s.quoted_edit.checksum_at = s.quote.upper.checksum_at;
    s.quoted_edit.checksum = s.quote.upper.checksum;
}

/// Writes the quoted packet, and mends its checksums and that of the message around it.
///
/// A field that changes together with a checksum over it, both inside the message, changes nothing in the
/// message's own sum. What remains is written out here for each case.
#[inline(never)]
pub(super) fn write_quote(packet: &Packet<'_>, s: &Scratch) -> Result<(), DropReason> {
    match s.ip.family {
        Family::V4 => write_v4(packet, s)?,
        Family::V6 => write_v6(packet, s)?,
    }
    let edit = &s.quoted_edit;
    if edit.port_at != 0 {
        let old = u16::from_ne_bytes(edit.old_port.0);
        let new = u16::from_ne_bytes(edit.new_port.0);
        if edit.checksum_at == 0 {
            mend_message(packet, s, old.into(), new.into(), 2)?;
        } else {
            mend_quoted(packet, edit.checksum_at, old.into(), new.into(), 2)?;
        }
        packet
            .ctx
            .store(edit.port_at as usize, &edit.new_port, 0)
            .map_err(|_| DropReason::RedirectFailed)?;
    }
    if edit.checksum_at != 0 && edit.checksum & SUM_NEVER_ZERO != 0 {
        let sum: u16 = packet
            .load(edit.checksum_at)
            .ok_or(DropReason::RedirectFailed)?;
        if sum == 0 {
            // The same number to every sum over it.
            packet
                .ctx
                .store(edit.checksum_at as usize, &u16::MAX, 0)
                .map_err(|_| DropReason::RedirectFailed)?;
        }
    }
    Ok(())
}

#[inline(always)]
fn write_v4(packet: &Packet<'_>, s: &Scratch) -> Result<(), DropReason> {
    let edit = &s.quoted_edit;
    let (old, new) = (edit.old.words()[3], edit.new.words()[3]);
    mend_quoted(
        packet,
        s.quote.at + IPV4_CHECKSUM,
        old.into(),
        new.into(),
        4,
    )?;
    if edit.checksum_at != 0 && edit.checksum & SUM_PSEUDO != 0 {
        mend_quoted(packet, edit.checksum_at, old.into(), new.into(), 4)?;
        // Two checksums changed for one address: the message makes up for the second.
        mend_message(packet, s, new.into(), old.into(), 4)?;
    }
    packet
        .ctx
        .store(edit.address_at as usize, &new, 0)
        .map_err(|_| DropReason::RedirectFailed)
}

#[inline(always)]
fn write_v6(packet: &Packet<'_>, s: &Scratch) -> Result<(), DropReason> {
    let edit = &s.quoted_edit;
    let difference = rewrite::difference(&edit.old, &edit.new);
    if edit.checksum_at != 0 && edit.checksum & SUM_PSEUDO != 0 {
        mend_quoted(packet, edit.checksum_at, 0, difference, 0)?;
    } else {
        mend_message(packet, s, 0, difference, 0)?;
    }
    packet
        .ctx
        .store(edit.address_at as usize, &edit.new, 0)
        .map_err(|_| DropReason::RedirectFailed)
}

/// Mends a checksum inside the quoted packet: this helper only changes the two bytes.
#[inline(always)]
fn mend_quoted(
    packet: &Packet<'_>,
    at: u32,
    old: u64,
    new: u64,
    size: u64,
) -> Result<(), DropReason> {
    packet
        .ctx
        .l3_csum_replace(at as usize, old, new, size)
        .map_err(|_| DropReason::RedirectFailed)
}

#[inline(always)]
fn mend_message(
    packet: &Packet<'_>,
    s: &Scratch,
    old: u64,
    new: u64,
    size: u64,
) -> Result<(), DropReason> {
    packet
        .ctx
        .l4_csum_replace((s.ip.l4 + ICMP_CHECKSUM) as usize, old, new, size)
        .map_err(|_| DropReason::RedirectFailed)
}

/// Reads the packet that the error quotes into `s.quote`, and says whether it tells its connection.
#[inline(never)]
pub(super) fn read_quote(packet: &Packet<'_>, s: &mut Scratch) -> bool {
    s.quote.at = s.ip.l4 + HEADER;
    let found = match s.ip.family {
        Family::V4 => read_v4(packet, s),
        Family::V6 => read_v6(packet, s),
    };
    if !found {
        return false;
    }
    let (l4, end) = (s.quote.l4, s.ip.end());
    let facts = Facts::new(s.ip.family, s.quote.protocol, true);
    upper::read(packet, &mut s.quote.upper, facts, l4, end).is_ok()
        && matches!(
            s.quote.upper.kind,
            kind::PORTS | kind::ADDRESSES | kind::ECHO_REQUEST | kind::ECHO_REPLY
        )
}

#[inline(always)]
fn read_v4(packet: &Packet<'_>, s: &mut Scratch) -> bool {
    let at = s.quote.at;
    let Some(header) = load_within::<[u8; IPV4_HEADER as usize]>(packet, at, s.ip.end()) else {
        return false;
    };
    let length = u32::from(header[0] & 0x0f) * 4;
    let offset = u16::from_be_bytes([header[6], header[7]]);
    // A later fragment quotes no ports.
    if header[0] >> 4 != 4 || length < IPV4_HEADER || offset & 0x1fff != 0 {
        return false;
    }
    s.quote.protocol = header[9];
    s.quote.source = Addr::v4([header[12], header[13], header[14], header[15]]);
    s.quote.destination = Addr::v4([header[16], header[17], header[18], header[19]]);
    s.quote.l4 = at + length;
    true
}

#[inline(always)]
fn read_v6(packet: &Packet<'_>, s: &mut Scratch) -> bool {
    let at = s.quote.at;
    let Some(header) = load_within::<[u8; 8]>(packet, at, s.ip.end()) else {
        return false;
    };
    if header[0] >> 4 != 6
        || at + IPV6_HEADER > s.ip.end()
        || !packet.load_addr(at + IPV6_SOURCE, &mut s.quote.source)
        || !packet.load_addr(at + IPV6_DESTINATION, &mut s.quote.destination)
    {
        return false;
    }
    s.quote.protocol = header[6];
    s.quote.l4 = at + IPV6_HEADER;
    for _ in 0..MAX_EXTENSIONS {
        match s.quote.protocol {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION_OPTIONS => {}
            _ => return true,
        }
        let Some(extension) = load_within::<[u8; 4]>(packet, s.quote.l4, s.ip.end()) else {
            return false;
        };
        s.quote.l4 += if s.quote.protocol == protocol::FRAGMENT {
            if u16::from_be_bytes([extension[2], extension[3]]) >> 3 != 0 {
                return false;
            }
            8
        } else {
            (u32::from(extension[1]) + 1) * 8
        };
        s.quote.protocol = extension[0];
    }
    true
}

#[inline(always)]
const fn by_family(family: Family, v4: u32, v6: u32) -> u32 {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}
