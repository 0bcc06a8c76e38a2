//! Flows of UDP, and the frames that they are made of.

use std::net::IpAddr;

/// The MAC of every interface of the benchmark.
pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0xbb, 1];
/// That of who sends to them.
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0xaa, 5];
/// Bytes of a frame.
pub(crate) const FRAME: usize = 114;
const ETHERNET: usize = 14;
const UDP: u8 = 17;
const TTL: u8 = 64;
/// Bytes of a template: Ethernet, IPv6 and ports fit.
pub(crate) const TEMPLATE: usize = 64;

/// The first bytes of a frame; what follows is zero.
pub(crate) type Template = [u8; TEMPLATE];

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

impl Flow {
    /// The flow of what comes back.
    pub(crate) const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }

    /// The frame's headers; the MACs are the host's and a pod's.
    pub(crate) fn template(&self) -> Template {
        self.template_between(HOST_MAC, POD_MAC)
    }

    /// The same with these MACs: destination, then source.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "lengths of a frame of 114 bytes"
    )]
    pub(crate) fn template_between(&self, to: [u8; 6], from: [u8; 6]) -> Template {
        let mut bytes = Vec::with_capacity(TEMPLATE);
        bytes.extend(to);
        bytes.extend(from);
        let udp = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend([0x08, 0x00]);
                let length = (FRAME - ETHERNET) as u16;
                let [high, low] = length.to_be_bytes();
                let mut header = [0x45, 0, high, low, 0x12, 0x34, 0, 0, TTL, UDP, 0, 0];
                let sum =
                    checksum(&[&header[..], &source.octets(), &destination.octets()].concat());
                header[10..].copy_from_slice(&sum.to_be_bytes());
                bytes.extend(header);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                length - 20
            }
            (source, destination) => {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                let length = (FRAME - ETHERNET - 40) as u16;
                bytes.extend(length.to_be_bytes());
                bytes.extend([UDP, TTL]);
                bytes.extend(octets6(source));
                bytes.extend(octets6(destination));
                length
            }
        };
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        bytes.extend(udp.to_be_bytes());
        bytes.resize(TEMPLATE, 0);
        // IPv4 does without (RFC 768); IPv6 does not (RFC 8200, 8.1). What is behind the header is zero.
        if self.source.is_ipv6() {
            let [high, low] = udp.to_be_bytes();
            let pseudo = [&bytes[22..54], &[0, UDP, high, low], &bytes[54..62]].concat();
            let sum = checksum(&pseudo);
            bytes[60..62].copy_from_slice(&sum.to_be_bytes());
        }
        let mut template = [0; TEMPLATE];
        template.copy_from_slice(&bytes);
        template
    }

    /// Reads a frame; nothing if it is none of UDP.
    pub(crate) fn read(frame: &[u8]) -> Option<Self> {
        let (source, destination, ports): (IpAddr, IpAddr, _) = match frame.get(12..14)? {
            [0x08, 0x00] => (
                <[u8; 4]>::try_from(frame.get(26..30)?).ok()?.into(),
                <[u8; 4]>::try_from(frame.get(30..34)?).ok()?.into(),
                frame.get(34..38)?,
            ),
            [0x86, 0xdd] => (
                <[u8; 16]>::try_from(frame.get(22..38)?).ok()?.into(),
                <[u8; 16]>::try_from(frame.get(38..54)?).ok()?.into(),
                frame.get(54..58)?,
            ),
            _ => return None,
        };
        Some(Self {
            source,
            destination,
            source_port: u16::from_be_bytes([ports[0], ports[1]]),
            destination_port: u16::from_be_bytes([ports[2], ports[3]]),
        })
    }

    /// The TTL or hop limit of a frame.
    pub(crate) fn ttl(frame: &[u8]) -> Option<u8> {
        match frame.get(12..14)? {
            [0x08, 0x00] => frame.get(22).copied(),
            _ => frame.get(21).copied(),
        }
    }
}

fn octets6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The checksum of a header whose own field is zero (RFC 1071).
#[expect(
    clippy::cast_possible_truncation,
    reason = "what was above has been added"
)]
pub(crate) fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (source, destination) in [
            (IpAddr::from([10, 65, 0, 16]), IpAddr::from([20, 1, 2, 3])),
            (
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
                IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]),
            ),
        ] {
            let flow = Flow {
                source,
                destination,
                source_port: 4000,
                destination_port: 53,
            };
            let template = flow.template();
            assert_eq!(Flow::read(&template), Some(flow));
            assert_eq!(Flow::ttl(&template), Some(TTL));
            assert_eq!(flow.reversed().reversed(), flow);
            if source.is_ipv4() {
                // With its checksum in place, a header sums up to nothing.
                assert_eq!(checksum(&template[14..34]), 0);
            }
        }
    }
}
