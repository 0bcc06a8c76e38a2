//! A frame as somebody reads it who has the protocols' documents and no kernel: slowly, and from the beginning.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;

use crate::packets::build::{L3, proto};

/// Bytes of an IPv6 header.
const V6_HEADER: usize = 40;

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// TTL or hop limit.
    pub(super) ttl: u8,
    /// Bytes of the packet from the IP header on, as that says.
    pub(super) length: usize,
    /// The protocol above IP and its extension headers.
    pub(super) protocol: u8,
    /// Where its header starts.
    pub(super) l4: usize,
    /// Whether it is a part of a datagram.
    pub(super) fragment: bool,
    /// Whether it is a part that has no header above IP.
    pub(super) later: bool,
}

impl Sight {
    /// Reads an IP packet; nothing if it is none, or contradicts itself.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        Self::read(frame, false)
    }

    /// Reads an IP packet that is to be cut into segments: of TCP it may leave its length out.
    pub(super) fn of_aggregate(frame: &[u8]) -> Option<Self> {
        Self::read(frame, true)
    }

    fn read(frame: &[u8], aggregate: bool) -> Option<Self> {
        match frame.get(12..14)? {
            [0x08, 0x00] => Self::v4(frame, aggregate),
            [0x86, 0xdd] => Self::v6(frame, aggregate),
            _ => None,
        }
    }

    fn v4(frame: &[u8], aggregate: bool) -> Option<Self> {
        let packet = frame.get(L3..)?;
        let header: &[u8; 20] = packet.first_chunk()?;
        let ihl = usize::from(header[0] & 15) * 4;
        let length = match word(packet, 2)? {
            0 if aggregate && header[9] == proto::TCP => packet.len(),
            claimed => claimed,
        };
        if header[0] >> 4 != 4 || ihl < 20 || length < ihl || length > packet.len() {
            return None;
        }
        let offset = word(packet, 6)?;
        Some(Self {
            source: IpAddr::V4(Ipv4Addr::new(
                header[12], header[13], header[14], header[15],
            )),
            destination: IpAddr::V4(Ipv4Addr::new(
                header[16], header[17], header[18], header[19],
            )),
            ttl: header[8],
            length,
            protocol: header[9],
            l4: L3 + ihl,
            fragment: offset & 0x3fff != 0,
            later: offset & 0x1fff != 0,
        })
    }

    fn v6(frame: &[u8], aggregate: bool) -> Option<Self> {
        let packet = frame.get(L3..)?;
        let header: &[u8; V6_HEADER] = packet.first_chunk()?;
        let claimed = word(packet, 4)?;
        let unclaimed = aggregate && claimed == 0;
        let length = if unclaimed {
            packet.len()
        } else {
            V6_HEADER + claimed
        };
        if header[0] >> 4 != 6 || length > packet.len() {
            return None;
        }
        let address = |at: usize| {
            let bytes: Option<&[u8; 16]> = packet.get(at..)?.first_chunk();
            Some(IpAddr::V6(Ipv6Addr::from(*bytes?)))
        };
        let mut it = Self {
            source: address(8)?,
            destination: address(24)?,
            ttl: header[7],
            length,
            protocol: header[6],
            l4: L3 + V6_HEADER,
            fragment: false,
            later: false,
        };
        while let Some(size) = it.extension(frame)? {
            it.protocol = *frame.get(it.l4)?;
            it.l4 += size;
            if it.l4 > L3 + length {
                return None;
            }
        }
        (!unclaimed || it.protocol == proto::TCP).then_some(it)
    }

    /// The size of the extension header that comes next, if there is one.
    #[expect(clippy::option_option, reason = "one that is cut short is neither")]
    fn extension(&mut self, frame: &[u8]) -> Option<Option<usize>> {
        let units = |frame: &[u8]| Some(usize::from(*frame.get(self.l4 + 1)?));
        let size = match self.protocol {
            _ if self.later => return Some(None),
            proto::HOP_BY_HOP | proto::ROUTING | proto::DESTINATION => 8 * (units(frame)? + 1),
            proto::AH => 4 * (units(frame)? + 2),
            proto::FRAGMENT => {
                let offset = word(frame, self.l4 + 2)?;
                self.fragment |= offset & 0xfff9 != 0;
                self.later = offset & 0xfff8 != 0;
                8
            }
            _ => return Some(None),
        };
        Some(Some(size))
    }

    /// Ports, or zeros where there are none; of echoes the identifier, twice.
    pub(super) fn ports(&self, frame: &[u8]) -> (u16, u16) {
        let number = |at: usize| {
            let bytes = frame.get(at..).and_then(<[u8]>::first_chunk).copied();
            u16::from_be_bytes(bytes.unwrap_or_default())
        };
        match self.protocol {
            _ if self.later => (0, 0),
            proto::TCP | proto::UDP | proto::UDP_LITE | proto::SCTP | proto::DCCP => {
                (number(self.l4), number(self.l4 + 2))
            }
            proto::ICMP | proto::ICMPV6 => (number(self.l4 + 4), number(self.l4 + 4)),
            _ => (0, 0),
        }
    }

    /// Whether it is of a protocol with ports that everybody translates, and has them.
    pub(super) const fn has_ports(&self) -> bool {
        !self.later
            && matches!(self.protocol, proto::TCP | proto::UDP)
            && self.l4 + 4 <= L3 + self.length
    }

    /// Whether this is an ICMP error.
    pub(super) fn is_error(&self, frame: &[u8]) -> bool {
        let kind = frame.get(self.l4).copied().unwrap_or_default();
        match self.protocol {
            _ if self.later => false,
            proto::ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
            proto::ICMPV6 => kind < 128,
            _ => false,
        }
    }

    /// Whether the checksum above IP holds; nothing if the packet has none that can be checked.
    pub(super) fn sum_holds(&self, frame: &[u8]) -> Option<bool> {
        if self.fragment {
            return None;
        }
        let end = L3 + self.length;
        let at = self.l4 + sum_offset(self.protocol)?;
        let upper = frame.get(self.l4..end)?;
        let written = frame.get(at..at + 2)?;
        if at + 2 > end {
            return None;
        }
        // UDP's zero says that nobody computed one (RFC 768); over IPv6 it may not (RFC 8200, 8.1).
        if self.protocol == proto::UDP && written == [0, 0] {
            return Some(self.source.is_ipv4());
        }
        Some(matches!(self.sum(frame, upper), 0 | 0xffff))
    }

    /// Writes the checksum above IP that holds, where there is one.
    fn mend(&self, frame: &mut [u8]) {
        let end = L3 + self.length;
        if self.fragment || end > frame.len() {
            return;
        }
        let Some(at) = sum_offset(self.protocol).map(|offset| self.l4 + offset) else {
            return;
        };
        if at + 2 > end {
            return;
        }
        frame[at..at + 2].fill(0);
        let mut sum = self.sum(frame, &frame[self.l4..end]);
        if sum == 0 && self.protocol == proto::UDP {
            sum = 0xffff;
        }
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn sum(&self, frame: &[u8], upper: &[u8]) -> u16 {
        let mut sum = Sum16BitWords::new().add_slice(upper);
        if self.protocol != proto::ICMP {
            let addresses = match self.source {
                IpAddr::V4(_) => L3 + 12..L3 + 20,
                IpAddr::V6(_) => L3 + 8..L3 + 40,
            };
            let length = u32::try_from(upper.len()).unwrap_or_default();
            sum = sum
                .add_slice(&frame[addresses])
                .add_4bytes(length.to_be_bytes())
                .add_2bytes([0, self.protocol]);
        }
        // The library keeps its sums in the byte order of the machine.
        sum.ones_complement().to_be()
    }
}

