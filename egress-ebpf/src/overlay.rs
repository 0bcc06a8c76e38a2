//! Frames to other nodes.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use egress_common::{
    Addr, DropReason,
    keys::ReplyPath,
    maps::capacity,
    pod::{PodNote, PodPlace, mac_from_word},
    verdict::Member,
};

use crate::{deliver, packet::Packet, parse::Ip, pods};

#[btf_map]
static POD_PLACES: HashMap<Addr, PodPlace, { capacity::PODS as usize }> = HashMap::new();

#[btf_map]
static POD_NOTES: Array<PodNote, { capacity::PODS as usize }> = Array::new();

/// Sends a pod's packet to the node of its gateway.
#[inline(always)]
pub(crate) fn send(_packet: &Packet<'_>, _ip: &Ip, _member: &Member) -> Result<(), DropReason> {
    Err(DropReason::NatUnsupported)
}

/// Sends a packet that is translated back to the node of its pod.
#[inline(always)]
pub(crate) fn back(_packet: &Packet<'_>, _origin: u32) -> Result<(), DropReason> {
    Err(DropReason::NatUnsupported)
}

/// Hands a packet to a pod of this node; `ip` need not name it as the destination.
#[inline(always)]
pub(crate) fn to_local_pod(packet: &Packet<'_>, ip: &Ip, pod: &Addr) -> Result<(), DropReason> {
    // SAFETY: plain integers, and whether the pod is there is asked below.
    let place = unsafe { POD_PLACES.get(pod) }.ok_or(DropReason::PodUnknown)?;
    let note = POD_NOTES.get(place.slot).ok_or(DropReason::PodUnknown)?;
    if note.pod_mac == 0 || !pods::is_at(place.ifindex, *pod) {
        return Err(DropReason::PodUnknown);
    }
    let path = ReplyPath {
        ifindex: place.ifindex,
        pod_mac: mac_from_word(note.pod_mac),
        host_mac: mac_from_word(note.host_mac),
        via: 0,
    };
    deliver::to_pod(packet, ip, &path)
}
