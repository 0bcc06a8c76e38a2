//! Telling neighbours that an egress address is here now: gratuitous ARP, unsolicited neighbour advertisements.
//!
//! A neighbour that knew the address on another node keeps sending there until its entry ages out. Nothing is
//! answered to what is told here, and frames get lost: it is told a few times.

use std::{
    collections::BTreeMap,
    io::IoSlice,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use egress_common::Mac;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, sendmsg, socket,
    },
};

/// How often an address is told.
const TIMES: u32 = 3;
/// The pause between: `RETRANS_TIMER` of RFC 4861 (7.2.6, 10), `ANNOUNCE_INTERVAL` of RFC 5227 is twice that.
const PAUSE: Duration = Duration::from_secs(1);

const BROADCAST: Mac = Mac([0xff; 6]);
/// Where frames to `ff02::1` go (RFC 2464, 7).
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// The flag that makes a neighbour take the new MAC for the one it knows (RFC 4861, 4.4).
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// The frames that tell that `address` is at `mac`.
///
/// For IPv4 both forms of a gratuitous ARP, since there are hosts that heed only one of them (RFC 5944, 4.6; the
/// request is the announcement of RFC 5227, 2.3). For IPv6 a neighbour advertisement to all nodes (RFC 4861,
/// 7.2.6), from the address itself.
#[must_use]
pub fn frames(mac: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => vec![
            arp(ARP_REQUEST, mac, Mac([0; 6]), address),
            arp(ARP_REPLY, mac, mac, address),
        ],
        IpAddr::V6(address) => vec![advertisement(mac, address)],
    }
}

/// RFC 826, with sender and target the same address.
fn arp(operation: u8, mac: Mac, target: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet and IPv4, addresses of 6 and 4 bytes.
    frame.extend([0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend(target.0);
    frame.extend(address.octets());
    frame
}

fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    // The option's length is in units of eight bytes.
    message.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    message.extend(mac.0);
    let [high, low] = checksum(address, ALL_NODES, &message).to_be_bytes();
    (message[2], message[3]) = (high, low);

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    // A neighbour takes it only with the hop limit that no router has lowered (RFC 4861, 7.1.2).
    frame.extend([0x60, 0, 0, 0, 0, length(&message), ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn ethernet(destination: Mac, source: Mac, ethertype: [u8; 2]) -> Vec<u8> {
    [&destination.0[..], &source.0, &ethertype].concat()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "an advertisement has 32 bytes"
)]
const fn length(message: &[u8]) -> u8 {
    message.len() as u8
}

/// The checksum of an ICMPv6 message of even length, with its pseudo header (RFC 8200, 8.1).
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let words = source
        .segments()
        .into_iter()
        .chain(destination.segments())
        .chain([u16::from(length(message)), u16::from(ICMPV6)])
        .chain(
            message
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]])),
        );
    let mut sum: u32 = words.map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits above")]
    let folded = sum as u16;
    !folded
}

/// Tells addresses from a thread of its own, in the network namespace of whoever made it.
#[derive(Debug)]
pub struct Announcer {
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Tell(u32, IpAddr),
    Hush(u32, IpAddr),
}

impl Announcer {
    /// An announcer that has nothing to tell yet; its thread ends with it.
    ///
    /// # Errors
    /// The kernel refuses a packet socket (`CAP_NET_RAW` is needed), or a thread.
    pub fn start() -> Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .context("cannot open a packet socket to announce egress addresses with")?;
        let (orders, receiver) = mpsc::channel();
        std::thread::Builder::new()
            .name("announce".to_owned())
            .spawn(move || work(&socket, &receiver))
            .context("cannot start the thread that announces egress addresses")?;
        Ok(Self { orders })
    }

    /// Tells a few times that `address` is on the interface `ifindex`, now and in the next seconds.
    pub fn tell(&self, ifindex: u32, address: IpAddr) {
        self.order(Order::Tell(ifindex, address));
    }

    /// Says no more of it.
    pub fn hush(&self, ifindex: u32, address: IpAddr) {
        self.order(Order::Hush(ifindex, address));
    }

    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::warn!("egress addresses are not announced any more: start the agent again");
        }
    }
}

