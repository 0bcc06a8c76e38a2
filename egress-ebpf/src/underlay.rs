//! Plain frames of the overlay as they are on the wire: put there, and taken off it, past the kernel's stack.
//!
//! ```text
//!  14  Ethernet   the underlay's
//!  20  IPv4       node → node, no options, not fragmented
//!   8  UDP        source port by flow hash → the overlay's, no checksum (RFC 7348, 5)
//!   8  VXLAN      08 00 00 00 | VNI 00
//!  14  Ethernet   tag | kind, gateway | ethertype
//! ```
//!
//! Byte for byte what the overlay device would send, so that nobody can tell who made a frame. What is not plain is the
//! device's: aggregates, an IPv6 underlay, probes, whatever a check here does not like. So a frame that nobody should have
//! sent is refused and counted in one place.

mod way;

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_csum_update, bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_skb_change_proto},
};
use egress_common::{Addr, DropReason, Family, gateway::Settings};

use crate::{
    direct,
    overlay::{self, Sender},
    packet::{L3, Packet, TUNNEL_TTL},
    parse::{ETH_P_IP, ETH_P_IPV6, MAPPED, protocol},
    settings,
    verifier::{outcome, told},
};

/// Bytes of the headers from the underlay's IP header to the inner Ethernet header.
const HEADERS: u32 = 50;
/// Bytes of them that UDP counts: its own header's, VXLAN's, and the inner Ethernet header's.
const IN_UDP: u32 = 30;
const IPV4_LENGTH: u32 = 20;
/// A frame up to the packet in it, and where in it things lie.
const WHOLE: usize = (L3 + HEADERS) as usize;
/// The first byte of an IPv4 header without options.
const PLAIN_IPV4: u8 = 0x45;
/// All but "don't fragment" among flags and offset.
const FRAGMENTED: u16 = 0xbfff;
/// ECN's bits of the traffic class, and what they say (RFC 3168, 5).
const ECN: u8 = 3;
const ECN_CONGESTED: u8 = 3;
const ECN_CAPABLE: u8 = 2;
/// What has a network identifier and nothing else (RFC 7348, 5).
const VXLAN_FLAGS: u32 = u32::from_ne_bytes([8, 0, 0, 0]);
/// What an IPv6 header has more than an IPv4 header: what `bpf_skb_change_proto` makes room for.
const IPV6_MORE: i32 = 20;
/// First byte of a MAC that is one host's: to a group's the kernel redirects nothing.
const UNICAST: u8 = 0x02;

/// Where the headers above Ethernet's lie, for the underlay's own.
const IP: usize = L3 as usize;
const UDP: usize = IP + 20;
const VXLAN: usize = UDP + 8;
const INNER: usize = VXLAN + 8;

/// Sends the packet to the node with the address `to` as a frame with these MACs, if it is plain, and says whether it was:
/// nothing is written if not.
///
/// `mtu` is the largest IP packet that fits a frame there.
///
/// # Errors
/// `RedirectFailed`: the packet is spoilt.
#[inline(always)]
pub(crate) fn send(
    packet: &Packet<'_>,
    to: &Addr,
    mtu: u32,
    tag: u64,
    kind: u64,
) -> Result<bool, DropReason> {
    if packet.gso_size() != 0 {
        return Ok(false);
    }
    outcome(send_plain(packet, to, mtu, tag, kind)).map(|sent| sent != 0)
}

/// A function of its own, for the sake of its callers' stack.
#[inline(never)]
fn send_plain(packet: &Packet<'_>, to: &Addr, mtu: u32, tag: u64, kind: u64) -> u32 {
    let Some(settings) = settings::get() else {
        return told(Ok(0));
    };
    let Some(next_hop) = next_hop(packet, settings, to, mtu) else {
        return told(Ok(0));
    };
    told(
        wrap(packet, settings, to, tag, kind).and_then(|is_wrapped| {
            if is_wrapped {
                let next_hop = Addr::from_words([0, 0, MAPPED, next_hop]);
                packet.redirect_to_neighbour(settings.underlay_ifindex, &next_hop)?;
            }
            Ok(is_wrapped.into())
        }),
    )
}

/// The next hop of a plain packet's frame, as an address of IPv4 lies in memory.
#[inline(always)]
fn next_hop(packet: &Packet<'_>, settings: &Settings, to: &Addr, mtu: u32) -> Option<u32> {
    // By its mark the kernel's rules may send a frame another way than others.
    if settings.underlay_ifindex == 0
        || !to.is_v4()
        || packet.mark() != 0
        || packet.has_vlan_tag()
        || packet.l3_len() > mtu
        || !matches!(packet.ethertype(), ETH_P_IP | ETH_P_IPV6)
    {
        return None;
    }
    way::next_hop(packet, settings, to.words()[3])
}

