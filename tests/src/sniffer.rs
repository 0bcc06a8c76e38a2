//! A sniffer on every uplink: what each node sent out, and whether it had any business to.
//!
//! It takes packets where the driver would: after every program and every rule. What counts are the
//! addresses; packets are told apart by nothing else but the port of a service that pods or nodes offer. A
//! packet to an address outside the cluster needs a [`Permit`], or it is a leak. Frames of the overlay are
//! opened: a pod's packet for a gateway and a gateway's reply for a pod, and nothing else.
//!
//! A sniffer that lost packets proves nothing: that is an error too.

mod packet;
mod rules;

use std::{
    collections::BTreeMap,
    fmt,
    io::IoSliceMut,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow, ensure};
use nix::{
    cmsg_space,
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol,
            SockType, bind, recvmsg, setsockopt, socket,
            sockopt::{RcvBufForce, ReceiveTimeout, RxqOvfl},
        },
        time::{TimeVal, TimeValLike},
    },
};

pub use self::{
    packet::{Content, Kind},
    rules::{Forged, Permit, Rules},
};
use crate::{
    Host,
    client::{Wire, link_address},
    wait,
};

/// What a socket is given to say who sent a packet (Linux, `include/uapi/linux/if_packet.h`).
const PACKET_OUTGOING: u8 = 4;
/// An ethertype for experiments (IEEE 802): the frame behind which nothing of interest comes.
const LAST_FRAME: u16 = 0x88b5;
/// Enough for the headers of a frame within a frame.
const SNAPPED: usize = 192;
/// Packets wait here while the thread has no processor, in bytes.
const QUEUE: usize = 512 << 20;

/// Packets of one kind that left an uplink.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent {
    /// The node whose uplink it is.
    pub node: String,
    /// The packet.
    pub content: Content,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent {}", self.node, self.content)
    }
}

/// Everything that left the uplinks: how many of each kind.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    /// Packets, or what segmentation offload had for one.
    pub sent: BTreeMap<Sent, u64>,
}

impl Capture {
    /// Checks that every packet had a right to leave.
    pub fn verify(&self, rules: &Rules) -> Result<()> {
        let leaks: Vec<_> = self
            .sent
            .iter()
            .filter_map(|(sent, count)| {
                let fault = rules.fault(sent)?;
                Some(format!("{count} × {sent}: {fault}"))
            })
            .collect();
        ensure!(
            leaks.is_empty(),
            "packets left that should not have:\n{}",
            leaks.join("\n")
        );
        Ok(())
    }

    /// Packets of the overlay that left any uplink.
    #[must_use]
    pub fn encapsulated(&self) -> u64 {
        self.count(|sent| matches!(sent.content, Content::Overlay { .. }))
    }

    /// Packets that left for `destination` with `source`, not in the overlay.
    #[must_use]
    pub fn plain(&self, source: IpAddr, destination: IpAddr) -> u64 {
        self.count(|sent| match sent.content {
            Content::Plain {
                source: from,
                destination: to,
                ..
            } => (from, to) == (source, destination),
            Content::Undeliverable { .. }
            | Content::Overlay { .. }
            | Content::Probe { .. }
            | Content::Strange(_) => false,
        })
    }

    fn count(&self, mut wanted: impl FnMut(&Sent) -> bool) -> u64 {
        let found = self.sent.iter().filter(|(sent, _)| wanted(sent));
        found.map(|(_, count)| count).sum()
    }
}

/// Sniffers on uplinks.
#[derive(Debug)]
pub struct Sniffer {
    taps: Vec<Tap>,
}

