//! Frames to other nodes and from them: the tunnel's addresses, and the tag in the MAC fields.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use egress_common::{
    Addr, DropReason, Family, Mac,
    maps::capacity,
    overlay::{FrameKind, NodeState, Tag},
    pod::{mac_from_word, mac_to_word},
    verdict::Member,
};

use crate::{forward, mss, packet::Packet, parse::Ip, settings, underlay};

/// What every IPv6 link takes (RFC 8200, 5).
const IPV6_MIN_MTU: u32 = 1280;

#[btf_map]
static NODES: HashMap<Addr, u32, { capacity::NODES as usize }> = HashMap::new();

#[btf_map]
static NODE_STATE: Array<NodeState, { capacity::NODES as usize }> = Array::new();

/// Sends a pod's packet to the node of its gateway.
#[inline(always)]
pub(crate) fn send(packet: &Packet<'_>, ip: &Ip, member: &Member) -> Result<(), DropReason> {
    forward::lower_ttl(packet, ip)?;
    mss::clamp(packet, ip, member.mtu)?;
    let kind = FrameKind::Out(member.gateway);
    let (tag, kind) = (word(member.tag), word_of(kind));
    if underlay::send(packet, &member.address, member.mtu, tag, kind)? {
        return Ok(());
    }
    encapsulate(packet, &member.address, tag, kind)?;
    packet.redirect(member.ifindex)
}

/// Sends the packet as it is to the node `index`, as a frame of that kind.
///
/// The caller has lowered its TTL, and seen whether it fits ([`room_to`]).
///
/// # Errors
/// `StateMissing` if there is no such node any more; nothing is written then.
#[inline(always)]
pub(crate) fn send_to(packet: &Packet<'_>, index: u32, kind: FrameKind) -> Result<(), DropReason> {
    send_word_to(packet, index, word_of(kind))
}

/// Sends a copy of the packet to the node `index`, as a frame of that kind.
///
/// # Errors
/// `StateMissing` if there is no such node or no overlay; nothing is written then.
#[inline(always)]
pub(crate) fn send_copy_to(
    packet: &Packet<'_>,
    index: u32,
    kind: FrameKind,
) -> Result<(), DropReason> {
    let node = node(index).ok_or(DropReason::StateMissing)?;
    let settings = settings::get().ok_or(DropReason::StateMissing)?;
    if settings.overlay_ifindex == 0 {
        return Err(DropReason::StateMissing);
    }
    encapsulate(packet, &node.address, word(node.send), word_of(kind))?;
    packet.redirect_copy(settings.overlay_ifindex)
}

/// A function of its own, for the sake of its callers' stack.
#[inline(never)]
fn send_word_to(packet: &Packet<'_>, index: u32, kind: u64) -> Result<(), DropReason> {
    let node = node(index).ok_or(DropReason::StateMissing)?;
    let settings = settings::get().ok_or(DropReason::StateMissing)?;
    if settings.overlay_ifindex == 0 {
        return Err(DropReason::StateMissing);
    }
    let tag = word(node.send);
    if underlay::send(packet, &node.address, node.mtu, tag, kind)? {
        return Ok(());
    }
    encapsulate(packet, &node.address, tag, kind)?;
    packet.redirect(settings.overlay_ifindex)
}

/// What the way to a node takes.
pub(crate) struct Room {
    /// Largest IP packet in bytes that fits a frame.
    pub(crate) mtu: u32,
    /// Whether larger ones arrive too: an IPv4 underlay carries their frames in fragments. Over IPv6 the kernel
    /// cuts no frame, and nobody is told (`Ip6FragFails`).
    pub(crate) is_soft: bool,
}

/// What the way to the node `origin` takes of a family; nothing if there is no such node any more.
#[inline(always)]
pub(crate) fn room_to(origin: u32, family: Family) -> Option<Room> {
    let node = node(origin)?;
    let is_soft = node.address.is_v4();
    // No sender of IPv6 goes below; the link has to see to it (RFC 8200, 5).
    let least = if is_soft && family == Family::V6 {
        IPV6_MIN_MTU
    } else {
        0
    };
    Some(Room {
        mtu: node.mtu.max(least),
        is_soft,
    })
}

#[inline(always)]
fn node(index: u32) -> Option<&'static NodeState> {
    NODE_STATE.get(index).filter(|node| node.send != Tag::ZERO)
}

/// A tag as it is compared and written, like a MAC.
#[inline(always)]
const fn word(tag: Tag) -> u64 {
    mac_to_word(Mac(tag.0))
}

#[inline(always)]
const fn word_of(kind: FrameKind) -> u64 {
    mac_to_word(kind.to_mac())
}

/// Makes a frame of the overlay of the packet.
///
/// A function of its own, for the sake of its callers' stack.
#[inline(never)]
fn encapsulate(packet: &Packet<'_>, to: &Addr, tag: u64, kind: u64) -> Result<(), DropReason> {
    let settings = settings::get().ok_or(DropReason::StateMissing)?;
    packet.set_tunnel(to, settings.vni)?;
    packet.set_mac_words(tag, kind)
}

/// Who sent a frame of the overlay, and what it says that it is.
#[derive(Clone, Copy)]
pub(crate) struct Sender {
    /// The inner frame's source, as `mac_to_word` makes it.
    kind: u64,
    /// Index of the node.
    pub(crate) origin: u32,
}

impl Sender {
    /// What [`sender`] fills in.
    #[inline(always)]
    pub(crate) const fn unread() -> Self {
        Self { kind: 0, origin: 0 }
    }

    /// What the frame is, if it is one of ours.
    #[inline(always)]
    pub(crate) const fn kind(&self) -> Option<FrameKind> {
        FrameKind::from_mac(mac_from_word(self.kind))
    }
}

/// Finds out which node of the cluster has sent the frame, by its tunnel's source and its tag.
///
/// A function of its own, for the sake of its caller's stack.
#[inline(never)]
pub(crate) fn sender(packet: &Packet<'_>, sender: &mut Sender) -> Result<(), DropReason> {
    let settings = settings::get().ok_or(DropReason::StateMissing)?;
    let (vni, remote) = packet.tunnel().ok_or(DropReason::OverlayMalformed)?;
    if vni != settings.vni {
        return Err(DropReason::OverlayMalformed);
    }
    let macs = packet.mac_words().ok_or(DropReason::OverlayMalformed);
    judge(&remote, macs, sender)
}

/// Finds out whether a node of the cluster has that address, and gives its frames that tag. `macs` are the inner frame's,
/// as `mac_to_word` makes them.
#[inline(always)]
pub(crate) fn judge(
    remote: &Addr,
    macs: Result<(u64, u64), DropReason>,
    sender: &mut Sender,
) -> Result<(), DropReason> {
    // SAFETY: a live key's value never changes, and it is copied at once.
    let origin = unsafe { NODES.get(remote) }
        .copied()
        .ok_or(DropReason::OverlayUnknownNode)?;
    let node = NODE_STATE.get(origin).ok_or(DropReason::StateMissing)?;
    let (tag, kind) = macs?;
    // Zero stands for "no second key", too.
    if tag == 0 || (tag != word(node.accept[0]) && tag != word(node.accept[1])) {
        return Err(DropReason::OverlayForged);
    }
    sender.origin = origin;
    sender.kind = kind;
    Ok(())
}
