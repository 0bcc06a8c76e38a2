//! A frame on an uplink: what it is, as far as the sniffer tells packets apart.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use egress_common::{
    addr::Mac,
    overlay::{FrameKind, Tag},
    probe,
};

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Destination unreachable (RFC 792; RFC 4443, 3.1).
const UNREACHABLE: [(u8, u8); 2] = [(ICMP, 3), (ICMPV6, 1)];
/// Bytes of an ICMP error before the packet that it quotes.
const ICMP_HEADER: usize = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// UDP's header and VXLAN's (RFC 7348, 5).
const UDP_AND_VXLAN: usize = 16;

/// Which way a frame of the overlay goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// From a pod to a gateway.
    Out,
    /// Back to a pod.
    Back,
}

/// A packet on an uplink.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// As it is.
    Plain {
        /// Source address.
        source: IpAddr,
        /// Destination address.
        destination: IpAddr,
        /// IP protocol, or IPv6's first extension header.
        protocol: u8,
        /// Its source port, if that is a service's.
        service: Option<u16>,
    },
    /// Word that a packet could not be delivered.
    Undeliverable {
        /// Source address.
        source: IpAddr,
        /// Destination address.
        destination: IpAddr,
        /// Where the packet was to go.
        to: IpAddr,
    },
    /// In a frame of the overlay.
    Overlay {
        /// The sending node.
        from: IpAddr,
        /// The receiving node.
        to: IpAddr,
        /// What proves the sender.
        tag: Tag,
        /// Which way it goes.
        kind: Kind,
        /// Source address of the packet inside.
        source: IpAddr,
        /// Destination address of the packet inside.
        destination: IpAddr,
    },
    /// A probe of a gateway in the overlay, or the answer to one.
    Probe {
        /// The sending node.
        from: IpAddr,
        /// The receiving node.
        to: IpAddr,
    },
    /// Neither IP nor ARP, or cut short.
    Strange(String),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain {
                source,
                destination,
                protocol,
                service,
            } => {
                write!(f, "{source} → {destination} (protocol {protocol}")?;
                match service {
                    Some(port) => write!(f, ", from port {port})"),
                    None => write!(f, ")"),
                }
            }
            Self::Undeliverable {
                source,
                destination,
                to,
            } => write!(f, "{source} → {destination} (cannot deliver to {to})"),
            Self::Overlay {
                from,
                to,
                tag,
                kind,
                source,
                destination,
            } => {
                write!(
                    f,
                    "{source} → {destination} ({kind:?}, in the overlay {from} → {to}, tag {:02x?})",
                    tag.0
                )
            }
            Self::Probe { from, to } => write!(f, "a probe in the overlay {from} → {to}"),
            Self::Strange(what) => f.write_str(what),
        }
    }
}

/// What is needed to tell packets apart.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) overlay_port: u16,
    pub(super) services: Vec<u16>,
}

/// The network layer of a frame.
struct Network<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Whether the payload begins with the protocol's header.
    first: bool,
    payload: &'a [u8],
}

impl Reader {
    /// What a frame is; `None` is ARP.
    pub(super) fn read(&self, frame: &[u8]) -> Option<Content> {
        if ethertype(frame) == Some(ARP) {
            return None;
        }
        let Some(outer) = network(frame) else {
            return Some(strange("a frame", frame));
        };
        let port = |at| {
            (outer.first && matches!(outer.protocol, TCP | UDP))
                .then(|| word(outer.payload, at))
                .flatten()
        };
        if outer.protocol == UDP && port(2) == Some(self.overlay_port) {
            return Some(overlay(&outer));
        }
        if let Some(to) = undelivered(&outer) {
            return Some(Content::Undeliverable {
                source: outer.source,
                destination: outer.destination,
                to,
            });
        }
        Some(Content::Plain {
            source: outer.source,
            destination: outer.destination,
            protocol: outer.protocol,
            service: port(0).filter(|port| self.services.contains(port)),
        })
    }
}

fn overlay(outer: &Network<'_>) -> Content {
    let Some(inner_frame) = outer.payload.get(UDP_AND_VXLAN..) else {
        return strange("a frame of the overlay", outer.payload);
    };
    if is_probe(inner_frame) {
        return Content::Probe {
            from: outer.source,
            to: outer.destination,
        };
    }
    let (Some((tag, kind)), Some(inner)) = (labels(inner_frame), network(inner_frame)) else {
        return strange("a frame of the overlay with this inside", inner_frame);
    };
    Content::Overlay {
        from: outer.source,
        to: outer.destination,
        tag,
        kind,
        source: inner.source,
        destination: inner.destination,
    }
}

/// Whether an inner frame is one, with nothing of anybody's inside.
fn is_probe(frame: &[u8]) -> bool {
    let source = frame.get(6..12).and_then(|bytes| bytes.try_into().ok());
    let kind = source.and_then(|mac| FrameKind::from_mac(Mac(mac)));
    matches!(kind, Some(FrameKind::Probe(_) | FrameKind::ProbeReply(_)))
        && ethertype(frame) == Some(probe::ETHERTYPE)
        && frame.len() == probe::LENGTH
}

