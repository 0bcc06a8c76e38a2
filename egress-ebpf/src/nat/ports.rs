//! Which port of the egress address a new connection is given.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use egress_common::{DropReason, WireU16, gateway::Egress};

use super::{
    scratch::Scratch,
    state::{self, Claim},
};

/// Ports that are tried besides the pod's own: the verifier of 5.10 follows each try for itself.
const TRIES: u32 = 64;

/// Takes a port, or an identifier, for `s.back` under `s.back_key`: the pod's own if it is free.
#[inline(never)]
pub(super) fn claim_port(s: &mut Scratch, egress: &Egress) -> Result<(), DropReason> {
    let first = u32::from(egress.first_port);
    let last = u32::from(egress.last_port);
    let own = u32::from(s.out_key.pod_port.get());
    if own >= first && own <= last {
        s.back_key.egress_port = s.out_key.pod_port;
        match state::claim(s) {
            Claim::Granted => return Ok(()),
            Claim::Taken => {}
            Claim::Full => return Err(DropReason::NatExhausted),
        }
    }
    if first > last {
        return Err(DropReason::NatExhausted);
    }
    let size = last - first + 1;
    // As many steps as there are tries stay below `size`, so no port is tried twice.
    let stride = match size / TRIES {
        0 | 1 => 1,
        room => 1 + random() % room,
    };
    let mut at = random() % size;
    for _ in 0..TRIES {
        s.back_key.egress_port = port(first + at);
        match state::claim(s) {
            Claim::Granted => return Ok(()),
            Claim::Taken => {}
            Claim::Full => return Err(DropReason::NatExhausted),
        }
        at = (at + stride) % size;
    }
    Err(DropReason::NatExhausted)
}

/// Takes the remote for a protocol without ports.
#[inline(always)]
pub(super) fn claim_remote(s: &mut Scratch) -> Result<(), DropReason> {
    match state::claim(s) {
        Claim::Granted => Ok(()),
        Claim::Taken => Err(DropReason::NatAmbiguous),
        Claim::Full => Err(DropReason::NatExhausted),
    }
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "between the first and the last port, which have 16 bits"
)]
const fn port(number: u32) -> WireU16 {
    WireU16::new(number as u16)
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}
