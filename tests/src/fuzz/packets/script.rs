//! Bytes as a script: one frame after the other, each a known shape with some of its bytes changed.
//!
//! Frames of random bytes are refused at their first header. Here a byte says which shape, who sends it, to whom, and
//! what is odd about it; and others change the frame anywhere.

use egress_userspace::kernel::Program;

use super::{
    Side,
    sight::{self, Sight},
    tunnel, world,
};
use crate::packets::{
    build::{self, Frame, HOST_MAC, L3, POD_MAC, extension, flag, fragment6, proto},
    nat::{ALPHA, BETA},
    seed::UPLINK,
};
use egress_common::{gateway::GatewayId, overlay::FrameKind};

/// Frames of a script.
const STEPS: usize = 16;
/// Bytes that say what a frame is; what changes it follows.
const HEAD: usize = 12;
/// Changes of a frame.
const EDITS: u8 = 7;
/// The largest frame: the kernel takes what fits a page with its own headers.
const LARGEST: usize = 1700;
/// What `egress_to_pod` takes for what our programs have delivered.
pub(super) const DELIVERED: u32 = 0x6567_6465;

/// Addresses by family: whoever may send to whom. Ours first, then what rules name, then what nobody should name.
const PLACES: [[&str; 20]; 2] = [
    [
        "10.1.0.5",
        "10.1.0.6",
        "203.0.113.7",
        "203.0.112.7",
        "192.88.99.7",
        "198.51.100.7",
        "100.64.0.7",
        "198.18.0.7",
        "192.52.193.7",
        ALPHA.v4,
        BETA.v4,
        "10.1.0.9",
        "10.1.0.7",
        "10.1.0.8",
        "10.1.0.99",
        "203.0.113.200",
        "10.96.0.10",
        "8.8.8.8",
        "255.255.255.255",
        "0.0.0.0",
    ],
    [
        "fd00::5",
        "fd00::6",
        "2001:db8:a::7",
        "2001:db8:b::7",
        "2001:db8:5::7",
        "2001:db8:2::7",
        "2001:db8:7::7",
        "2001:db8:4::7",
        "2001:db8:c::7",
        ALPHA.v6,
        BETA.v6,
        "fd00::9",
        "fd00::7",
        "fd00::8",
        "fd00::99",
        "2001:db8:a:8000::7",
        "fd10::10",
        "fe80::1",
        "ff02::1",
        "::",
    ],
];
const PORTS: [u16; 16] = [
    40_000, 40_001, 53, 443, 5000, 1024, 1023, 1, 0, 65_535, 68, 67, 80, 5060, 4790, 40_002,
];
const LENGTHS: [usize; 8] = [20, 0, 8, 340, 1200, 1372, 1432, 1500];
const TTLS: [u8; 8] = [64, 2, 1, 0, 255, 63, 64, 64];

/// A frame, and what the kernel keeps beside it.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) program: Program,
    pub(super) ifindex: u32,
    pub(super) frame: Vec<u8>,
    pub(super) gso: (u32, u32),
    pub(super) mark: u32,
    /// Where it came out of a tunnel: flags, identifier, and the far end's address.
    pub(super) tunnel: Option<(u32, u32, [u32; 4])>,
}

/// What a script can answer to: the last frame that left, and whence.
#[derive(Clone, Debug, Default)]
pub(super) struct Last {
    pub(super) frame: Vec<u8>,
}

/// Reads the next step, and the bytes behind it.
pub(super) struct Script<'a> {
    side: Side,
    rest: &'a [u8],
    left: usize,
}

impl<'a> Script<'a> {
    pub(super) const fn new(side: Side, data: &'a [u8]) -> Self {
        Self {
            side,
            rest: data,
            left: STEPS,
        }
    }

