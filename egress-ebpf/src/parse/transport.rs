//! The header above IP.

use egress_common::{DropReason, WireU16};

use super::{load_within, protocol};
use crate::packet::Packet;

/// What the header above IP says of its flow.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    /// The sender's port, or the identifier of an ICMP echo.
    pub(crate) source_port: WireU16,
    /// The receiver's port.
    pub(crate) destination_port: WireU16,
    pub(crate) kind: TransportKind,
}

/// How a packet relates to its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransportKind {
    /// A packet of a flow known by ports, or by addresses and protocol alone.
    Flow,
    /// An ICMP echo request.
    EchoRequest,
    /// An ICMP echo reply.
    EchoReply,
    /// An ICMP error: what it is about stands inside it.
    IcmpError,
    /// Any other ICMP message.
    IcmpOther,
}

/// ICMP's first eight bytes, of an echo (RFC 792, RFC 4443).
#[repr(C)]
#[derive(Clone, Copy)]
struct Icmp {
    kind: u8,
    code: u8,
    checksum: WireU16,
    id: WireU16,
    sequence: WireU16,
}

/// Reads the ports at `l4` of a packet that ends at `end`. Not for later fragments, which have none.
#[inline(always)]
pub(crate) fn transport(
    packet: &Packet<'_>,
    protocol: u8,
    l4: u32,
    end: u32,
) -> Result<Transport, DropReason> {
    match protocol {
        protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP | protocol::DCCP => {
            let ports: [WireU16; 2] = load_within(packet, l4, end).ok_or(DropReason::Malformed)?;
            Ok(Transport {
                source_port: ports[0],
                destination_port: ports[1],
                kind: TransportKind::Flow,
            })
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let icmp: Icmp = load_within(packet, l4, end).ok_or(DropReason::Malformed)?;
            let kind = icmp_kind(protocol, icmp.kind);
            let echo = matches!(kind, TransportKind::EchoRequest | TransportKind::EchoReply);
            Ok(Transport {
                source_port: if echo { icmp.id } else { WireU16([0, 0]) },
                destination_port: WireU16([0, 0]),
                kind,
            })
        }
        _ => Ok(Transport {
            source_port: WireU16([0, 0]),
            destination_port: WireU16([0, 0]),
            kind: TransportKind::Flow,
        }),
    }
}

/// What an ICMP message of that type is; `protocol` is ICMP's or ICMPv6's.
#[inline(always)]
pub(crate) const fn icmp_kind(protocol: u8, kind: u8) -> TransportKind {
    match (protocol, kind) {
        (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => TransportKind::EchoRequest,
        (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => TransportKind::EchoReply,
        // Unreachable, time exceeded, parameter problem; for ICMPv6 all errors, packet too big among them.
        (protocol::ICMP, 3 | 11 | 12) | (protocol::ICMPV6, 1..=4) => TransportKind::IcmpError,
        _ => TransportKind::IcmpOther,
    }
}
