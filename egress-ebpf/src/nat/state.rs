//! Connections: both halves of each, how they change, when they end.

use core::arch::asm;

use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use egress_common::{
    DropReason,
    gateway::Egress,
    maps::capacity,
    nat::{NatBack, NatBackKey, NatOut, NatOutKey, NatState},
    overlay::ORIGIN_KERNEL,
};

use super::{
    follow, recent,
    scratch::{self, Scratch},
    sources::{add_to_source, check_quota, take_from_source},
    upper::tcp,
};
use crate::{
    egress::{copy, same},
    parse::protocol,
    settings,
    verifier::escape,
};

#[btf_map]
static NAT_OUT: HashMap<NatOutKey, NatOut, { capacity::NAT as usize }> = HashMap::new();

#[btf_map]
static NAT_BACK: HashMap<NatBackKey, NatBack, { capacity::NAT as usize }> = HashMap::new();

/// `BPF_NOEXIST` of `linux/bpf.h`.
pub(super) const NOEXIST: u64 = 1;
/// `-EEXIST`.
pub(super) const EXISTS: i32 = -17;
/// For how long a new half is left alone that has no other yet, in nanoseconds.
const YOUNG: u64 = NANOSECONDS;
pub(super) const NANOSECONDS: u64 = 1_000_000_000;

/// Finds the connection of a pod's packet, and says whether there is one: then `s.out.egress_port` is what
/// the outside sees. If there is none, `open` makes one.
#[inline(never)]
pub(super) fn outward(s: &mut Scratch, egress: &Egress, origin: u32) -> bool {
    s.out_key.pod = s.ip.source;
    s.out_key.remote = s.ip.destination;
    s.out_key.pod_port = s.upper.source_port;
    s.out_key.remote_port = s.upper.destination_port;
    s.out_key.gateway = egress.gateway;
    s.out_key.protocol = s.ip.protocol;
    let Some(entry) = NAT_OUT.get_ptr_mut(&s.out_key) else {
        return false;
    };
    // SAFETY: plain integers in a preallocated map. The kernel gives a removed entry out again at once, but
    // one is removed only long after its last packet: a packet that reads it in that very moment is told of
    // another connection.
    let entry = unsafe { &mut *entry };
    if same(&entry.egress, &egress.address) && keep_out(s, entry, origin) {
        s.out.egress_port = entry.egress_port;
        s.out.last_seen = entry.last_seen;
        s.out.state = entry.state;
        return true;
    }
    // It ended, or the gateway has another address now.
    set_back_key(&mut s.back_key, &s.out_key, entry);
    remove(&s.out_key, &s.back_key);
    false
}

/// Prepares the connection that `outward` did not find: `s.back_key` and `s.back`, for which a port is claimed next.
#[inline(never)]
pub(super) fn open(s: &mut Scratch, egress: &Egress, origin: u32) -> Result<(), DropReason> {
    let flags = s.upper.tcp;
    if flags & tcp::RST != 0 || flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK {
        // It answers something that never came through here.
        return Err(DropReason::NatNoState);
    }
    check_quota(&s.out_key.pod)?;
    s.back.last_seen = s.now;
    s.back.pod = s.out_key.pod;
    s.back.origin = origin;
    s.back.gateway = egress.gateway;
    s.back.pod_port = s.out_key.pod_port;
    let first = match s.ip.protocol {
        protocol::TCP => NatState::TcpSynSent,
        protocol::UDP => NatState::Udp,
        protocol::ICMP | protocol::ICMPV6 => NatState::Icmp,
        _ => NatState::Generic,
    };
    s.back.state = follow::outward(first as u8, flags);
    s.back_key.egress = egress.address;
    s.back_key.remote = s.out_key.remote;
    s.back_key.egress_port = s.out_key.pod_port;
    s.back_key.remote_port = s.out_key.remote_port;
    s.back_key.protocol = s.out_key.protocol;
    Ok(())
}

