//! What senders are told of packets that could not be sent on.
//!
//! A packet that does not fit its way, or whose TTL ends here, becomes the ICMP error about itself, in
//! place: a redirect makes the kernel neither fragment nor answer.

mod bucket;
mod build;

use egress_common::{Addr, DropReason, Family, counter::Answer};

use crate::{
    packet::{L3, Packet},
    parse::{self, Fragment, Ip, protocol},
};

/// Where flags and fragment offset lie in an IPv4 header, and "don't fragment" among them.
const IPV4_FLAGS: u32 = 6;
const DONT_FRAGMENT: u8 = 0x40;

/// Which address an answer comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// This node's own, or the packet's destination if the node has none of that family.
    Node,
    /// The packet's destination: an egress address, which is all of us that the outside knows and lets in.
    Destination,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Untold {
    /// None is due, or none could be begun: the packet is what it was.
    Intact,
    /// It was begun: nothing but a drop is left.
    Spoilt,
}

/// Turns a packet that is dropped for `reason` into the answer to its sender, if one is due.
///
/// `mtu` is that of the way the packet did not fit, in bytes of IP. With an answer, the packet is an ICMP
/// error from `speaker` towards the sender, its Ethernet addresses swapped: the caller sends it out of where
/// the packet came in.
///
/// # Errors
///
/// Nothing is answered for other reasons, where RFC 1122, 3.2.2 and RFC 4443, 2.4 forbid it, to an IPv4
/// packet that might have been fragmented, nor to a source that has had its share.
#[inline(always)]
pub(crate) fn write(
    packet: &Packet<'_>,
    ip: &Ip,
    reason: DropReason,
    mtu: u32,
    speaker: Speaker,
) -> Result<Answer, Untold> {
    let answer = if reason == DropReason::TooBig {
        Answer::TooBig
    } else if reason == DropReason::TtlExceeded {
        Answer::TimeExceeded
    } else {
        return Err(Untold::Intact);
    };
    write_if_due(packet, ip, answer, mtu, speaker)?;
    Ok(answer)
}

/// Writes the answer, if it is due.
///
/// A function of its own: more than one program calls it, and its callers' stack is nearly full.
#[inline(never)]
fn write_if_due(
    packet: &Packet<'_>,
    ip: &Ip,
    answer: Answer,
    mtu: u32,
    speaker: Speaker,
) -> Result<(), Untold> {
    if !is_due(packet, ip, answer, mtu) || !bucket::take(&ip.source) {
        return Err(Untold::Intact);
    }
    build::rewrite(packet, ip, answer, mtu, speaker)
}

#[inline(always)]
fn is_due(packet: &Packet<'_>, ip: &Ip, answer: Answer, mtu: u32) -> bool {
    if packet.is_for_many()
        || matches!(ip.fragment, Fragment::Later(_))
        || !is_one_host(ip.family, &ip.source)
        || is_many(ip.family, &ip.destination)
        || is_error(packet, ip)
    {
        return false;
    }
    match answer {
        Answer::TimeExceeded => true,
        // What fits, but for what its frame carries behind it, would come no smaller.
        Answer::TooBig => ip.length > mtu && may_not_be_fragmented(packet, ip.family),
    }
}

/// Whether an address is that of a single host (RFC 1122, 3.2.2; RFC 4443, 2.4(e.6)).
#[inline(always)]
fn is_one_host(family: Family, addr: &Addr) -> bool {
    match family {
        Family::V4 => !matches!(addr.v4_bytes()[0], 0 | 127 | 224..),
        Family::V6 => addr.0[0] != 0xff && words(addr).iter().any(|word| *word != 0),
    }
}

/// Whether an address is that of a group, or of everybody.
#[inline(always)]
fn is_many(family: Family, addr: &Addr) -> bool {
    match family {
        Family::V4 => matches!(addr.v4_bytes()[0], 224..=239) || words(addr)[3] == u32::MAX,
        Family::V6 => addr.0[0] == 0xff,
    }
}

/// Whether a packet is an ICMP error, a redirect, or a message that could be one.
#[inline(always)]
fn is_error(packet: &Packet<'_>, ip: &Ip) -> bool {
    let (v4, v6) = match (ip.family, ip.protocol) {
        (Family::V4, protocol::ICMP) => (true, false),
        (Family::V6, protocol::ICMPV6) => (false, true),
        _ => return false,
    };
    let Some(kind) = parse::load_within::<u8>(packet, ip.l4, ip.end()) else {
        return true;
    };
    // Unreachable, source quench, redirect, time exceeded, parameter problem; above 18 who knows.
    (v4 && matches!(kind, 3 | 4 | 5 | 11 | 12 | 19..))
        // RFC 4443, 2.1: errors have numbers below 128; 137 is the redirect of RFC 4861.
        || (v6 && matches!(kind, ..128 | 137))
}

#[inline(always)]
fn may_not_be_fragmented(packet: &Packet<'_>, family: Family) -> bool {
    match family {
        Family::V4 => packet
            .load::<u8>(L3 + IPV4_FLAGS)
            .is_some_and(|flags| flags & DONT_FRAGMENT != 0),
        Family::V6 => true,
    }
}

/// The address as four words whose bytes in memory are the wire's.
///
/// As [`Addr::words`], but read as words: put together from bytes, the many uses here would take more
/// stack than there is.
#[inline(always)]
const fn words(addr: &Addr) -> &[u32; 4] {
    // SAFETY: an address is sixteen bytes aligned to four, and any bytes are words.
    unsafe { &*core::ptr::from_ref(addr).cast() }
}
