//! Clients: curl, long conversations, datagrams, and frames made by hand.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use etherparse::PacketBuilder;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, send, socket},
};

use crate::{Host, host::run, server::ECHO_PORT, topology::Pod, wait};

/// Asks the server at `destination` with curl what address it sees.
pub fn whoami(host: &Host, destination: IpAddr) -> Result<IpAddr> {
    let answer = run(&mut curl(host, destination, 10))?;
    answer
        .trim()
        .parse()
        .with_context(|| format!("{destination} answered {answer:?}, not an address"))
}

/// Whether curl gets no answer at all from `destination` within a second.
pub fn unanswered(host: &Host, destination: IpAddr) -> Result<()> {
    match run(&mut curl(host, destination, 1)) {
        Ok(answer) => bail!("{destination} answered {}", answer.trim()),
        // 28 is curl's word for a timeout; a refusal or a reset would be an answer.
        Err(error) if error.to_string().contains("curl: (28)") => Ok(()),
        Err(error) => Err(error),
    }
}

fn curl(host: &Host, destination: IpAddr, seconds: u8) -> Command {
    let url = format!("http://{}/", SocketAddr::new(destination, 80));
    let mut command = host.command("curl");
    command
        .args(["--silent", "--show-error", "--fail", "--noproxy", "*"])
        .args(["--globoff", "--max-time", &seconds.to_string(), &url]);
    command
}

/// What a conversation went through.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// Lines that were sent and came back.
    pub exchanges: u64,
    /// The longest time that one took.
    pub longest: Duration,
}

/// A TCP connection on which lines go to an echo server and back, one at a time, until it is ended.
#[derive(Debug)]
pub struct Conversation {
    stop: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Talk>>>,
}

