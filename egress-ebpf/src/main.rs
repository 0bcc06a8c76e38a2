//! The TC programs of the egress gateway.
//!
//! Each entry point is a table from an outcome to a TC action, and nothing else names one.
//! Maps are private to the module that owns them.
#![no_std]
#![no_main]
// An atomic addition, which `core` does not offer for this target.
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is passed by value is copied, and the stack has 512 bytes"
)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the macros export the programs under undocumented public names"
)]

mod answer;
mod choose;
mod classify;
mod counters;
mod deliver;
mod direct;
mod egress;
mod forward;
mod fragments;
mod from_gateway;
mod from_overlay;
mod from_pod;
mod from_underlay;
mod from_uplink;
mod inbound;
mod lines;
mod locals;
mod log;
mod mss;
mod nat;
mod overlay;
mod own;
mod packet;
mod parse;
mod pods;
mod probe;
mod replies;
mod settings;
mod table;
mod to_pod;
mod to_uplink;
mod underlay;
mod verdicts;
mod verifier;

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use egress_common::{
    DropReason,
    counter::{Direction, NO_POLICY},
};

use crate::{
    counters::Shape, from_gateway::Arrival, from_overlay::Emergence, from_pod::Departure,
    from_uplink::Return, packet::Packet, to_uplink::Leaving,
};

/// Ingress of a pod's host-side interface: what the pod sends out.
#[classifier]
pub fn egress_from_pod(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match from_pod::handle(&packet) {
        Departure::NotOurs => TC_ACT_UNSPEC,
        Departure::Passed {
            policy,
            kind,
            shape,
        } => {
            counters::passed(policy, kind, shape);
            TC_ACT_UNSPEC
        }
        Departure::Redirected { counter, shape } => {
            counters::sent(counter, shape);
            TC_ACT_REDIRECT
        }
        Departure::Answered {
            policy,
            reason,
            answer,
            shape,
        } => {
            dropped(&packet, policy, reason, shape);
            counters::answered(answer);
            TC_ACT_REDIRECT
        }
        Departure::Dropped {
            policy,
            reason,
            shape,
        } => {
            dropped(&packet, policy, reason, shape);
            TC_ACT_SHOT
        }
    }
}

/// Egress of the same interface: what the pod receives.
#[classifier]
pub fn egress_to_pod(ctx: TcContext) -> i32 {
    to_pod::handle(&Packet::new(&ctx));
    TC_ACT_UNSPEC
}

/// Ingress of an interface that leads to a next-hop gateway: what comes back.
#[classifier]
pub fn egress_from_gateway(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match from_gateway::handle(&packet) {
        Arrival::NotOurs => TC_ACT_UNSPEC,
        Arrival::Redirected => TC_ACT_REDIRECT,
        Arrival::Answered {
            reason,
            answer,
            shape,
        } => {
            log::dropped(&packet, NO_POLICY, reason);
            counters::dropped(NO_POLICY, reason, shape);
            counters::answered(answer);
            TC_ACT_REDIRECT
        }
        Arrival::Dropped { reason, shape } => {
            dropped(&packet, NO_POLICY, reason, shape);
            TC_ACT_SHOT
        }
    }
}

/// Ingress of the overlay device: pods' packets for gateways of this node, and replies for pods of this node.
#[classifier]
pub fn egress_from_overlay(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    emerged(&packet, from_overlay::handle(&packet))
}

/// Ingress of the interface that leads to other nodes: the overlay's plain frames, before the kernel's stack has them.
#[classifier]
pub fn egress_from_underlay(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match from_underlay::handle(&packet) {
        Some(emergence) => emerged(&packet, emergence),
        None => TC_ACT_UNSPEC,
    }
}

/// Ingress of an uplink: what comes back to egress addresses.
#[classifier]
pub fn egress_from_uplink(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match from_uplink::handle(&packet) {
        Return::NotOurs => TC_ACT_UNSPEC,
        Return::Redirected { gateway, shape } => {
            counters::translated(gateway, Direction::Back, shape);
            TC_ACT_REDIRECT
        }
        Return::Answered {
            gateway,
            reason,
            answer,
            shape,
        } => {
            refused(&packet, gateway, reason, shape);
            counters::answered(answer);
            TC_ACT_REDIRECT
        }
        Return::Dropped {
            gateway,
            reason,
            shape,
        } => {
            refused(&packet, gateway, reason, shape);
            TC_ACT_SHOT
        }
    }
}

/// Egress of an interface that leads out of the cluster: what leaves the node.
#[classifier]
pub fn egress_to_uplink(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match to_uplink::handle(&packet) {
        Leaving::Passed => TC_ACT_UNSPEC,
        Leaving::Dropped { policy, shape } => {
            dropped(&packet, policy, DropReason::LocalLeftCluster, shape);
            TC_ACT_SHOT
        }
    }
}

/// Attached nowhere: userspace runs it to remove connections that have ended, and reads how many they were.
#[classifier]
pub fn egress_nat_sweep(ctx: TcContext) -> i32 {
    nat::sweep(&Packet::new(&ctx))
}

/// Attached nowhere: userspace runs it to ask a gateway on another node whether it is in order.
#[classifier]
pub fn egress_probe(ctx: TcContext) -> i32 {
    probe::send(&Packet::new(&ctx))
}

/// The same table for whatever brought a frame of the overlay.
#[inline(always)]
fn emerged(packet: &Packet<'_>, emergence: Emergence) -> i32 {
    match emergence {
        Emergence::Translated { gateway, shape } => {
            counters::translated(gateway, Direction::Out, shape);
            TC_ACT_REDIRECT
        }
        Emergence::Delivered | Emergence::Vouched => TC_ACT_REDIRECT,
        Emergence::Noted => TC_ACT_SHOT,
        Emergence::Answered {
            gateway,
            reason,
            answer,
            shape,
        } => {
            refused(packet, gateway, reason, shape);
            counters::answered(answer);
            TC_ACT_REDIRECT
        }
        Emergence::Returned {
            reason,
            answer,
            shape,
        } => {
            log::dropped(packet, NO_POLICY, reason);
            counters::dropped(NO_POLICY, reason, shape);
            counters::answered(answer);
            TC_ACT_REDIRECT
        }
        Emergence::Refused {
            gateway,
            reason,
            shape,
        } => {
            refused(packet, gateway, reason, shape);
            TC_ACT_SHOT
        }
        Emergence::Dropped { reason, shape } => {
            dropped(packet, NO_POLICY, reason, shape);
            TC_ACT_SHOT
        }
    }
}

/// Counts a packet that ends here under its policy, and logs it.
#[inline(always)]
fn dropped(packet: &Packet<'_>, policy: u32, reason: DropReason, shape: Shape) {
    log::dropped(packet, policy, reason);
    counters::dropped(policy, reason, shape);
}

/// The same of one that a gateway of this node does not take.
#[inline(always)]
fn refused(packet: &Packet<'_>, gateway: u32, reason: DropReason, shape: Shape) {
    log::dropped(packet, NO_POLICY, reason);
    counters::gateway_dropped(gateway, reason, shape);
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
