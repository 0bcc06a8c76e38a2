//! Source NAT: connections of pods under an egress address of this node.
//!
//! First everything is looked up and checked, and what is to be written is noted as an edit; then it is
//! written, after which the packet is sent on or dropped.

mod follow;
mod fragments;
mod icmp;
mod ports;
mod recent;
mod rewrite;
mod route;
mod scratch;
mod sources;
mod state;
mod sweep;
mod upper;

use egress_common::{
    DropReason,
    counter::Answer,
    gateway::{EGRESS_ALLOW_LOCAL, EGRESS_SHARED, Egress, GatewayId},
    overlay::{FrameKind, ORIGIN_HERE, ORIGIN_KERNEL},
};

use self::{
    recent::Recalled,
    scratch::Scratch,
    upper::{Facts, kind},
};
use crate::{
    answer::{self, Speaker, Untold},
    deliver, direct,
    egress::copy,
    forward,
    overlay::{self, Room},
    packet::Packet,
    parse::{Fragment, Ip},
};

pub(crate) use self::sweep::handle as sweep;

/// Says that a pod's packet is to be translated for a gateway, so that what is known of its connection is fetched meanwhile.
#[inline(always)]
pub(crate) fn expect(packet: &Packet<'_>, ip: &Ip, gateway: GatewayId) {
    if let Some(header) = direct::at::<4>(packet, ip.l4) {
        recent::expect(ip, header.word::<0>(), gateway);
    }
}

/// Translates a pod's packet, lowers its TTL and sends it out of the uplink.
///
/// The caller has checked that it may live for another hop and fits the uplink. `index` is that of the egress address, and
/// `origin` the node that the pod is on.
#[inline(never)]
pub(crate) fn out(
    packet: &Packet<'_>,
    ip: &Ip,
    egress: &Egress,
    index: u32,
    origin: u32,
) -> Result<(), DropReason> {
    let s = scratch::take(ip)?;
    let is_error = match recall_out(packet, s, egress, index, origin) {
        Recalled::All => false,
        Recalled::Port => {
            route::find(packet, s, egress)?;
            recent::renew(s);
            false
        }
        Recalled::Nothing => {
            route::find(packet, s, egress)?;
            prepare_out(packet, s, egress, index, origin)?
        }
    };
    forward::lower_ttl(packet, &s.ip)?;
    if is_error {
        icmp::write_quote(packet, s)?;
    }
    rewrite::write(packet, s.ip.family, &s.edit)?;
    route::send(packet, s, egress.ifindex)
}

/// Fills `s.edit` and `s.next_hop` in as they were for another packet of the connection a moment ago, as far as that is known.
#[inline(always)]
fn recall_out(
    packet: &Packet<'_>,
    s: &mut Scratch,
    egress: &Egress,
    index: u32,
    origin: u32,
) -> Recalled {
    // There is no such header in a later fragment; what is no connection's packet, the long way tells.
    if matches!(s.ip.fragment, Fragment::Later(_)) || read_upper(packet, s).is_err() {
        return Recalled::Nothing;
    }
    let recalled = recent::recall(s, egress, index, origin);
    if recalled != Recalled::Nothing {
        begin_edit_out(s, egress);
        set_upper_edit_out(s);
    }
    recalled
}

/// The edit of a pod's packet, without a port.
#[inline(always)]
fn begin_edit_out(s: &mut Scratch, egress: &Egress) {
    copy(&mut s.edit.old, &s.ip.source);
    copy(&mut s.edit.new, &egress.address);
    s.edit.address_at = rewrite::source_at(s.ip.family);
    s.edit.port_at = 0;
    s.edit.checksum_at = 0;
}

/// What the header above IP adds to it, of a packet of a connection.
#[inline(always)]
fn set_upper_edit_out(s: &mut Scratch) {
    s.edit.checksum_at = s.upper.checksum_at;
    s.edit.checksum = s.upper.checksum;
    s.edit.port_at = s.upper.source_at;
    s.edit.old_port = s.upper.source_port;
    s.edit.new_port = s.out.egress_port;
}

