//! What is said to next hops and what they answer, as bytes: ARP, neighbour discovery, echo.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::Mac;

/// ARP's ethertype (RFC 826), in host order.
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;

const BROADCAST: Mac = Mac([0xff; 6]);
const ETHERNET: usize = 14;
const ARP: usize = 28;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// ICMP and `ICMPv6` types (RFC 792; RFC 4443; RFC 4861).
const ECHO_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
/// What tells our echo requests from everybody else's: an identifier would do for nobody but us.
const COOKIE: [u8; 8] = *b"egressnh";
const IDENTIFIER: u16 = u16::from_be_bytes([COOKIE[6], COOKIE[7]]);

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) address: IpAddr,
    pub(super) mac: Option<Mac>,
}

/// An ARP request (RFC 826) to everybody, or to who is `at` that hardware address.
pub(super) fn arp_request(
    mac: Mac,
    source: Ipv4Addr,
    target: Ipv4Addr,
    at: Option<Mac>,
) -> Vec<u8> {
    let to = at.unwrap_or(BROADCAST);
    let mut frame = [&to.0[..], &mac.0, &ETHERTYPE_ARP.to_be_bytes()].concat();
    // Ethernet and IPv4, addresses of 6 and 4 bytes.
    frame.extend([0, 1, 0x08, 0, 6, 4, 0, REQUEST]);
    frame.extend(mac.0);
    frame.extend(source.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// Who says in a frame where it is.
pub(super) fn arp_reply(frame: &[u8]) -> Option<Heard> {
    let arp = frame.get(ETHERNET..ETHERNET + ARP)?;
    if arp[..8] != [0, 1, 0x08, 0, 6, 4, 0, REPLY] {
        return None;
    }
    let mac: [u8; 6] = arp[8..14].try_into().ok()?;
    let address: [u8; 4] = arp[14..18].try_into().ok()?;
    Some(Heard {
        address: address.into(),
        mac: Some(Mac(mac)),
    })
}

/// Where everybody listens whose address ends like this one (RFC 4291, 2.7.1).
pub(super) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// A neighbour solicitation (RFC 4861, 4.3); the kernel writes its checksum.
pub(super) fn neighbour_solicitation(target: Ipv6Addr, mac: Option<Mac>) -> Vec<u8> {
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if let Some(mac) = mac {
        // The option's length is in units of eight bytes.
        message.extend([SOURCE_LINK_LAYER_ADDRESS, 1]);
        message.extend(mac.0);
    }
    message
}

/// Who says in an `ICMPv6` message where it is.
pub(super) fn neighbour_advertisement(message: &[u8]) -> Option<Heard> {
    let target: [u8; 16] = message.get(8..24)?.try_into().ok()?;
    if message[..2] != [ADVERTISEMENT, 0] {
        return None;
    }
    let option = message
        .get(24..32)
        .filter(|option| option[..2] == [TARGET_LINK_LAYER_ADDRESS, 1]);
    let mac = option.and_then(|option| option[2..].try_into().ok());
    Some(Heard {
        address: Ipv6Addr::from(target).into(),
        mac: mac.map(Mac),
    })
}

/// An ICMP echo request.
pub(super) fn echo_request_v4() -> Vec<u8> {
    echo_request(true, IDENTIFIER, 1)
}

/// An `ICMPv6` echo request; the kernel writes its checksum.
pub(super) fn echo_request_v6() -> Vec<u8> {
    echo_request(false, IDENTIFIER, 1)
}

/// An echo request of either family with this identifier and sequence number; the checksum of IPv6 is the kernel's.
pub(super) fn echo_request(v4: bool, identifier: u16, sequence: u16) -> Vec<u8> {
    let mut message = vec![if v4 { ECHO_V4 } else { ECHO_V6 }, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(COOKIE);
    if v4 {
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
    }
    message
}

/// The sequence number of an answer to an echo request of ours with this identifier: an IPv4 packet, or an `ICMPv6`
/// message.
pub(super) fn echo_reply(bytes: &[u8], v4: bool, identifier: u16) -> Option<u16> {
    let (message, kind) = if v4 {
        let header = usize::from(bytes.first()? & 0x0f) * 4;
        (bytes.get(header..)?, ECHO_REPLY_V4)
    } else {
        (bytes, ECHO_REPLY_V6)
    };
    let (found, sequence) = (message.get(4..6)?, message.get(6..8)?);
    (is_ours(message, kind) && found == identifier.to_be_bytes())
        .then(|| u16::from_be_bytes([sequence[0], sequence[1]]))
}

/// Who answered an echo request of ours, in an IPv4 packet.
pub(super) fn echo_reply_v4(packet: &[u8]) -> Option<Heard> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let message = packet.get(header..)?;
    is_ours(message, ECHO_REPLY_V4).then(|| Heard {
        address: source.into(),
        mac: None,
    })
}

/// Who answered an echo request of ours, from `source`.
pub(super) fn echo_reply_v6(message: &[u8], source: Ipv6Addr) -> Option<Heard> {
    is_ours(message, ECHO_REPLY_V6).then(|| Heard {
        address: source.into(),
        mac: None,
    })
}

fn is_ours(message: &[u8], kind: u8) -> bool {
    message.first() == Some(&kind) && message.get(8..16) == Some(&COOKIE[..])
}

/// The checksum of the internet (RFC 1071) over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits above")]
    let folded = sum as u16;
    !folded
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn arp_asks_everybody_or_one_and_knows_the_answer() {
        let (source, target) = ([192, 0, 2, 1].into(), [192, 0, 2, 9].into());
        for (at, to) in [(None, BROADCAST), (Some(THEIRS), THEIRS)] {
            let frame = arp_request(OURS, source, target, at);
            assert_eq!(frame.len(), ETHERNET + ARP);
            assert_eq!((&frame[..6], &frame[6..12]), (&to.0[..], &OURS.0[..]));
            assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            assert_eq!(frame[28..32], [192, 0, 2, 1]);
            assert_eq!(frame[38..42], [192, 0, 2, 9]);
            assert_eq!(arp_reply(&frame), None);
        }
        let mut reply = arp_request(THEIRS, target, source, Some(OURS));
        reply[21] = REPLY;
        // Ethernet's padding.
        reply.resize(60, 0);
        let heard = Heard {
            address: target.into(),
            mac: Some(THEIRS),
        };
        assert_eq!(arp_reply(&reply), Some(heard));
        assert_eq!(arp_reply(&reply[..41]), None);
    }

    #[test]
    fn neighbours_are_asked_where_they_listen() {
        let target: Ipv6Addr = "2001:db8::12:3456".parse().unwrap();
        assert_eq!(
            solicited_node(target),
            "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap()
        );
        let message = neighbour_solicitation(target, Some(OURS));
        assert_eq!((message[0], message.len()), (135, 32));
        assert_eq!(message[24..26], [1, 1]);
        assert_eq!(neighbour_advertisement(&message), None);
        let mut answer = message.clone();
        answer[0] = ADVERTISEMENT;
        answer[24] = TARGET_LINK_LAYER_ADDRESS;
        for (bytes, mac) in [(&answer[..], Some(OURS)), (&answer[..24], None)] {
            let address = target.into();
            assert_eq!(neighbour_advertisement(bytes), Some(Heard { address, mac }));
        }
        assert_eq!(neighbour_advertisement(&answer[..23]), None);
    }

    #[test]
    fn echo_replies_are_known_by_what_they_carry() {
        let request = echo_request_v4();
        assert_eq!(checksum(&request), 0);
        let packet = |kind: u8| {
            let mut packet = vec![0x46; 24];
            packet[12..16].copy_from_slice(&[192, 0, 2, 9]);
            packet.extend(&request);
            packet[24] = kind;
            packet
        };
        let heard = |address: &str| {
            Some(Heard {
                address: address.parse().unwrap(),
                mac: None,
            })
        };
        assert_eq!(echo_reply_v4(&packet(0)), heard("192.0.2.9"));
        assert_eq!(echo_reply_v4(&packet(8)), None);
        assert_eq!(echo_reply_v4(&packet(0)[..39]), None);
        let mut reply = echo_request_v6();
        let source = "2001:db8::9".parse().unwrap();
        assert_eq!(echo_reply_v6(&reply, source), None);
        reply[0] = ECHO_REPLY_V6;
        assert_eq!(echo_reply_v6(&reply, source), heard("2001:db8::9"));
        reply[9] ^= 1;
        assert_eq!(echo_reply_v6(&reply, source), None);
    }

    #[test]
    fn echo_replies_tell_their_request() {
        for v4 in [true, false] {
            let request = echo_request(v4, 0x1234, 0xfedc);
            assert_eq!(request[4..8], [0x12, 0x34, 0xfe, 0xdc]);
            let header = if v4 { vec![0x45; 20] } else { Vec::new() };
            let packet = |kind: u8, length: usize| {
                let mut packet = [&header[..], &request[..length]].concat();
                packet[header.len()] = kind;
                packet
            };
            let (asked, answered) = if v4 { (8, 0) } else { (128, 129) };
            let whole = request.len();
            for (kind, length, identifier, sequence) in [
                (answered, whole, 0x1234, Some(0xfedc)),
                (answered, whole, 0x1235, None),
                (asked, whole, 0x1234, None),
                (answered, whole - 1, 0x1234, None),
                (answered, 1, 0x1234, None),
            ] {
                let found = echo_reply(&packet(kind, length), v4, identifier);
                assert_eq!(found, sequence, "{kind} {length} {identifier}");
            }
            assert_eq!(echo_reply(&[], v4, 0x1234), None);
        }
    }
}
