//! Frames to other nodes and from them: the tunnel's addresses, and the tag in the MAC fields.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use egress_common::{
    Addr, DropReason, Mac,
    maps::capacity,
    overlay::{FrameKind, NodeState, Tag},
    verdict::Member,
};

use crate::{forward, mss, packet::Packet, parse::Ip, settings};

#[btf_map]
static NODES: HashMap<Addr, u32, { capacity::NODES as usize }> = HashMap::new();

#[btf_map]
static NODE_STATE: Array<NodeState, { capacity::NODES as usize }> = Array::new();

/// Sends a pod's packet to the node of its gateway.
#[inline(always)]
pub(crate) fn send(packet: &Packet<'_>, ip: &Ip, member: &Member) -> Result<(), DropReason> {
    forward::lower_ttl(packet, ip)?;
    mss::clamp(packet, ip, member.mtu)?;
    let source = FrameKind::Out(member.gateway).to_mac();
    encapsulate(packet, &member.address, &[Mac(member.tag.0), source])?;
    packet.redirect(member.ifindex)
}

/// Sends the packet as it is to the node `origin`, for the pod that it is addressed to.
///
/// The caller has lowered its TTL, and seen that it fits ([`mtu_to`]).
///
/// # Errors
/// `StateMissing` if there is no such node any more; nothing is written then.
///
/// A function of its own, for the sake of its callers' stack.
#[inline(never)]
pub(crate) fn back(packet: &Packet<'_>, origin: u32) -> Result<(), DropReason> {
    let node = node(origin).ok_or(DropReason::StateMissing)?;
    let settings = settings::get().ok_or(DropReason::StateMissing)?;
    if settings.overlay_ifindex == 0 {
        return Err(DropReason::StateMissing);
    }
    let macs = [Mac(node.send.0), FrameKind::Back.to_mac()];
    encapsulate(packet, &node.address, &macs)?;
    packet.redirect(settings.overlay_ifindex)
}

/// Largest IP packet in bytes that fits a frame to the node `origin`.
#[inline(always)]
#[expect(dead_code, reason = "for who sends packets back")]
pub(crate) fn mtu_to(origin: u32) -> Option<u32> {
    node(origin).map(|node| node.mtu)
}

#[inline(always)]
fn node(index: u32) -> Option<&'static NodeState> {
    NODE_STATE.get(index).filter(|node| node.send != Tag::ZERO)
}

/// Makes a frame of the overlay of the packet: `macs` are the tag and the kind.
///
/// A function of its own, for the sake of its callers' stack.
#[inline(never)]
fn encapsulate(packet: &Packet<'_>, to: &Addr, macs: &[Mac; 2]) -> Result<(), DropReason> {
    let settings = settings::get().ok_or(DropReason::StateMissing)?;
    packet.set_tunnel(to, settings.vni)?;
    packet.set_macs(macs[0], macs[1])
}

/// Who sent a frame of the overlay, and what it says that it is.
pub(crate) struct Sender {
    /// Index of the node.
    pub(crate) origin: u32,
    /// The inner frame's source.
    pub(crate) kind: Mac,
}

impl Sender {
    /// What [`sender`] fills in.
    #[inline(always)]
    pub(crate) const fn unread() -> Self {
        Self {
            origin: 0,
            kind: Mac([0; 6]),
        }
    }
}

/// Finds out which node of the cluster has sent the frame, by its tunnel's source and its tag.
///
/// A function of its own, for the sake of its caller's stack.
#[inline(never)]
pub(crate) fn sender(packet: &Packet<'_>, sender: &mut Sender) -> Result<(), DropReason> {
    let settings = settings::get().ok_or(DropReason::StateMissing)?;
    let mut remote = Addr::v4([0; 4]);
    let vni = packet
        .tunnel(&mut remote)
        .ok_or(DropReason::OverlayMalformed)?;
    if vni != settings.vni {
        return Err(DropReason::OverlayMalformed);
    }
    // SAFETY: a live key's value never changes, and it is copied at once.
    let origin = unsafe { NODES.get(&remote) }
        .copied()
        .ok_or(DropReason::OverlayUnknownNode)?;
    let node = NODE_STATE.get(origin).ok_or(DropReason::StateMissing)?;
    let (tag, kind) = packet.macs().ok_or(DropReason::OverlayMalformed)?;
    let tag = Tag(tag.0);
    // Zero stands for "no second key", too.
    if tag == Tag::ZERO || (tag != node.accept[0] && tag != node.accept[1]) {
        return Err(DropReason::OverlayForged);
    }
    sender.origin = origin;
    sender.kind = kind;
    Ok(())
}
