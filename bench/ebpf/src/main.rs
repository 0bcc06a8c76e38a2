//! Programs to measure others by: each does one thing that an egress gateway cannot do without, and nothing else.
//!
//! They know IPv4 without options alone. `shim` is what runs before each of them, and before ours.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the macros export the programs under undocumented public names"
)]

mod packet;
mod references;
mod road;
mod shim;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// Nothing: what the test-run and the shim cost.
#[classifier]
pub fn empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// The least that sends a packet somewhere.
#[classifier]
pub fn redirect(_ctx: TcContext) -> i32 {
    packet::redirect()
}

/// The least that sends it to a next hop.
#[classifier]
pub fn redirect_neigh(_ctx: TcContext) -> i32 {
    packet::redirect_to_neighbour()
}

/// The least that steers: whose packet it is, a count, and away.
#[classifier]
pub fn floor(ctx: TcContext) -> i32 {
    match packet::flow(&ctx).and_then(|flow| references::pod(&ctx, &flow)) {
        Some(pod) => {
            references::count(&ctx, pod);
            packet::redirect()
        }
        None => TC_ACT_SHOT,
    }
}

/// The same without the count.
#[classifier]
pub fn floor_uncounted(ctx: TcContext) -> i32 {
    match packet::flow(&ctx).and_then(|flow| references::pod(&ctx, &flow)) {
        Some(_) => packet::redirect(),
        None => TC_ACT_SHOT,
    }
}

/// A trie under the policy of the packet's pod and the destination.
#[classifier]
pub fn lpm_policy(ctx: TcContext) -> i32 {
    let Some(flow) = packet::flow(&ctx) else {
        return TC_ACT_SHOT;
    };
    match references::pod(&ctx, &flow) {
        Some(pod) => references::act(&ctx, references::by_policy(pod, &flow)),
        None => TC_ACT_SHOT,
    }
}

/// A trie under source and destination.
#[classifier]
pub fn lpm_source(ctx: TcContext) -> i32 {
    match packet::flow(&ctx) {
        Some(flow) => references::act(&ctx, references::by_source(&flow)),
        None => TC_ACT_SHOT,
    }
}

/// One look-up of a connection, and the source that it says written in place of the packet's.
#[classifier]
pub fn translate(ctx: TcContext) -> i32 {
    let Some(flow) = packet::flow(&ctx) else {
        return TC_ACT_SHOT;
    };
    match references::connection(&flow) {
        Some(to) if packet::write_source(&ctx, to.address, to.port).is_some() => packet::redirect(),
        _ => TC_ACT_SHOT,
    }
}

/// A packet of some flow, for the program under test.
#[classifier]
pub fn shim(ctx: TcContext) -> i32 {
    shim::random(&ctx)
}

/// The flows one after the other.
#[classifier]
pub fn shim_in_order(ctx: TcContext) -> i32 {
    shim::in_order(&ctx)
}

/// A frame of any flow, out of a pod.
#[xdp]
pub fn send(ctx: XdpContext) -> u32 {
    road::send(&ctx)
}

/// The flows one after the other.
#[xdp]
pub fn send_in_order(ctx: XdpContext) -> u32 {
    road::send_in_order(&ctx)
}

/// Where pods' frames come in: that there is a program lets them be sent there.
#[xdp]
pub fn come_in(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Where they arrive.
#[xdp]
pub fn arrive(ctx: XdpContext) -> u32 {
    road::arrive(&ctx)
}

/// The GPL side is what lets the programs call GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
