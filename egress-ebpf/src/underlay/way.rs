//! Which way frames take to another node: what the kernel's routes say, asked again before a second has passed.
//!
//! They are asked as for a packet of the node's own, rules included, as the overlay device asks. What leads elsewhere than
//! to the underlay's interface (a tunnel that encrypts, say), or nowhere, is left to the device.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS},
    btf_maps::PerCpuArray,
    helpers::bpf_jiffies64,
    macros::btf_map,
};
use egress_common::gateway::Settings;

use crate::{
    packet::{AF_INET, Packet, Question},
    parse::protocol,
};

/// Ways that a CPU remembers: nodes whose addresses have the same last byte take turns.
const WAYS: u32 = 256;
/// Ticks of the kernel's clock after which a way is asked for again: a tenth of a second to a second.
const LIFE: u64 = 100;
/// What a packet of the node's own comes in by (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

#[btf_map]
static UNDERLAY_WAYS: PerCpuArray<Way, { WAYS as usize }> = PerCpuArray::new();

/// A way to a node.
#[repr(C)]
struct Way {
    /// The tick at which it was asked for.
    asked: u64,
    /// The node's address, as it lies in memory.
    to: u32,
    /// The interface that it was asked for.
    ifindex: u32,
    /// The next hop, likewise; zero where there is none for us.
    next_hop: u32,
    pad: u32,
    question: Question,
}

/// The next hop of frames to a node, both as addresses lie in memory, if the underlay's interface leads there.
#[inline(always)]
pub(super) fn next_hop(packet: &Packet<'_>, settings: &Settings, to: u32) -> Option<u32> {
    let [.., last] = to.to_ne_bytes();
    let way = UNDERLAY_WAYS.get_ptr_mut(u32::from(last))?;
    // SAFETY: this CPU's own element, which no other program uses while this one runs; zeroes, as at first, are a value.
    let way = unsafe { &mut *way };
    // SAFETY: a helper without arguments.
    let tick = unsafe { bpf_jiffies64() };
    if way.to != to
        || way.ifindex != settings.underlay_ifindex
        || tick.wrapping_sub(way.asked) >= LIFE
    {
        way.next_hop = ask(packet, &mut way.question, settings, to);
        way.to = to;
        way.ifindex = settings.underlay_ifindex;
        way.asked = tick;
    }
    (way.next_hop != 0).then_some(way.next_hop)
}

#[inline(always)]
fn ask(packet: &Packet<'_>, question: &mut Question, settings: &Settings, to: u32) -> u32 {
    question.family = AF_INET;
    question.protocol = protocol::UDP;
    question.ports = [0, settings.overlay_port.to_be()];
    question.length = 0;
    question.ifindex = LOOPBACK;
    question.class = 0;
    question.source = [0; 4];
    question.destination = [to, 0, 0, 0];
    question.link = [0; 4];
    let answer = packet.look_up_route(question, 0);
    let is_found = matches!(
        u32::try_from(answer),
        Ok(BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED)
    );
    // Before 5.12 the interface is told only with a neighbour: until there is one, the device asks for it.
    if is_found && question.ifindex == settings.underlay_ifindex && question.family == AF_INET {
        question.destination[0]
    } else {
        0
    }
}
