//! The header above IP: what of it is translated, and which checksum covers it.

use egress_common::{DropReason, Family, WireU16};

use super::scratch::{SUM_NEVER_ZERO, SUM_PSEUDO, Upper};
use crate::{
    direct,
    packet::Packet,
    parse::{self, load_within, protocol},
};

/// What a packet is to the translation. Numbers, since they lie in a map's value.
pub(super) mod kind {
    /// Of a connection that is known by ports.
    pub(in crate::nat) const PORTS: u8 = 0;
    /// Of a protocol that is translated by addresses alone.
    pub(in crate::nat) const ADDRESSES: u8 = 1;
    /// An ICMP echo request.
    pub(in crate::nat) const ECHO_REQUEST: u8 = 2;
    /// An ICMP echo reply.
    pub(in crate::nat) const ECHO_REPLY: u8 = 3;
    /// An ICMP error.
    pub(in crate::nat) const ICMP_ERROR: u8 = 4;
    /// A message of neighbour discovery (RFC 4861, 4).
    pub(in crate::nat) const NEIGHBOUR: u8 = 5;
    /// What cannot be translated.
    pub(in crate::nat) const UNSUPPORTED: u8 = 6;
}

/// Flags of a TCP header (RFC 9293, 3.1).
pub(super) mod tcp {
    pub(in crate::nat) const FIN: u8 = 1;
    pub(in crate::nat) const SYN: u8 = 2;
    pub(in crate::nat) const RST: u8 = 4;
    pub(in crate::nat) const ACK: u8 = 16;
}

const TCP_FLAGS: u32 = 13;
const TCP_CHECKSUM: u32 = 16;
const TCP_LENGTH: u32 = 20;
/// UDP's; UDP-Lite (RFC 3828) and DCCP (RFC 4340) have theirs in the same place.
const UDP_CHECKSUM: u32 = 6;
const UDP_LENGTH: u32 = 8;
const ICMP_CHECKSUM: u32 = 2;
const ICMP_ID: u32 = 4;