/// Fills `s.edit` in, and for an ICMP error, which it tells, `s.quoted_edit`.
#[inline(always)]
fn prepare_out(
    packet: &Packet<'_>,
    s: &mut Scratch,
    egress: &Egress,
    index: u32,
    origin: u32,
) -> Result<bool, DropReason> {
    begin_edit_out(s, egress);
    if s.ip.is_authenticated {
        return Err(DropReason::NatUnsupported);
    }
    if let Fragment::Later(id) = s.ip.fragment {
        // The gateway's address may have changed since the first one left.
        let known = fragments::recall(s, id)
            && s.fragment.origin == fragments::OUTWARD
            && crate::egress::same(&s.fragment.address, &egress.address);
        return if known {
            Ok(false)
        } else {
            Err(DropReason::FragmentUnknown)
        };
    }
    read_upper(packet, s)?;
    s.edit.checksum_at = s.upper.checksum_at;
    s.edit.checksum = s.upper.checksum;
    let is_error = match s.upper.kind {
        kind::PORTS | kind::ADDRESSES | kind::ECHO_REQUEST => {
            if state::outward(s, egress, origin) {
                recent::note(s, index, origin);
            } else {
                make(s, egress, origin)?;
            }
            set_upper_edit_out(s);
            false
        }
        kind::ICMP_ERROR => {
            if !icmp::read_quote(packet, s) {
                return Err(DropReason::NatNoState);
            }
            icmp::outward(s, egress)?;
            true
        }
        kind::ECHO_REPLY => return Err(DropReason::NatNoState),
        _ => return Err(DropReason::NatUnsupported),
    };
    if let Fragment::First(id) = s.ip.fragment {
        s.fragment.address = egress.address;
        s.fragment.origin = fragments::OUTWARD;
        fragments::remember(s, id);
    }
    Ok(is_error)
}

/// Makes the connection of a pod's packet, step by step: one within the other, they would not fit the stack.
#[inline(always)]
fn make(s: &mut Scratch, egress: &Egress, origin: u32) -> Result<(), DropReason> {
    state::open(s, egress, origin)?;
    if s.upper.kind == kind::ADDRESSES {
        ports::claim_remote(s)?;
    } else {
        ports::claim_port(s, egress)?;
    }
    state::complete(s)
}

/// What becomes of a packet to an egress address.
pub(crate) enum Homeward {
    /// Translated back, and on its way to the pod.
    Redirected,
    /// The kernel's, although the address is ours.
    Kernel,
    /// It ends here, and the outside is told.
    Answered(DropReason, Answer),
    /// It ends here.
    Dropped(DropReason),
}

/// Translates a packet to an egress address back, and sends it to its pod.
///
/// `largest` is the length of the largest packet that it is on the wire.
#[inline(never)]
pub(crate) fn back(packet: &Packet<'_>, ip: &Ip, egress: &Egress, largest: u32) -> Homeward {
    let s = match scratch::take(ip) {
        Ok(s) => s,
        Err(reason) => return Homeward::Dropped(reason),
    };
    let is_error = match prepare_back(packet, s, egress) {
        Prepared::Reply => false,
        Prepared::Error => true,
        Prepared::Kernel => return Homeward::Kernel,
        Prepared::Dropped(reason) => return Homeward::Dropped(reason),
    };
    // What is the kernel's keeps its tag.
    if let Err(reason) = packet.untag() {
        return Homeward::Dropped(reason);
    }
    if let Some(refusal) = refusal(s, largest) {
        match told(packet, s, &refusal) {
            Ok(answer) => return Homeward::Answered(refusal.reason, answer),
            // Better in pieces than not at all.
            Err(Untold::Intact) if refusal.is_soft => {}
            Err(_) => return Homeward::Dropped(refusal.reason),
        }
    }
    match send_back(packet, s, egress, is_error) {
        Ok(()) => Homeward::Redirected,
        Err(reason) => Homeward::Dropped(reason),
    }
}