/// Puts the headers in front of the packet, and says whether the kernel made room for them.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "lengths that fit an interface, numbers cut to what a field has, carries that are added in before"
)]
fn wrap(
    packet: &Packet<'_>,
    settings: &Settings,
    to: &Addr,
    tag: u64,
    kind: u64,
) -> Result<bool, DropReason> {
    let length = packet.l3_len();
    let ethertype = packet.ethertype();
    // SAFETY: the kernel passes a valid context.
    let hash = unsafe { bpf_get_hash_recalc(packet.skb()) } as u32;
    let Some(inner) = direct::at::<4>(packet, L3) else {
        return Ok(false);
    };
    // The device draws a port for what has no flow.
    if hash == 0 {
        return Ok(false);
    }
    let tos = outer_tos(inner.word::<0>(), ethertype);
    let flags = u64::from(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP)
        | u64::from(INNER_ETHERNET) << 56;
    let room = packet
        .ctx
        .adjust_room(HEADERS as i32, BPF_ADJ_ROOM_MAC, flags);
    // Most likely a tunnel's packet already.
    if room.is_err() {
        return Ok(false);
    }
    let [total, total_low] = ((length + HEADERS) as u16).to_be_bytes();
    // SAFETY: a helper without arguments.
    let [id, id_low, ..] = unsafe { bpf_get_prandom_u32() }.to_ne_bytes();
    let ip = [
        u32::from_ne_bytes([PLAIN_IPV4, tos, total, total_low]),
        u32::from_ne_bytes([id, id_low, 0, 0]),
        u32::from_ne_bytes([TUNNEL_TTL, protocol::UDP, 0, 0]),
        settings.node4.words()[3],
        to.words()[3],
    ];
    let [sum, sum_high] = (!folded(ip.iter().map(|word| u64::from(*word)).sum())).to_ne_bytes();
    let [source, source_low] = source_port(settings, hash).to_be_bytes();
    let [port, port_low] = settings.overlay_port.to_be_bytes();
    let [udp, udp_low] = ((length + IN_UDP) as u16).to_be_bytes();
    let (tag, kind) = (u64::from_le(tag), u64::from_le(kind));
    let rest = [
        u32::from_ne_bytes([source, source_low, port, port_low]),
        u32::from_ne_bytes([udp, udp_low, 0, 0]),
        VXLAN_FLAGS,
        (settings.vni << 8).to_be(),
        (tag as u32).to_le(),
        ((tag >> 32) as u32 | (kind as u32) << 16).to_le(),
        ((kind >> 16) as u32).to_le(),
    ];
    let ethertype = ethertype.to_be();
    let frame = direct::start::<WHOLE>(packet).ok_or(DropReason::RedirectFailed)?;
    frame.set_byte::<0>(UNICAST);
    frame.set_word::<IP>(ip[0]);
    frame.set_word::<{ IP + 4 }>(ip[1]);
    frame.set_word::<{ IP + 8 }>(u32::from_ne_bytes([
        TUNNEL_TTL,
        protocol::UDP,
        sum,
        sum_high,
    ]));
    frame.set_word::<{ IP + 12 }>(ip[3]);
    frame.set_word::<{ IP + 16 }>(ip[4]);
    frame.set_word::<UDP>(rest[0]);
    frame.set_word::<{ UDP + 4 }>(rest[1]);
    frame.set_word::<VXLAN>(rest[2]);
    frame.set_word::<{ VXLAN + 4 }>(rest[3]);
    frame.set_word::<INNER>(rest[4]);
    frame.set_word::<{ INNER + 4 }>(rest[5]);
    frame.set_word::<{ INNER + 8 }>(rest[6]);
    frame.set_half::<{ INNER + 12 }>(ethertype);
    // The sum that the kernel may keep beside the packet counted the room as zeroes; that of an IPv4 header is one, too.
    let added = rest.iter().map(|word| u64::from(*word)).sum::<u64>() + u64::from(ethertype);
    // SAFETY: the kernel passes a valid context.
    unsafe { bpf_csum_update(packet.skb(), folded(added).into()) };
    Ok(true)
}