/// Reads the header at `l4` of a packet, or of a quoted one, that ends at `end`.
///
/// Of a quoted packet there may be no more than the first eight bytes (RFC 792): then a checksum that lies
/// beyond them is none that changes.
#[inline(never)]
pub(super) fn read(
    packet: &Packet<'_>,
    upper: &mut Upper,
    facts: Facts,
    l4: u32,
    end: u32,
) -> Result<(), DropReason> {
    upper.set_ports(0);
    upper.source_at = 0;
    upper.destination_at = 0;
    upper.checksum_at = 0;
    upper.checksum = 0;
    upper.tcp = 0;
    upper.kind = kind::ADDRESSES;
    match facts.protocol() {
        protocol::TCP => read_tcp(packet, upper, facts, l4, end),
        protocol::UDP => {
            let sum = read_ports(packet, upper, l4, end)?;
            upper.checksum = SUM_PSEUDO | SUM_NEVER_ZERO;
            if sum != 0 {
                upper.checksum_at = l4 + UDP_CHECKSUM;
            }
            Ok(())
        }
        protocol::UDP_LITE | protocol::DCCP => {
            if l4 + UDP_LENGTH > end {
                return Err(DropReason::Malformed);
            }
            upper.checksum = if facts.protocol() == protocol::UDP_LITE {
                SUM_PSEUDO | SUM_NEVER_ZERO
            } else {
                SUM_PSEUDO
            };
            upper.checksum_at = l4 + UDP_CHECKSUM;
            Ok(())
        }
        protocol::ICMP if facts.family() == Family::V4 => read_icmp(packet, upper, facts, l4, end),
        protocol::ICMPV6 if facts.family() == Family::V6 => {
            upper.checksum = SUM_PSEUDO;
            read_icmp(packet, upper, facts, l4, end)
        }
        protocol::AUTHENTICATION | protocol::ICMP | protocol::ICMPV6 => {
            upper.kind = kind::UNSUPPORTED;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What `read` has to know of the packet, in one register.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Facts(u32);

impl Facts {
    const V6: u32 = 1 << 8;
    const QUOTED: u32 = 1 << 9;

    #[inline(always)]
    pub(super) const fn new(family: Family, protocol: u8, quoted: bool) -> Self {
        let family = match family {
            Family::V4 => 0,
            Family::V6 => Self::V6,
        };
        let quoted = if quoted { Self::QUOTED } else { 0 };
        Self(protocol as u32 | family | quoted)
    }

    #[inline(always)]
    const fn family(self) -> Family {
        if self.0 & Self::V6 == 0 {
            Family::V4
        } else {
            Family::V6
        }
    }

    #[inline(always)]
    const fn is_quoted(self) -> bool {
        self.0 & Self::QUOTED != 0
    }

    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lowest byte is what is asked for"
    )]
    const fn protocol(self) -> u8 {
        self.0 as u8
    }
}

#[inline(always)]
fn read_tcp(
    packet: &Packet<'_>,
    upper: &mut Upper,
    facts: Facts,
    l4: u32,
    end: u32,
) -> Result<(), DropReason> {
    upper.checksum = SUM_PSEUDO;
    let _sequence = read_ports(packet, upper, l4, end)?;
    if l4 + TCP_LENGTH <= end {
        upper.tcp = packet.byte(l4 + TCP_FLAGS).ok_or(DropReason::Malformed)?;
        upper.checksum_at = l4 + TCP_CHECKSUM;
        Ok(())
    } else if facts.is_quoted() {
        if l4 + TCP_CHECKSUM + 2 <= end {
            upper.checksum_at = l4 + TCP_CHECKSUM;
        }
        Ok(())
    } else {
        Err(DropReason::Malformed)
    }
}

/// Reads both ports, and gives the last two of the header's first eight bytes, as they lie in memory.
#[inline(always)]
fn read_ports(
    packet: &Packet<'_>,
    upper: &mut Upper,
    l4: u32,
    end: u32,
) -> Result<u16, DropReason> {
    if l4 + UDP_LENGTH > end {
        return Err(DropReason::Malformed);
    }
    let last = if let Some(header) = direct::at::<{ UDP_LENGTH as usize }>(packet, l4) {
        upper.set_ports(header.word::<0>());
        header.half::<6>()
    } else {
        let [ports, last]: [u32; 2] = packet.load(l4).ok_or(DropReason::Malformed)?;
        upper.set_ports(ports);
        let [.., a, b] = last.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    };
    upper.source_at = l4;
    upper.destination_at = l4 + 2;
    upper.kind = kind::PORTS;
    Ok(last)
}

#[inline(always)]
fn read_icmp(
    packet: &Packet<'_>,
    upper: &mut Upper,
    facts: Facts,
    l4: u32,
    end: u32,
) -> Result<(), DropReason> {
    let words: [WireU16; 4] = load_within(packet, l4, end).ok_or(DropReason::Malformed)?;
    let message = words[0].0[0];
    upper.checksum_at = l4 + ICMP_CHECKSUM;
    upper.kind = match parse::icmp_kind(facts.protocol(), message) {
        parse::TransportKind::EchoRequest => kind::ECHO_REQUEST,
        parse::TransportKind::EchoReply => kind::ECHO_REPLY,
        parse::TransportKind::IcmpError => kind::ICMP_ERROR,
        parse::TransportKind::Flow | parse::TransportKind::IcmpOther
            if facts.family() == Family::V6 && matches!(message, 133..=137) =>
        {
            kind::NEIGHBOUR
        }
        parse::TransportKind::Flow | parse::TransportKind::IcmpOther => kind::UNSUPPORTED,
    };
    if upper.kind == kind::ECHO_REQUEST || upper.kind == kind::ECHO_REPLY {
        upper.source_port = words[2];
        upper.source_at = l4 + ICMP_ID;
        upper.destination_at = l4 + ICMP_ID;
    }
    Ok(())
}