/// What is to become of a packet to an egress address that does not parse.
#[inline(always)]
pub(crate) fn unreadable(egress: &Egress, reason: DropReason) -> Homeward {
    if egress.flags & (EGRESS_ALLOW_LOCAL | EGRESS_SHARED) == 0 {
        Homeward::Dropped(reason)
    } else {
        Homeward::Kernel
    }
}

/// Why a reply should go no further.
struct Refusal {
    reason: DropReason,
    /// What would fit, in bytes of IP.
    mtu: u32,
    /// It may go on all the same, if there is nobody to tell.
    is_soft: bool,
}

/// Whether the packet may not live for another hop, or its pod's node is gone, or it does not fit the way there.
#[inline(always)]
fn refusal(s: &mut Scratch, largest: u32) -> Option<Refusal> {
    if s.ip.ttl <= 1 {
        return Some(Refusal {
            reason: DropReason::TtlExceeded,
            mtu: 0,
            is_soft: false,
        });
    }
    let room = if s.back.origin == ORIGIN_HERE {
        s.place = deliver::place(&s.edit.new);
        Some(Room {
            mtu: deliver::room(s.place),
            is_soft: false,
        })
    } else {
        overlay::room_to(s.back.origin, s.ip.family)
    };
    let Some(room) = room else {
        return Some(Refusal {
            reason: DropReason::StateMissing,
            mtu: 0,
            is_soft: false,
        });
    };
    (largest > room.mtu).then_some(Refusal {
        reason: DropReason::TooBig,
        mtu: room.mtu,
        is_soft: room.is_soft,
    })
}

/// Tells who sent the packet, in the name of the egress address.
#[inline(always)]
fn told(packet: &Packet<'_>, s: &Scratch, refusal: &Refusal) -> Result<Answer, Untold> {
    let speaker = Speaker::Destination;
    let answer = answer::write(packet, &s.ip, refusal.reason, refusal.mtu, speaker)?;
    packet
        .redirect(packet.ifindex())
        .map_err(|_| Untold::Spoilt)?;
    Ok(answer)
}

/// The caller has seen to it that the packet may live for another hop.
#[inline(always)]
fn send_back(
    packet: &Packet<'_>,
    s: &mut Scratch,
    egress: &Egress,
    is_error: bool,
) -> Result<(), DropReason> {
    if is_error {
        icmp::write_quote(packet, s)?;
    }
    rewrite::write(packet, s.ip.family, &s.edit)?;
    if s.back.origin == ORIGIN_HERE {
        return deliver::to_local_pod(packet, &s.ip, &s.edit.new, &s.place);
    }
    forward::lower_ttl(packet, &s.ip)?;
    overlay::send_to(packet, s.back.origin, FrameKind::Back(egress.gateway))
}

/// What was found out about a packet to an egress address.
enum Prepared {
    /// `s.edit` says what it becomes.
    Reply,
    /// So do `s.edit` and `s.quoted_edit`.
    Error,
    Kernel,
    Dropped(DropReason),
}

#[inline(always)]
fn prepare_back(packet: &Packet<'_>, s: &mut Scratch, egress: &Egress) -> Prepared {
    if let Fragment::Later(id) = s.ip.fragment {
        return prepare_later(s, egress, id);
    }
    if let Err(reason) = read_upper(packet, s) {
        return or_kernel(egress, false, reason);
    }
    let is_error = match s.upper.kind {
        kind::PORTS | kind::ADDRESSES | kind::ECHO_REPLY => {
            set_back_key(s);
            false
        }
        kind::ICMP_ERROR => {
            if !icmp::read_quote(packet, s) || !icmp::quotes_egress(s) {
                return or_kernel(egress, false, DropReason::NatNoState);
            }
            true
        }
        // The kernel answers for the address.
        kind::ECHO_REQUEST | kind::NEIGHBOUR => return left_to_kernel(s),
        _ => return or_kernel(egress, false, DropReason::NatNoState),
    };
    if s.ip.is_authenticated || !state::homeward(s, is_error) {
        return match unclaimed(s, egress, is_error) {
            Prepared::Kernel => left_to_kernel(s),
            prepared @ (Prepared::Reply | Prepared::Error | Prepared::Dropped(_)) => prepared,
        };
    }
    if s.back.origin == ORIGIN_KERNEL {
        return left_to_kernel(s);
    }
    if let Fragment::First(id) = s.ip.fragment {
        s.fragment.address = s.back.pod;
        s.fragment.origin = s.back.origin;
        fragments::remember(s, id);
    }
    s.edit.new = s.back.pod;
    set_edit_back(s);
    s.edit.checksum_at = s.upper.checksum_at;
    s.edit.checksum = s.upper.checksum;
    if is_error {
        icmp::homeward(s);
        return Prepared::Error;
    }
    s.edit.port_at = s.upper.destination_at;
    s.edit.old_port = s.back_key.egress_port;
    s.edit.new_port = s.back.pod_port;
    Prepared::Reply
}

