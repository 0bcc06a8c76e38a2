//! Echo requests, as ping sends them.

use std::{
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect,
            recvmsg, send, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};

use crate::{Host, wait};

/// Types of echo messages: request and reply (RFC 792; RFC 4443, 4).
const ECHO4: [u8; 2] = [8, 0];
const ECHO6: [u8; 2] = [128, 129];
const HEADER: usize = 8;

/// A socket for echo requests to one destination: the kernel gives it its identifier, and mends checksums.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    types: [u8; 2],
    destination: IpAddr,
}

impl Pinger {
    /// A socket inside a host that lets everybody ping.
    pub fn open(host: &Host, destination: IpAddr) -> Result<Self> {
        let (family, protocol, types) = match destination {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, ECHO4),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, ECHO6),
        };
        let socket = host.enter(|| {
            let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)
                .context("the host's ping_group_range does not let us ping")?;
            let to = SockaddrStorage::from(SocketAddr::new(destination, 0));
            connect(socket.as_raw_fd(), &to)?;
            Ok(socket)
        })?;
        Ok(Self {
            socket,
            types,
            destination,
        })
    }

    /// Sends a request with `size` bytes of data, and waits for its reply.
    pub fn ping(&self, number: u16, size: usize, patience: Duration) -> Result<()> {
        let mut request = vec![0; HEADER + size];
        request[0] = self.types[0];
        request[6..8].copy_from_slice(&number.to_be_bytes());
        for (at, byte) in request[HEADER..].iter_mut().enumerate() {
            *byte = at.to_le_bytes()[0];
        }
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())
            .with_context(|| format!("cannot ping {}", self.destination))?;
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} does not answer echo request {number}", self.destination);
            }
            let left = i64::try_from(left.as_millis())?.max(1);
            setsockopt(&self.socket, ReceiveTimeout, &TimeVal::milliseconds(left))?;
            let mut reply = vec![0; HEADER + size + 1];
            let mut buffers = [IoSliceMut::new(&mut reply)];
            let length = match recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut buffers,
                None,
                MsgFlags::empty(),
            ) {
                Ok(message) => message.bytes,
                Err(Errno::EAGAIN) => continue,
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("{} did not answer", self.destination));
                }
            };
            if reply.get(6..8) != Some(&number.to_be_bytes()[..]) {
                continue;
            }
            ensure!(
                length == request.len()
                    && reply[0] == self.types[1]
                    && reply[HEADER..length] == request[HEADER..],
                "{} answered {number} with something else",
                self.destination
            );
            return Ok(());
        }
    }
}

/// Pings once.
pub fn ping(host: &Host, destination: IpAddr) -> Result<()> {
    Pinger::open(host, destination)?.ping(1, 56, wait::PATIENCE)
}

/// Whether there is no reply within a second.
pub fn unanswered(host: &Host, destination: IpAddr) -> Result<()> {
    let answer = Pinger::open(host, destination)?.ping(1, 56, Duration::from_secs(1));
    ensure!(answer.is_err(), "{destination} answered an echo request");
    Ok(())
}
