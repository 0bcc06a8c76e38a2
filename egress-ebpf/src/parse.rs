//! From bytes to the few facts that later stages need. Every load is bounds-checked by the kernel.

mod extensions;
mod quoted;
mod transport;

use core::mem::offset_of;

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use egress_common::{Addr, DropReason, Family, WireU16};

pub(crate) use self::{
    quoted::{Quoted, quoted},
    transport::{Transport, TransportKind, icmp_kind, transport},
};
use crate::{
    packet::{L3, Packet},
    verifier::ForgottenByte,
};

pub(crate) const ETH_P_IP: u16 = 0x0800;
pub(crate) const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_ARP: u16 = 0x0806;

/// IP protocol numbers (IANA).
pub(crate) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const DCCP: u8 = 33;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const AUTHENTICATION: u8 = 51;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION_OPTIONS: u8 = 60;
    pub(crate) const SCTP: u8 = 132;
    pub(crate) const MOBILITY: u8 = 135;
    pub(crate) const UDP_LITE: u8 = 136;
    pub(crate) const HIP: u8 = 139;
    pub(crate) const SHIM6: u8 = 140;
}

/// An IPv4 header without its options (RFC 791, 3.1).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv4Header {
    pub(crate) version_ihl: u8,
    tos: u8,
    pub(crate) total_length: WireU16,
    id: WireU16,
    flags_offset: WireU16,
    ttl: u8,
    pub(crate) protocol: u8,
    checksum: WireU16,
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
}

/// An IPv6 header up to its addresses (RFC 8200, 3), which are read straight to where they belong: a
/// chain of calls has 512 bytes of stack, and kernels before 6.3 round each call's share up to 32.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv6Header {
    version_class_flow: [u8; 4],
    payload_length: WireU16,
    next_header: u8,
    hop_limit: u8,
}

/// Options that fit an IPv4 header: 40 bytes of one each.
const MAX_OPTIONS: u32 = 40;
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_LOOSE_ROUTE: u8 = 131;
const OPTION_STRICT_ROUTE: u8 = 137;

/// Where an IP header starts, as an index.
const AT: usize = L3 as usize;
/// Bytes of an IPv4 header without options, and of an IPv6 header.
const IPV4_LENGTH: usize = 20;
const IPV6_LENGTH: usize = 40;
/// The third word of an IPv4 address as an [`Addr`].
pub(crate) const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Where the addresses lie in an IPv6 header.
const IPV6_SOURCE: u32 = 8;
const IPV6_DESTINATION: u32 = 24;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// ARP.
    Arp,
    /// An IP packet.
    Ip,
}

/// Facts of an IP packet.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Ip {
    pub(crate) source: Addr,
    pub(crate) destination: Addr,
    /// Bytes of the packet from the IP header on.
    pub(crate) length: u32,
    /// Where the header above IP starts, in bytes from the start of the frame.
    pub(crate) l4: u32,
    pub(crate) fragment: Fragment,
    pub(crate) family: Family,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// The protocol above IP and its extension headers.
    pub(crate) protocol: u8,
    /// Whether an authentication header (RFC 4302) covers the addresses.
    pub(crate) is_authenticated: bool,
}

impl Ip {
    /// What [`frame`] fills in.
    #[inline(always)]
    pub(crate) const fn unread() -> Self {
        Self {
            family: Family::V4,
            source: Addr::v4([0; 4]),
            destination: Addr::v4([0; 4]),
            ttl: 0,
            protocol: 0,
            is_authenticated: false,
            length: 0,
            l4: 0,
            fragment: Fragment::Whole,
        }
    }

    #[inline(always)]
    fn set_source(&mut self, words: [u32; 4]) {
        // SAFETY: an address, which is aligned as the facts are.
        unsafe { set_halves(&raw mut self.source, words) };
    }

    #[inline(always)]
    fn set_destination(&mut self, words: [u32; 4]) {
        // SAFETY: an address behind an address, which is aligned as the facts are.
        unsafe { set_halves(&raw mut self.destination, words) };
    }

    /// Where the packet ends, in bytes from the start of the frame: what follows is padding.
    #[inline(always)]
    pub(crate) const fn end(&self) -> u32 {
        L3 + self.length
    }
}

const _: () = assert!(offset_of!(Ip, source) == 0 && offset_of!(Ip, destination) == 16);

/// Writes an address half by half, as who looks for a pod reads it soon after: a processor hands on what was just
/// stored only to loads of no more than one store wrote.
///
/// # Safety
/// The place must be an address that is aligned to eight bytes.
#[inline(always)]
unsafe fn set_halves(place: *mut Addr, words: [u32; 4]) {
    let half = |first: u32, second: u32| {
        let (first, second) = (u64::from(first.to_le()), u64::from(second.to_le()));
        (first | second << 32).to_le()
    };
    let [a, b, c, d] = words;
    // SAFETY: as the caller says; both are 16 bytes.
    unsafe { place.cast::<[u64; 2]>().write([half(a, b), half(c, d)]) };
}

/// Softirqs do not interrupt each other on a CPU, and no program runs within another.
#[btf_map]
static PARSED: PerCpuArray<Ip, 1> = PerCpuArray::new();

