//! What becomes of a packet that arrives where a gateway is: replies of recorded connections go to their pod.

use egress_common::{DropReason, keys::ReplyPath};

use crate::{
    counters::Shape,
    deliver, fragments,
    packet::Packet,
    parse::{self, Fragment, Frame, Ip},
    pods, replies,
};

/// What becomes of it.
pub(crate) enum Arrival {
    /// No reply that we know of: the kernel's business.
    NotOurs,
    /// On its way to the pod.
    Redirected,
    /// A reply that cannot be delivered.
    Dropped { reason: DropReason, shape: Shape },
}

/// Delivers the packet if it is a reply of a recorded connection.
#[inline(always)]
pub(crate) fn handle(packet: &Packet<'_>) -> Arrival {
    if !packet.is_for_this_host() || packet.is_of_vlan() {
        return Arrival::NotOurs;
    }
    // What does not parse here is a stranger's packet on a shared interface: the kernel judges it.
    let mut ip = Ip::unread();
    if parse::frame_beside_tag(packet, &mut ip) != Ok(Frame::Ip) {
        return Arrival::NotOurs;
    }
    let Some(path) = path(packet, &ip) else {
        return Arrival::NotOurs;
    };
    // Neither another gateway's neighbours nor a record that outlived its pod reach into a pod.
    if path.via != packet.ifindex() || !pods::is_at(path.ifindex, ip.destination) {
        return Arrival::NotOurs;
    }
    match packet
        .untag()
        .and_then(|()| deliver::to_pod(packet, &ip, &path))
    {
        Ok(()) => Arrival::Redirected,
        Err(reason) => Arrival::Dropped {
            reason,
            shape: Shape::of(packet, &ip),
        },
    }
}

#[inline(always)]
fn path(packet: &Packet<'_>, ip: &Ip) -> Option<ReplyPath> {
    if let Fragment::Later(id) = ip.fragment {
        return fragments::path(ip, id);
    }
    let path = replies::find(packet, ip)?;
    if let Fragment::First(id) = ip.fragment {
        fragments::remember_path(ip, id, &path);
    }
    Some(path)
}