    /// The next step, where there is one.
    pub(super) fn next(&mut self, last: &Last) -> Option<Step> {
        let (head, rest) = self.rest.split_first_chunk::<HEAD>()?;
        self.left = self.left.checked_sub(1)?;
        let edits = usize::from(head[10] % EDITS) * 2;
        let (edits, rest) = rest.split_at(edits.min(rest.len()));
        self.rest = rest;
        let program = self.program(head[0]);
        let v6 = head[7] & 1 != 0;
        let answers = head[7] & 8 != 0;
        let mut frame = if answers && let Some(frame) = answer(&last.frame, head) {
            frame
        } else {
            shape(head, usize::from(v6))
        };
        if !matches!(program, Program::FromPod) {
            frame = frame.macs(HOST_MAC, [2, 0, 0, 0, 0xcc, 9]);
        }
        let tunnel = (program == Program::FromOverlay).then(|| come_out(head));
        if program == Program::FromOverlay {
            frame = frame.macs(tag(head), kind(head));
        }
        let mut bytes = frame.bytes;
        for (at, value) in edits.chunks_exact(2).map(|edit| (edit[0], edit[1])) {
            // The MACs say which overlay frame it is, and little else: they are far down.
            let at = (12 + usize::from(at)) % bytes.len().clamp(1, 256);
            bytes[at] = value;
        }
        resize(&mut bytes, head[11]);
        if head[7] & 2 == 0 {
            sight::mend(&mut bytes);
        }
        let gso = if head[7] & 4 == 0 {
            (0, 0)
        } else {
            (u32::from(head[9]) * 8, u32::from(head[8] % 8))
        };
        Some(Step {
            program,
            ifindex: match program {
                Program::FromPod | Program::ToPod if head[0] & 0x80 != 0 => world::OVERLAY,
                Program::FromPod | Program::ToPod => world::PODS,
                Program::FromOverlay => world::OVERLAY,
                Program::FromGateway
                | Program::FromUplink
                | Program::ToUplink
                | Program::FromUnderlay => UPLINK,
            },
            frame: bytes,
            gso,
            mark: if program == Program::ToPod && head[8] & 1 != 0 {
                DELIVERED
            } else {
                0
            },
            tunnel,
        })
    }

    fn program(&self, byte: u8) -> Program {
        use Program::{FromGateway, FromOverlay, FromPod, FromUplink, ToPod};
        let all = match self.side {
            Side::Pod => [FromPod, FromPod, ToPod, FromGateway],
            Side::Overlay => [FromOverlay, FromOverlay, FromUplink, FromPod],
            Side::Uplink => [FromUplink, FromPod, FromUplink, FromOverlay],
        };
        all[usize::from(byte & 3)]
    }
}

