//! Very many connections at once, without a thread for each.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{Backlog, Shutdown, listen, setsockopt, shutdown, sockopt::Linger},
    },
};

use crate::{Host, wait};

/// The port of [`Crowd`].
pub const CROWD_PORT: u16 = 8082;

/// Lets each descriptor table of this process hold so many files: the limit of a login shell is lower.
pub fn allow_many_files(count: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(count), hard.max(count))
        .context("this needs more open files than the system lets a process have")
}

/// A server that keeps every connection, and answers when it is told to.
#[derive(Debug)]
pub struct Crowd {
    listener: TcpListener,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Listens on [`CROWD_PORT`] of every address of a host.
    pub fn start(host: &Host) -> Result<Self> {
        let listener = host.enter(|| {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, CROWD_PORT))
                .with_context(|| format!("cannot listen on port {CROWD_PORT}"))?;
            // Callers come faster than a busy machine's thread takes them.
            listen(&listener, Backlog::new(4096)?)?;
            Ok(listener)
        })?;
        let streams = Arc::<Mutex<Vec<TcpStream>>>::default();
        let thread = {
            let (listener, streams) = (listener.try_clone()?, Arc::clone(&streams));
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    streams
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(stream);
                }
            })
        };
        Ok(Self {
            listener,
            streams,
            thread: Some(thread),
        })
    }

    /// Who is connected, once it is `count`.
    pub fn wait_for(&self, count: usize) -> Result<Vec<SocketAddr>> {
        wait::until("the callers are there", || {
            let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(streams.len() == count, "{} are there", streams.len());
            streams
                .iter()
                .map(|stream| {
                    let peer = stream.peer_addr()?;
                    Ok(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
                })
                .collect()
        })
    }

    /// Forgets every connection so far, and how many it were: none.
    pub fn settle(&self) -> Result<usize> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.clear();
        Ok(streams.len())
    }

    /// Sends what each connection but the first few has said back on it: 8 bytes.
    pub fn answer(&self, skipped: usize) -> Result<()> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for mut stream in streams.iter().skip(skipped) {
            stream.set_read_timeout(Some(wait::PATIENCE))?;
            let mut line = [0; 8];
            stream.read_exact(&mut line)?;
            stream.write_all(&line)?;
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // This is what wakes a thread that waits in accept.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Connections to a [`Crowd`].
///
/// They live on a thread with a descriptor table of its own: what a process may open is counted by table, and
/// the other ends are in this process too.
#[derive(Debug)]
pub struct Callers {
    count: usize,
    orders: Option<Sender<Order>>,
    results: Receiver<Result<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Say,
    Hear,
    Reset,
}

impl Callers {
    /// Connects so many times, one after the other, and keeps all of them.
    pub fn connect(host: &Host, to: IpAddr, count: usize) -> Result<Self> {
        let address = SocketAddr::new(to, CROWD_PORT);
        let (orders, incoming) = mpsc::channel();
        let (outgoing, results) = mpsc::channel();
        let host = host.clone();
        let thread = thread::spawn(move || {
            let reports = outgoing.clone();
            let ended = host.enter(move || call(address, count, &incoming, &reports));
            // Nobody waits for this once the callers are dropped.
            drop(outgoing.send(ended));
        });
        let callers = Self {
            count,
            orders: Some(orders),
            results,
            thread: Some(thread),
        };
        callers.result()?;
        Ok(callers)
    }

    /// Ends each connection with a reset.
    pub fn reset(mut self) -> Result<()> {
        self.order(Order::Reset)?;
        self.end();
        Ok(())
    }

    /// Says something else on each connection.
    pub fn say(&self) -> Result<()> {
        self.order(Order::Say)
    }

    /// Checks that it came back on each.
    pub fn hear(&self) -> Result<()> {
        self.order(Order::Hear)
    }

    fn order(&self, order: Order) -> Result<()> {
        let orders = self.orders.as_ref().context("they are gone")?;
        orders.send(order).ok().context("they are gone")?;
        self.result()
            .with_context(|| format!("{order:?} by {} callers", self.count))
    }

    fn result(&self) -> Result<()> {
        self.results.recv().context("they are gone")?
    }

    /// Returns when every connection is closed.
    fn end(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.end();
    }
}

/// Connects, and then does as it is told until nobody gives orders any more.
fn call(
    to: SocketAddr,
    count: usize,
    orders: &Receiver<Order>,
    results: &Sender<Result<()>>,
) -> Result<()> {
    unshare(CloneFlags::CLONE_FILES).context("cannot have a descriptor table of its own")?;
    let streams = (0..count)
        .map(|number| {
            TcpStream::connect_timeout(&to, wait::PATIENCE)
                .with_context(|| format!("connection {number} of {count} to {to}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut done = Ok(());
    while results.send(done).is_ok() {
        let Ok(order) = orders.recv() else { break };
        done = match order {
            Order::Say => say(&streams),
            Order::Hear => hear(&streams),
            Order::Reset => reset(&streams),
        };
    }
    Ok(())
}

fn say(streams: &[TcpStream]) -> Result<()> {
    for (number, mut stream) in streams.iter().enumerate() {
        stream.write_all(&number.to_be_bytes())?;
    }
    Ok(())
}

fn hear(streams: &[TcpStream]) -> Result<()> {
    for (number, mut stream) in streams.iter().enumerate() {
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        let mut line = [0; 8];
        stream
            .read_exact(&mut line)
            .with_context(|| format!("connection {number} broke"))?;
        ensure!(
            line == number.to_be_bytes(),
            "connection {number} heard another's words"
        );
    }
    Ok(())
}

/// Makes closing them a reset: no lingering, what is closed is forgotten.
fn reset(streams: &[TcpStream]) -> Result<()> {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    for stream in streams {
        setsockopt(stream, Linger, &linger)?;
    }
    Ok(())
}
