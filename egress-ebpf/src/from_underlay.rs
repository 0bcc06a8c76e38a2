//! What becomes of a frame that arrives where other nodes are, before the kernel's stack has it.

use egress_common::{DropReason, gateway::GatewayId, overlay::FrameKind};

use crate::{
    counters::Shape,
    deliver, egress,
    from_overlay::{self, Emergence},
    nat,
    overlay::Sender,
    packet::Packet,
    parse::{self, Ip},
    underlay::{self, Inner},
};

/// Decides over a plain frame of the overlay as if the overlay device had brought it; nothing of all else, which is the
/// kernel's, and the device's once the kernel has looked at it.
///
/// So is what its sender is to be told about: until 2025 kernels shorten no packet out of a frame that was made on the
/// same machine by [`underlay::send`], since they take its outer headers for longer than it is (`__bpf_skb_min_len`).
#[inline(always)]
pub(crate) fn handle(packet: &Packet<'_>) -> Option<Emergence> {
    let mut sender = Sender::unread();
    if !underlay::recognise(packet, &mut sender) {
        return None;
    }
    let mut inner = Inner::unread();
    match sender.kind()? {
        FrameKind::Out(gateway) if underlay::look(packet, &mut inner) => {
            out(packet, &inner, gateway, sender.origin)
        }
        FrameKind::Back(_) if underlay::look(packet, &mut inner) => back(packet, &inner),
        FrameKind::Out(_) | FrameKind::Back(_) | FrameKind::Probe(_) | FrameKind::ProbeReply(_) => {
            None
        }
    }
}

/// Sends a pod's packet out under the address of one of this node's gateways.
#[inline(always)]
fn out(packet: &Packet<'_>, inner: &Inner, gateway: GatewayId, origin: u32) -> Option<Emergence> {
    let (index, egress) = egress::by_id(gateway, inner.family())?;
    if !inner.fits(egress.mtu) {
        return None;
    }
    let ip = match take_out(packet)? {
        Ok(ip) => ip,
        Err(reason) => return Some(lost(packet, reason)),
    };
    nat::expect(packet, ip, gateway);
    let shape = Shape::of(packet, ip);
    let gateway = egress.counter;
    Some(match nat::out(packet, ip, egress, index, origin) {
        Ok(()) => Emergence::Translated { gateway, shape },
        Err(reason) => Emergence::Refused {
            gateway,
            reason,
            shape,
        },
    })
}

/// Gives a packet that came back from a gateway to its pod.
#[inline(always)]
fn back(packet: &Packet<'_>, inner: &Inner) -> Option<Emergence> {
    let place = deliver::place(inner.destination());
    if !inner.fits(deliver::room(place)) {
        return None;
    }
    let ip = match take_out(packet)? {
        Ok(ip) => ip,
        Err(reason) => return Some(lost(packet, reason)),
    };
    let shape = Shape::of(packet, ip);
    Some(
        match deliver::to_local_pod(packet, ip, &ip.destination, &place) {
            Ok(()) => Emergence::Delivered,
            Err(reason) => Emergence::Dropped { reason, shape },
        },
    )
}

/// Takes the packet out of its frame and reads it; nothing if it has to stay there.
#[inline(always)]
fn take_out(packet: &Packet<'_>) -> Option<Result<&'static Ip, DropReason>> {
    match underlay::unpack(packet) {
        Ok(false) => return None,
        Ok(true) => {}
        Err(reason) => return Some(Err(reason)),
    }
    let Some(ip) = parse::place() else {
        return Some(Err(DropReason::StateMissing));
    };
    Some(from_overlay::read(packet, ip).map(|()| &*ip))
}

#[inline(always)]
fn lost(packet: &Packet<'_>, reason: DropReason) -> Emergence {
    Emergence::Dropped {
        reason,
        shape: Shape::of_frame(packet),
    }
}