/// What is still to be told: how often, and when next.
type Pending = BTreeMap<(u32, IpAddr), (u32, Instant)>;

fn work(socket: &OwnedFd, orders: &mpsc::Receiver<Order>) {
    let mut pending = Pending::new();
    loop {
        let order = match pending.values().map(|(_, at)| *at).min() {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match order {
            Ok(Order::Tell(ifindex, address)) => {
                pending.insert((ifindex, address), (TIMES, Instant::now()));
            }
            Ok(Order::Hush(ifindex, address)) => {
                pending.remove(&(ifindex, address));
            }
            Err(RecvTimeoutError::Timeout) => tell_due(socket, &mut pending),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn tell_due(socket: &OwnedFd, pending: &mut Pending) {
    let now = Instant::now();
    // The MACs of this moment: one may have changed since the last time.
    let links = match links() {
        Ok(links) => links,
        Err(error) => {
            tracing::warn!("egress addresses are not announced: {error:#}");
            BTreeMap::new()
        }
    };
    pending.retain(|&(ifindex, address), (left, at)| {
        if *at > now {
            return true;
        }
        if let Some(link) = links.get(&ifindex)
            && let Err(error) = send(socket, link, address)
        {
            tracing::warn!("cannot announce {address} on interface {ifindex}: {error:#}");
        }
        *left -= 1;
        *at = now + PAUSE;
        *left > 0
    });
}

/// The Ethernet interfaces of this network namespace, each with its MAC.
fn links() -> Result<BTreeMap<u32, LinkAddr>> {
    let interfaces = getifaddrs().context("cannot list the node's interfaces")?;
    Ok(interfaces
        .filter_map(|interface| {
            let link = *interface.address?.as_link_addr()?;
            (link.halen() == size_of::<Mac>()).then_some(())?;
            Some((u32::try_from(link.ifindex()).ok()?, link))
        })
        .collect())
}

fn send(socket: &OwnedFd, link: &LinkAddr, address: IpAddr) -> Result<()> {
    debug_assert_eq!(link.family(), Some(AddressFamily::Packet));
    let Some(mac) = link.addr() else {
        return Ok(());
    };
    for frame in frames(Mac(mac), address) {
        // Of the destination a packet socket takes the interface; the frame has its own header.
        sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&frame)],
            &[],
            MsgFlags::empty(),
            Some(link),
        )?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x2a]);

    #[test]
    fn both_forms_of_a_gratuitous_arp() {
        let [request, reply]: [_; 2] = frames(MAC, [192, 0, 2, 7].into()).try_into().unwrap();
        #[rustfmt::skip]
        let expected = |operation: u8, target: [u8; 6]| [
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0x2a, 8, 6][..],
            &[0, 1, 8, 0, 6, 4, 0, operation],
            &[2, 0, 0, 0, 0, 0x2a, 192, 0, 2, 7],
            &target, &[192, 0, 2, 7],
        ].concat();
        assert_eq!(request, expected(1, [0; 6]));
        assert_eq!(reply, expected(2, MAC.0));
    }

    #[test]
    fn an_advertisement_overrides_and_has_a_right_checksum() {
        let address: Ipv6Addr = [
            0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe,
        ]
        .into();
        let [frame]: [_; 1] = frames(MAC, address.into()).try_into().unwrap();
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(frame[6..14], [2, 0, 0, 0, 0, 0x2a, 0x86, 0xdd]);
        assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(frame[22..38], address.octets());
        assert_eq!(frame[38..54], ALL_NODES.octets());
        assert_eq!(frame[54..56], [136, 0]);
        assert_eq!(frame[58..62], [0x20, 0, 0, 0]);
        assert_eq!(frame[62..78], address.octets());
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 0x2a]);
        // Over a message with its checksum in place the sum is all ones (RFC 1071).
        assert_eq!(checksum(address, ALL_NODES, &frame[54..]), 0);
        assert_ne!(frame[56..58], [0, 0]);
    }
}