/// A place for the facts of the packet that this CPU is at, which still says what it said of another.
///
/// What is read from a map the verifier knows nothing of: all ways through the parser lead to one state,
/// where on the stack each would be followed to the end of the program, close to a million instructions.
#[inline(always)]
pub(crate) fn place() -> Option<&'static mut Ip> {
    let ip = PARSED.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element, which its program asks for once. Zeroes, as at first, are a value of the type, too.
    Some(unsafe { &mut *ip })
}

/// What was read of the packet so far, for a function that the verifier looks at by itself.
#[inline(always)]
pub(crate) fn parsed() -> Option<&'static Ip> {
    let ip = PARSED.get_ptr(0)?;
    // SAFETY: as in `place`; nobody writes it while it is read.
    Some(unsafe { &*ip })
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// All of it.
    Whole,
    /// The first fragment, with the identification as the wire's bytes.
    First(u32),
    /// A later fragment: there is no header above IP in it.
    Later(u32),
}

/// Reads the headers of a frame without a VLAN tag up to the one above IP, into the caller's `ip`.
#[inline(always)]
pub(crate) fn frame(packet: &Packet<'_>, ip: &mut Ip) -> Result<Frame, DropReason> {
    if packet.has_vlan_tag() {
        return Err(DropReason::NotPlainIp);
    }
    frame_beside_tag(packet, ip)
}

/// The same within the caller, which has room on its stack: a call costs as much as the rest of it.
#[inline(always)]
pub(crate) fn frame_within(packet: &Packet<'_>, ip: &mut Ip) -> Result<Frame, DropReason> {
    if packet.has_vlan_tag() {
        return Err(DropReason::NotPlainIp);
    }
    match family(packet)? {
        Some(family) => headers_within(packet, family, ip).map(|()| Frame::Ip),
        None => Ok(Frame::Arp),
    }
}

/// The same as [`frame`] of one whose tag, if there is one beside it, the caller knows of.
#[inline(always)]
pub(crate) fn frame_beside_tag(packet: &Packet<'_>, ip: &mut Ip) -> Result<Frame, DropReason> {
    match family(packet)? {
        Some(family) => headers(packet, family, ip).map(|()| Frame::Ip),
        None => Ok(Frame::Arp),
    }
}

/// The family of an IP packet; none of ARP.
#[inline(always)]
fn family(packet: &Packet<'_>) -> Result<Option<Family>, DropReason> {
    match packet.ethertype() {
        ETH_P_IP => Ok(Some(Family::V4)),
        ETH_P_IPV6 => Ok(Some(Family::V6)),
        ETH_P_ARP => Ok(None),
        _ => Err(DropReason::NotPlainIp),
    }
}

/// Reads nothing but the destination of an IP packet, and says whether there is one.
#[inline(always)]
pub(crate) fn destination(packet: &Packet<'_>, destination: &mut Addr) -> bool {
    match packet.ethertype() {
        ETH_P_IP => match packet.start_of_frame::<{ AT + IPV4_LENGTH }>() {
            Ok(start) => {
                *destination = Addr::from_words([0, 0, MAPPED, start.word::<{ AT + 16 }>()]);
                true
            }
            Err(_) => false,
        },
        ETH_P_IPV6 => match packet.start_of_frame::<{ AT + IPV6_LENGTH }>() {
            Ok(start) => {
                *destination = Addr::from_words([
                    start.word::<{ AT + 24 }>(),
                    start.word::<{ AT + 28 }>(),
                    start.word::<{ AT + 32 }>(),
                    start.word::<{ AT + 36 }>(),
                ]);
                true
            }
            Err(_) => false,
        },
        _ => false,
    }
}

/// Reads the headers of an IP packet.
///
/// A function of its own, which fills a place of the caller's: a chain of calls has 512 bytes of stack in
/// all, and each copy of the facts costs 64 of them. What it returns fits a register: of a value that
/// does not, the compiler may leave the address where the kernel refuses it ("cannot return stack pointer").
#[inline(never)]
fn headers(packet: &Packet<'_>, family: Family, ip: &mut Ip) -> Result<(), DropReason> {
    headers_within(packet, family, ip)
}

#[inline(always)]
fn headers_within(packet: &Packet<'_>, family: Family, ip: &mut Ip) -> Result<(), DropReason> {
    match family {
        Family::V4 => ipv4(packet, ip),
        Family::V6 => ipv6(packet, ip),
    }
}

