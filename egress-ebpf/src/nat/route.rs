//! Where a translated packet goes next: asked before anything is written, so that what has no way is counted.
//!
//! `bpf_redirect_neigh` would find the next hop itself, but kernels without the fix of October 2025 then forget what
//! the packet came with: of each one from the overlay, some 250 bytes that tell its tunnel stay allocated for ever
//! (cilium/cilium#42000 and #42052). With a next hop given it does not come to that.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT,
};
use egress_common::{Addr, DropReason, Family, gateway::Egress};

use super::scratch::Scratch;
use crate::{
    egress::same,
    packet::{AF_INET, AF_INET6, Packet, Question},
};

/// Fills `s.next_hop` in for a packet to `s.ip.destination` that is to leave under the egress address.
///
/// # Errors
/// `NoRoute` if the uplink does not lead there.
#[inline(never)]
pub(super) fn find(
    packet: &Packet<'_>,
    s: &mut Scratch,
    egress: &Egress,
) -> Result<(), DropReason> {
    ask(s, egress);
    let answer = packet.look_up_route(&mut s.route, BPF_FIB_LOOKUP_OUTPUT);
    let Ok(answer) = u32::try_from(answer) else {
        return by_kernel(s);
    };
    match answer {
        // The neighbour is looked up, or asked for, by the redirect; whether the packet fits was checked.
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            // IPv6 takes a route by another device where its own has none.
            if s.route.ifindex != egress.ifindex {
                return Err(DropReason::NoRoute);
            }
            s.next_hop = answered(&s.route);
            Ok(())
        }
        // Told to go nowhere, in three ways, or not told anything.
        BPF_FIB_LKUP_RET_BLACKHOLE..=BPF_FIB_LKUP_RET_NOT_FWDED => Err(DropReason::NoRoute),
        // Above all: the uplink is not set to forward, and is asked by nobody but us.
        _ => by_kernel(s),
    }
}

/// Sends the packet to `s.next_hop`.
#[inline(always)]
pub(super) fn send(packet: &Packet<'_>, s: &Scratch, ifindex: u32) -> Result<(), DropReason> {
    if same(&s.next_hop, &UNKNOWN) {
        packet.redirect_by_route(ifindex)
    } else {
        packet.redirect_to_neighbour(ifindex, &s.next_hop)
    }
}

pub(super) const UNKNOWN: Addr = Addr::v6([0; 16]);

#[inline(always)]
fn by_kernel(s: &mut Scratch) -> Result<(), DropReason> {
    s.next_hop = UNKNOWN;
    Ok(())
}

#[inline(always)]
fn ask(s: &mut Scratch, egress: &Egress) {
    let (source, destination) = (egress.address.words(), s.ip.destination.words());
    let question = &mut s.route;
    match s.ip.family {
        Family::V4 => {
            question.family = AF_INET;
            question.source = [source[3], 0, 0, 0];
            question.destination = [destination[3], 0, 0, 0];
        }
        Family::V6 => {
            question.family = AF_INET6;
            question.source = source;
            question.destination = destination;
        }
    }
    question.protocol = s.ip.protocol;
    question.ports = [0; 2];
    question.length = 0;
    question.ifindex = egress.ifindex;
    question.class = 0;
    question.link = [0; 4];
}

/// The next hop, which may be of the other family than the packet (RFC 5549).
#[inline(always)]
fn answered(answer: &Question) -> Addr {
    if answer.family == AF_INET {
        Addr::v4(answer.destination[0].to_ne_bytes())
    } else {
        Addr::from_words(answer.destination)
    }
}
