//! What later fragments have to be told of their first.

use egress_common::{
    Family,
    keys::ReplyPath,
    pod::Choice,
    table::{State, life},
};

use crate::{
    packet::{L3, Packet},
    parse::Ip,
    table::{self, Look, Payer, Table, Words},
};

/// Where the fields with "more fragments" lie: in an IPv4 header, and in a fragment header of eight bytes.
const IPV4_FLAGS: u32 = 6;
const EXTENSION_OFFSET: u32 = 2;
/// "More fragments" in the first of the two bytes of IPv4 (RFC 791, 3.1), the second of IPv6 (RFC 8200, 4.5).
const IPV4_MORE: u8 = 0x20;
const IPV6_MORE: u8 = 0x01;

/// Remembers what became of a first fragment from a pod.
///
/// A function of its own, for the sake of its callers' stack.
#[inline(never)]
pub(crate) fn remember(ip: &Ip, id: u32, choice: &Choice) {
    let Some(look) = look(ip, id) else {
        return;
    };
    if look.bucket(Table::Fragments).is_some() {
        enter(look, choice, Payer::First);
    }
}

/// What became of the first fragment of this datagram from a pod.
#[inline(always)]
pub(crate) fn choice(ip: &Ip, id: u32) -> Option<Choice> {
    let mut choice = Choice::PASSED;
    recall(ip, id, &mut choice).then_some(choice)
}

#[inline(never)]
fn recall(ip: &Ip, id: u32, choice: &mut Choice) -> bool {
    let Some(look) = look(ip, id) else {
        return false;
    };
    let known = look.bucket(Table::Fragments).is_some() && table::find(look) && look.is_alive();
    if known {
        look.get(choice);
    }
    known
}

/// Forgets the datagram.
#[inline(never)]
pub(crate) fn forget(ip: &Ip, id: u32) {
    let Some(look) = look(ip, id) else {
        return;
    };
    if let Some(bucket) = look.bucket(Table::Fragments)
        && table::find(look)
    {
        table::remove(bucket, look);
    }
}

/// Whether no fragment of the datagram comes after this later one, if they come in order.
#[inline(always)]
pub(crate) fn is_last(packet: &Packet<'_>, ip: &Ip) -> bool {
    let (at, more) = match ip.family {
        Family::V4 => (L3 + IPV4_FLAGS, IPV4_MORE),
        // What a later fragment carries starts right behind its fragment header.
        Family::V6 => (ip.l4 - 8 + EXTENSION_OFFSET + 1, IPV6_MORE),
    };
    packet.load::<u8>(at).is_none_or(|byte| byte & more == 0)
}

/// Remembers where a first fragment of a reply went.
#[inline(never)]
pub(crate) fn remember_path(ip: &Ip, id: u32, path: &ReplyPath) {
    let Some(look) = look(ip, id) else {
        return;
    };
    if look.bucket(Table::ReplyFragments).is_some() {
        // Charged to the pod, since anybody may be the sender.
        enter(look, path, Payer::Second);
    }
}

/// Fills in where the first fragment of this reply went, and says whether it is known.
#[inline(never)]
pub(crate) fn recall_path(ip: &Ip, id: u32, path: &mut ReplyPath) -> bool {
    let Some(look) = look(ip, id) else {
        return false;
    };
    let known =
        look.bucket(Table::ReplyFragments).is_some() && table::find(look) && look.is_alive();
    if known {
        look.get(path);
    }
    known
}

/// Where there is no room, later fragments are dropped as unknown.
#[inline(always)]
fn enter<T: Words>(look: &mut Look, value: &T, payer: Payer) {
    look.put(value, false);
    look.state = State::New as u32;
    look.until = look.now.wrapping_add(life::FRAGMENTS);
    table::enter(look, payer);
}

/// This CPU's place for a look-up, with the datagram's key.
#[inline(always)]
fn look(ip: &Ip, id: u32) -> Option<&'static mut Look> {
    let look = table::look()?;
    look.set_fragment(ip, id);
    Some(look)
}
