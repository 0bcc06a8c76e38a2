//! The answer itself: headers in front of the packet that they quote.

use aya_ebpf::{btf_maps::PerCpuArray, helpers::bpf_csum_diff, macros::btf_map};
use egress_common::{Family, WireU16, counter::Answer, gateway::Settings};

use crate::{
    packet::{L3, Packet},
    parse::{self, Fragment, Ip, protocol},
    settings,
};

use super::{Speaker, Untold, words};

/// Bytes of the headers in front of the quoted packet: IP, then eight of ICMP.
const HEAD4: u32 = 20 + 8;
const HEAD6: u32 = 40 + 8;
/// Words of them.
const WORDS4: usize = HEAD4 as usize / 4;
const WORDS6: usize = HEAD6 as usize / 4;
/// Bytes that are quoted at most: what fits 576 bytes (RFC 1812, 4.3.2.3) and 1280 bytes (RFC 4443, 2.4(c)).
const QUOTE4: u32 = 576 - HEAD4;
const QUOTE6: u32 = 1280 - HEAD6;
/// Bytes that `bpf_csum_diff` sums up in one call (`MAX_BPF_STACK`).
const PIECE: u32 = 512;
const PIECES: u32 = QUOTE6.div_ceil(PIECE);

/// TTL and hop limit of answers.
const TTL: u8 = 64;
/// Type of service of answers: precedence "internetwork control" (RFC 1812, 4.3.2.5).
const TOS: u8 = 0xc0;
/// "Don't fragment": with it the identification may be zero (RFC 6864, 4.1).
const DONT_FRAGMENT: u8 = 0x40;

/// Places that the stack has no room for.
#[repr(C, align(8))]
struct Scratch {
    /// The headers, as words whose bytes in memory are the wire's.
    head: [u32; WORDS6],
    /// A piece of the quoted packet, and zeros to fill its last word up.
    piece: [u8; PIECE as usize + 4],
}

/// Softirqs do not interrupt each other on a CPU, so an answer that is begun is finished.
#[btf_map]
static ANSWER_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Turns the packet into the answer about itself.
#[inline(always)]
pub(super) fn rewrite(
    packet: &Packet<'_>,
    ip: &Ip,
    answer: Answer,
    mtu: u32,
    speaker: Speaker,
) -> Result<(), Untold> {
    let scratch = ANSWER_SCRATCH.get_ptr_mut(0).ok_or(Untold::Intact)?;
    // SAFETY: this CPU's own element, which no other reference is to.
    let scratch = unsafe { &mut *scratch };
    let limit = match ip.family {
        Family::V4 => QUOTE4,
        Family::V6 => QUOTE6,
    };
    let quote = ip.length.min(limit);
    let sum = sum_of_quote(packet, ip, L3 + quote, &mut scratch.piece).ok_or(Untold::Intact)?;
    let head = &mut scratch.head;
    let node = match speaker {
        Speaker::Node => settings::get(),
        Speaker::Destination => None,
    };
    match ip.family {
        Family::V4 => head4(head, ip, answer, mtu, quote, sum, node),
        Family::V6 => head6(head, ip, answer, mtu, quote, sum, node),
    }
    // The tail first: it makes an aggregate one packet, and takes the padding off a short frame.
    packet.cut(L3 + quote).map_err(|_| Untold::Intact)?;
    if put_in_front(packet, ip.family, head) && packet.swap_macs().is_ok() {
        Ok(())
    } else {
        Err(Untold::Spoilt)
    }
}

#[inline(always)]
fn put_in_front(packet: &Packet<'_>, family: Family, head: &[u32; WORDS6]) -> bool {
    match family {
        Family::V4 => head
            .first_chunk::<WORDS4>()
            .is_some_and(|head| packet.put_in_front(head).is_ok()),
        Family::V6 => packet.put_in_front(head).is_ok(),
    }
}

