//! What the connections of one walk add up to.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
};

use egress_common::{
    Addr, WireU16,
    gateway::GatewayId,
    nat::{NatBack, NatBackKey},
    overlay::ORIGIN_KERNEL,
};

use super::protocol_name;

/// How many of the fullest remotes are told.
const FULLEST: usize = 10;

/// Whom an egress address talks to: a port can be given out once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remote {
    /// The egress address.
    pub egress: Addr,
    /// The far end.
    pub remote: Addr,
    /// Its port; zero for protocols without ports.
    pub port: WireU16,
    /// IP protocol number.
    pub protocol: u8,
}

impl Remote {
    fn of(key: &NatBackKey) -> Self {
        Self {
            egress: key.egress,
            remote: key.remote,
            port: key.remote_port,
            protocol: key.protocol,
        }
    }

    /// The egress address as the outside writes it.
    #[must_use]
    pub fn egress(&self) -> IpAddr {
        self.egress.into()
    }

    /// The far end in words: `192.0.2.1:443/tcp`, `192.0.2.1/icmp`.
    #[must_use]
    pub fn far_end(&self) -> String {
        let (address, port) = (IpAddr::from(self.remote), self.port.get());
        let protocol = protocol_name(self.protocol);
        if port == 0 {
            format!("{address}/{protocol}")
        } else {
            format!("{}/{protocol}", SocketAddr::new(address, port))
        }
    }
}

/// The range of ports that an egress address may use, its ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first one.
    pub first: u16,
    /// The last one.
    pub last: u16,
}

impl Ports {
    fn count(self) -> u64 {
        u64::from(self.last.saturating_sub(self.first)) + 1
    }
}

/// How full an egress address is towards one remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// The address, and whom it talks to.
    pub remote: Remote,
    /// Ports, or identifiers, in use.
    pub used: u64,
    /// Ports there are; none if the address is no longer one of this node's.
    pub available: Option<u64>,
}

impl Load {
    /// Which part of the ports is in use.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "both are less than a million or so"
    )]
    pub fn ratio(&self) -> Option<f64> {
        Some(self.used as f64 / self.available? as f64)
    }
}

/// The connections of one walk over the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections by gateway and protocol.
    pub connections: BTreeMap<(GatewayId, u8), u64>,
    /// Where ports are scarcest, the fullest first.
    pub fullest: Vec<Load>,
    /// Connections that there is room for.
    pub capacity: u64,
    /// Entries in the table of pods' packets.
    pub out_entries: u64,
    /// Entries in the table of replies.
    pub back_entries: u64,
}

/// Statistics in the making: one call for every connection.
#[derive(Debug)]
pub struct Tally {
    connections: BTreeMap<(GatewayId, u8), u64>,
    /// Connections of each remote, by its hash: a table of the remotes themselves would be four times as large.
    remotes: HashMap<u64, u32>,
    hasher: RandomState,
    /// The fullest so far, in no order.
    fullest: Vec<(Remote, u32)>,
    entries: u64,
}

impl Tally {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            connections: BTreeMap::new(),
            remotes: HashMap::new(),
            hasher: RandomState::new(),
            fullest: Vec::with_capacity(FULLEST),
            entries: 0,
        }
    }

    /// Counts a connection; one of the node's own sockets is none of its gateway, and takes no more than its entry.
    pub fn add(&mut self, key: &NatBackKey, back: &NatBack) {
        self.entries += 1;
        if back.origin == ORIGIN_KERNEL {
            return;
        }
        let connections = self.connections.entry((back.gateway, key.protocol));
        *connections.or_default() += 1;
        if !has_ports(key.protocol) {
            return;
        }
        let remote = Remote::of(key);
        let count = self
            .remotes
            .entry(self.hasher.hash_one(remote))
            .or_default();
        *count += 1;
        // A count grows by one, so whoever belongs among the fullest passes by here when it comes to.
        let count = *count;
        if let Some(known) = self.fullest.iter_mut().find(|(of, _)| *of == remote) {
            known.1 = count;
        } else if self.fullest.len() < FULLEST {
            self.fullest.push((remote, count));
        } else if let Some(least) = self.fullest.iter_mut().min_by_key(|(_, count)| *count)
            && least.1 < count
        {
            *least = (remote, count);
        }
    }

    /// The sums; `ports` knows the ranges of this node's egress addresses.
    #[must_use]
    pub fn finish(
        self,
        ports: &BTreeMap<Addr, Ports>,
        capacity: u64,
        out_entries: u64,
    ) -> Statistics {
        let mut fullest: Vec<Load> = self
            .fullest
            .into_iter()
            .map(|(remote, used)| Load {
                remote,
                used: used.into(),
                available: ports.get(&remote.egress).map(|ports| ports.count()),
            })
            .collect();
        fullest.sort_by(|a, b| b.used.cmp(&a.used).then(a.remote.cmp(&b.remote)));
        Statistics {
            connections: self.connections,
            fullest,
            capacity,
            out_entries,
            back_entries: self.entries,
        }
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether connections of a protocol share an address by ports or identifiers: TCP, UDP, echoes.
const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 1 | 6 | 17 | 58)
}
