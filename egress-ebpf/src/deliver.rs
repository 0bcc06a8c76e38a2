//! The way back: straight out of the pod's interface.

use egress_common::{Addr, DropReason, keys::ReplyPath, pod::PodPlace};

use crate::{forward, packet::Packet, parse::Ip, pods};

/// The mark of what we deliver, from the redirect to the egress of the pod's interface, where
/// `egress_to_pod` takes it off: such a packet opens no connection to the pod.
pub(crate) const DELIVERED: u32 = 0x6567_6465;

/// No steered pod's place.
const NOWHERE: PodPlace = PodPlace {
    ifindex: 0,
    slot: 0,
};

/// Where the steered pod with this address is, if there is one.
#[inline(always)]
pub(crate) fn place(pod: &Addr) -> PodPlace {
    pods::place(pod).unwrap_or(NOWHERE)
}

/// Largest IP packet in bytes that the pod takes which is there; any, if there is none.
///
/// Its own side of a veth drops what is larger, and nobody is told.
#[inline(always)]
pub(crate) fn room(place: PodPlace) -> u32 {
    if place == NOWHERE {
        u32::MAX
    } else {
        pods::mtu(place.slot)
    }
}

/// Hands the packet to the pod of a recorded connection.
#[inline(always)]
pub(crate) fn to_pod(packet: &Packet<'_>, ip: &Ip, path: &ReplyPath) -> Result<(), DropReason> {
    lower_ttl(packet, ip)?;
    packet.set_macs(path.pod_mac, path.host_mac)?;
    hand_over(packet, path.ifindex)
}

/// Hands the packet, whose destination is `pod` by now, to the steered pod of this node that has that address, which is
/// at `place`.
///
/// `ip` tells family and TTL; its addresses may be those from before a translation.
///
/// # Errors
/// `PodUnknown` if no such pod is steered here, or it never sent anything; `TtlExceeded`. Nothing is written then.
///
/// A function of its own, for the sake of its callers' stack.
#[inline(never)]
pub(crate) fn to_local_pod(
    packet: &Packet<'_>,
    ip: &Ip,
    pod: &Addr,
    place: &PodPlace,
) -> Result<(), DropReason> {
    if *place == NOWHERE {
        return Err(DropReason::PodUnknown);
    }
    // What the two maps say is written one after the other.
    if !pods::is_at(place.ifindex, *pod) {
        return Err(DropReason::PodUnknown);
    }
    let (pod_mac, host_mac) = pods::macs(place.slot).ok_or(DropReason::PodUnknown)?;
    lower_ttl(packet, ip)?;
    packet.set_mac_words(pod_mac, host_mac)?;
    hand_over(packet, place.ifindex)
}

#[inline(always)]
fn lower_ttl(packet: &Packet<'_>, ip: &Ip) -> Result<(), DropReason> {
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    forward::lower_ttl(packet, ip)
}

#[inline(always)]
fn hand_over(packet: &Packet<'_>, ifindex: u32) -> Result<(), DropReason> {
    packet.set_mark(DELIVERED);
    packet.redirect(ifindex)
}