/// Where the checksum lies in a header, of protocols whose sum covers all that follows.
const fn sum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        proto::TCP => Some(16),
        proto::UDP => Some(6),
        proto::ICMP | proto::ICMPV6 => Some(2),
        _ => None,
    }
}

/// Whether the checksum of an IPv4 header holds; IPv6 has none.
pub(super) fn header_sum_holds(frame: &[u8]) -> bool {
    if frame.get(12..14) != Some(&[8, 0]) {
        return true;
    }
    let ihl = frame.get(L3).map_or(0, |byte| usize::from(byte & 15) * 4);
    frame
        .get(L3..L3 + ihl)
        .is_some_and(|header| Sum16BitWords::new().add_slice(header).ones_complement() == 0)
}

/// Writes the checksums that hold: a frame without is of no interest to whoever sends on.
pub(super) fn mend(frame: &mut [u8]) {
    let Some(sight) = Sight::of(frame) else {
        return;
    };
    if sight.source.is_ipv4() {
        frame[L3 + 10..L3 + 12].fill(0);
        let sum = Sum16BitWords::new().add_slice(&frame[L3..sight.l4]);
        let sum = sum.ones_complement().to_be();
        frame[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
    }
    sight.mend(frame);
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes: &[u8; 2] = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes).into())
}
