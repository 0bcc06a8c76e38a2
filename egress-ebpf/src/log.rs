//! Debug logs of the datapath: unless they are asked for, no code at all is left of them.

use aya_log_ebpf::info;
use egress_common::DropReason;

use crate::packet::Packet;

/// Set by the loader before the verifier sees the program, which removes what a constant 0 guards.
#[unsafe(no_mangle)]
static LOG: u8 = 0;

/// Logs a dropped packet.
#[inline(always)]
pub(crate) fn dropped(packet: &Packet<'_>, policy: u32, reason: DropReason) {
    // SAFETY: a static of the read-only section, read as the loader left it.
    if unsafe { core::ptr::read_volatile(&raw const LOG) } != 0 {
        info!(
            packet.ctx,
            "dropped: interface {}, policy {}, reason {}, {} bytes",
            packet.ifindex(),
            policy,
            reason as u8,
            packet.ctx.len()
        );
    }
}
