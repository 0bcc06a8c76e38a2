//! Who is outside of the cluster: servers, and a caller.

use std::{
    io::Read,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Result;

use super::Cluster;
use crate::{
    Host,
    server::{Datagrams, Echo, Whoami},
    topology::Destination,
    wait,
};

/// Servers of the outside: on the internet's host and on the internal service's.
#[derive(Debug)]
pub struct Outside {
    /// Who asked on the internet.
    pub internet: Whoami,
    /// Who asked the internal service.
    pub internal: Whoami,
    /// Datagrams that reached the internet.
    pub internet_datagrams: Datagrams,
    /// Datagrams that reached the internal service.
    pub internal_datagrams: Datagrams,
    _echoes: [Echo; 2],
}

impl Outside {
    /// Starts them.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            internet: Whoami::start(&cluster.internet)?,
            internal: Whoami::start(&cluster.internal)?,
            internet_datagrams: Datagrams::start(&cluster.internet)?,
            internal_datagrams: Datagrams::start(&cluster.internal)?,
            _echoes: [
                Echo::start(&cluster.internet)?,
                Echo::start(&cluster.internal)?,
            ],
        })
    }
}

/// The address of the internet's host that it talks from.
pub const INTERNET_HOST: Destination = Destination {
    name: "a host on the internet",
    v4: Ipv4Addr::new(100, 64, 0, 2),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 2),
};

/// Connects to a port and reads a line, or says that nobody answers within a second.
pub fn greeted(host: &Host, to: SocketAddr) -> Result<bool> {
    host.enter(|| {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) else {
            return Ok(false);
        };
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        Ok(stream.read(&mut [0; 16])? > 0)
    })
}
