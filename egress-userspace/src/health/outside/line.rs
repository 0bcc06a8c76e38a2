//! Sockets on an egress address, whose replies reach them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use egress_common::{WireU16, gateway::GatewayId, nat::NatBackKey};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::{super::round::now, Claims, Source};

/// Why a question was not sent.
#[derive(Debug)]
pub(super) enum Unsent {
    /// Nothing gets out this way: as good as no answer.
    Way(String),
    /// Something of our own is missing, which says nothing.
    Own(anyhow::Error),
}

impl Unsent {
    fn way(what: &str, error: &io::Error) -> Self {
        // What the node lacks, no way has anything to do with.
        let of_node = [Errno::ENOBUFS, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE];
        if of_node
            .iter()
            .any(|errno| error.raw_os_error() == Some(*errno as i32))
        {
            return Self::own(what, error);
        }
        Self::Way(format!("{what}: {error}"))
    }

    fn own(what: &str, error: &io::Error) -> Self {
        Self::Own(anyhow::anyhow!("{what}: {error}"))
    }
}

/// What is written where a question was sent, or why it was not.
pub(super) fn sent(result: io::Result<usize>) -> Result<(), Unsent> {
    result
        .map(|_| ())
        .map_err(|error| Unsent::way("cannot send", &error))
}

/// From where a gateway asks.
#[derive(Clone)]
pub(super) struct Lines {
    claims: Arc<dyn Claims>,
    gateway: GatewayId,
    from: Vec<Source>,
}

impl Lines {
    pub(super) const fn new(
        claims: Arc<dyn Claims>,
        gateway: GatewayId,
        from: Vec<Source>,
    ) -> Self {
        Self {
            claims,
            gateway,
            from,
        }
    }

    /// A socket on the egress address of the target's family, on a port of the kernel's choice where there are ports.
    /// It blocks nobody.
    pub(super) fn socket(
        &self,
        to: IpAddr,
        kind: Type,
        protocol: Protocol,
    ) -> Result<(Socket, IpAddr), Unsent> {
        let from = self
            .from
            .iter()
            .find(|source| source.address.is_ipv4() == to.is_ipv4())
            .ok_or_else(|| {
                Unsent::Way("the gateway has no egress address of its family now".to_owned())
            })?;
        let domain = Domain::for_address(SocketAddr::new(to, 0));
        let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))
            .map_err(|error| Unsent::own("cannot open a socket (CAP_NET_RAW is needed)", &error))?;
        socket
            .bind_device(Some(from.interface.as_bytes()))
            .map_err(|error| Unsent::way(&format!("cannot use {}", from.interface), &error))?;
        socket
            .bind(&SocketAddr::new(from.address, 0).into())
            .map_err(|error| Unsent::way(&format!("cannot ask from {}", from.address), &error))?;
        Ok((socket, from.address))
    }

    /// Takes a port or identifier of an egress address towards a target; nothing if a connection has it.
    pub(super) fn claim(&self, key: NatBackKey, lasts: Duration) -> Result<Option<Claim>, Unsent> {
        let until = now() + lasts;
        let is_free = self
            .claims
            .claim(&key, self.gateway, until)
            .map_err(Unsent::Own)?;
        Ok(is_free.then(|| Claim {
            claims: Arc::clone(&self.claims),
            gateway: self.gateway,
            key,
            until,
        }))
    }
}

/// The key of replies to a port, or an identifier, of an egress address.
pub(super) fn key(
    egress: IpAddr,
    egress_port: u16,
    remote: IpAddr,
    remote_port: u16,
    protocol: Protocol,
) -> NatBackKey {
    NatBackKey {
        egress: egress.into(),
        remote: remote.into(),
        egress_port: WireU16::new(egress_port),
        remote_port: WireU16::new(remote_port),
        // IP protocol numbers are of eight bits.
        protocol: u8::try_from(i32::from(protocol)).unwrap_or_default(),
        pad: [0; 3],
    }
}

/// A port or identifier that is a socket's own. When this goes, it lasts as long as a closed connection.
pub(super) struct Claim {
    claims: Arc<dyn Claims>,
    gateway: GatewayId,
    key: NatBackKey,
    until: Duration,
}

impl Claim {
    /// Has it last from now on for so long; says whether it still can.
    pub(super) fn extend(&mut self, lasts: Duration) -> bool {
        let now = now();
        // Past its time it may be another's.
        if now >= self.until {
            return false;
        }
        let until = now + lasts;
        let extended = self.claims.extend(&self.key, self.gateway, until);
        if extended.is_ok() {
            self.until = until;
        }
        extended.is_ok()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What cannot be shortened ends by itself, later.
        self.extend(Duration::ZERO);
    }
}