/// IPv4 and ICMP in front of `quote` bytes whose sum is `sum`: from the node, if it is to speak and has an
/// address, else from the packet's destination.
#[inline(always)]
fn head4(
    head: &mut [u32; WORDS6],
    ip: &Ip,
    answer: Answer,
    mtu: u32,
    quote: u32,
    sum: u64,
    node: Option<&Settings>,
) {
    let length = WireU16::new(low_half(HEAD4 + quote)).0;
    let source = node.map_or(0, |node| words(&node.node4)[3]);
    let source = if source == 0 {
        words(&ip.destination)[3]
    } else {
        source
    };
    head[0] = u32::from_ne_bytes([0x45, TOS, length[0], length[1]]);
    head[1] = u32::from_ne_bytes([0, 0, DONT_FRAGMENT, 0]);
    head[2] = u32::from_ne_bytes([TTL, protocol::ICMP, 0, 0]);
    head[3] = source;
    head[4] = words(&ip.source)[3];
    let header = fold(of_words(&head[..5]));
    head[2] = u32::from_ne_bytes([TTL, protocol::ICMP, !header[0], !header[1]]);
    let (kind, code, word) = match answer {
        // RFC 1191, 4: the lower half of the second word is the MTU.
        Answer::TooBig => (3, 4, mtu.min(0xffff).to_be()),
        Answer::TimeExceeded => (11, 0, 0),
    };
    let first = u32::from_ne_bytes([kind, code, 0, 0]);
    let message = fold(u64::from(first) + u64::from(word) + sum);
    head[5] = u32::from_ne_bytes([kind, code, !message[0], !message[1]]);
    head[6] = word;
}

/// IPv6 and ICMPv6 in front of `quote` bytes whose sum is `sum`, from whom [`head4`] says.
#[inline(always)]
fn head6(
    head: &mut [u32; WORDS6],
    ip: &Ip,
    answer: Answer,
    mtu: u32,
    quote: u32,
    sum: u64,
    node: Option<&Settings>,
) {
    let payload = 8 + quote;
    let length = WireU16::new(low_half(payload)).0;
    let own = node.map(|node| words(&node.node6));
    let source = own
        .filter(|words| words.iter().any(|word| *word != 0))
        .unwrap_or(words(&ip.destination));
    head[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
    head[1] = u32::from_ne_bytes([length[0], length[1], protocol::ICMPV6, TTL]);
    head[2..6].copy_from_slice(source);
    head[6..10].copy_from_slice(words(&ip.source));
    let (kind, word) = match answer {
        Answer::TooBig => (2, mtu.to_be()),
        Answer::TimeExceeded => (3, 0),
    };
    let first = u32::from_ne_bytes([kind, 0, 0, 0]);
    // RFC 4443, 2.3: the pseudo-header has both addresses, the length and the protocol.
    let pseudo = of_words(&head[2..10]) + of_number(payload) + of_number(protocol::ICMPV6.into());
    let message = fold(pseudo + u64::from(first) + u64::from(word) + sum);
    head[10] = u32::from_ne_bytes([kind, 0, !message[0], !message[1]]);
    head[11] = word;
}

/// What the quoted packet, from the IP header to `end`, adds to a checksum.
///
/// A packet that never left this machine may have no L4 checksum yet: it stands for the pseudo-header
/// alone, and the last device on the way replaces it by the complement of all from the L4 header on. The
/// sum of all that is then the complement of the pseudo-header, whatever the data are (the kernel calls
/// this local checksum offload). For one whole packet in 65536 the two look the same: its answer is lost.
#[inline(always)]
fn sum_of_quote(
    packet: &Packet<'_>,
    ip: &Ip,
    end: u32,
    piece: &mut [u8; PIECE as usize + 4],
) -> Option<u64> {
    let (end, complement) = match unfinished_checksum(packet, ip, end) {
        Some(field) => (ip.l4, u16::from_ne_bytes([!field[0], !field[1]])),
        None => (end, 0),
    };
    Some(sum(packet, L3, end, piece)? + u64::from(complement))
}

/// The packet's L4 checksum if it is that of the pseudo-header alone.
#[inline(always)]
fn unfinished_checksum(packet: &Packet<'_>, ip: &Ip, end: u32) -> Option<[u8; 2]> {
    let offset = match ip.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return None,
    };
    if ip.fragment != Fragment::Whole {
        return None;
    }
    let field: [u8; 2] = parse::load_within(packet, ip.l4 + offset, end)?;
    // The front of a mapped address adds 0xffff, which is nothing in this arithmetic.
    let pseudo = of_words(words(&ip.source))
        + of_words(words(&ip.destination))
        + of_number(ip.end().wrapping_sub(ip.l4))
        + of_number(ip.protocol.into());
    (field == fold(pseudo)).then_some(field)
}

