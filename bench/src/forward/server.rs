//! A server of HTTP/1.1 that tells whom it sees: as little as can answer, so that the way is what takes time.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use nix::sys::socket;

use super::host::Host;

/// Where it listens.
const PORT: u16 = 8080;
/// What ends a request without a body (RFC 9112, 2.1).
const END: &[u8] = b"\r\n\r\n";
/// The longest request that is understood, in bytes.
const LONGEST: usize = 4096;

/// The server, until this goes.
pub(super) struct Server {
    listener: Arc<TcpListener>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a host, at an address of its own.
    pub(super) fn start(host: &Host, address: IpAddr) -> Result<Self> {
        let address = SocketAddr::new(address, PORT);
        let listener = host.enter(|| Ok(TcpListener::bind(address)?));
        let listener = Arc::new(listener.with_context(|| format!("cannot listen at {address}"))?);
        let own = Arc::clone(&listener);
        Ok(Self {
            address,
            accepting: Some(thread::spawn(move || accept(&own))),
            listener,
        })
    }

    /// Where it is.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks it from a host, and tells whom it saw.
    pub(super) fn seen(&self, host: &Host) -> Result<IpAddr> {
        let answer = host.enter(|| {
            let mut stream = TcpStream::connect(self.address)?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        body.parse()
            .with_context(|| format!("not an answer with an address: {answer:?}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes whoever accepts; a listener that is none any more has been left already.
        let _left = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ended = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener) {
    while let Ok((stream, peer)) = listener.accept() {
        // Whoever hangs up needs no answer.
        thread::spawn(move || drop(answer(stream, peer.ip())));
    }
}

/// Answers requests until the client has had enough.
fn answer(mut stream: TcpStream, peer: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let body = peer.to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut request = Vec::with_capacity(LONGEST);
    let mut part = [0; LONGEST];
    loop {
        let read = stream.read(&mut part)?;
        request.extend_from_slice(&part[..read]);
        if read == 0 || request.len() > LONGEST {
            return Ok(());
        }
        if request.ends_with(END) {
            stream.write_all(answer.as_bytes())?;
            request.clear();
        }
    }
}