#[inline(always)]
fn ipv4(packet: &Packet<'_>, ip: &mut Ip) -> Result<(), DropReason> {
    let start = packet.start_of_frame::<{ AT + IPV4_LENGTH }>()?;
    let [version_ihl, _, total, total_low] = start.word::<AT>().to_ne_bytes();
    let [id, id_low, offset, offset_low] = start.word::<{ AT + 4 }>().to_ne_bytes();
    let [ttl, protocol, ..] = start.word::<{ AT + 8 }>().to_ne_bytes();
    ip.set_source([0, 0, MAPPED, start.word::<{ AT + 12 }>()]);
    ip.set_destination([0, 0, MAPPED, start.word::<{ AT + 16 }>()]);
    let header_length = u32::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header_length < 20 {
        return Err(DropReason::Malformed);
    }
    ip.family = Family::V4;
    ip.ttl = ttl;
    ip.protocol = protocol;
    ip.is_authenticated = false;
    ip.l4 = L3 + header_length;
    let claimed = u32::from(u16::from_be_bytes([total, total_low]));
    ip.length = total_length(packet, claimed)?;
    if ip.length < header_length || is_no_length(claimed, protocol) {
        return Err(DropReason::Malformed);
    }
    let offset = u16::from_be_bytes([offset, offset_low]);
    let id = u32::from_ne_bytes([id, id_low, 0, 0]);
    ip.fragment = if offset & 0x1fff != 0 {
        Fragment::Later(id)
    } else if offset & 0x2000 != 0 {
        Fragment::First(id)
    } else {
        Fragment::Whole
    };
    if header_length > 20 {
        refuse_source_route(packet, ip.l4)?;
    }
    Ok(())
}

/// Refuses a packet whose options name the hops that it takes (RFC 791, 3.1: types 131 and 137).
#[inline(always)]
fn refuse_source_route(packet: &Packet<'_>, end: u32) -> Result<(), DropReason> {
    let mut place = ForgottenByte::new();
    let mut at = L3 + 20;
    for _ in 0..MAX_OPTIONS {
        at = place.forget(at);
        if at >= end {
            return Ok(());
        }
        match packet.load::<u8>(at).ok_or(DropReason::Malformed)? {
            OPTION_END => return Ok(()),
            OPTION_NOTHING => at += 1,
            OPTION_LOOSE_ROUTE | OPTION_STRICT_ROUTE => return Err(DropReason::SourceRouted),
            _ => {
                let length: u8 = packet.load(at + 1).ok_or(DropReason::Malformed)?;
                if length < 2 {
                    return Err(DropReason::Malformed);
                }
                at += u32::from(length);
            }
        }
    }
    Ok(())
}

#[inline(always)]
fn ipv6(packet: &Packet<'_>, ip: &mut Ip) -> Result<(), DropReason> {
    let start = packet.start_of_frame::<{ AT + IPV6_LENGTH }>()?;
    let [version_class, ..] = start.word::<AT>().to_ne_bytes();
    let [payload, payload_low, next_header, hop_limit] = start.word::<{ AT + 4 }>().to_ne_bytes();
    ip.set_source([
        start.word::<{ AT + 8 }>(),
        start.word::<{ AT + 12 }>(),
        start.word::<{ AT + 16 }>(),
        start.word::<{ AT + 20 }>(),
    ]);
    ip.set_destination([
        start.word::<{ AT + 24 }>(),
        start.word::<{ AT + 28 }>(),
        start.word::<{ AT + 32 }>(),
        start.word::<{ AT + 36 }>(),
    ]);
    if version_class >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    // RFC 4291, 2.5.5.2: mapped addresses stand for IPv4 in programs and have no business on the wire.
    if ip.source.is_v4() {
        return Err(DropReason::SpoofedSource);
    }
    if ip.destination.is_v4() {
        return Err(DropReason::Malformed);
    }
    ip.family = Family::V6;
    ip.ttl = hop_limit;
    ip.protocol = next_header;
    ip.is_authenticated = false;
    ip.fragment = Fragment::Whole;
    ip.l4 = L3 + 40;
    // A jumbogram's zero (RFC 2675) is what big TCP's aggregates carry; alone it is an empty packet.
    let payload = u32::from(u16::from_be_bytes([payload, payload_low]));
    let claimed = if payload == 0 && packet.gso_size() != 0 {
        0
    } else {
        40 + payload
    };
    ip.length = total_length(packet, claimed)?;
    extensions::walk(packet, ip)?;
    if ip.l4 > ip.end() || is_no_length(claimed, ip.protocol) {
        return Err(DropReason::Malformed);
    }
    Ok(())
}

/// Whether a header claims no length and is not big TCP's: an aggregate's length is the frame's only there, to the
/// kernel too (commit b1a78b9b9886).
#[inline(always)]
const fn is_no_length(claimed: u32, protocol: u8) -> bool {
    claimed == 0 && protocol != protocol::TCP
}

/// The length that a header claims, if the frame holds it. Big TCP writes zero into an aggregate's header.
#[inline(always)]
fn total_length(packet: &Packet<'_>, claimed: u32) -> Result<u32, DropReason> {
    let frame = packet.l3_len();
    if claimed == 0 && packet.gso_size() != 0 {
        Ok(frame)
    } else if claimed > frame {
        Err(DropReason::Malformed)
    } else {
        Ok(claimed)
    }
}

/// The bytes at `offset`, if the packet, which ends at `end`, has them: padding tells nothing.
#[inline(always)]
pub(crate) fn load_within<T: Copy>(packet: &Packet<'_>, offset: u32, end: u32) -> Option<T> {
    if offset as usize + size_of::<T>() > end as usize {
        return None;
    }
    packet.load(offset)
}
