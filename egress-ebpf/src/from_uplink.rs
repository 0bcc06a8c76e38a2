//! What becomes of a packet that arrives on an uplink.

use egress_common::{Addr, DropReason, counter::Answer, gateway::Egress};

use crate::{
    counters::Shape,
    egress,
    nat::{self, Homeward},
    packet::Packet,
    parse::{self, Frame, Ip},
};

/// What becomes of it.
pub(crate) enum Return {
    /// Not for an egress address, or the kernel's all the same.
    NotOurs,
    /// Translated back, and on its way to the pod.
    Redirected { gateway: u32, shape: Shape },
    /// It ends here, and who sent it is told.
    Answered {
        gateway: u32,
        reason: DropReason,
        answer: Answer,
        shape: Shape,
    },
    /// It ends here.
    Dropped {
        gateway: u32,
        reason: DropReason,
        shape: Shape,
    },
}

/// Decides over a packet from the outside.
#[inline(always)]
pub(crate) fn handle(packet: &Packet<'_>) -> Return {
    let is_received = packet.is_for_this_host() || packet.is_for_many();
    if !is_received || packet.is_of_vlan() {
        return Return::NotOurs;
    }
    let Some(egress) = addressed(packet) else {
        return Return::NotOurs;
    };
    let mut ip = Ip::unread();
    let (became, shape) = match read(packet, &mut ip) {
        Ok(Frame::Ip) => {
            let shape = Shape::of(packet, &ip);
            (nat::back(packet, &ip, egress, shape.largest), shape)
        }
        Ok(Frame::Arp) => return Return::NotOurs,
        Err(reason) => (nat::unreadable(egress, reason), Shape::of_frame(packet)),
    };
    let gateway = egress.counter;
    match became {
        Homeward::Redirected => Return::Redirected { gateway, shape },
        Homeward::Kernel => Return::NotOurs,
        Homeward::Answered(reason, answer) => Return::Answered {
            gateway,
            reason,
            answer,
            shape,
        },
        Homeward::Dropped(reason) => Return::Dropped {
            gateway,
            reason,
            shape,
        },
    }
}

/// Reads a packet to an egress address.
#[inline(always)]
fn read(packet: &Packet<'_>, ip: &mut Ip) -> Result<Frame, DropReason> {
    // Sent to one address of IP, but to many on the link: the kernel would hand it to whoever has its port.
    if packet.is_for_many() {
        return Err(DropReason::NatNoState);
    }
    parse::frame_beside_tag(packet, ip)
}

/// The egress address that a packet is for: all that the many packets for others cost.
#[inline(always)]
fn addressed(packet: &Packet<'_>) -> Option<&'static Egress> {
    let mut destination = Addr::v4([0; 4]);
    if !parse::destination(packet, &mut destination) {
        return None;
    }
    egress::by_address(&destination)
}
