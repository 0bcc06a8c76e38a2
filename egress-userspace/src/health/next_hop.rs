//! Asking next hops: for their hardware address, which says that the link and the host are there, or with an echo request.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use egress_common::Mac;
use nix::sys::socket::{MsgFlags, SockaddrIn6, bind, recvfrom, sendto};
use serde::Deserialize;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    Prober, Seen, Subject,
    messages::{self, Heard},
    round::now,
};
use crate::node::LinkLayer;

/// How often a listening thread sees whether it is still wanted.
const LOOK_UP: Duration = Duration::from_millis(500);
/// The hop limit that no router has lowered (RFC 4861, 7.1.1).
const UNROUTED: u32 = 255;
/// Larger than any message that is listened for.
const ROOM: usize = 2048;

/// How next hops are asked whether they are in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NextHopProbe {
    /// For their hardware address: ARP, or IPv6 neighbour discovery.
    #[default]
    Arp,
    /// By echo requests.
    Icmp,
    /// Not at all: they count as usable.
    Off,
}

/// Asks next hops, from the network namespace of whoever made it.
pub struct NextHopProber {
    how: NextHopProbe,
    notes: Arc<Notes>,
    lines: BTreeMap<Line, Listening>,
}

/// What is asked over one socket: an interface and a family, whether it is IPv4.
type Line = (u32, bool);

/// What is known of each that is asked, by interface and address.
type Notes = Mutex<BTreeMap<(u32, IpAddr), Note>>;

#[derive(Clone, Copy, Debug, Default)]
struct Note {
    seen: Seen,
    mac: Option<Mac>,
}

/// A socket, and the thread that listens on it until this goes.
struct Listening {
    socket: Arc<Socket>,
    link: LinkLayer,
    stop: Arc<AtomicBool>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl NextHopProber {
    /// One that asks in this way.
    #[must_use]
    pub fn new(how: NextHopProbe) -> Self {
        Self {
            how,
            notes: Arc::default(),
            lines: BTreeMap::new(),
        }
    }

    /// The socket for an interface and a family, opened when it is needed first.
    fn line(&mut self, line: Line) -> Result<&mut Listening> {
        if !self.lines.contains_key(&line) {
            let opened = self.open(line)?;
            self.lines.insert(line, opened);
        }
        self.lines.get_mut(&line).context("just opened")
    }

    fn open(&self, (ifindex, v4): Line) -> Result<Listening> {
        let link = LinkLayer::read(ifindex)?;
        let socket = match (self.how, v4) {
            (NextHopProbe::Icmp, true) => on_device(Domain::IPV4, Protocol::ICMPV4, &link)?,
            (_, false) => {
                let socket = on_device(Domain::IPV6, Protocol::ICMPV6, &link)?;
                socket.set_multicast_hops_v6(UNROUTED)?;
                socket.set_unicast_hops_v6(UNROUTED)?;
                socket
            }
            (_, true) => {
                if link.mac.is_none() {
                    bail!(
                        "the interface {} has no hardware addresses to ask for: start the agent with \
                         --next-hop-probe icmp or off",
                        link.name
                    );
                }
                let protocol = Protocol::from(i32::from(messages::ETHERTYPE_ARP.to_be()));
                let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
                    .context("cannot open a packet socket (CAP_NET_RAW is needed)")?;
                bind(socket.as_raw_fd(), &link.address)?;
                socket
            }
        };
        socket.set_read_timeout(Some(LOOK_UP))?;
        let socket = Arc::new(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let listener = Listener {
            socket: Arc::clone(&socket),
            stop: Arc::clone(&stop),
            notes: Arc::clone(&self.notes),
            how: self.how,
            ifindex,
            v4,
        };
        std::thread::Builder::new()
            .name("next hops".to_owned())
            .spawn(move || listener.listen())
            .context("cannot start a thread that listens for next hops")?;
        Ok(Listening { socket, link, stop })
    }

    fn send(&mut self, ifindex: u32, address: IpAddr, note: &Note) -> Result<()> {
        let how = self.how;
        let listening = self.line((ifindex, address.is_ipv4()))?;
        // What the interface is called and has for addresses may have changed since it was asked.
        if note.seen.unanswered > 1 {
            listening.link = LinkLayer::read(ifindex)?;
        }
        let (socket, link) = (&listening.socket, &listening.link);
        let to_v6 = |to| SockAddr::from(SocketAddrV6::new(to, 0, 0, ifindex));
        match (how, address) {
            (NextHopProbe::Icmp, IpAddr::V4(to)) => {
                let message = messages::echo_request_v4();
                socket.send_to(&message, &SocketAddr::from((to, 0)).into())?;
            }
            (NextHopProbe::Icmp, IpAddr::V6(to)) => {
                socket.send_to(&messages::echo_request_v6(), &to_v6(to))?;
            }
            (_, IpAddr::V4(to)) => {
                let mac = link.mac.context("the interface has no hardware address")?;
                // Who answered is asked alone; who did not may have another hardware address now.
                let at = note.mac.filter(|_| note.seen.unanswered <= 1);
                let frame = messages::arp_request(mac, link.source_towards(to), to, at);
                sendto(socket.as_raw_fd(), &frame, &link.address, MsgFlags::empty())?;
            }
            (_, IpAddr::V6(to)) => {
                let message = messages::neighbour_solicitation(to, link.mac);
                socket.send_to(&message, &to_v6(messages::solicited_node(to)))?;
            }
        }
        Ok(())
    }
}

fn on_device(domain: Domain, protocol: Protocol, link: &LinkLayer) -> Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(protocol))
        .context("cannot open a raw socket (CAP_NET_RAW is needed)")?;
    socket.bind_device(Some(link.name.as_bytes()))?;
    Ok(socket)
}

