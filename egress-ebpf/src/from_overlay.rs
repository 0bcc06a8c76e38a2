//! What becomes of a frame that arrives on the overlay.

use egress_common::{
    DropReason,
    counter::Answer,
    gateway::{Egress, GatewayId},
    overlay::FrameKind,
};

use crate::{
    answer::{self, Speaker},
    counters::Shape,
    deliver, egress, forward, nat,
    overlay::{self, Sender},
    packet::Packet,
    parse::{self, Frame, Ip},
    probe,
};

/// What becomes of it.
pub(crate) enum Emergence {
    /// Translated, and out of the uplink.
    Translated { gateway: u32, shape: Shape },
    /// On its way to a pod of this node.
    Delivered,
    /// A probe of a gateway that is in order: its answer, on its way back.
    Vouched,
    /// A probe that gets no answer, or the answer to one: no packet of anybody's, and so not counted.
    Noted,
    /// It ends here, and the pod is told.
    Answered {
        gateway: u32,
        reason: DropReason,
        answer: Answer,
        shape: Shape,
    },
    /// It ends here, and the far end is told.
    Returned {
        reason: DropReason,
        answer: Answer,
        shape: Shape,
    },
    /// A gateway of this node does not take it.
    Refused {
        gateway: u32,
        reason: DropReason,
        shape: Shape,
    },
    /// It ends here.
    Dropped { reason: DropReason, shape: Shape },
}

/// Decides over a frame from the overlay: nothing of it ever goes to the kernel.
///
/// What no node of the cluster has sent is not even parsed: a flood of it costs two look-ups a packet.
#[inline(always)]
pub(crate) fn handle(packet: &Packet<'_>) -> Emergence {
    let mut sender = Sender::unread();
    let Some(ip) = parse::place() else {
        return Emergence::Dropped {
            reason: DropReason::StateMissing,
            shape: Shape::of_frame(packet),
        };
    };
    match open(packet, &mut sender, ip) {
        Ok(FrameKind::Out(gateway)) => out(packet, ip, gateway, sender.origin),
        Ok(FrameKind::Back(gateway)) => back(packet, ip, gateway, sender.origin),
        Ok(FrameKind::Probe(gateway)) => {
            if probe::answer(packet, gateway, sender.origin) {
                Emergence::Vouched
            } else {
                Emergence::Noted
            }
        }
        Ok(FrameKind::ProbeReply(gateway)) => {
            probe::note(packet, gateway, sender.origin);
            Emergence::Noted
        }
        // Nodes ask one that starts, too: nothing is lost by that, and nothing is wrong.
        Err(DropReason::OverlayMalformed | DropReason::OverlayUnknownNode)
            if probe::is_one(packet) =>
        {
            Emergence::Noted
        }
        Err(reason) => Emergence::Dropped {
            reason,
            shape: Shape::of_frame(packet),
        },
    }
}

/// Whose frame it is, what kind of frame, and which packet is in it.
#[inline(always)]
fn open(packet: &Packet<'_>, sender: &mut Sender, ip: &mut Ip) -> Result<FrameKind, DropReason> {
    overlay::sender(packet, sender)?;
    let kind = sender.kind().ok_or(DropReason::OverlayMalformed)?;
    if let FrameKind::Probe(_) | FrameKind::ProbeReply(_) = kind {
        return Ok(kind);
    }
    // Its MAC is nobody's, and the kernel sends on only what was for this host.
    packet.claim()?;
    read(packet, ip)?;
    Ok(kind)
}

/// Reads the packet in a frame.
#[inline(always)]
pub(crate) fn read(packet: &Packet<'_>, ip: &mut Ip) -> Result<(), DropReason> {
    match parse::frame(packet, ip) {
        Ok(Frame::Ip) => Ok(()),
        // No node of ours sends these.
        Ok(Frame::Arp) | Err(DropReason::NotPlainIp) => Err(DropReason::OverlayMalformed),
        Err(reason) => Err(reason),
    }
}

/// Sends a pod's packet out under the address of one of this node's gateways.
#[inline(always)]
fn out(packet: &Packet<'_>, ip: &Ip, gateway: GatewayId, origin: u32) -> Emergence {
    nat::expect(packet, ip, gateway);
    let shape = Shape::of(packet, ip);
    let Some((index, egress)) = egress::by_id(gateway, ip.family) else {
        return Emergence::Dropped {
            reason: DropReason::OverlayUnknownGateway,
            shape,
        };
    };
    if let Err(reason) = forward::fits(ip, shape, egress.mtu) {
        return answered(packet, ip, egress, origin, reason, shape);
    }
    match nat::out(packet, ip, egress, index, origin) {
        Ok(()) => Emergence::Translated {
            gateway: egress.counter,
            shape,
        },
        Err(reason) => Emergence::Refused {
            gateway: egress.counter,
            reason,
            shape,
        },
    }
}

/// Gives a packet that came back from a gateway to its pod.
#[inline(always)]
fn back(packet: &Packet<'_>, ip: &Ip, gateway: GatewayId, origin: u32) -> Emergence {
    let shape = Shape::of(packet, ip);
    let place = deliver::place(&ip.destination);
    let mtu = deliver::room(place);
    let delivered = forward::fits(ip, shape, mtu)
        .and_then(|()| deliver::to_local_pod(packet, ip, &ip.destination, &place));
    let Err(reason) = delivered else {
        return Emergence::Delivered;
    };
    // The far end knows the pod as the gateway's address: the way there is through the gateway.
    let Ok(answer) = answer::write(packet, ip, reason, mtu, Speaker::Destination) else {
        return Emergence::Dropped { reason, shape };
    };
    match overlay::send_to(packet, origin, FrameKind::Out(gateway)) {
        Ok(()) => Emergence::Returned {
            reason,
            answer,
            shape,
        },
        Err(reason) => Emergence::Dropped { reason, shape },
    }
}

/// Tells the pod, if it is to be told, why its packet goes no further.
#[inline(always)]
fn answered(
    packet: &Packet<'_>,
    ip: &Ip,
    egress: &Egress,
    origin: u32,
    reason: DropReason,
    shape: Shape,
) -> Emergence {
    let gateway = egress.counter;
    if let Ok(answer) = answer::write(packet, ip, reason, egress.mtu, Speaker::Node) {
        let kind = FrameKind::Back(egress.gateway);
        return match overlay::send_to(packet, origin, kind) {
            Ok(()) => Emergence::Answered {
                gateway,
                reason,
                answer,
                shape,
            },
            Err(reason) => Emergence::Refused {
                gateway,
                reason,
                shape,
            },
        };
    }
    Emergence::Refused {
        gateway,
        reason,
        shape,
    }
}