impl Sniffer {
    /// Begins to listen on `interface` of each named host; a packet whose source port is one of `services` is
    /// kept apart by it, and UDP to `overlay_port` is the overlay.
    pub fn start<'a>(
        hosts: impl IntoIterator<Item = (&'a str, &'a Host)>,
        interface: &str,
        services: &[u16],
        overlay_port: u16,
    ) -> Result<Self> {
        let taps = hosts
            .into_iter()
            .map(|(name, host)| Tap::open(name, host, interface, services, overlay_port))
            .collect::<Result<_>>()?;
        Ok(Self { taps })
    }

    /// What was seen so far: everything that had left when this was called.
    pub fn so_far(&self) -> Result<Capture> {
        let mut sent = BTreeMap::new();
        for tap in &self.taps {
            tap.catch_up()?;
            let seen = tap.seen.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(
                seen.lost == 0,
                "the sniffer on {} lost {} packets: it cannot tell what they were",
                tap.name,
                seen.lost
            );
            for (content, count) in &seen.sent {
                let node = tap.name.clone();
                sent.insert(
                    Sent {
                        node,
                        content: content.clone(),
                    },
                    *count,
                );
            }
        }
        Ok(Capture { sent })
    }
}

#[derive(Debug, Default)]
struct Seen {
    sent: BTreeMap<Content, u64>,
    /// Packets for which the socket's queue had no room.
    lost: u32,
    /// How often the last frame came by.
    last_frames: u64,
}

#[derive(Debug)]
struct Tap {
    name: String,
    /// Another socket than the one that listens, which is not shown what it sends itself.
    wire: Wire,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    fn open(
        name: &str,
        host: &Host,
        interface: &str,
        services: &[u16],
        overlay_port: u16,
    ) -> Result<Self> {
        let wire = Wire::open(host, interface)?;
        let socket = host.enter(|| open_all(interface))?;
        let seen = Arc::<Mutex<Seen>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let reader = packet::Reader {
            overlay_port,
            services: services.to_vec(),
        };
        let thread = {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    take(&socket, &reader, &seen);
                }
            })
        };
        Ok(Self {
            name: name.to_owned(),
            wire,
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until what left before has been read: a frame of our own comes behind it.
    fn catch_up(&self) -> Result<()> {
        let count = || {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.last_frames
        };
        let before = count();
        let mut frame = [0; 60];
        // To nobody, from nobody: locally administered addresses that no host here has.
        frame[0] = 0x02;
        frame[5] = 0x01;
        frame[6] = 0x02;
        frame[11] = 0x02;
        frame[12..14].copy_from_slice(&LAST_FRAME.to_be_bytes());
        self.wire.send(&frame)?;
        wait::until("the sniffer has seen everything", || {
            ensure!(count() > before, "on {} it is still reading", self.name);
            Ok(())
        })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A socket that is given every frame of an interface, in both directions.
fn open_all(interface: &str) -> Result<OwnedFd> {
    let address = link_address(interface)?;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    setsockopt(&socket, RcvBufForce, &QUEUE)?;
    setsockopt(&socket, RxqOvfl, &1)?;
    // So that the thread looks now and then whether it should end.
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(50))?;
    // The address has no protocol, which leaves the socket's own: all.
    bind(socket.as_raw_fd(), &address).map_err(|error| anyhow!("cannot bind: {error}"))?;
    Ok(socket)
}

/// Reads what is there, or waits a little.
fn take(socket: &OwnedFd, reader: &packet::Reader, seen: &Mutex<Seen>) {
    let mut buffer = [0; SNAPPED];
    let mut control = cmsg_space!(u32);
    let mut buffers = [IoSliceMut::new(&mut buffer)];
    let Ok(message) = recvmsg::<LinkAddr>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::empty(),
    ) else {
        return;
    };
    let lost = message.cmsgs().ok().and_then(|mut messages| {
        messages.find_map(|message| {
            let ControlMessageOwned::RxqOvfl(lost) = message else {
                return None;
            };
            Some(lost)
        })
    });
    let outgoing = message
        .address
        .is_some_and(|address| address.pkttype() == PACKET_OUTGOING);
    let length = message.bytes;
    let frame = &buffer[..length.min(SNAPPED)];
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.lost = lost.unwrap_or(seen.lost);
    if !outgoing {
        return;
    }
    if frame.get(12..14) == Some(&LAST_FRAME.to_be_bytes()[..]) {
        seen.last_frames += 1;
        return;
    }
    if let Some(content) = reader.read(frame) {
        *seen.sent.entry(content).or_default() += 1;
    }
}
