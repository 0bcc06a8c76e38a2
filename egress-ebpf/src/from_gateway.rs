//! What becomes of a packet that arrives where a gateway is: replies of recorded connections go to their pod.

use egress_common::{DropReason, Mac, counter::Answer, keys::ReplyPath};

use crate::{
    answer::{self, Speaker},
    counters::Shape,
    deliver, forward, fragments,
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
    /// A reply that cannot be delivered, which its sender is told.
    Answered {
        reason: DropReason,
        answer: Answer,
        shape: Shape,
    },
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
    let mut path = ReplyPath {
        ifindex: 0,
        pod_mac: Mac([0; 6]),
        host_mac: Mac([0; 6]),
        via: 0,
    };
    if !find(packet, &ip, &mut path) {
        return Arrival::NotOurs;
    }
    // Neither another gateway's neighbours nor a record that outlived its pod reach into a pod.
    let pod = pods::slot_at(path.ifindex, ip.destination).filter(|_| path.via == packet.ifindex());
    let Some(slot) = pod else {
        return Arrival::NotOurs;
    };
    let shape = Shape::of(packet, &ip);
    let mtu = pods::mtu(slot);
    let delivered = forward::fits(&ip, shape, mtu)
        .and_then(|()| packet.untag())
        .and_then(|()| deliver::to_pod(packet, &ip, &path));
    match delivered {
        Ok(()) => Arrival::Redirected,
        Err(reason) => refused(packet, &ip, reason, mtu, shape),
    }
}

/// Tells the sender, through the gateway that the packet came from, if it is to be told.
#[inline(always)]
fn refused(packet: &Packet<'_>, ip: &Ip, reason: DropReason, mtu: u32, shape: Shape) -> Arrival {
    if let Ok(answer) = answer::write(packet, ip, reason, mtu, Speaker::Node)
        && packet.redirect(packet.ifindex()).is_ok()
    {
        return Arrival::Answered {
            reason,
            answer,
            shape,
        };
    }
    Arrival::Dropped { reason, shape }
}

/// Fills in where the packet goes, and says whether that is known.
#[inline(always)]
fn find(packet: &Packet<'_>, ip: &Ip, path: &mut ReplyPath) -> bool {
    if let Fragment::Later(id) = ip.fragment {
        return fragments::recall_path(ip, id, path);
    }
    if !replies::find(packet, ip, path) {
        return false;
    }
    if let Fragment::First(id) = ip.fragment {
        fragments::remember_path(ip, id, path);
    }
    true
}
