//! Asking the outside by ICMP echo requests.

use std::{
    collections::VecDeque,
    future::poll_fn,
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::anyhow;
use socket2::{Protocol, Socket, Type};
use tokio::{io::ReadBuf, net::UdpSocket};

use super::{
    super::{messages, round::now},
    asking::Way,
    line::{Claim, Lines, Unsent, key, sent},
};
use crate::model::Probe;

/// Identifiers that are tried: pods' pings have few of them.
const TRIES: u16 = 16;
/// Requests that an answer may still belong to.
const REMEMBERED: usize = 256;
/// Larger than any answer to what is sent.
const ROOM: usize = 512;

/// Those who are asked.
pub(super) struct Echoes {
    lines: Lines,
    hosts: Vec<Host>,
    sequence: u16,
    /// How long a claim lasts: until the question after the next.
    lasts: Duration,
    timeout: Duration,
}

struct Host {
    address: IpAddr,
    /// Opened when it is needed, and anew after a failure.
    open: Option<Open>,
    /// Sequence numbers of requests without an answer, and when each was sent; the latest last.
    sent: VecDeque<(u16, Duration)>,
    trouble: Option<String>,
}

struct Open {
    sending: Socket,
    /// The same socket to tokio, which has no name for one that is neither of UDP nor of TCP.
    receiving: UdpSocket,
    claim: Claim,
    identifier: u16,
}

impl Echoes {
    pub(super) fn new(lines: Lines, probe: &Probe<IpAddr>) -> Self {
        let host = |address: &IpAddr| Host {
            address: *address,
            open: None,
            sent: VecDeque::new(),
            trouble: None,
        };
        Self {
            lines,
            hosts: probe.targets.iter().map(host).collect(),
            sequence: 0,
            lasts: probe.interval * 2 + probe.timeout,
            timeout: probe.timeout,
        }
    }
}

impl Way for Echoes {
    const WANTED: &str = "answer";

    fn ask(&mut self) -> anyhow::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let (mut asked, mut missing) = (false, None);
        for host in &mut self.hosts {
            host.forget(self.timeout);
            match host.ask(&self.lines, self.sequence, self.lasts) {
                Ok(()) => asked = true,
                Err(Unsent::Way(trouble)) => {
                    host.open = None;
                    host.trouble = Some(trouble);
                    asked = true;
                }
                Err(Unsent::Own(error)) => {
                    host.open = None;
                    missing = Some(error);
                }
            }
        }
        match missing {
            Some(error) if !asked => Err(error),
            Some(_) | None => Ok(()),
        }
    }

    async fn answer(&mut self) -> Duration {
        poll_fn(|context| {
            let mut heard = self.hosts.iter_mut().map(|host| host.poll(context));
            heard.find(Poll::is_ready).unwrap_or(Poll::Pending)
        })
        .await
    }

    fn asked(&self) -> Vec<(String, Option<&str>)> {
        self.hosts
            .iter()
            .map(|host| (host.address.to_string(), host.trouble.as_deref()))
            .collect()
    }
}

impl Host {
    fn ask(&mut self, lines: &Lines, sequence: u16, lasts: Duration) -> Result<(), Unsent> {
        if self
            .open
            .as_mut()
            .is_some_and(|open| !open.claim.extend(lasts))
        {
            self.open = None;
        }
        let open = match &mut self.open {
            Some(open) => open,
            closed @ None => closed.insert(open(lines, self.address, lasts)?),
        };
        let message = messages::echo_request(self.address.is_ipv4(), open.identifier, sequence);
        let socket = &open.sending;
        // An error may be that of an earlier request: it is told once.
        let result = socket.send(&message).or_else(|_| socket.send(&message));
        sent(result)?;
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back((sequence, now()));
        Ok(())
    }

    /// Forgets requests whose answers would come too late.
    fn forget(&mut self, timeout: Duration) {
        let now = now();
        while let Some((_, at)) = self.sent.front()
            && now.saturating_sub(*at) > timeout
        {
            self.sent.pop_front();
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Duration> {
        let mut bytes = [0; ROOM];
        loop {
            let Some(open) = &self.open else {
                return Poll::Pending;
            };
            let identifier = open.identifier;
            let mut read = ReadBuf::new(&mut bytes);
            match open.receiving.poll_recv(context, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {
                    if let Some(took) = self.heard(read.filled(), identifier) {
                        return Poll::Ready(took);
                    }
                }
                // What somebody on the way says of a request, or the interface is gone.
                Poll::Ready(Err(error)) => {
                    self.trouble = Some(error.to_string());
                    self.open = None;
                }
            }
        }
    }

    /// How long the answer took that this packet is, if it is one.
    fn heard(&mut self, packet: &[u8], identifier: u16) -> Option<Duration> {
        let v4 = self.address.is_ipv4();
        let sequence = messages::echo_reply(packet, v4, identifier)?;
        let place = self.sent.iter().position(|(sent, _)| *sent == sequence)?;
        let (_, at) = self.sent.remove(place)?;
        self.trouble = None;
        Some(now().saturating_sub(at))
    }
}

/// A socket that hears nothing but this host, with an identifier that no pod's ping to it has.
fn open(lines: &Lines, to: IpAddr, lasts: Duration) -> Result<Open, Unsent> {
    let protocol = if to.is_ipv4() {
        Protocol::ICMPV4
    } else {
        Protocol::ICMPV6
    };
    let (socket, from) = lines.socket(to, Type::RAW, protocol)?;
    sent(socket.connect(&SocketAddr::new(to, 0).into()).map(|()| 0))?;
    let start = RandomState::new().hash_one(to).to_ne_bytes();
    let start = u16::from_ne_bytes([start[0], start[1]]);
    for step in 0..TRIES {
        let identifier = start.wrapping_add(step);
        if let Some(claim) = lines.claim(key(from, identifier, to, 0, protocol), lasts)? {
            let own = |error| Unsent::Own(anyhow!("cannot wait for answers: {error}"));
            let shared = socket.try_clone().map_err(own)?;
            let receiving = std::net::UdpSocket::from(OwnedFd::from(shared));
            return Ok(Open {
                sending: socket,
                receiving: UdpSocket::from_std(receiving).map_err(own)?,
                claim,
                identifier,
            });
        }
    }
    Err(Unsent::Own(anyhow!(
        "pods' pings to {to} have all {TRIES} identifiers that were tried"
    )))
}
