//! Packets and bytes: per member, per policy and reason, per policy and kind of pass.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray},
    helpers::bpf_get_smp_processor_id,
    macros::btf_map,
};
use egress_common::{
    DropReason,
    counter::{
        Answer, Count, Direction, PASS_KINDS, PassKind, drop_index, gateway_index, pass_index,
    },
    maps::capacity,
};

use crate::{
    packet::Packet,
    parse::{Ip, protocol},
};

/// `BPF_F_MMAPABLE`: userspace reads them without a call.
const MMAPABLE: usize = 1 << 10;

/// A CPU's counts stand together, [`MEMBERS_COUNTED`] of them. A per-CPU map would find each by a pointer of its own,
/// which is one more place that a packet has to wait for.
#[btf_map]
static MEMBER_COUNTS: Array<Count, { capacity::MEMBERS as usize }, MMAPABLE> = Array::new();

/// Members that are counted, told by the loader.
#[unsafe(no_mangle)]
static MEMBERS_COUNTED: u32 = capacity::MEMBERS;

#[btf_map]
static DROP_COUNTS: PerCpuArray<Count, { (capacity::POLICIES * DropReason::COUNT) as usize }> =
    PerCpuArray::new();

#[btf_map]
static PASS_COUNTS: PerCpuArray<Count, { (capacity::POLICIES * PASS_KINDS) as usize }> =
    PerCpuArray::new();

#[btf_map]
static GATEWAY_COUNTS: PerCpuArray<Count, { capacity::EGRESS as usize * Direction::ALL.len() }> =
    PerCpuArray::new();

#[btf_map]
static GATEWAY_DROPS: PerCpuArray<Count, { (capacity::EGRESS * DropReason::COUNT) as usize }> =
    PerCpuArray::new();

#[btf_map]
static ANSWER_COUNTS: PerCpuArray<u64, { Answer::ALL.len() }> = PerCpuArray::new();

/// `GSO_BY_FRAGS` of `linux/skbuff.h`: the segments are a list of packets that the sender has cut (SCTP).
const GSO_BY_FRAGS: u32 = 0xffff;

/// What a packet is on the wire.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Packets: the segments of an aggregated skb, else one.
    pub(crate) packets: u64,
    /// Bytes of those packets from the IP header on.
    pub(crate) bytes: u64,
    /// Bytes of the largest of them.
    pub(crate) largest: u32,
}

impl Shape {
    /// The shape of what could not be parsed: one packet, as long as its frame.
    #[inline(always)]
    pub(crate) fn of_frame(packet: &Packet<'_>) -> Self {
        let length = packet.l3_len();
        Self {
            packets: 1,
            bytes: length.into(),
            largest: length,
        }
    }

    /// The shape of an IP packet.
    #[inline(always)]
    pub(crate) fn of(packet: &Packet<'_>, ip: &Ip) -> Self {
        let gso_size = packet.gso_size();
        if gso_size == 0 {
            return Self {
                packets: 1,
                bytes: ip.length.into(),
                // What follows the packet in its frame goes out with it.
                largest: ip.length.max(packet.l3_len()),
            };
        }
        Self::of_aggregate(packet, ip, gso_size)
    }

    #[inline(always)]
    fn of_aggregate(packet: &Packet<'_>, ip: &Ip, gso_size: u32) -> Self {
        let headers = ip.l4 - crate::packet::L3 + transport_header(packet, ip);
        let segments = match packet.gso_segs() {
            0 => ip.length.saturating_sub(headers).div_ceil(gso_size),
            counted => counted,
        };
        let segments = segments.max(1);
        Self {
            packets: segments.into(),
            bytes: u64::from(ip.length) + u64::from(segments - 1) * u64::from(headers),
            largest: if gso_size == GSO_BY_FRAGS {
                0
            } else {
                // What is shorter than a segment stays as it is. It is the frame that is cut, whatever length its
                // header claims.
                ip.length.max(packet.l3_len()).min(headers + gso_size)
            },
        }
    }
}

/// Bytes of the header that each segment repeats above IP.
#[inline(always)]
fn transport_header(packet: &Packet<'_>, ip: &Ip) -> u32 {
    match ip.protocol {
        // The data offset is in words of four bytes (RFC 9293, 3.1).
        protocol::TCP => match packet.load::<u8>(ip.l4 + 12) {
            Some(offset) => u32::from(offset >> 4) * 4,
            None => 20,
        },
        protocol::UDP => 8,
        _ => 0,
    }
}

/// Counts a packet that went out through a member.
#[inline(always)]
pub(crate) fn sent(counter: u32, shape: Shape) {
    add(of_member(counter), shape);
}

/// Has the processor fetch what [`sent`] is going to change while it waits for something else, too.
#[inline(always)]
pub(crate) fn expect(counter: u32) {
    if let Some(count) = of_member(counter) {
        // SAFETY: an aligned word of this CPU's own slot.
        unsafe { core::ptr::read_volatile(&raw const (*count).packets) };
    }
}

#[inline(always)]
fn of_member(counter: u32) -> Option<*mut Count> {
    // SAFETY: a static of the read-only section, read as the loader left it.
    let members = unsafe { core::ptr::read_volatile(&raw const MEMBERS_COUNTED) };
    if counter >= members {
        return None;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    MEMBER_COUNTS.get_ptr_mut(cpu.wrapping_mul(members).wrapping_add(counter))
}

/// Counts a packet that the kernel routes on.
#[inline(always)]
pub(crate) fn passed(policy: u32, kind: PassKind, shape: Shape) {
    add(PASS_COUNTS.get_ptr_mut(pass_index(policy, kind)), shape);
}

/// Counts a dropped packet.
#[inline(always)]
pub(crate) fn dropped(policy: u32, reason: DropReason, shape: Shape) {
    add(DROP_COUNTS.get_ptr_mut(drop_index(policy, reason)), shape);
}

/// Counts a packet that was translated for a gateway of this node.
#[inline(always)]
pub(crate) fn translated(gateway: u32, direction: Direction, shape: Shape) {
    add(
        GATEWAY_COUNTS.get_ptr_mut(gateway_index(gateway, direction)),
        shape,
    );
}

/// Counts a packet that a gateway of this node dropped.
#[inline(always)]
pub(crate) fn gateway_dropped(gateway: u32, reason: DropReason, shape: Shape) {
    add(
        GATEWAY_DROPS.get_ptr_mut(drop_index(gateway, reason)),
        shape,
    );
}

/// Counts an answer to a packet that could not be sent on.
#[inline(always)]
pub(crate) fn answered(answer: Answer) {
    if let Some(count) = ANSWER_COUNTS.get_ptr_mut(answer as u32) {
        // SAFETY: as in `add`.
        unsafe { *count = (*count).wrapping_add(1) };
    }
}

#[inline(always)]
fn add(count: Option<*mut Count>, shape: Shape) {
    if let Some(count) = count {
        // SAFETY: this CPU's own slot; TC programs do not preempt each other on one CPU.
        unsafe {
            (*count).packets = (*count).packets.wrapping_add(shape.packets);
            (*count).bytes = (*count).bytes.wrapping_add(shape.bytes);
        }
    }
}
