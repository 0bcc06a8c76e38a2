//! The sweep: connections that have ended are removed where their numbers are kept right, in the kernel.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_ktime_get_ns, programs::TcContext};
use egress_common::{
    Addr, WireU16,
    gateway::GatewayId,
    nat::{NatBackKey, NatOutKey},
};

use super::state;
use crate::packet::{L3, Packet};

/// Keys that a frame may hold.
const KEYS: u32 = 32;
const KEY: u32 = 40;
const _: () = assert!(size_of::<NatBackKey>() == KEY as usize);

/// Removes those connections of a frame's keys that have ended, and gives their number.
///
/// The frame is made by userspace: behind an Ethernet header up to 32 keys of `NAT_BACK`.
#[inline(always)]
pub(crate) fn handle(packet: &Packet<'_>) -> i32 {
    let mut removed = 0;
    for number in 0..KEYS {
        match egress_nat_sweep_one(packet.skb(), L3 + number * KEY) {
            REMOVED => removed += 1,
            KEPT => {}
            _ => break,
        }
    }
    removed
}

#[repr(u32)]
enum Swept {
    Removed = 0,
    Kept = 1,
    NoKey = 2,
}

const REMOVED: u32 = Swept::Removed as u32;
const KEPT: u32 = Swept::Kept as u32;

/// Global (`verifier`): it is called for each key. It works on a stack of its own: a packet that interrupts it has
/// the scratch.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_nat_sweep_one(skb: *mut __sk_buff, offset: u32) -> u32 {
    one(&Packet::new(&TcContext::new(skb)), offset) as u32
}

#[inline(always)]
fn one(packet: &Packet<'_>, offset: u32) -> Swept {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(key) = packet.load::<NatBackKey>(offset) else {
        return Swept::NoKey;
    };
    let mut out_key = NatOutKey {
        pod: Addr::v6([0; 16]),
        remote: Addr::v6([0; 16]),
        pod_port: WireU16([0, 0]),
        remote_port: WireU16([0, 0]),
        gateway: GatewayId(0),
        protocol: 0,
        pad: [0; 3],
    };
    if state::sweep(&key, &mut out_key, now) {
        Swept::Removed
    } else {
        Swept::Kept
    }
}