/// A later fragment goes where its first went.
#[inline(always)]
fn prepare_later(s: &mut Scratch, egress: &Egress, id: u32) -> Prepared {
    if !fragments::recall(s, id) || s.fragment.origin == fragments::OUTWARD {
        return or_kernel(egress, false, DropReason::FragmentUnknown);
    }
    if s.fragment.origin == fragments::KERNEL {
        return Prepared::Kernel;
    }
    s.back.origin = s.fragment.origin;
    s.edit.new = s.fragment.address;
    set_edit_back(s);
    Prepared::Reply
}

/// The packet, and the fragments that follow it, are the kernel's.
#[inline(always)]
fn left_to_kernel(s: &mut Scratch) -> Prepared {
    if let Fragment::First(id) = s.ip.fragment {
        s.fragment.address = s.ip.destination;
        s.fragment.origin = fragments::KERNEL;
        fragments::remember(s, id);
    }
    Prepared::Kernel
}

/// What belongs to no connection.
#[inline(always)]
fn unclaimed(s: &Scratch, egress: &Egress, is_error: bool) -> Prepared {
    let upper = if is_error { &s.quote.upper } else { &s.upper };
    let port = s.back_key.egress_port.get();
    // The kernel chooses the identifiers of the node's own pings anywhere, and ignores answers to nothing.
    let in_range = upper.kind != kind::ADDRESSES
        && (is_error || upper.kind != kind::ECHO_REPLY)
        && port >= egress.first_port
        && port <= egress.last_port;
    or_kernel(egress, in_range, DropReason::NatNoState)
}

/// Drops what is nobody's, unless the address is the kernel's too.
#[inline(always)]
fn or_kernel(egress: &Egress, in_range: bool, reason: DropReason) -> Prepared {
    if egress.flags & EGRESS_ALLOW_LOCAL != 0 || egress.flags & EGRESS_SHARED != 0 && !in_range {
        Prepared::Kernel
    } else {
        Prepared::Dropped(reason)
    }
}

/// The edit of a packet to an egress address, without a port.
#[inline(always)]
fn set_edit_back(s: &mut Scratch) {
    s.edit.old = s.ip.destination;
    s.edit.address_at = rewrite::destination_at(s.ip.family);
    s.edit.port_at = 0;
    s.edit.checksum_at = 0;
}

#[inline(always)]
fn set_back_key(s: &mut Scratch) {
    // An echo's identifier stands for the egress port, and the remote has none.
    let (egress_port, remote_port) = if s.upper.kind == kind::ECHO_REPLY {
        (s.upper.source_port, s.upper.destination_port)
    } else {
        (s.upper.destination_port, s.upper.source_port)
    };
    s.back_key.egress = s.ip.destination;
    s.back_key.remote = s.ip.source;
    s.back_key.egress_port = egress_port;
    s.back_key.remote_port = remote_port;
    s.back_key.protocol = s.ip.protocol;
}

#[inline(always)]
fn read_upper(packet: &Packet<'_>, s: &mut Scratch) -> Result<(), DropReason> {
    let facts = Facts::new(s.ip.family, s.ip.protocol, false);
    let (l4, end) = (s.ip.l4, s.ip.end());
    upper::read(packet, &mut s.upper, facts, l4, end)
}