impl Prober for NextHopProber {
    fn watch(&mut self, subjects: &BTreeMap<Subject, u32>) -> Result<()> {
        let wanted: BTreeSet<(u32, IpAddr)> = subjects.keys().filter_map(place).collect();
        let mut notes = lock(&self.notes);
        notes.retain(|place, _| wanted.contains(place));
        for place in &wanted {
            notes.entry(*place).or_default();
        }
        drop(notes);
        let lines: BTreeSet<Line> = wanted
            .iter()
            .map(|(ifindex, address)| (*ifindex, address.is_ipv4()))
            .collect();
        self.lines.retain(|line, _| lines.contains(line));
        Ok(())
    }

    fn ask(&mut self, subject: &Subject) -> Result<()> {
        let Some((ifindex, address)) = place(subject) else {
            return Ok(());
        };
        // Written down before: the answer may be faster.
        let note = {
            let mut notes = lock(&self.notes);
            let note = notes.entry((ifindex, address)).or_default();
            note.seen.asked = Some(now());
            note.seen.unanswered = note.seen.unanswered.saturating_add(1);
            *note
        };
        let sent = self.send(ifindex, address, &note);
        if sent.is_err() {
            // What was not sent cannot be answered; what was opened may be of an interface that is gone.
            self.lines.remove(&(ifindex, address.is_ipv4()));
            let mut notes = lock(&self.notes);
            if let Some(note) = notes.get_mut(&(ifindex, address)) {
                note.seen.unanswered = note.seen.unanswered.saturating_sub(1);
            }
        }
        sent
    }

    fn seen(&mut self, subject: &Subject) -> Result<Seen> {
        let notes = lock(&self.notes);
        let note = place(subject).and_then(|place| notes.get(&place));
        Ok(note.map(|note| note.seen).unwrap_or_default())
    }

    fn fault(&self, subject: &Subject, silence: Duration) -> String {
        let what = match (self.how, place(subject)) {
            (NextHopProbe::Icmp, _) => "echo requests",
            (_, Some((_, IpAddr::V6(_)))) => "neighbour solicitations",
            (_, _) => "ARP requests",
        };
        match subject {
            Subject::NextHop { address, .. } => format!(
                "its next hop {address} has not answered {what} for {} ms",
                silence.as_millis()
            ),
            Subject::Gateway { .. } | Subject::Outside { .. } | Subject::Drained { .. } => {
                String::new()
            }
        }
    }
}

const fn place(subject: &Subject) -> Option<(u32, IpAddr)> {
    match subject {
        Subject::NextHop { address, ifindex } => Some((*ifindex, *address)),
        Subject::Gateway { .. } | Subject::Outside { .. } | Subject::Drained { .. } => None,
    }
}

fn lock(notes: &Notes) -> MutexGuard<'_, BTreeMap<(u32, IpAddr), Note>> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What listens on one socket.
struct Listener {
    socket: Arc<Socket>,
    stop: Arc<AtomicBool>,
    notes: Arc<Notes>,
    how: NextHopProbe,
    ifindex: u32,
    v4: bool,
}

impl Listener {
    fn listen(self) {
        let mut bytes = [0; ROOM];
        while !self.stop.load(Ordering::Relaxed) {
            // A timeout, or an interface that is down: whoever asks finds out.
            if let Some(Heard { address, mac }) = self.hear(&mut bytes) {
                let now = now();
                if let Some(note) = lock(&self.notes).get_mut(&(self.ifindex, address)) {
                    let asked = note.seen.asked.unwrap_or(now);
                    note.seen.heard = Some(now);
                    note.seen.round_trip = now.saturating_sub(asked);
                    note.seen.unanswered = 0;
                    note.mac = mac.or(note.mac);
                }
            }
        }
    }

    fn hear(&self, bytes: &mut [u8]) -> Option<Heard> {
        if self.v4 {
            let length = (&*self.socket).read(bytes).ok()?;
            let bytes = bytes.get(..length)?;
            return match self.how {
                NextHopProbe::Icmp => messages::echo_reply_v4(bytes),
                NextHopProbe::Arp | NextHopProbe::Off => messages::arp_reply(bytes),
            };
        }
        let (length, from) = recvfrom::<SockaddrIn6>(self.socket.as_raw_fd(), bytes).ok()?;
        let bytes = bytes.get(..length)?;
        match self.how {
            NextHopProbe::Icmp => messages::echo_reply_v6(bytes, from?.ip()),
            NextHopProbe::Arp | NextHopProbe::Off => messages::neighbour_advertisement(bytes),
        }
    }
}