/// Bytes of the inner Ethernet header, which `bpf_skb_adjust_room` is told in the uppermost byte of its flags.
const INNER_ETHERNET: u8 = 14;

/// The outer traffic class: zero, but for what congestion needs (RFC 6040; `ip_tunnel_ecn_encap`). `start` is the first word
/// of the packet's header.
#[inline(always)]
const fn outer_tos(start: u32, ethertype: u16) -> u8 {
    let [_, second, ..] = start.to_ne_bytes();
    let ecn = if ethertype == ETH_P_IP {
        second & ECN
    } else {
        second >> 4 & ECN
    };
    if ecn == ECN_CONGESTED {
        ECN_CAPABLE
    } else {
        ecn
    }
}

/// A port of the range that the device takes its own from, by the hash of the flow (`udp_flow_src_port`).
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a sum below the range's end"
)]
fn source_port(settings: &Settings, hash: u32) -> u16 {
    let hash = hash ^ hash << 16;
    let (first, end) = (settings.first_source_port, settings.source_ports_end);
    let ports = u64::from(end.saturating_sub(first));
    first + ((u64::from(hash) * ports) >> 32) as u16
}

/// A sum of words as one of 16 bits, not complemented (RFC 1071).
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the carries are added in before"
)]
const fn folded(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Whether a frame of the wire is a plain one of the overlay, for this node, that a node of the cluster has sent: `sender`
/// says which then. Nothing is written.
///
/// What is not is the kernel's, whether it has to do with the overlay or not.
#[inline(never)]
pub(crate) fn recognise(packet: &Packet<'_>, sender: &mut Sender) -> bool {
    let Some(settings) = settings::get() else {
        return false;
    };
    if packet.ethertype() != ETH_P_IP
        || packet.ifindex() != settings.underlay_ifindex
        || settings.overlay_ifindex == 0
        || !packet.is_for_this_host()
        || packet.has_vlan_tag()
        || packet.gso_size() != 0
    {
        return false;
    }
    // Other packets are not brought into one piece for the sake of this.
    let Some(start) = direct::at::<20>(packet, L3) else {
        return false;
    };
    let [.., protocol, _, _] = start.word::<8>().to_ne_bytes();
    if protocol != protocol::UDP || start.word::<16>() != settings.node4.words()[3] {
        return false;
    }
    let Ok(frame) = packet.start_of_frame::<WHOLE>() else {
        return false;
    };
    let ip = [
        frame.word::<IP>(),
        frame.word::<{ IP + 4 }>(),
        frame.word::<{ IP + 8 }>(),
        frame.word::<{ IP + 12 }>(),
        frame.word::<{ IP + 16 }>(),
    ];
    let [_, _, port, port_low] = frame.word::<UDP>().to_ne_bytes();
    if u16::from_be_bytes([port, port_low]) != settings.overlay_port {
        return false;
    }
    let [version, tos, total, total_low] = ip[0].to_ne_bytes();
    let [_, _, flags, offset] = ip[1].to_ne_bytes();
    let [udp, udp_low, sum, sum_low] = frame.word::<{ UDP + 4 }>().to_ne_bytes();
    let total = u32::from(u16::from_be_bytes([total, total_low]));
    let udp = u32::from(u16::from_be_bytes([udp, udp_low]));
    if version != PLAIN_IPV4
        || tos & ECN == ECN_CONGESTED
        || u16::from_be_bytes([flags, offset]) & FRAGMENTED != 0
        || total != packet.l3_len()
        || udp + IPV4_LENGTH != total
        || u16::from_ne_bytes([sum, sum_low]) != 0
        || folded(ip.iter().map(|word| u64::from(*word)).sum()) != u16::MAX
        || frame.word::<VXLAN>() != VXLAN_FLAGS
        || frame.word::<{ VXLAN + 4 }>() != (settings.vni << 8).to_be()
    {
        return false;
    }
    let [_, _, ethertype, ethertype_low] = frame.word::<{ INNER + 10 }>().to_ne_bytes();
    let ethertype = u16::from_be_bytes([ethertype, ethertype_low]);
    if ethertype != ETH_P_IP && ethertype != ETH_P_IPV6 {
        return false;
    }
    let words = [
        frame.word::<INNER>(),
        frame.word::<{ INNER + 4 }>(),
        frame.word::<{ INNER + 8 }>(),
    ]
    .map(|word| u64::from(u32::from_le(word)));
    let tag = words[0] | (words[1] & 0xffff) << 32;
    let kind = words[1] >> 16 | words[2] << 16;
    let remote = Addr::from_words([0, 0, MAPPED, ip[3]]);
    overlay::judge(&remote, Ok((tag.to_le(), kind.to_le())), sender).is_ok()
}

/// What is to be known of the packet in a frame before it is taken out.
pub(crate) struct Inner {
    destination: Addr,
    /// Bytes from the IP header on, padding included.
    length: u32,
    family: Family,
    ttl: u8,
}

impl Inner {
    /// What [`look`] fills in.
    #[inline(always)]
    pub(crate) const fn unread() -> Self {
        Self {
            destination: Addr::v4([0; 4]),
            length: 0,
            family: Family::V4,
            ttl: 0,
        }
    }

    #[inline(always)]
    pub(crate) const fn family(&self) -> Family {
        self.family
    }

    #[inline(always)]
    pub(crate) const fn destination(&self) -> &Addr {
        &self.destination
    }

    /// Whether nobody will have to be told that it may not live for another hop, or does not fit.
    #[inline(always)]
    pub(crate) const fn fits(&self, mtu: u32) -> bool {
        self.ttl > 1 && self.length <= mtu
    }
}

/// Looks at the packet in a frame that is recognised, and says whether there are its addresses.
///
/// A function of its own, for the sake of its caller's stack.
#[inline(never)]
pub(crate) fn look(packet: &Packet<'_>, inner: &mut Inner) -> bool {
    let Some(frame) = direct::start::<WHOLE>(packet) else {
        return false;
    };
    inner.length = packet.l3_len().saturating_sub(HEADERS);
    if frame.half::<{ INNER + 12 }>() == ETH_P_IP.to_be() {
        let Ok(frame) = packet.start_of_frame::<{ WHOLE + 20 }>() else {
            return false;
        };
        let [ttl, ..] = frame.word::<{ WHOLE + 8 }>().to_ne_bytes();
        inner.family = Family::V4;
        inner.ttl = ttl;
        inner.destination = Addr::from_words([0, 0, MAPPED, frame.word::<{ WHOLE + 16 }>()]);
        return true;
    }
    let Ok(frame) = packet.start_of_frame::<{ WHOLE + 40 }>() else {
        return false;
    };
    let [.., hop_limit] = frame.word::<{ WHOLE + 4 }>().to_ne_bytes();
    inner.family = Family::V6;
    inner.ttl = hop_limit;
    inner.destination = Addr::from_words([
        frame.word::<{ WHOLE + 24 }>(),
        frame.word::<{ WHOLE + 28 }>(),
        frame.word::<{ WHOLE + 32 }>(),
        frame.word::<{ WHOLE + 36 }>(),
    ]);
    true
}

/// Takes the headers off a frame that is recognised, and says whether the kernel did: nothing is written if not.
///
/// The Ethernet header stays, which is for this host.
///
/// # Errors
/// `RedirectFailed`: the packet is spoilt.
#[inline(always)]
pub(crate) fn unpack(packet: &Packet<'_>) -> Result<bool, DropReason> {
    outcome(take_off(packet)).map(|taken| taken != 0)
}

/// A function of its own, for the sake of its caller's stack.
#[inline(never)]
fn take_off(packet: &Packet<'_>) -> u32 {
    let Some(frame) = direct::start::<WHOLE>(packet) else {
        return told(Ok(0));
    };
    let ethertype = frame.half::<{ INNER + 12 }>();
    let room = -(HEADERS as i32);
    if ethertype == ETH_P_IP.to_be() {
        let taken = packet.ctx.adjust_room(room, BPF_ADJ_ROOM_MAC, 0);
        return told(Ok(taken.is_ok().into()));
    }
    // Before 6.4 the kernel changes what kind of packet it takes a frame for only where a header becomes another one, for
    // which it makes room.
    // SAFETY: the kernel passes a valid context; no pointer into the packet is kept anywhere.
    if unsafe { bpf_skb_change_proto(packet.skb(), ETH_P_IPV6.to_be(), 0) } != 0 {
        return told(Ok(0));
    }
    let taken = packet
        .ctx
        .adjust_room(room - IPV6_MORE, BPF_ADJ_ROOM_MAC, 0);
    if taken.is_err() {
        return told(Err(DropReason::RedirectFailed));
    }
    match direct::at::<2>(packet, L3 - 2) {
        Some(place) => {
            place.set_half::<0>(ethertype);
            told(Ok(1))
        }
        None => told(Err(DropReason::RedirectFailed)),
    }
}
