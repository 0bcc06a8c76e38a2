//! Servers that say who called.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt::RcvBufForce};

use crate::Host;

/// The port of the echo server and of the datagram log.
pub const ECHO_PORT: u16 = 7;

/// An HTTP server that answers every request with the caller's address.
#[derive(Debug)]
pub struct Whoami {
    server: TcpServer,
}

impl Whoami {
    /// Serves port 80 of every address of a host.
    pub fn start(host: &Host) -> Result<Self> {
        Ok(Self {
            server: TcpServer::start(host, 80, tell_caller)?,
        })
    }

    /// Every caller so far, in order.
    #[must_use]
    pub fn callers(&self) -> Vec<IpAddr> {
        self.server.callers()
    }
}

/// An HTTP server whose pages have the status that it is told.
#[derive(Debug)]
pub struct Page {
    server: TcpServer,
    status: Arc<AtomicU16>,
}

impl Page {
    /// Serves a port of every address of a host, with success at first.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let status = Arc::new(AtomicU16::new(200));
        let told = Arc::clone(&status);
        let serve = move |stream: TcpStream, _caller: IpAddr| {
            if has_asked(&stream) {
                let status = told.load(Ordering::Relaxed);
                answer(&stream, status, "a page\n");
            }
        };
        Ok(Self {
            server: TcpServer::start(host, port, serve)?,
            status,
        })
    }

    /// Answers with this status from now on.
    pub fn answer_with(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// Every caller so far, in order.
    #[must_use]
    pub fn callers(&self) -> Vec<IpAddr> {
        self.server.callers()
    }
}

/// A TCP server that sends back what it receives.
#[derive(Debug)]
pub struct Echo {
    server: TcpServer,
}

impl Echo {
    /// Serves [`ECHO_PORT`] of every address of a host.
    pub fn start(host: &Host) -> Result<Self> {
        Ok(Self {
            server: TcpServer::start(host, ECHO_PORT, send_back)?,
        })
    }

    /// Every caller so far, in order.
    #[must_use]
    pub fn callers(&self) -> Vec<IpAddr> {
        self.server.callers()
    }
}

/// A datagram that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who it came from.
    pub from: SocketAddr,
    /// What it said.
    pub payload: Vec<u8>,
}

/// A UDP server that keeps what arrives.
#[derive(Debug)]
pub struct Datagrams {
    seen: Arc<Mutex<Vec<Datagram>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Datagrams {
    /// Listens on [`ECHO_PORT`] of every address of a host.
    pub fn start(host: &Host) -> Result<Self> {
        let socket = host.enter(|| {
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ECHO_PORT)).context("cannot listen for UDP")
        })?;
        // Bursts arrive faster than a busy machine's thread takes them.
        setsockopt(&socket, RcvBufForce, &(16 << 20))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let seen = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            thread::spawn(move || receive(&socket, &seen, &stop))
        };
        Ok(Self {
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// Everything that arrived so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Datagram> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn receive(socket: &UdpSocket, seen: &Mutex<Vec<Datagram>>, stop: &AtomicBool) {
    let mut buffer = [0; 65536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let payload = buffer[..length].to_vec();
        // A wildcard socket answers from the address that routing picks: good enough for a test that
        // listens, wrong for one that connects; those use TCP.
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Datagram {
                from: SocketAddr::new(from.ip().to_canonical(), from.port()),
                payload,
            });
    }
}

/// A TCP server with a thread for each connection.
#[derive(Debug)]
pub(crate) struct TcpServer {
    listener: TcpListener,
    callers: Arc<Mutex<Vec<IpAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    pub(crate) fn start(
        host: &Host,
        port: u16,
        serve: impl Fn(TcpStream, IpAddr) + Clone + Send + 'static,
    ) -> Result<Self> {
        let listener = host.enter(|| {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .with_context(|| format!("cannot listen on port {port}"))
        })?;
        let callers: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
        let thread = {
            let (listener, callers) = (listener.try_clone()?, Arc::clone(&callers));
            thread::spawn(move || {
                while let Ok((stream, caller)) = listener.accept() {
                    let caller = caller.ip().to_canonical();
                    callers
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(caller);
                    let serve = serve.clone();
                    thread::spawn(move || serve(stream, caller));
                }
            })
        };
        Ok(Self {
            listener,
            callers,
            thread: Some(thread),
        })
    }

    pub(crate) fn callers(&self) -> Vec<IpAddr> {
        self.callers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        // This is what wakes a thread that waits in accept.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn tell_caller(stream: TcpStream, caller: IpAddr) {
    if has_asked(&stream) {
        answer(&stream, 200, &format!("{caller}\n"));
    }
}

/// A caller that goes away in the middle is its own affair: errors end the connection, nothing else.
fn answer(mut stream: &TcpStream, status: u16, body: &str) {
    write!(
        stream,
        "HTTP/1.1 {status} Said\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .ok();
}

/// Reads a request, and says whether it was whole.
fn has_asked(stream: &TcpStream) -> bool {
    let mut reader = BufReader::new(stream);
    let mut body = 0;
    loop {
        let mut line = String::new();
        let Ok(1..) = reader.read_line(&mut line) else {
            return false;
        };
        let line = line.trim().to_ascii_lowercase();
        if let Some(length) = line.strip_prefix("content-length:") {
            body = length.trim().parse().unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    io::copy(&mut reader.take(body), &mut io::sink()).is_ok()
}

fn send_back(mut stream: TcpStream, _caller: IpAddr) {
    drop(stream.set_nodelay(true));
    let mut buffer = [0; 65536];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