impl Conversation {
    /// Connects to the echo server at `destination` and talks.
    pub fn start(host: &Host, destination: IpAddr) -> Result<Self> {
        let address = SocketAddr::new(destination, ECHO_PORT);
        let stream = host.enter(|| {
            TcpStream::connect_timeout(&address, wait::PATIENCE)
                .with_context(|| format!("cannot connect to {address}"))
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let exchanges = Arc::default();
        let thread = {
            let (stop, exchanges) = (Arc::clone(&stop), Arc::clone(&exchanges));
            thread::spawn(move || talk(stream, &stop, &exchanges))
        };
        Ok(Self {
            stop,
            exchanges,
            thread: Some(thread),
        })
    }

    /// Waits until `more` further lines have come back.
    pub fn go_on(&self, more: u64) -> Result<()> {
        let goal = self.exchanges.load(Ordering::Relaxed) + more;
        wait::until("the conversation goes on", || {
            let so_far = self.exchanges.load(Ordering::Relaxed);
            ensure!(so_far >= goal, "{so_far} lines came back, not {goal}");
            Ok(())
        })
    }

    /// Ends the conversation: an error if it broke.
    pub fn end(mut self) -> Result<Talk> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the conversation has ended")?;
        thread.join().map_err(|_| anyhow!("the talker panicked"))?
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn talk(mut stream: TcpStream, stop: &AtomicBool, exchanges: &AtomicU64) -> Result<Talk> {
    let mut longest = Duration::ZERO;
    let mut back = [0; 8];
    while !stop.load(Ordering::Relaxed) {
        let line = exchanges.load(Ordering::Relaxed).to_be_bytes();
        let began = Instant::now();
        stream.write_all(&line).context("the connection broke")?;
        stream
            .read_exact(&mut back)
            .context("the connection broke")?;
        ensure!(line == back, "a line came back changed");
        longest = longest.max(began.elapsed());
        exchanges.fetch_add(1, Ordering::Relaxed);
        // The pace: what is asked is whether it goes on, and a flood would only starve everybody else.
        thread::sleep(Duration::from_millis(1));
    }
    Ok(Talk {
        exchanges: exchanges.load(Ordering::Relaxed),
        longest,
    })
}

/// Sends `count` datagrams of one flow, each with its number in front, `size` bytes long.
pub fn send_datagrams(host: &Host, to: SocketAddr, count: u32, size: usize) -> Result<()> {
    let socket = datagram_socket(host, to)?;
    for number in 0..count {
        send_numbered(&socket, number, size)?;
    }
    Ok(())
}

/// Sends `count` datagrams, each of a flow of its own, with its number in front.
pub fn send_flows(host: &Host, to: SocketAddr, count: u32) -> Result<()> {
    host.enter(|| {
        for number in 0..count {
            let socket = UdpSocket::bind((unspecified(to), 0))?;
            socket.connect(to)?;
            send_numbered(&socket, number, 4)?;
        }
        Ok(())
    })
}

/// A UDP socket inside a host, connected to `to`.
pub fn datagram_socket(host: &Host, to: SocketAddr) -> Result<UdpSocket> {
    host.enter(|| {
        let socket = UdpSocket::bind((unspecified(to), 0))?;
        socket.connect(to)?;
        Ok(socket)
    })
}

/// A stream of datagrams, each of a flow of its own, until it is ended.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u32>>>,
}

impl Stream {
    /// Begins to send to `to`, about a thousand in a second.
    pub fn start(host: &Host, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (stop, host) = (Arc::clone(&stop), host.clone());
            thread::spawn(move || {
                host.enter(|| {
                    let mut number = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let socket = UdpSocket::bind((unspecified(to), 0))?;
                        socket.connect(to)?;
                        send_numbered(&socket, number, 4)?;
                        number += 1;
                        // The rate, so that no queue on the way overflows.
                        thread::sleep(Duration::from_millis(1));
                    }
                    Ok(number)
                })
            })
        };
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Stops, and tells how many were sent.
    pub fn end(mut self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the stream has ended")?;
        thread.join().map_err(|_| anyhow!("the sender panicked"))?
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn send_numbered(socket: &UdpSocket, number: u32, size: usize) -> Result<()> {
    let mut payload = vec![0; size.max(4)];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    socket.send(&payload).context("cannot send a datagram")?;
    Ok(())
}

/// An interface that frames are sent from as they are.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    /// Opens an interface of a host.
    pub fn open(host: &Host, interface: &str) -> Result<Self> {
        host.enter(|| Self::open_here(interface))
    }

    /// Opens an interface of the network namespace that the thread is in.
    pub fn open_here(interface: &str) -> Result<Self> {
        let address = link_address(interface)?;
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
        Ok(Self { socket })
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        ensure!(sent == frame.len(), "only {sent} bytes were sent");
        Ok(())
    }
}

/// What a packet socket is bound to for an interface of the thread's network namespace; it has no protocol.
pub(crate) fn link_address(interface: &str) -> Result<LinkAddr> {
    getifaddrs()?
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())
        .with_context(|| format!("there is no interface {interface}"))
}

/// What frames made by hand say.
pub const BY_HAND: &[u8] = b"by hand";

/// A UDP frame to write by hand.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// The sender's hardware address.
    pub from: [u8; 6],
    /// The receiver's.
    pub to: [u8; 6],
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl Frame {
    /// A frame as `pod` itself would send it.
    pub fn from_pod(pod: &Pod, node: &Host, destination: IpAddr) -> Result<Self> {
        Ok(Self {
            from: pod.host.mac("eth0")?,
            to: node.mac(&pod.interface)?,
            source: pod.address_like(destination),
            destination,
            ttl: 64,
        })
    }

    /// The frame's bytes: a datagram to the echo port.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(self.from, self.to);
        let ip = match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                ethernet.ipv4(from.octets(), to.octets(), self.ttl)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                ethernet.ipv6(from.octets(), to.octets(), self.ttl)
            }
            _ => bail!("source and destination are of two families: {self:?}"),
        };
        let mut bytes = Vec::new();
        ip.udp(40_000, ECHO_PORT).write(&mut bytes, BY_HAND)?;
        Ok(bytes)
    }

    /// The frame's bytes behind VLAN tags, outermost first: pairs of ethertype and VLAN number.
    pub fn tagged(&self, tags: &[(u16, u16)]) -> Result<Vec<u8>> {
        let plain = self.bytes()?;
        let mut bytes = plain[..12].to_vec();
        for (ethertype, vlan) in tags {
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(vlan.to_be_bytes());
        }
        bytes.extend(&plain[12..]);
        Ok(bytes)
    }
}
