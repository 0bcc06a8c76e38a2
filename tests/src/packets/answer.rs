//! The answer that a packet becomes, as an independent library builds it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::{Addr, counter::Answer, gateway::Settings};
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpDscp, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder,
    icmpv4, icmpv6,
};

use super::{Input, build::L3};

/// Bytes of answers at most (RFC 1812, 4.3.2.3; RFC 4443, 2.4(c)).
const LARGEST_V4: usize = 576;
const LARGEST_V6: usize = 1280;

/// The frame of the answer to a packet: for [`Answer::TooBig`] with this MTU, from this node.
#[must_use]
pub fn answered(input: &Input, answer: Answer, mtu: u32, node: &Settings) -> Vec<u8> {
    let frame = &input.frame;
    let mac = |at: usize| -> [u8; 6] { frame[at..at + 6].try_into().unwrap() };
    let ethernet = PacketBuilder::ethernet2(mac(0), mac(6));
    let packet = &frame[L3..];
    let mut bytes = Vec::new();
    if packet[0] >> 4 == 4 {
        let quote = quote(input, word(packet, 2), LARGEST_V4 - 28);
        let mut header = Ipv4Header::new(
            u16::try_from(8 + quote.len()).unwrap(),
            64,
            IpNumber::ICMP,
            v4(node.node4).unwrap_or([packet[16], packet[17], packet[18], packet[19]]),
            [packet[12], packet[13], packet[14], packet[15]],
        )
        .unwrap();
        header.dscp = IpDscp::CS6;
        let kind = match answer {
            Answer::TooBig => Icmpv4Type::DestinationUnreachable(
                icmpv4::DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: u16::try_from(mtu).unwrap(),
                },
            ),
            Answer::TimeExceeded => {
                Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
            }
        };
        ethernet
            .ip(IpHeaders::Ipv4(header, Default::default()))
            .icmpv4(kind)
            .write(&mut bytes, quote)
            .unwrap();
    } else {
        let quote = match word(packet, 4) {
            0 if input.gso.0 != 0 => quote(input, 0, LARGEST_V6 - 48),
            payload => quote(input, 40 + payload, LARGEST_V6 - 48),
        };
        let header = Ipv6Header {
            hop_limit: 64,
            source: v6(node.node6).unwrap_or_else(|| packet[24..40].try_into().unwrap()),
            destination: packet[8..24].try_into().unwrap(),
            ..Ipv6Header::default()
        };
        let kind = match answer {
            Answer::TooBig => Icmpv6Type::PacketTooBig { mtu },
            Answer::TimeExceeded => {
                Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded)
            }
        };
        ethernet
            .ip(IpHeaders::Ipv6(header, Default::default()))
            .icmpv6(kind)
            .write(&mut bytes, quote)
            .unwrap();
    }
    bytes
}

/// The packet without padding, as far as it is quoted. An aggregate may claim no length.
fn quote(input: &Input, claimed: usize, most: usize) -> &[u8] {
    let packet = &input.frame[L3..];
    let length = if claimed == 0 { packet.len() } else { claimed };
    &packet[..length.min(most)]
}

fn word(packet: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]))
}

fn v4(own: Addr) -> Option<[u8; 4]> {
    match IpAddr::from(own) {
        IpAddr::V4(own) if own != Ipv4Addr::UNSPECIFIED => Some(own.octets()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn v6(own: Addr) -> Option<[u8; 16]> {
    match IpAddr::from(own) {
        IpAddr::V6(own) if own != Ipv6Addr::UNSPECIFIED => Some(own.octets()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
