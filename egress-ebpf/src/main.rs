//! The TC programs of the egress gateway.
//!
//! Each entry point is a table from an outcome to a TC action, and nothing else names one.
//! Maps are private to the module that owns them.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is passed by value is copied, and the stack has 512 bytes"
)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the macros export the programs under undocumented public names"
)]

mod choose;
mod classify;
mod counters;
mod deliver;
mod forward;
mod fragments;
mod from_gateway;
mod from_pod;
mod lines;
mod log;
mod packet;
mod parse;
mod pods;
mod replies;
mod verdicts;

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::{from_gateway::Arrival, from_pod::Departure, packet::Packet};

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
        Departure::Dropped {
            policy,
            reason,
            shape,
        } => {
            log::dropped(&packet, policy, reason);
            counters::dropped(policy, reason, shape);
            TC_ACT_SHOT
        }
    }
}

/// Ingress of an interface that leads to a next-hop gateway: what comes back.
#[classifier]
pub fn egress_from_gateway(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match from_gateway::handle(&packet) {
        Arrival::NotOurs => TC_ACT_UNSPEC,
        Arrival::Redirected => TC_ACT_REDIRECT,
        Arrival::Dropped { reason, shape } => {
            log::dropped(&packet, egress_common::counter::NO_POLICY, reason);
            counters::dropped(egress_common::counter::NO_POLICY, reason, shape);
            TC_ACT_SHOT
        }
    }
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