/// A frame of one of the shapes.
fn shape(head: &[u8; HEAD], family: usize) -> Frame {
    let place = |byte: u8| PLACES[family][usize::from(byte) % PLACES[family].len()];
    let (from, to) = (place(head[2]), place(head[3]));
    let source = PORTS[usize::from(head[4] >> 4)];
    let destination = PORTS[usize::from(head[4] & 15)];
    let length = LENGTHS[usize::from(head[5] % 8)];
    let v4 = family == 0;
    let (icmp, ping) = if v4 {
        (proto::ICMP, 8)
    } else {
        (proto::ICMPV6, 128)
    };
    let udp = || build::udp(source, destination, length);
    let segment = |flags| build::segment(source, destination, flags, 1, length);
    let sub = head[5] >> 3;
    let frame = match head[1] % 24 {
        0..=2 => Frame::ip(from, to, proto::UDP, &udp()),
        3 => Frame::ip(
            from,
            to,
            proto::TCP,
            &build::tcp(source, destination, &[2, 4, 5, 0xb4], length),
        ),
        4 => Frame::ip(from, to, proto::TCP, &segment(flag::SYN)),
        5 => Frame::ip(from, to, proto::TCP, &segment(flag::ACK)),
        6 => Frame::ip(from, to, proto::TCP, &segment(flag::SYN | flag::ACK)),
        7 => Frame::ip(from, to, proto::TCP, &segment(flag::FIN | flag::ACK)),
        8 => Frame::ip(from, to, proto::TCP, &segment(flag::RST)),
        9 => Frame::ip(from, to, icmp, &build::icmp(ping, source, &[7; 12])),
        10 => Frame::ip(
            from,
            to,
            icmp,
            &build::icmp(if v4 { 0 } else { 129 }, source, &[7; 12]),
        ),
        11 | 12 => {
            // An error about a packet that went the other way.
            let about = Frame::ip(
                to,
                from,
                proto::UDP,
                &build::udp(destination, source, length),
            );
            let kinds = if v4 { [3, 11, 12, 4] } else { [1, 2, 3, 4] };
            let mut message = build::icmp(kinds[usize::from(sub) % 4], 0, &about.bytes[L3..]);
            message[1] = sub >> 2;
            Frame::ip(from, to, icmp, &message)
        }
        13 if v4 => Frame::ip(from, to, proto::UDP, &udp()).fragment(9, 0, true),
        13 => Frame::ip(
            from,
            to,
            proto::FRAGMENT,
            &fragment6(proto::UDP, 9, 0, true, &udp()),
        ),
        14 if v4 => Frame::ip(from, to, proto::UDP, &[0xaa; 40]).fragment(9, 185, sub & 1 != 0),
        14 => Frame::ip(
            from,
            to,
            proto::FRAGMENT,
            &fragment6(proto::UDP, 9, 185, sub & 1 != 0, &[0xaa; 40]),
        ),
        15 => Frame::ip(
            from,
            to,
            [proto::ESP, proto::GRE, proto::SCTP, proto::DCCP][usize::from(sub) % 4],
            &udp(),
        ),
        16 if v4 => options(from, to, sub, &udp()),
        16 => Frame::ip(
            from,
            to,
            proto::HOP_BY_HOP,
            &extension(proto::UDP, sub % 3, &udp()),
        ),
        17 if v4 => options(from, to, sub | 0x18, &segment(flag::SYN)),
        17 => Frame::ip(
            from,
            to,
            proto::DESTINATION,
            &extension(
                proto::ROUTING,
                0,
                &extension(proto::TCP, 0, &segment(flag::SYN)),
            ),
        ),
        18 => Frame::ip(
            from,
            to,
            proto::AH,
            &build::authentication(proto::UDP, sub % 5, &udp()),
        ),
        19 => Frame::ip(from, to, proto::UDP_LITE, &udp()),
        20 => Frame::raw(0x0806, &[sub; 28]),
        21 => Frame::raw(
            [0x8100, 0x88a8, 0x88cc, 0x05dc][usize::from(sub) % 4],
            &[sub; 60],
        ),
        22 => Frame::ip(
            from,
            to,
            icmp,
            &build::icmp(if v4 { 13 } else { 135 }, 0, &[0; 16]),
        ),
        _ => Frame::ip(from, to, head[9], &udp()),
    };
    if frame.bytes[12..14] == [8, 0] || frame.bytes[12..14] == [0x86, 0xdd] {
        frame.ttl(TTLS[usize::from(head[6] % 8)])
    } else {
        frame
    }
}

/// An IPv4 packet with options.
fn options(from: &str, to: &str, which: u8, payload: &[u8]) -> Frame {
    let bytes: &[u8] = match which % 4 {
        0 => &[1; 8],
        1 => &[0x94, 4, 0, 0],
        2 => &[131, 7, 4, 192, 0, 2, 1, 0],
        _ => &[7, 0, 1, 1],
    };
    let protocol = if which & 0x18 == 0x18 {
        proto::TCP
    } else {
        proto::UDP
    };
    match (build::address(from), build::address(to)) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            Frame::v4(from, to, bytes, protocol, payload)
        }
        _ => Frame::ip(from, to, protocol, payload),
    }
}

