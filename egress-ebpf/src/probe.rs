//! Probes of gateways on other nodes: sent by a program that userspace runs, answered and noted on the overlay.

use aya_ebpf::{btf_maps::HashMap, helpers::bpf_ktime_get_ns, macros::btf_map};
use egress_common::{
    Family,
    gateway::{EGRESS_DOWN, GatewayId},
    maps::capacity,
    overlay::FrameKind,
    pod::mac_from_word,
    probe::{ETHERTYPE, GATEWAY_AT, Probe, SENT_AT},
};

use crate::{egress, overlay, packet::Packet};

#[btf_map]
static PROBES: HashMap<GatewayId, Probe, { capacity::PROBES as usize }> = HashMap::new();

/// What [`send`] returns: userspace reads no more of it than whether it is this.
const SENT: i32 = 0;
const NOT_SENT: i32 = 1;

/// Sends the probe that the frame names, and writes down when.
///
/// The frame is made by userspace, `egress_common::probe` says how.
#[inline(always)]
pub(crate) fn send(packet: &Packet<'_>) -> i32 {
    let Some(gateway) = packet.load::<GatewayId>(GATEWAY_AT) else {
        return NOT_SENT;
    };
    let Some(probe) = PROBES.get_ptr_mut(&gateway) else {
        return NOT_SENT;
    };
    let now = now();
    if packet.store_word(SENT_AT, now).is_err() {
        return NOT_SENT;
    }
    // SAFETY: an element of the map, which stays memory of the map whoever removes it. Written first: the reply
    // may be here before the helper returns.
    let node = unsafe {
        (*probe).asked = now;
        (*probe).unanswered = (*probe).unanswered.wrapping_add(1);
        (*probe).node
    };
    match overlay::send_copy_to(packet, node, FrameKind::Probe(gateway)) {
        Ok(()) => SENT,
        Err(_) => {
            // What was not sent cannot be answered.
            // SAFETY: as above.
            unsafe { (*probe).unanswered = (*probe).unanswered.wrapping_sub(1) };
            NOT_SENT
        }
    }
}

/// Whether a frame of whomever says that it is a probe or the answer to one.
#[inline(always)]
pub(crate) fn is_one(packet: &Packet<'_>) -> bool {
    let kind = packet
        .mac_words()
        .and_then(|(_, source)| FrameKind::from_mac(mac_from_word(source)));
    matches!(kind, Some(FrameKind::Probe(_) | FrameKind::ProbeReply(_)))
        && packet.ethertype() == ETHERTYPE
}

/// Answers another node's probe if the gateway is this node's and in order.
#[inline(always)]
pub(crate) fn answer(packet: &Packet<'_>, gateway: GatewayId, origin: u32) -> bool {
    let mut owned = false;
    for family in [Family::V4, Family::V6] {
        if let Some((_, egress)) = egress::by_id(gateway, family) {
            if egress.flags & EGRESS_DOWN != 0 {
                return false;
            }
            owned = true;
        }
    }
    owned && overlay::send_to(packet, origin, FrameKind::ProbeReply(gateway)).is_ok()
}

/// Writes down that the gateway has answered, if it was asked and the answer is its node's.
#[inline(always)]
pub(crate) fn note(packet: &Packet<'_>, gateway: GatewayId, origin: u32) {
    let Some(probe) = PROBES.get_ptr_mut(&gateway) else {
        return;
    };
    let Some(sent) = packet.load::<u64>(SENT_AT) else {
        return;
    };
    let now = now();
    // SAFETY: as in `send`.
    unsafe {
        if (*probe).node == origin && sent <= now {
            (*probe).heard = now;
            (*probe).round_trip = now - sent;
            (*probe).unanswered = 0;
        }
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
