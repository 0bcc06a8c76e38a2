//! Traffic at a fixed rate of which every packet is accounted for: what was sent has to arrive, and to come back.

mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

pub use self::traffic::Traffic;
use crate::{Host, server::TcpServer, wait};

/// The port of [`PacedServer`].
pub const PACED_PORT: u16 = 8085;
/// How often threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(50);
/// Room for what arrives while a thread has no processor, in bytes.
const QUEUE: usize = 16 << 20;
/// How long what is under way may take on a machine that others keep busy.
const SETTLE: Duration = Duration::from_secs(30);

/// A server that sends back what it receives, by TCP and UDP, and keeps count of who sent it.
#[derive(Debug)]
pub struct PacedServer {
    tcp: TcpServer,
    datagrams: Arc<Mutex<BTreeMap<IpAddr, u64>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl PacedServer {
    /// Serves [`PACED_PORT`]: TCP on every address of a host, UDP on these.
    pub fn start(host: &Host, addresses: &[IpAddr]) -> Result<Self> {
        let mut server = Self {
            tcp: TcpServer::start(host, PACED_PORT, echo)?,
            datagrams: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for address in addresses {
            let socket = host.enter(|| {
                UdpSocket::bind((*address, PACED_PORT))
                    .with_context(|| format!("cannot serve datagrams on {address}"))
            })?;
            setsockopt(&socket, RcvBufForce, &QUEUE)?;
            socket.set_read_timeout(Some(LOOK))?;
            let (seen, stop) = (Arc::clone(&server.datagrams), Arc::clone(&server.stop));
            server
                .threads
                .push(thread::spawn(move || echo_datagrams(&socket, &seen, &stop)));
        }
        Ok(server)
    }

    /// Who sent datagrams so far, and how many.
    #[must_use]
    pub fn datagrams(&self) -> BTreeMap<IpAddr, u64> {
        lock(&self.datagrams).clone()
    }

    /// Who connected so far.
    #[must_use]
    pub fn callers(&self) -> BTreeSet<IpAddr> {
        self.tcp.callers().into_iter().collect()
    }
}

impl Drop for PacedServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A caller that goes away ends its connection, and nothing else.
fn echo(mut stream: TcpStream, _caller: IpAddr) {
    drop(stream.set_nodelay(true));
    let mut buffer = [0; 65536];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn echo_datagrams(socket: &UdpSocket, seen: &Mutex<BTreeMap<IpAddr, u64>>, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            *lock(seen).entry(from.ip().to_canonical()).or_default() += 1;
            drop(socket.send_to(&buffer[..length], from));
        }
    }
}

/// What became of some traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages that were sent.
    pub sent: u64,
    /// Different ones that came back.
    pub back: u64,
}