/// What the far end of the last frame that left sends back, or a router on the way there.
fn answer(last: &[u8], head: &[u8; HEAD]) -> Option<Frame> {
    let sight = Sight::of(last)?;
    let family = usize::from(sight.source.is_ipv6());
    if head[1] % 24 >= 11 {
        let router = PLACES[family][17];
        let (icmp, kinds) = if family == 0 {
            (proto::ICMP, [3, 11, 12, 4])
        } else {
            (proto::ICMPV6, [1, 2, 3, 4])
        };
        let quoted = last.get(L3..)?;
        let quoted = &quoted[..quoted.len().min(28 + usize::from(head[5]))];
        let mut message = build::icmp(kinds[usize::from(head[9] % 4)], 0, quoted);
        message[1] = head[8] % 5;
        let to = sight.source.to_string();
        return Some(Frame::ip(router, &to, icmp, &message).ttl(TTLS[usize::from(head[6] % 8)]));
    }
    let mut frame = last.get(..L3 + sight.length)?.to_vec();
    let (a, b, size) = if family == 0 {
        (26, 30, 4)
    } else {
        (22, 38, 16)
    };
    for index in 0..size {
        frame.swap(a + index, b + index);
    }
    if !sight.later {
        match sight.protocol {
            proto::TCP | proto::UDP | proto::UDP_LITE | proto::SCTP | proto::DCCP
                if sight.l4 + 4 <= frame.len() =>
            {
                frame.swap(sight.l4, sight.l4 + 2);
                frame.swap(sight.l4 + 1, sight.l4 + 3);
                if sight.protocol == proto::TCP && sight.l4 + 13 < frame.len() {
                    let flags = [
                        flag::SYN | flag::ACK,
                        flag::ACK,
                        flag::RST,
                        flag::FIN | flag::ACK,
                    ];
                    frame[sight.l4 + 13] = flags[usize::from(head[9] % 4)];
                }
            }
            proto::ICMP => *frame.get_mut(sight.l4)? = 0,
            proto::ICMPV6 => *frame.get_mut(sight.l4)? = 129,
            _ => {}
        }
    }
    let ttl = TTLS[usize::from(head[6] % 8)];
    Some(Frame { bytes: frame }.ttl(ttl))
}

/// Whence a frame of the overlay came: flags, identifier and address.
fn come_out(head: &[u8; HEAD]) -> (u32, u32, [u32; 4]) {
    let vni = match head[8] >> 5 {
        6 => 0,
        7 => world::VNI + 1,
        _ => world::VNI,
    };
    let v4 = |address: [u8; 4]| (0, vni, [u32::from_be_bytes(address), 0, 0, 0]);
    let v6 = |last: u8| {
        let mut words = [0; 4];
        words[0] = u32::from_ne_bytes([0xfd, 0x20, 0, 0]);
        words[3] = u32::from_ne_bytes([0, 0, 0, last]);
        (tunnel::IS_V6, vni, words)
    };
    match head[8] & 7 {
        0..=2 => v4([172, 20, 0, 1]),
        3 => v6(1),
        4 => v6(3),
        5 => v4([172, 20, 0, 9]),
        6 => v6(9),
        _ => (tunnel::NO_TUNNEL, vni, [0; 4]),
    }
}

fn tag(head: &[u8; HEAD]) -> [u8; 6] {
    let [first, second] = world::nodes();
    match head[9] & 7 {
        0..=2 => first.state.accept[0].0,
        3 => first.state.accept[1].0,
        4 | 5 => second.state.accept[0].0,
        6 => [0; 6],
        _ => [0x03, 1, 2, 3, 4, 6],
    }
}

fn kind(head: &[u8; HEAD]) -> [u8; 6] {
    match (head[9] >> 3) & 7 {
        0..=2 => FrameKind::Out(ALPHA.id).to_mac().0,
        3 => FrameKind::Out(BETA.id).to_mac().0,
        4 | 5 => FrameKind::Back(world::far_id()).to_mac().0,
        6 => FrameKind::Out(GatewayId(0x0102_0304)).to_mac().0,
        _ => POD_MAC,
    }
}

/// Bytes cut off, or added behind.
fn resize(bytes: &mut Vec<u8>, how: u8) {
    let length = match how {
        0..=127 => bytes.len(),
        128..=191 => bytes.len() - usize::from(how - 127).min(bytes.len()),
        192..=255 => bytes.len() + usize::from(how - 191),
    };
    // The kernel runs nothing with less than a header and a byte.
    bytes.resize(length.clamp(L3 + 1, LARGEST), 0xee);
}
