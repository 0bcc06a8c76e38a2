//! What becomes of a packet that a pod receives: nothing, but connections that come in are remembered, and
//! so is that flows of the pod's own are in use.

use crate::{
    deliver::DELIVERED,
    inbound,
    packet::{L3, Packet},
    parse::{self, ETH_P_IP, ETH_P_IPV6, Frame, Ip, protocol},
};

/// The start of an IPv4 packet without options, up to TCP's flags.
type Ipv4Start = [u8; 20 + TCP_START];
/// The same of an IPv6 packet without extension headers.
type Ipv6Start = [u8; 40 + TCP_START];
/// A TCP header up to its flags.
const TCP_START: usize = 14;

/// Remembers the connection that the packet opens, if it does, or that the pod's own flow is in use.
#[inline(always)]
pub(crate) fn handle(packet: &Packet<'_>) {
    let delivered = packet.mark() == DELIVERED;
    if delivered {
        packet.set_mark(0);
    }
    if !may_open(packet) {
        return;
    }
    let mut ip = Ip::unread();
    // What does not parse is not for us to judge here, and opens nothing.
    if parse::frame(packet, &mut ip) == Ok(Frame::Ip) {
        if delivered {
            inbound::delivered(packet, &ip);
        } else {
            inbound::arrived(packet, &ip);
        }
    }
}

/// Whether a closer look is worth it: most packets are of TCP connections that are open, and this is all
/// they pay.
#[inline(always)]
fn may_open(packet: &Packet<'_>) -> bool {
    let (protocol, flags) = match packet.ethertype() {
        ETH_P_IP => match packet.load::<Ipv4Start>(L3) {
            // Neither options nor a fragment.
            Some(start) if start[0] == 0x45 && start[6] & 0x3f == 0 && start[7] == 0 => {
                (start[9], start[33])
            }
            _ => return true,
        },
        ETH_P_IPV6 => match packet.load::<Ipv6Start>(L3) {
            Some(start) => (start[6], start[53]),
            None => return true,
        },
        _ => return false,
    };
    match protocol {
        protocol::TCP => inbound::opens(flags),
        protocol::ICMP | protocol::ICMPV6 => false,
        _ => true,
    }
}
