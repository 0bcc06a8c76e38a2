//! What later fragments of a translated datagram are told of their first.

use egress_common::table::{State, life};

use super::scratch::{First, Scratch};
use crate::table::{self, Look, Payer, Table, Words};

/// Under the addresses on the wire before they are translated.
// SAFETY: an address and an integer.
unsafe impl Words for First {
    const WORDS: usize = 5;
}

/// The origin of a datagram that a pod sends.
pub(super) const OUTWARD: u32 = u32::MAX;
/// The origin of a datagram that the kernel was left.
pub(super) const KERNEL: u32 = u32::MAX - 1;

/// Remembers `s.fragment` of a first fragment.
///
/// Charged to the pod, whoever sends it; what is the kernel's, to the address that it is for.
#[inline(never)]
pub(super) fn remember(s: &mut Scratch, id: u32) {
    let Some(look) = look(s, id) else {
        return;
    };
    if look.bucket(Table::NatFragments).is_none() {
        return;
    }
    look.put(&s.fragment, false);
    look.state = State::New as u32;
    look.until = look.now.wrapping_add(life::FRAGMENTS);
    let payer = if s.fragment.origin == OUTWARD {
        Payer::First
    } else {
        Payer::Value
    };
    // Where there is no room, later fragments are dropped as unknown.
    table::enter(look, payer);
}

/// Fills `s.fragment` in with what the first fragment became, and says whether it was seen, and not long ago.
#[inline(never)]
pub(super) fn recall(s: &mut Scratch, id: u32) -> bool {
    let Some(look) = look(s, id) else {
        return false;
    };
    if look.bucket(Table::NatFragments).is_none() || !table::find(look) || !look.is_alive() {
        return false;
    }
    look.get(&mut s.fragment);
    true
}

/// This CPU's place for a look-up, with the datagram's key.
#[inline(always)]
fn look(s: &Scratch, id: u32) -> Option<&'static mut Look> {
    let look = table::look()?;
    look.set_fragment(&s.ip, id);
    Some(look)
}