/// What the addresses of an inner frame say, if they are of ours.
fn labels(frame: &[u8]) -> Option<(Tag, Kind)> {
    let tag = Tag(frame.get(..6)?.try_into().ok()?);
    let source: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    if tag == Tag::ZERO {
        return None;
    }
    let kind = match FrameKind::from_mac(Mac(source))? {
        FrameKind::Out(_) => Kind::Out,
        FrameKind::Back(_) => Kind::Back,
        FrameKind::Probe(_) | FrameKind::ProbeReply(_) => return None,
    };
    Some((tag, kind))
}

/// Where a packet was to go that this one says could not be delivered.
fn undelivered(outer: &Network<'_>) -> Option<IpAddr> {
    let kind = (outer.protocol, *outer.payload.first()?);
    if !outer.first || !UNREACHABLE.contains(&kind) {
        return None;
    }
    let quoted = outer.payload.get(ICMP_HEADER..)?;
    let ethertype = if outer.protocol == ICMP { IPV4 } else { IPV6 };
    Some(network_of(ethertype, quoted)?.destination)
}

fn network(frame: &[u8]) -> Option<Network<'_>> {
    network_of(ethertype(frame)?, frame.get(ETHERNET..)?)
}

fn network_of(ethertype: u16, packet: &[u8]) -> Option<Network<'_>> {
    match ethertype {
        IPV4 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            Some(Network {
                source: Ipv4Addr::from(source).into(),
                destination: Ipv4Addr::from(destination).into(),
                protocol: *packet.get(9)?,
                first: word(packet, 6)? & 0x1fff == 0,
                payload: packet.get(header..)?,
            })
        }
        IPV6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            Some(Network {
                source: Ipv6Addr::from(source).into(),
                destination: Ipv6Addr::from(destination).into(),
                protocol: *packet.get(6)?,
                first: true,
                payload: packet.get(40..)?,
            })
        }
        _ => None,
    }
}

fn ethertype(frame: &[u8]) -> Option<u16> {
    word(frame, 12)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn strange(what: &str, bytes: &[u8]) -> Content {
    let shown = &bytes[..bytes.len().min(48)];
    Content::Strange(format!("{what} that is not ours: {shown:02x?}"))
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use egress_common::gateway::GatewayId;
    use etherparse::PacketBuilder;

    use super::*;

    const READER: fn() -> Reader = || Reader {
        overlay_port: 4790,
        services: vec![80],
    };

    fn udp(
        from: [u8; 4],
        to: [u8; 4],
        ports: (u16, u16),
        macs: [[u8; 6]; 2],
        payload: &[u8],
    ) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(macs[0], macs[1])
            .ipv4(from, to, 64)
            .udp(ports.0, ports.1)
            .write(&mut frame, payload)?;
        Ok(frame)
    }

    #[test]
    fn tells_what_could_not_be_delivered() -> Result<()> {
        let (node, remote, gone) = ([172, 18, 0, 21], [192, 0, 2, 80], [172, 18, 0, 203]);
        let reply = udp(remote, gone, (80, 9), [[2; 6], [4; 6]], b"")?;
        let quoted = reply.get(ETHERNET..).unwrap_or_default();
        for (kind, told) in [(3, true), (5, false), (11, false)] {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4(node, remote, 64)
                .icmpv4_raw(kind, 1, [0; 4])
                .write(&mut frame, quoted)?;
            let found = READER().read(&frame);
            let wanted = Content::Undeliverable {
                source: Ipv4Addr::from(node).into(),
                destination: Ipv4Addr::from(remote).into(),
                to: Ipv4Addr::from(gone).into(),
            };
            assert_eq!(found == Some(wanted), told, "{kind}: {found:?}");
        }
        Ok(())
    }

    #[test]
    fn tells_services_and_frames_of_the_overlay() -> Result<()> {
        let macs = [[2; 6], [4; 6]];
        let (pod, remote) = ([10, 65, 0, 10], [192, 0, 2, 80]);
        let plain = |service| {
            Some(Content::Plain {
                source: Ipv4Addr::from(pod).into(),
                destination: Ipv4Addr::from(remote).into(),
                protocol: UDP,
                service,
            })
        };
        assert_eq!(
            READER().read(&udp(pod, remote, (80, 9), macs, b"")?),
            plain(Some(80))
        );
        assert_eq!(
            READER().read(&udp(pod, remote, (81, 9), macs, b"")?),
            plain(None)
        );

        let out = FrameKind::Out(GatewayId(7)).to_mac().0;
        for (source, tag, expected) in [
            (out, [9; 6], Some(Kind::Out)),
            (
                FrameKind::Back(GatewayId(7)).to_mac().0,
                [9; 6],
                Some(Kind::Back),
            ),
            (out, [0; 6], None),
            ([2, 9, 0, 0, 0, 0], [9; 6], None),
        ] {
            let inner = udp(pod, remote, (1, 2), [source, tag], b"x")?;
            let payload = [&[8, 0, 0, 0, 0, 0x10, 1, 0][..], &inner].concat();
            let frame = udp(
                [172, 18, 0, 11],
                [172, 18, 0, 21],
                (5, 4790),
                macs,
                &payload,
            )?;
            let found = match READER().read(&frame) {
                Some(Content::Overlay {
                    tag: found,
                    kind,
                    source,
                    ..
                }) => {
                    assert_eq!((source, found), (IpAddr::from(pod), Tag(tag)));
                    Some(kind)
                }
                Some(Content::Strange(_)) => None,
                other => anyhow::bail!("{other:?}"),
            };
            assert_eq!(found, expected);
        }
        Ok(())
    }
}
