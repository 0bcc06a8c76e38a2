//! Services that the cluster's pods use: each with what a test needs to know of its callers.

mod bulk;
mod crowd;
mod datagrams;
mod dns;

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use anyhow::Result;

pub use self::{
    bulk::{BULK_PORT, Bulk},
    crowd::{CROWD_PORT, Callers, Crowd, allow_many_files},
    datagrams::{DATAGRAM_PORT, EchoDatagrams},
    dns::{DNS_PORT, Dns, NAMED_V4, NAMED_V6, lookup},
};
use crate::{Host, server::TcpServer};

/// The port of [`KeepAlive`].
pub const KEEP_ALIVE_PORT: u16 = 8080;

/// An HTTP server that goes on with a connection until the client ends it, and tells the caller's address and
/// port each time.
#[derive(Debug)]
pub struct KeepAlive {
    server: TcpServer,
}

impl KeepAlive {
    /// Serves [`KEEP_ALIVE_PORT`] of every address of a host.
    pub fn start(host: &Host) -> Result<Self> {
        Ok(Self {
            server: TcpServer::start(host, KEEP_ALIVE_PORT, answer_requests)?,
        })
    }

    /// Who connected so far, in order.
    #[must_use]
    pub fn callers(&self) -> Vec<IpAddr> {
        self.server.callers()
    }
}

fn answer_requests(stream: TcpStream, _caller: IpAddr) {
    let Ok(peer) = stream.peer_addr() else { return };
    let answer = format!(
        "{}\n",
        SocketAddr::new(peer.ip().to_canonical(), peer.port())
    );
    let mut reader = BufReader::new(&stream);
    loop {
        // A request without a body ends with an empty line.
        loop {
            let mut line = String::new();
            let Ok(1..) = reader.read_line(&mut line) else {
                return;
            };
            if line.trim().is_empty() {
                break;
            }
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        if (&stream).write_all((head + &answer).as_bytes()).is_err() {
            return;
        }
    }
}

/// A service that greets whoever connects, as sshd does.
#[derive(Debug)]
pub struct Greeter {
    server: TcpServer,
}

impl Greeter {
    /// Serves a port of every address of a host.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Ok(Self {
            server: TcpServer::start(host, port, |mut stream, _| {
                // A caller that goes away is its own affair.
                drop(stream.write_all(b"hello\n"));
            })?,
        })
    }

    /// Who connected so far, in order.
    #[must_use]
    pub fn callers(&self) -> Vec<IpAddr> {
        self.server.callers()
    }
}