/// Completes the connection whose port is claimed.
#[inline(never)]
pub(super) fn complete(s: &mut Scratch) -> Result<(), DropReason> {
    s.out.last_seen = s.now;
    s.out.egress = s.back_key.egress;
    s.out.origin = s.back.origin;
    s.out.egress_port = s.back_key.egress_port;
    s.out.state = s.back.state;
    // Before anybody can find and remove it.
    if !add_to_source(&s.out_key.pod) {
        let _ = NAT_BACK.remove(&s.back_key);
        return Err(DropReason::NatExhausted);
    }
    let Err(error) = NAT_OUT.insert(&s.out_key, &s.out, NOEXIST) else {
        return Ok(());
    };
    take_from_source(&s.out_key.pod);
    if error == EXISTS {
        return follow_winner(s);
    }
    let _ = NAT_BACK.remove(&s.back_key);
    Err(DropReason::NatExhausted)
}

/// Finds the connection of an ICMP error that a pod sends, whose key is `s.out_key`.
#[inline(never)]
pub(super) fn outward_error(s: &mut Scratch, egress: &Egress) -> Result<(), DropReason> {
    let entry = NAT_OUT
        .get_ptr_mut(&s.out_key)
        .ok_or(DropReason::NatNoState)?;
    // SAFETY: as in `outward`.
    let entry = unsafe { &*entry };
    s.out.egress_port = entry.egress_port;
    if !same(&entry.egress, &egress.address) {
        return Err(DropReason::NatNoState);
    }
    set_back_key(&mut s.back_key, &s.out_key, entry);
    let back = NAT_BACK.get_ptr_mut(&s.back_key);
    // SAFETY: as in `outward`.
    let back = unsafe { back.map(|back| &*back) };
    if is_live(s.now, entry, back) {
        Ok(())
    } else {
        Err(DropReason::NatNoState)
    }
}

/// Finds the connection that a packet from the outside answers, whose key is `s.back_key`: fills `s.back`
/// in, and says whether there is one. An error refreshes nothing, and changes no state.
#[inline(never)]
pub(super) fn homeward(s: &mut Scratch, is_error: bool) -> bool {
    let Some(entry) = NAT_BACK.get_ptr_mut(&s.back_key) else {
        return false;
    };
    // SAFETY: as in `outward`.
    let entry = unsafe { &mut *entry };
    copy(&mut s.back.pod, &entry.pod);
    s.back.origin = entry.origin;
    s.back.gateway = entry.gateway;
    s.back.pod_port = entry.pod_port;
    if entry.origin == ORIGIN_KERNEL {
        // Its state is its socket's, and its time was set by who made it.
        return true;
    }
    let state = if is_error {
        entry.state
    } else {
        follow::homeward(entry.state, s.upper.tcp)
    };
    if state == entry.state && s.now.saturating_sub(entry.last_seen) < refresh(state) {
        return true;
    }
    set_out_key(&mut s.out_key, &s.back_key, &s.back);
    let out = NAT_OUT.get_ptr_mut(&s.out_key);
    // SAFETY: as in `outward`.
    let Some(out) = (unsafe { out.map(|out| &mut *out) }) else {
        // Half a connection: another CPU is about to make it, or to remove it.
        return false;
    };
    if !leads_to(out, &s.back_key) || !is_live(s.now, out, Some(entry)) {
        return false;
    }
    if !is_error {
        let closed = NatState::TcpClose as u8;
        // From outside, anybody could keep a closed connection's port.
        if state != closed || entry.state != closed {
            entry.last_seen = s.now;
        }
        if state != out.state {
            out.state = state;
            // After the state: who notes the one before sees this one, or is forgotten.
            recent::forget(&s.out_key);
        }
        entry.state = state;
    }
    true
}

/// Whether the connection of a pod's packet is alive; if so, notes the packet.
#[inline(always)]
fn keep_out(s: &mut Scratch, entry: &mut NatOut, origin: u32) -> bool {
    let state = follow::outward(entry.state, s.upper.tcp);
    if state == entry.state
        && origin == entry.origin
        && s.now.saturating_sub(entry.last_seen) < refresh(state)
    {
        return true;
    }
    set_back_key(&mut s.back_key, &s.out_key, entry);
    let Some(back) = NAT_BACK.get_ptr_mut(&s.back_key) else {
        return false;
    };
    // SAFETY: as in `outward`.
    let back = unsafe { &mut *back };
    if !belongs_to(back, &s.out_key) || !is_live(s.now, entry, Some(back)) {
        return false;
    }
    if state != entry.state {
        entry.state = state;
        recent::forget(&s.out_key);
    }
    entry.last_seen = s.now;
    entry.origin = origin;
    back.state = state;
    back.origin = origin;
    true
}

