//! Frames, made by hand where a library would refuse to, with IPv4 checksums by etherparse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::Ipv4HeaderSlice;

/// Where the IP header starts.
pub const L3: usize = 14;
/// The MAC of the pod.
pub const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0xaa, 5];
/// The MAC of the host's side of the pod's interface.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0xbb, 1];
/// The MAC of a gateway.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0xcc, 9];

/// IP protocol numbers.
pub mod proto {
    #![expect(missing_docs, reason = "the registry's own names")]
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const ESP: u8 = 50;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const NONE: u8 = 59;
    pub const DESTINATION: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
    pub const UDP_LITE: u8 = 136;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// A frame in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// A frame of any ethertype from the pod to its host.
    pub fn raw(ethertype: u16, payload: &[u8]) -> Self {
        let mut bytes = Vec::from(HOST_MAC);
        bytes.extend(POD_MAC);
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(payload);
        Self { bytes }
    }

    /// An IP packet of the addresses' family.
    pub fn ip(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Self {
        match (address(source), address(destination)) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Self::v4(source, destination, &[], protocol, payload)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Self::v6(source, destination, protocol, payload)
            }
            mixed => panic!("{mixed:?} are not of one family"),
        }
    }

    /// An IPv4 packet with options, whose length must be a multiple of four.
    pub fn v4(
        source: Ipv4Addr,
        destination: Ipv4Addr,
        options: &[u8],
        protocol: u8,
        payload: &[u8],
    ) -> Self {
        assert_eq!(options.len() % 4, 0, "options are whole words");
        let ihl = u8::try_from(5 + options.len() / 4).unwrap();
        let total = u16::try_from(20 + options.len() + payload.len()).unwrap();
        let mut header = vec![0x40 | ihl, 0];
        header.extend(total.to_be_bytes());
        header.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(options);
        header.extend(payload);
        Self::raw(0x0800, &header).with_checksum()
    }

    fn v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Self {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        header.extend([protocol, 64]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(payload);
        Self::raw(0x86dd, &header)
    }

    /// With another TTL or hop limit.
    #[must_use]
    pub fn ttl(self, ttl: u8) -> Self {
        let at = if self.is_v4() { L3 + 8 } else { L3 + 7 };
        self.set(at, &[ttl])
    }

    /// As the fragment of IPv4 datagram `id` at `offset`, in units of eight bytes.
    #[must_use]
    pub fn fragment(self, id: u16, offset: u16, more: bool) -> Self {
        assert!(self.is_v4(), "IPv6 has a header for that");
        let flags = offset | if more { 0x2000 } else { 0 };
        self.set(L3 + 4, &id.to_be_bytes())
            .set(L3 + 6, &flags.to_be_bytes())
    }

    /// With these MACs: destination, then source.
    #[must_use]
    pub fn macs(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.bytes[..6].copy_from_slice(&destination);
        self.bytes[6..12].copy_from_slice(&source);
        self
    }

    /// With other bytes at `offset` of the frame; an IPv4 checksum is mended.
    #[must_use]
    pub fn set(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.with_checksum()
    }

    /// As an aggregate of more than 64 KiB would be: no length in its header.
    #[must_use]
    pub fn without_length(self) -> Self {
        let at = self.length_at();
        self.set(at, &[0, 0])
    }

    /// With this many bytes behind the IP header, as that says.
    #[must_use]
    pub fn with_length(self, length: u16) -> Self {
        let (at, header) = (self.length_at(), if self.is_v4() { 20 } else { 0 });
        self.set(at, &(header + length).to_be_bytes())
    }

    fn length_at(&self) -> usize {
        if self.is_v4() { L3 + 2 } else { L3 + 4 }
    }

    /// With bytes behind what the IP header claims, as Ethernet pads short frames.
    #[must_use]
    pub fn padded(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn is_v4(&self) -> bool {
        self.bytes[12..14] == [8, 0]
    }

    fn with_checksum(mut self) -> Self {
        if self.is_v4()
            && let Ok(header) = Ipv4HeaderSlice::from_slice(&self.bytes[L3..])
        {
            let sum = header.to_header().calc_header_checksum();
            self.bytes[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
        self
    }
}

/// What a frame becomes on its way through: TTL lowered by one, checksum mended, nothing else.
#[must_use]
pub fn forwarded(frame: &[u8]) -> Vec<u8> {
    let frame = Frame {
        bytes: frame.to_vec(),
    };
    let at = if frame.is_v4() { L3 + 8 } else { L3 + 7 };
    let ttl = frame.bytes[at];
    frame.ttl(ttl.wrapping_sub(1)).bytes
}

/// Whether an IPv4 header's checksum is right; IPv6 has none.
#[must_use]
pub fn checksum_holds(frame: &[u8]) -> bool {
    if frame[12..14] != [8, 0] {
        return true;
    }
    let header = Ipv4HeaderSlice::from_slice(&frame[L3..]).unwrap();
    header.header_checksum() == header.to_header().calc_header_checksum()
}

/// A UDP header and `length` bytes of payload.
#[must_use]
pub fn udp(source: u16, destination: u16, length: usize) -> Vec<u8> {
    let mut bytes = Vec::from(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend(u16::try_from(8 + length).unwrap().to_be_bytes());
    bytes.extend([0, 0]);
    bytes.resize(8 + length, 0xd0);
    bytes
}

/// A TCP header with `options` and `length` bytes of payload.
#[must_use]
pub fn tcp(source: u16, destination: u16, options: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = Vec::from(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    bytes.extend([words << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(options);
    bytes.resize(bytes.len() + length, 0xd1);
    bytes
}

/// A TCP header with other flags, a sequence number and `length` bytes of payload.
#[must_use]
pub fn segment(source: u16, destination: u16, flags: u8, sequence: u32, length: usize) -> Vec<u8> {
    let mut bytes = tcp(source, destination, &[], length);
    bytes[4..8].copy_from_slice(&sequence.to_be_bytes());
    bytes[13] = flags;
    bytes
}

/// TCP's flags (RFC 9293, 3.1).
pub mod flag {
    #![expect(missing_docs, reason = "the protocol's own names")]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}

/// An ICMP message: type, code 0, identifier, then `rest`.
#[must_use]
pub fn icmp(kind: u8, id: u16, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(rest);
    bytes
}

/// An IPv6 extension header of `8 * (words + 1)` bytes before `rest`, whose kind is `next`.
#[must_use]
pub fn extension(next: u8, words: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, words];
    bytes.resize(8 * (usize::from(words) + 1), 0);
    bytes.extend(rest);
    bytes
}

/// An authentication header of `4 * (words + 2)` bytes before `rest`.
#[must_use]
pub fn authentication(next: u8, words: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, words];
    bytes.resize(4 * (usize::from(words) + 2), 0);
    bytes.extend(rest);
    bytes
}

/// An IPv6 fragment header before `rest`; `offset` is in units of eight bytes.
#[must_use]
pub fn fragment6(next: u8, id: u32, offset: u16, more: bool, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, 0];
    bytes.extend(((offset << 3) | u16::from(more)).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend(rest);
    bytes
}

/// An address from its text.
#[must_use]
pub fn address(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
