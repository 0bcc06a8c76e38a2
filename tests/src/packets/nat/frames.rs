//! Frames with all their checksums right.

use etherparse::checksum::Sum16BitWords;

use crate::packets::build::{self, Frame, HOST_MAC, L3, POD_MAC, proto};

/// The frame one hop on, as it leaves or arrives: TTL lowered, the MACs as they were.
#[must_use]
pub fn forwarded(frame: &Frame) -> Frame {
    Frame {
        bytes: build::forwarded(&frame.bytes),
    }
}

/// The frame one hop on, as a pod gets it.
#[must_use]
pub fn delivered(frame: &Frame) -> Frame {
    forwarded(frame).macs(POD_MAC, HOST_MAC)
}

/// A UDP datagram with its checksum.
#[must_use]
pub fn datagram(from: (&str, u16), to: (&str, u16), length: usize) -> Frame {
    let frame = Frame::ip(from.0, to.0, proto::UDP, &build::udp(from.1, to.1, length));
    with_sum(frame, proto::UDP)
}

/// A TCP segment with these flags and its checksum.
#[must_use]
pub fn segment(from: (&str, u16), to: (&str, u16), flags: u8) -> Frame {
    let mut payload = build::tcp(from.1, to.1, &[], 12);
    payload[13] = flags;
    with_sum(Frame::ip(from.0, to.0, proto::TCP, &payload), proto::TCP)
}

/// An ICMP message with its checksum; the identifier lies in the first two bytes of `rest`.
#[must_use]
pub fn message(from: &str, to: &str, kind: u8, id: u16, payload: &[u8]) -> Frame {
    let protocol = if from.contains(':') {
        proto::ICMPV6
    } else {
        proto::ICMP
    };
    let frame = Frame::ip(from, to, protocol, &build::icmp(kind, id, payload));
    with_sum(frame, protocol)
}

/// An ICMP error that quotes the first bytes of a packet above Ethernet.
#[must_use]
pub fn error(from: &str, to: &str, kind: u8, quoted: &Frame, bytes: usize) -> Frame {
    let packet = &quoted.bytes[L3..];
    message(from, to, kind, 0, &packet[..bytes.min(packet.len())])
}

/// With the checksum of the header right above IP, which has no options or extensions.
#[must_use]
pub fn with_sum(frame: Frame, protocol: u8) -> Frame {
    let l4 = if frame.bytes[12..14] == [8, 0] {
        L3 + 20
    } else {
        L3 + 40
    };
    with_sum_at(frame, protocol, l4)
}

/// With the checksum of the header at `l4`.
#[must_use]
pub fn with_sum_at(frame: Frame, protocol: u8, l4: usize) -> Frame {
    let at = l4 + sum_offset(protocol);
    let frame = frame.set(at, &[0, 0]);
    let mut sum = sum(&frame.bytes, protocol, l4);
    if sum == 0 && matches!(protocol, proto::UDP | proto::UDP_LITE) {
        sum = 0xffff;
    }
    frame.set(at, &sum.to_be_bytes())
}

/// Whether the checksum of the header at `l4` holds.
#[must_use]
pub fn sum_holds(frame: &[u8], protocol: u8, l4: usize) -> bool {
    matches!(sum(frame, protocol, l4), 0 | 0xffff)
}

fn sum_offset(protocol: u8) -> usize {
    match protocol {
        proto::TCP => 16,
        proto::ICMP | proto::ICMPV6 => 2,
        _ => 6,
    }
}

/// The checksum over everything from `l4` on, and over the addresses where the protocol has it so.
fn sum(frame: &[u8], protocol: u8, l4: usize) -> u16 {
    let upper = &frame[l4..];
    let mut sum = Sum16BitWords::new().add_slice(upper);
    if protocol != proto::ICMP {
        let length = u32::try_from(upper.len()).unwrap();
        let addresses = if frame[12..14] == [8, 0] {
            L3 + 12..L3 + 20
        } else {
            L3 + 8..L3 + 40
        };
        sum = sum
            .add_slice(&frame[addresses])
            .add_4bytes(length.to_be_bytes())
            .add_2bytes([0, protocol]);
    }
    // The library keeps its sums in the byte order of the machine.
    sum.ones_complement().to_be()
}
