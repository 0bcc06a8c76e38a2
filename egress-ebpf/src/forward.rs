//! The way out: validate everything, then lower the TTL and redirect.

use egress_common::{
    DropReason, Family,
    counter::Direction,
    overlay::ORIGIN_HERE,
    verdict::{Member, Replies, Way},
};

use crate::{
    counters::{self, Shape},
    egress, nat, overlay,
    packet::Packet,
    parse::Ip,
    pods, replies,
};

/// Sends the packet of the pod in `slot` through a member.
///
/// After the first write the only ways on are the redirect and a drop.
#[inline(always)]
pub(crate) fn send(
    packet: &Packet<'_>,
    ip: &Ip,
    member: &Member,
    slot: u32,
    shape: Shape,
) -> Result<(), DropReason> {
    if member.way() == Some(Way::Here) {
        return here(packet, ip, member, slot, shape);
    }
    fits(ip, shape, member.mtu)?;
    // The kernel would drop it after we had counted it as sent (RFC 1122, 3.3.6 forbids such frames).
    if packet.is_for_many() {
        return Err(DropReason::RedirectFailed);
    }
    match member.way() {
        Some(Way::NextHop) => to_next_hop(packet, ip, member),
        Some(Way::Overlay) => {
            pods::learn(packet, slot)?;
            overlay::send(packet, ip, member)
        }
        Some(Way::Here) | None => Err(DropReason::StateMissing),
    }
}

/// Translates the packet to an egress address of this node, and counts what became of it for the gateway.
#[inline(always)]
fn here(
    packet: &Packet<'_>,
    ip: &Ip,
    member: &Member,
    slot: u32,
    shape: Shape,
) -> Result<(), DropReason> {
    let (index, egress) =
        egress::by_id(member.gateway, ip.family).ok_or(DropReason::StateMissing)?;
    let sent = fits(ip, shape, member.mtu).and_then(|()| {
        if packet.is_for_many() {
            return Err(DropReason::RedirectFailed);
        }
        pods::learn(packet, slot)?;
        nat::out(packet, ip, egress, index, ORIGIN_HERE)
    });
    match sent {
        Ok(()) => counters::translated(egress.counter, Direction::Out, shape),
        Err(reason) => counters::gateway_dropped(egress.counter, reason, shape),
    }
    sent
}

#[inline(always)]
fn to_next_hop(packet: &Packet<'_>, ip: &Ip, member: &Member) -> Result<(), DropReason> {
    match member.replies() {
        Replies::Recorded => replies::record(packet, ip, member.ifindex)?,
        Replies::Kernel => {}
    }
    lower_ttl(packet, ip)?;
    packet.redirect_to_neighbour(member.ifindex, &member.address)
}

/// Whether the packet may live for another hop, and fits it.
///
/// # Errors
/// `TtlExceeded` or `TooBig`, which the sender may be told.
#[inline(always)]
pub(crate) fn fits(ip: &Ip, shape: Shape, mtu: u32) -> Result<(), DropReason> {
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    if shape.largest > mtu {
        return Err(DropReason::TooBig);
    }
    Ok(())
}

/// Lowers the TTL or hop limit by one.
#[inline(always)]
pub(crate) fn lower_ttl(packet: &Packet<'_>, ip: &Ip) -> Result<(), DropReason> {
    match ip.family {
        Family::V4 => packet.lower_ttl(),
        Family::V6 => packet.lower_hop_limit(),
    }
}
