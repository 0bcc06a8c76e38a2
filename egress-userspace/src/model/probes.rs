//! What a node asks of the outside to know that a gateway's egress addresses lead there.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The probes of a gateway: of each kind that there is, somebody has to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Echo requests.
    pub icmp: Option<Probe<IpAddr>>,
    /// HTTP requests.
    pub http: Option<Probe<Url>>,
}

/// A way of asking the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Echo requests.
    Icmp,
    /// HTTP requests.
    Http,
}

impl ProbeKind {
    /// The name, as metrics and messages have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Http => "http",
        }
    }
}

impl Probes {
    /// The kinds that there are.
    pub fn kinds(&self) -> impl Iterator<Item = ProbeKind> + use<> {
        let icmp = self.icmp.as_ref().map(|_| ProbeKind::Icmp);
        let http = self.http.as_ref().map(|_| ProbeKind::Http);
        [icmp, http].into_iter().flatten()
    }

    /// How many are asked.
    #[must_use]
    pub fn targets(&self) -> usize {
        let icmp = self.icmp.as_ref().map_or(0, |probe| probe.targets.len());
        let http = self.http.as_ref().map_or(0, |probe| probe.targets.len());
        icmp + http
    }
}

/// Who is asked in one way, and how often; one answer is enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe<T> {
    /// Who is asked: at least one, each once.
    pub targets: Vec<T>,
    /// The pause between two questions.
    pub interval: Duration,
    /// How long nobody may have answered: at least two intervals.
    pub timeout: Duration,
}

/// A URL of HTTP whose server is an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// As it was written.
    pub text: String,
    /// The server.
    pub server: SocketAddr,
    /// The server as the `Host` field has it (RFC 9110, 7.2).
    pub host: String,
    /// Path and query.
    pub path: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Somebody who is asked.
pub trait Asked: fmt::Display {
    /// Its address.
    fn address(&self) -> IpAddr;
}

impl Asked for IpAddr {
    fn address(&self) -> IpAddr {
        *self
    }
}

impl Asked for Url {
    fn address(&self) -> IpAddr {
        self.server.ip()
    }
}
