//! The two ends of a road that frames are sent along: where they leave their pods, and where they are counted.

use core::ptr;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::{bpf_get_prandom_u32, bpf_redirect},
    macros::map,
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};

/// A frame's first bytes: Ethernet, IPv4 and ports, and what is behind them.
type Head = [u64; 8];

/// Where ethertype and protocol stand in a frame, and what they have to be: nothing else is counted.
const TYPE_AT: usize = 12;
const IPV4: u16 = 0x0800;
const PROTOCOL_AT: usize = 23;
const UDP: u8 = 17;

/// A frame of each flow.
#[map]
static FRAMES: Array<Head> = Array::with_max_entries(1, 0);

/// Which flow is next, of those that come one after the other.
#[map]
static NEXT_FRAME: Array<u32> = Array::with_max_entries(1, 0);

/// How many frames came, on each CPU.
#[map]
static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The first of them.
#[map]
static KEPT: Array<Head> = Array::with_max_entries(1, 0);

/// How many flows there are.
#[unsafe(no_mangle)]
static SENT_FLOWS: u32 = 0;
/// The interface of the pods, at their end.
#[unsafe(no_mangle)]
static POD_END: u32 = 0;
/// How many of those that came are kept.
#[unsafe(no_mangle)]
static KEEP: u32 = 0;

/// Any flow's frame.
#[inline(always)]
pub(crate) fn send(ctx: &XdpContext) -> u32 {
    // SAFETY: a call without arguments.
    let number = unsafe { bpf_get_prandom_u32() };
    match number.checked_rem(read(&raw const SENT_FLOWS)) {
        Some(index) => send_one(ctx, index),
        None => xdp_action::XDP_ABORTED,
    }
}

/// That of the next flow, and after the last the first.
#[inline(always)]
pub(crate) fn send_in_order(ctx: &XdpContext) -> u32 {
    let Some(next) = NEXT_FRAME.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: an aligned word; only one thread runs this program.
    let index = unsafe { *next };
    let after = if index + 1 < read(&raw const SENT_FLOWS) {
        index + 1
    } else {
        0
    };
    // SAFETY: likewise.
    unsafe { *next = after };
    send_one(ctx, index)
}

/// Makes the frame that of a flow, and sends it as the pod would.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the helper returns an action, which is small"
)]
#[inline(always)]
fn send_one(ctx: &XdpContext, index: u32) -> u32 {
    let data = ctx.data();
    if data + size_of::<Head>() > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let Some(head) = FRAMES.get(index) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the frame is that long; what the test-run makes lies at a multiple of eight.
    unsafe { *(data as *mut Head) = *head };
    // SAFETY: a call without pointers.
    unsafe { bpf_redirect(read(&raw const POD_END), 0) as u32 }
}

/// Counts the frame and lets go of it.
#[inline(always)]
pub(crate) fn arrive(ctx: &XdpContext) -> u32 {
    let data = ctx.data();
    if data + size_of::<Head>() > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the frame is that long, and its data stay where they are.
    let (kind, protocol) = unsafe {
        (
            *((data + TYPE_AT) as *const u16),
            *((data + PROTOCOL_AT) as *const u8),
        )
    };
    if kind != IPV4.to_be() || protocol != UDP {
        return xdp_action::XDP_PASS;
    }
    if let Some(arrived) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: this CPU's own element, and the program is not interrupted by itself.
        let before = unsafe { *arrived };
        // SAFETY: likewise.
        unsafe { *arrived = before + 1 };
        keep(data, before);
    }
    xdp_action::XDP_DROP
}

#[expect(clippy::cast_possible_truncation, reason = "it is compared before")]
#[inline(always)]
fn keep(data: usize, place: u64) {
    if place >= u64::from(read(&raw const KEEP)) {
        return;
    }
    if let Some(kept) = KEPT.get_ptr_mut(place as u32) {
        // SAFETY: the caller has seen that the frame is that long; a frame lies at a multiple of two.
        unsafe {
            let from = data as *const [u16; size_of::<Head>() / 2];
            *kept.cast() = *from;
        }
    }
}

#[inline(always)]
fn read(number: *const u32) -> u32 {
    // SAFETY: a static of the read-only section, read as the loader left it.
    unsafe { ptr::read_volatile(number) }
}