/// The sum of the packet's bytes from `from` up to `to`.
#[inline(always)]
fn sum(
    packet: &Packet<'_>,
    from: u32,
    to: u32,
    piece: &mut [u8; PIECE as usize + 4],
) -> Option<u64> {
    let mut sum = 0;
    let mut at = from;
    for _ in 0..PIECES {
        if at >= to {
            break;
        }
        sum = sum_of_piece(packet, at, (to - at).min(PIECE), piece, sum)?;
        at += PIECE;
    }
    Some(sum.into())
}

/// `sum` and the `length` bytes at `at`: at least one, at most a piece.
#[inline(always)]
fn sum_of_piece(
    packet: &Packet<'_>,
    at: u32,
    length: u32,
    piece: &mut [u8; PIECE as usize + 4],
    sum: u32,
) -> Option<u32> {
    let length = in_sight(length);
    let place = piece.as_mut_ptr();
    // SAFETY: the piece has room for `length` bytes, which is at most `PIECE`.
    if !unsafe { packet.load_bytes(at, place, length) } {
        return None;
    }
    // Written byte by byte where the last word may not be whole: whole words are summed up.
    for fill in 0..3 {
        // SAFETY: `length` is at most `PIECE`, and the piece is four bytes longer.
        unsafe { core::ptr::write_volatile(place.add(length as usize + fill), 0) };
    }
    // SAFETY: no bytes are taken away, and those that are added are within the piece.
    let sum = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            place.cast(),
            (length + 3) & !3,
            sum,
        )
    };
    u32::try_from(sum).ok()
}

/// A length from 1 to [`PIECE`] again, so that the verifier sees that it is.
///
/// The compiler knows already and would leave the mask out: it has to forget first.
#[inline(always)]
fn in_sight(length: u32) -> u32 {
    let mut less = u64::from(length) - 1;
    // SAFETY: a word of our own, written and read where it lies.
    less = unsafe {
        core::ptr::write_volatile(&raw mut less, less);
        core::ptr::read_volatile(&raw const less)
    };
    const { assert!(PIECE.is_power_of_two()) };
    #[expect(clippy::cast_possible_truncation, reason = "a piece is short")]
    let length = ((less & u64::from(PIECE - 1)) + 1) as u32;
    length
}

/// The sum of words as they lie in memory.
#[inline(always)]
fn of_words(words: &[u32]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}

/// What a number in a word of the wire adds to a sum.
#[inline(always)]
const fn of_number(number: u32) -> u64 {
    number.to_be() as u64
}

/// A sum in 16 bits (RFC 1071), as bytes of the wire.
#[inline(always)]
fn fold(sum: u64) -> [u8; 2] {
    let mut sum = sum;
    for _ in 0..4 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "after four turns there is no carry left"
    )]
    let sum = sum as u16;
    sum.to_ne_bytes()
}

/// A length that fits its field: answers are short.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
const fn low_half(length: u32) -> u16 {
    length as u16
}