/// Messages at a fixed rate to a [`PacedServer`], until it is ended.
#[derive(Debug)]
pub struct Paced {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    back: Arc<AtomicU64>,
    /// How many need not come back.
    forgiven: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Paced {
    /// Datagrams of one flow, so many a second.
    pub fn datagrams(host: &Host, to: IpAddr, rate: u32) -> Result<Self> {
        let socket = host.enter(|| socket(to))?;
        let mut paced = Self::new();
        let receiver = socket.try_clone()?;
        paced.spawn(move |stop, _, back| {
            let mut seen = BTreeSet::new();
            let mut buffer = [0; 8];
            while !stop.load(Ordering::Relaxed) {
                if receive(&receiver, &mut buffer)? && seen.insert(buffer) {
                    back.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        paced.send(rate, move |number| {
            socket
                .send(&number.to_be_bytes())
                .context("cannot send a datagram")?;
            Ok(())
        });
        Ok(paced)
    }

    /// Datagrams of a new flow each, so many a second.
    pub fn flows(host: &Host, to: IpAddr, rate: u32) -> Self {
        let mut paced = Self::new();
        let host = host.clone();
        let forgiven = Arc::clone(&paced.forgiven);
        paced.spawn(move |stop, sent, back| {
            host.enter(|| {
                let mut waiting = BTreeMap::new();
                let mut pace = Pace::new(rate);
                let mut ended = None;
                let mut number = 0_u64;
                loop {
                    if !stop.load(Ordering::Relaxed) {
                        let socket = socket(to)?;
                        socket.set_nonblocking(true)?;
                        socket.send(&number.to_be_bytes())?;
                        waiting.insert(number, socket);
                        number += 1;
                        sent.store(number, Ordering::Relaxed);
                    } else if waiting.len() as u64 <= forgiven.load(Ordering::Relaxed)
                        || ended.get_or_insert_with(Instant::now).elapsed() > SETTLE
                    {
                        return Ok(());
                    }
                    let mut buffer = [0; 8];
                    waiting.retain(|expected, socket| match socket.recv(&mut buffer) {
                        Ok(8) if buffer == expected.to_be_bytes() => {
                            back.fetch_add(1, Ordering::Relaxed);
                            false
                        }
                        Ok(_) | Err(_) => true,
                    });
                    pace.wait();
                }
            })
        });
        paced
    }

    /// Lines on one TCP connection, so many a second.
    pub fn stream(host: &Host, to: IpAddr, rate: u32) -> Result<Self> {
        let address = SocketAddr::new(to, PACED_PORT);
        let mut stream = host.enter(|| {
            TcpStream::connect_timeout(&address, wait::PATIENCE)
                .with_context(|| format!("cannot connect to {address}"))
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        let mut receiver = stream.try_clone()?;
        let mut paced = Self::new();
        paced.spawn(move |stop, _, back| {
            let mut line = [0; 8];
            let mut have = 0;
            while !stop.load(Ordering::Relaxed) {
                match receiver.read(&mut line[have..]) {
                    Ok(0) => return Err(anyhow!("the connection ended")),
                    Ok(length) => have += length,
                    Err(error) if is_timeout(&error) => {}
                    Err(error) => return Err(error).context("the connection broke"),
                }
                if have == line.len() {
                    have = 0;
                    let next = back.load(Ordering::Relaxed);
                    ensure!(line == next.to_be_bytes(), "line {next} came back changed");
                    back.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        paced.send(rate, move |number| {
            stream
                .write_all(&number.to_be_bytes())
                .context("the connection broke")
        });
        Ok(paced)
    }

    fn new() -> Self {
        Self {
            stop: Arc::default(),
            sent: Arc::default(),
            back: Arc::default(),
            forgiven: Arc::default(),
            threads: Vec::new(),
        }
    }

    fn spawn(
        &mut self,
        work: impl FnOnce(&AtomicBool, &AtomicU64, &AtomicU64) -> Result<()> + Send + 'static,
    ) {
        let (stop, sent, back) = (
            Arc::clone(&self.stop),
            Arc::clone(&self.sent),
            Arc::clone(&self.back),
        );
        self.threads
            .push(thread::spawn(move || work(&stop, &sent, &back)));
    }

    /// Sends at the rate until told to stop; then waits for what is under way, and stops the receiver.
    fn send(&mut self, rate: u32, mut send: impl FnMut(u64) -> Result<()> + Send + 'static) {
        let receiver = Arc::clone(&self.stop);
        let told = Arc::new(AtomicBool::new(false));
        self.stop = Arc::clone(&told);
        let (sent, back) = (Arc::clone(&self.sent), Arc::clone(&self.back));
        let forgiven = Arc::clone(&self.forgiven);
        self.threads.push(thread::spawn(move || {
            let mut pace = Pace::new(rate);
            let mut number = 0;
            let mut sending = || {
                while !told.load(Ordering::Relaxed) {
                    send(number)?;
                    number += 1;
                    sent.store(number, Ordering::Relaxed);
                    pace.wait();
                }
                anyhow::Ok(())
            };
            let result = sending();
            let began = Instant::now();
            let expected = || {
                sent.load(Ordering::Relaxed)
                    .saturating_sub(forgiven.load(Ordering::Relaxed))
            };
            while back.load(Ordering::Relaxed) < expected() && began.elapsed() < SETTLE {
                thread::sleep(Duration::from_millis(5));
            }
            receiver.store(true, Ordering::Relaxed);
            result
        }));
    }

    /// So far.
    #[must_use]
    pub fn so_far(&self) -> Tally {
        Tally {
            sent: self.sent.load(Ordering::Relaxed),
            back: self.back.load(Ordering::Relaxed),
        }
    }

    /// Waits until what was sent by now has come back.
    pub fn settle(&self) -> Result<()> {
        let goal = self.so_far().sent;
        wait::until_within("what was sent comes back", SETTLE, || {
            let back = self.so_far().back;
            ensure!(back >= goal, "{back} of {goal} came back");
            Ok(())
        })
    }

    /// Stops sending, and waits for no more than is to come back if so many need not.
    pub fn stop(&self, forgiven: u64) {
        self.forgiven.store(forgiven, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops, waits for what is under way, and tells what became of it.
    ///
    /// # Errors
    /// The connection broke.
    pub fn end(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(self.so_far())
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Moments at a fixed distance; one that was missed is made up for.
struct Pace {
    next: Instant,
    distance: Duration,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self {
            next: Instant::now(),
            distance: Duration::from_secs(1) / rate.max(1),
        }
    }

    fn wait(&mut self) {
        self.next += self.distance;
        thread::sleep(self.next.saturating_duration_since(Instant::now()));
    }
}

fn socket(to: IpAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((to, PACED_PORT))?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket, buffer: &mut [u8; 8]) -> Result<bool> {
    match socket.recv(buffer) {
        Ok(length) => Ok(length == buffer.len()),
        Err(error) if is_timeout(&error) => Ok(false),
        Err(error) => Err(error).context("a datagram was refused"),
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