/// Another CPU made the connection meanwhile: its port is the one.
#[inline(always)]
fn follow_winner(s: &mut Scratch) -> Result<(), DropReason> {
    let Some(winner) = NAT_OUT.get_ptr_mut(&s.out_key) else {
        let _ = NAT_BACK.remove(&s.back_key);
        return Err(DropReason::NatExhausted);
    };
    // SAFETY: as in `outward`.
    let winner = unsafe { &*winner };
    let ours = same(&winner.egress, &s.out.egress);
    let shared = ours && leads_to(winner, &s.back_key);
    s.out.egress_port = winner.egress_port;
    if !shared {
        let _ = NAT_BACK.remove(&s.back_key);
    }
    if ours {
        Ok(())
    } else {
        // Made for the address that the gateway had before.
        Err(DropReason::NatNoState)
    }
}

/// What became of a port that a new connection asked for.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is ours.
    Granted = 0,
    /// Another connection has it.
    Taken = 1,
    /// The table is full.
    Full = 2,
}

/// Takes the port of `s.back_key` for `s.back`, if no live connection has it.
#[inline(always)]
pub(super) fn claim(s: &mut Scratch) -> Claim {
    escape(s);
    match egress_nat_claim() {
        GRANTED => Claim::Granted,
        FULL => Claim::Full,
        _ => Claim::Taken,
    }
}

const GRANTED: u32 = Claim::Granted as u32;
const FULL: u32 = Claim::Full as u32;

/// Global (`verifier`): it is asked for one port after the other.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_nat_claim() -> u32 {
    match scratch::taken() {
        Some(s) => claim_with(s) as u32,
        None => FULL,
    }
}

#[inline(always)]
fn claim_with(s: &mut Scratch) -> Claim {
    match NAT_BACK.insert(&s.back_key, &s.back, NOEXIST) {
        Ok(()) => return Claim::Granted,
        Err(EXISTS) => {}
        Err(_) => return Claim::Full,
    }
    let Some(occupant) = NAT_BACK.get_ptr_mut(&s.back_key) else {
        return Claim::Taken;
    };
    // SAFETY: as in `outward`.
    let occupant = unsafe { &mut *occupant };
    if belongs_to(occupant, &s.out_key) {
        // Half of this very connection, which another CPU makes or has removed.
        occupant.last_seen = s.now;
        occupant.state = s.back.state;
        occupant.origin = s.back.origin;
        return Claim::Granted;
    }
    if s.now.saturating_sub(occupant.last_seen) < YOUNG {
        return Claim::Taken;
    }
    if !evict(s, occupant) {
        return Claim::Taken;
    }
    match NAT_BACK.insert(&s.back_key, &s.back, NOEXIST) {
        Ok(()) => Claim::Granted,
        Err(EXISTS) => Claim::Taken,
        Err(_) => Claim::Full,
    }
}

/// Removes a connection if it has ended.
#[inline(always)]
fn evict(s: &mut Scratch, occupant: &NatBack) -> bool {
    // Not that of the new connection, which is still needed.
    set_out_key(&mut s.occupant, &s.back_key, occupant);
    let out = NAT_OUT.get_ptr_mut(&s.occupant);
    // SAFETY: as in `outward`.
    let out = unsafe { out.map(|out| &*out) };
    if !has_ended(s.now, out, occupant, &s.back_key) {
        return false;
    }
    remove(&s.occupant, &s.back_key);
    true
}

/// Removes the connection of a key of `NAT_BACK` if it has ended, and says whether it did.
#[inline(never)]
pub(super) fn sweep(key: &NatBackKey, out_key: &mut NatOutKey, now: u64) -> bool {
    let Some(back) = NAT_BACK.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: as in `outward`.
    let back = unsafe { &*back };
    set_out_key(out_key, key, back);
    let out = NAT_OUT.get_ptr_mut(&*out_key);
    // SAFETY: as in `outward`.
    let out = unsafe { out.map(|out| &*out) };
    if !has_ended(now, out, back, key) {
        return false;
    }
    remove(out_key, key);
    true
}

