//! What becomes of a packet that leaves the node: one that was let through as the cluster's own, and whose destination
//! something has translated to another, ends here.
//!
//! Headers are read from where IP starts, whatever is before it: the device need not carry Ethernet frames.

use egress_common::{Addr, Family, WireU16, counter::NO_POLICY};

use crate::{
    classify,
    counters::Shape,
    locals,
    packet::Packet,
    parse::{Ipv4Header, protocol},
    pods, verdicts,
};

/// What becomes of it.
pub(crate) enum Leaving {
    /// It leaves: nobody let it through as local, or that is what it still is.
    Passed,
    /// It ends here.
    Dropped { policy: u32, shape: Shape },
}

/// Length of an IPv6 header (RFC 8200, 3), and where in it the addresses and other fields lie.
const IPV6_LENGTH: u32 = 40;
const IPV6_PAYLOAD: u32 = 4;
const IPV6_NEXT_HEADER: u32 = 6;
const IPV6_SOURCE: u32 = 8;
const IPV6_DESTINATION: u32 = 24;

/// Decides over a packet that leaves.
#[inline(always)]
pub(crate) fn handle(packet: &Packet<'_>) -> Leaving {
    if packet.mark() & locals::mark() == 0 {
        return Leaving::Passed;
    }
    // Either a socket of the node's made it, which has its own reasons for a mark, or a tunnel did, which forgets where
    // what it carries came from (`skb_scrub_packet`): that was looked at before it went in.
    if packet.received_by() == 0 {
        return Leaving::Passed;
    }
    let mut source = Addr::v4([0; 4]);
    let mut destination = Addr::v4([0; 4]);
    let Some(headers) = addresses(packet, &mut source, &mut destination) else {
        return Leaving::Dropped {
            policy: NO_POLICY,
            shape: Shape::of_frame(packet),
        };
    };
    match refused(packet, headers.family, &source, &destination) {
        None => Leaving::Passed,
        Some(policy) => Leaving::Dropped {
            policy,
            shape: headers.shape(packet),
        },
    }
}

/// What the headers say of the packet's size.
struct Headers {
    family: Family,
    /// Bytes of the IP packet, as its header has it; zero in big TCP's aggregates.
    length: u32,
    /// Bytes of the IP header.
    header: u32,
    protocol: u8,
}

impl Headers {
    /// The shape of the packet: that of an aggregate's segments as far as TCP's and UDP's headers tell it.
    #[inline(always)]
    fn shape(&self, packet: &Packet<'_>) -> Shape {
        let segments = packet.gso_segs().max(1);
        let transport = match self.protocol {
            // The data offset is in words of four bytes (RFC 9293, 3.1).
            protocol::TCP => packet
                .load_from_ip::<u8>(self.header + 12)
                .map_or(20, |offset| u32::from(offset >> 4) * 4),
            protocol::UDP => 8,
            _ => 0,
        };
        let length = if self.length == 0 {
            packet.l3_len()
        } else {
            self.length
        };
        let repeated = u64::from(segments - 1) * u64::from(self.header + transport);
        Shape {
            packets: segments.into(),
            bytes: u64::from(length) + repeated,
            largest: length,
        }
    }
}

/// Reads the addresses of an IP packet; nothing where there is none.
#[inline(always)]
fn addresses(packet: &Packet<'_>, source: &mut Addr, destination: &mut Addr) -> Option<Headers> {
    match packet.load_from_ip::<u8>(0)? >> 4 {
        4 => {
            let header: Ipv4Header = packet.load_from_ip(0)?;
            *source = Addr::v4(header.source);
            *destination = Addr::v4(header.destination);
            Some(Headers {
                family: Family::V4,
                length: header.total_length.get().into(),
                header: u32::from(header.version_ihl & 0x0f) * 4,
                protocol: header.protocol,
            })
        }
        6 => {
            *source = packet.load_from_ip(IPV6_SOURCE)?;
            *destination = packet.load_from_ip(IPV6_DESTINATION)?;
            let payload: WireU16 = packet.load_from_ip(IPV6_PAYLOAD)?;
            let length = match u32::from(payload.get()) {
                0 => 0,
                payload => IPV6_LENGTH + payload,
            };
            Some(Headers {
                family: Family::V6,
                length,
                header: IPV6_LENGTH,
                protocol: packet.load_from_ip(IPV6_NEXT_HEADER)?,
            })
        }
        _ => None,
    }
}

/// The policy that does not let the packet leave as it is, if one does not, or nobody's.
///
/// Its pod is known by the source address, or, once that is translated too, by the interface that it came in by. Where
/// neither is a pod's own (behind a bridge, translated), what is the cluster's for everybody still is.
#[inline(always)]
fn refused(packet: &Packet<'_>, family: Family, source: &Addr, destination: &Addr) -> Option<u32> {
    let slot = match pods::place(source) {
        Some(place) => Some(place.slot),
        None => pods::slot_behind(packet.received_by()),
    };
    let Some(state) = slot.and_then(pods::state) else {
        return (!locals::is_cluster(destination)).then_some(NO_POLICY);
    };
    let class = classify::class(family, destination);
    let number = verdicts::number(state, class);
    let Some(verdict) = number.and_then(|n| verdicts::verdict(verdicts::index(state, n))) else {
        return Some(NO_POLICY);
    };
    (!verdict.is_local()).then_some(verdict.policy)
}
