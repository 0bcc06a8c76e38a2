//! Where a packet's facts, keys and values lie while it is translated: not on the stack.

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::btf_map,
};
use egress_common::{
    Addr, DropReason, WireU16,
    nat::{NatBack, NatBackKey, NatOut, NatOutKey},
    pod::PodPlace,
};

use crate::{packet::Question, parse::Ip};

#[btf_map]
static NAT_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The scratch of this CPU.
///
/// What is read from it the verifier knows nothing of, so that the ways through the parser become one.
#[repr(C)]
pub(super) struct Scratch {
    /// Nanoseconds of `CLOCK_MONOTONIC`, as of `tick`.
    pub(super) now: u64,
    /// The tick of the kernel's clock at which this CPU last asked for the time.
    tick: u64,
    /// The times of the connection's line in `NAT_RECENT` whose next hop is to be asked for, the sum of its key, and its index.
    pub(super) recalled: u64,
    pub(super) recalled_sum: u64,
    pub(super) recalled_line: u32,
    pad: u32,
    pub(super) out: NatOut,
    pub(super) back: NatBack,
    pub(super) out_key: NatOutKey,
    pub(super) back_key: NatBackKey,
    /// The pod's side of a connection whose port a new one asks for.
    pub(super) occupant: NatOutKey,
    pub(super) fragment: First,
    pub(super) ip: Ip,
    pub(super) upper: Upper,
    pub(super) quote: Quote,
    pub(super) edit: Edit,
    /// What is to be written into the quoted packet.
    pub(super) quoted_edit: Edit,
    /// What the kernel's routes are asked, and what they answer.
    pub(super) route: Question,
    /// Where the packet goes next; unspecified where the kernel is to find out by itself.
    pub(super) next_hop: Addr,
    /// Where the pod of a reply is, if it is on this node.
    pub(super) place: PodPlace,
}

/// What the first fragment of a datagram became.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct First {
    /// The address that is put in place of the pod's or the egress address.
    pub(super) address: Addr,
    /// Of replies, the node that the pod is on; or a constant of `fragments`.
    pub(super) origin: u32,
}

/// What the header above IP is to us.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Upper {
    /// The sender's port, or the identifier of an ICMP echo; zero where there is nothing to translate.
    pub(super) source_port: WireU16,
    /// The receiver's port, likewise.
    pub(super) destination_port: WireU16,
    /// Offset of the source port in the frame, or of the identifier; zero for addresses alone.
    pub(super) source_at: u32,
    /// Offset of the destination port, or of the identifier, likewise.
    pub(super) destination_at: u32,
    /// Offset of the checksum in the frame; zero if there is none that changes.
    pub(super) checksum_at: u32,
    /// A sum of the `SUM_` flags.
    pub(super) checksum: u32,
    /// The flags of a TCP header.
    pub(super) tcp: u8,
    /// One of the constants of `upper::kind`.
    pub(super) kind: u8,
    pub(super) pad: [u8; 2],
}

impl Upper {
    /// Both ports as they lie in a header: at once, where the compiler would write four bytes.
    #[inline(always)]
    pub(super) fn set_ports(&mut self, ports: u32) {
        // SAFETY: `repr(C)`, two ports of two bytes at the start of what is aligned to four.
        unsafe { core::ptr::from_mut(self).cast::<u32>().write(ports) };
    }
}

/// The checksum covers the addresses too.
pub(super) const SUM_PSEUDO: u32 = 1;
/// A zero would mean that there is no checksum (UDP), which UDP-Lite does not allow either (RFC 3828, 3.1).
pub(super) const SUM_NEVER_ZERO: u32 = 2;

/// The packet inside an ICMP error.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Quote {
    pub(super) source: Addr,
    pub(super) destination: Addr,
    pub(super) upper: Upper,
    /// Where its IP header starts in the frame.
    pub(super) at: u32,
    /// Where the header above IP starts in the frame.
    pub(super) l4: u32,
    pub(super) protocol: u8,
    pub(super) pad: [u8; 3],
}

/// What is to be written into a packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Edit {
    pub(super) old: Addr,
    pub(super) new: Addr,
    /// Where the address lies in the frame.
    pub(super) address_at: u32,
    /// Where the port or identifier lies in the frame; zero if none changes.
    pub(super) port_at: u32,
    pub(super) old_port: WireU16,
    pub(super) new_port: WireU16,
    /// As in `Upper`.
    pub(super) checksum_at: u32,
    pub(super) checksum: u32,
}

/// The scratch of this CPU as a packet has it, for a function that the verifier looks at by itself.
#[inline(always)]
pub(super) fn taken() -> Option<&'static mut Scratch> {
    let place = NAT_SCRATCH.get_ptr_mut(0)?;
    // SAFETY: as in `take`; whoever calls such a function has let it escape.
    Some(unsafe { &mut *place })
}

/// Takes the scratch of this CPU for a packet.
#[inline(always)]
pub(super) fn take(ip: &Ip) -> Result<&'static mut Scratch, DropReason> {
    let place = NAT_SCRATCH.get_ptr_mut(0).ok_or(DropReason::StateMissing)?;
    // SAFETY: this CPU's own; TC programs do not preempt each other on one CPU, a packet takes it once,
    // and the sweep, which a packet may interrupt, does not use it. Every bit pattern that can be there is
    // zero or what an earlier packet wrote, and both are values of the type.
    let scratch = unsafe { &mut *place };
    // Field by field: the whole would be moved byte by byte.
    scratch.ip.family = ip.family;
    scratch.ip.source = ip.source;
    scratch.ip.destination = ip.destination;
    scratch.ip.ttl = ip.ttl;
    scratch.ip.protocol = ip.protocol;
    scratch.ip.is_authenticated = ip.is_authenticated;
    scratch.ip.length = ip.length;
    scratch.ip.l4 = ip.l4;
    scratch.ip.fragment = ip.fragment;
    // Asking the clock takes longer than most of what a packet needs: a tick has one answer.
    // SAFETY: a helper without arguments.
    let tick = unsafe { bpf_jiffies64() };
    if tick != scratch.tick {
        scratch.tick = tick;
        // SAFETY: likewise.
        scratch.now = unsafe { bpf_ktime_get_ns() };
    }
    Ok(scratch)
}