/// Whether neither half was used within the time of its state; `out` need not be the other half.
#[inline(always)]
fn has_ended(now: u64, out: Option<&NatOut>, back: &NatBack, key: &NatBackKey) -> bool {
    match out {
        Some(out) if leads_to(out, key) => !is_live(now, out, Some(back)),
        Some(_) | None => now.saturating_sub(back.last_seen) >= life(back.state),
    }
}

/// Removes both halves, as far as they belong together.
///
/// The half of replies goes first: where two CPUs remove and make a connection at the same time, what may
/// remain is such a half alone, which the sweep finds.
#[inline(never)]
fn remove(out_key: &NatOutKey, back_key: &NatBackKey) {
    if let Some(back) = NAT_BACK.get_ptr_mut(back_key) {
        // SAFETY: as in `outward`.
        if belongs_to(unsafe { &*back }, out_key) {
            let _ = NAT_BACK.remove(back_key);
        }
    }
    if let Some(out) = NAT_OUT.get_ptr_mut(out_key) {
        // SAFETY: as in `outward`.
        if leads_to(unsafe { &*out }, back_key) && NAT_OUT.remove(out_key).is_ok() {
            take_from_source(&out_key.pod);
        }
    }
    recent::forget(out_key);
}

/// Whether a connection was used, in either direction, within the time of its state.
///
/// The halves' states differ for as long as two CPUs change them at once: then the longer time counts.
#[inline(always)]
fn is_live(now: u64, out: &NatOut, back: Option<&NatBack>) -> bool {
    let (mut last_seen, mut allowed) = (out.last_seen, life(out.state));
    if let Some(back) = back {
        last_seen = last_seen.max(back.last_seen);
        if back.state != out.state {
            allowed = allowed.max(life(back.state));
        }
    }
    now.saturating_sub(last_seen) < allowed
}

/// Nanoseconds from a connection's times on after which it ends in this state.
#[inline(always)]
fn life(state: u8) -> u64 {
    NatState::life(seconds(state))
}

/// How old a half's time may get before it is written again: writing it for each packet would move its cache line from CPU to
/// CPU.
#[inline(always)]
pub(super) fn refresh(state: u8) -> u64 {
    NatState::refresh(seconds(state))
}

/// Seconds of silence that end a connection in this state; zero if it is none.
#[inline(always)]
fn seconds(state: u8) -> u32 {
    let Some(settings) = settings::get() else {
        return 0;
    };
    if usize::from(state) >= NatState::COUNT {
        return 0;
    }
    let mut index = usize::from(state);
    // Old verifiers forget the comparison above where the compiler has made two registers of the number.
    const { assert!(NatState::COUNT <= 16) }
    // SAFETY: a change of a register, which is none for a state.
    unsafe {
        asm!("{index} &= 15", index = inout(reg) index, options(pure, nomem, nostack));
    }
    // SAFETY: it is below the array's length, which was compared, and within the settings, which the verifier sees.
    unsafe { *settings.timeouts.as_ptr().add(index) }
}

/// Whether this half's other half is the entry of that key.
#[inline(always)]
fn leads_to(out: &NatOut, key: &NatBackKey) -> bool {
    out.egress_port.0 == key.egress_port.0 && same(&out.egress, &key.egress)
}

/// Whether this half's other half is the entry of that key.
#[inline(always)]
fn belongs_to(back: &NatBack, key: &NatOutKey) -> bool {
    back.pod_port.0 == key.pod_port.0 && back.gateway == key.gateway && same(&back.pod, &key.pod)
}

/// Field by field, here and below: a whole key would be made on the stack first.
#[inline(always)]
fn set_back_key(into: &mut NatBackKey, key: &NatOutKey, out: &NatOut) {
    copy(&mut into.egress, &out.egress);
    copy(&mut into.remote, &key.remote);
    into.egress_port = out.egress_port;
    into.remote_port = key.remote_port;
    into.protocol = key.protocol;
}

#[inline(always)]
fn set_out_key(into: &mut NatOutKey, key: &NatBackKey, back: &NatBack) {
    copy(&mut into.pod, &back.pod);
    copy(&mut into.remote, &key.remote);
    into.pod_port = back.pod_port;
    into.remote_port = key.remote_port;
    into.gateway = back.gateway;
    into.protocol = key.protocol;
}
