//! The packet inside an ICMP error.

use egress_common::{Addr, Family, WireU16};

use super::{
    IPV6_DESTINATION, IPV6_SOURCE, Ip, Ipv4Header, Ipv6Header, Transport, TransportKind,
    load_within, transport,
};
use crate::packet::Packet;

/// The packet inside an ICMP error, as far as errors quote it.
pub(crate) struct Quoted {
    pub(crate) source: Addr,
    pub(crate) destination: Addr,
    pub(crate) transport: Transport,
    pub(crate) protocol: u8,
}

impl Quoted {
    /// What [`quoted`] fills in.
    #[inline(always)]
    pub(crate) const fn unread() -> Self {
        Self {
            source: Addr::v4([0; 4]),
            destination: Addr::v4([0; 4]),
            transport: Transport {
                source_port: WireU16([0, 0]),
                destination_port: WireU16([0, 0]),
                kind: TransportKind::IcmpOther,
            },
            protocol: 0,
        }
    }
}

/// Reads the packet that the ICMP error `ip` quotes (RFC 792: its header and 8 bytes; RFC 4443: more),
/// and says whether there is one that tells its flow.
///
/// A function of its own, for the sake of its callers' stack. It returns a flag because the kernel
/// refuses the type information of an `Option` whose tag is not its first byte.
#[inline(never)]
pub(crate) fn quoted(packet: &Packet<'_>, ip: &Ip, quoted: &mut Quoted) -> bool {
    let at = ip.l4 + 8;
    let l4 = match ip.family {
        Family::V4 => {
            let Some(header) = load_within::<Ipv4Header>(packet, at, ip.end()) else {
                return false;
            };
            // A later fragment quotes no ports.
            if header.version_ihl >> 4 != 4 || header.flags_offset.get() & 0x1fff != 0 {
                return false;
            }
            quoted.source = Addr::v4(header.source);
            quoted.destination = Addr::v4(header.destination);
            quoted.protocol = header.protocol;
            at + u32::from(header.version_ihl & 0x0f) * 4
        }
        Family::V6 => {
            let Some(header) = load_within::<Ipv6Header>(packet, at, ip.end()) else {
                return false;
            };
            if header.version_class_flow[0] >> 4 != 6 || at + 40 > ip.end() {
                return false;
            }
            if !packet.load_addr(at + IPV6_SOURCE, &mut quoted.source)
                || !packet.load_addr(at + IPV6_DESTINATION, &mut quoted.destination)
            {
                return false;
            }
            quoted.protocol = header.next_header;
            at + 40
        }
    };
    match transport(packet, quoted.protocol, l4, ip.end()) {
        Ok(transport) => {
            quoted.transport = transport;
            true
        }
        Err(_) => false,
    }
}
