//! Source NAT on this node: its flags, checked.

use std::{collections::BTreeMap, fmt, str::FromStr};

use anyhow::{bail, ensure};
use egress_common::{maps::capacity, nat::NatState};
use serde::Deserialize;

use super::{Flags, at_least_one};
use crate::resolve;

/// One source may have a sixteenth of the connections.
const SOURCES_SHARE: u32 = 16;

/// Source NAT on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatOptions {
    /// Connections that there is room for.
    pub connections: u32,
    /// Connections that one source address may have.
    pub source_quota: u32,
    /// The first and the last port that connections may be given.
    pub ports: (u16, u16),
    /// Seconds without a packet after which a connection ends, by state.
    pub timeouts: [u32; NatState::COUNT],
}

impl Default for NatOptions {
    fn default() -> Self {
        Self {
            connections: capacity::NAT,
            source_quota: capacity::NAT / SOURCES_SHARE,
            ports: resolve::NAT_PORTS,
            timeouts: NatState::ALL.map(|(_, _, seconds)| seconds),
        }
    }
}

impl Flags {
    /// Source NAT, as these flags have it.
    pub(super) fn nat(&self) -> anyhow::Result<NatOptions> {
        let connections = at_least_one("--nat-connections", self.nat_connections, capacity::NAT)?;
        let source_quota = at_least_one(
            "--nat-source-quota",
            self.nat_source_quota,
            (connections / SOURCES_SHARE).max(1),
        )?;
        ensure!(
            source_quota <= connections,
            "--nat-source-quota {source_quota} is more than all connections there can be, --nat-connections \
             {connections}"
        );
        let mut nat = NatOptions {
            connections,
            source_quota,
            ..NatOptions::default()
        };
        if let Some(range) = self.nat_port_range {
            nat.ports = (range.first, range.last);
        }
        let mut said = BTreeMap::new();
        for timeout in &self.nat_timeout {
            if let Some(before) = said.insert(timeout.state, *timeout) {
                bail!("--nat-timeout says both {before} and {timeout}: keep one");
            }
            nat.timeouts[timeout.state as usize] = timeout.seconds;
        }
        Ok(nat)
    }
}

/// Ports from a first to a last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PortRange {
    /// The first, from 1.
    pub first: u16,
    /// The last, not before the first.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
            .ok_or_else(|| {
                format!("{text:?} is not a range of ports: write FIRST-LAST, such as 1024-65535")
            })?;
        if first == 0 {
            return Err(format!("{text:?} begins with 0, which is no port"));
        }
        if first > last {
            return Err(format!("{text:?} ends before it begins"));
        }
        Ok(Self { first, last })
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// How long a state lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NatTimeout {
    /// The state.
    pub state: NatState,
    /// Seconds without a packet, at least 1.
    pub seconds: u32,
}

impl FromStr for NatTimeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((state, seconds)) = text.split_once('=') else {
            return Err(format!(
                "{text:?} is not a timeout: write STATE=SECONDS, such as udp-stream=180"
            ));
        };
        let Some((state, ..)) = NatState::ALL.iter().find(|(_, name, _)| *name == state) else {
            let names: Vec<_> = NatState::ALL.iter().map(|(_, name, _)| *name).collect();
            return Err(format!(
                "{state:?} is not a state: the states are {}",
                names.join(", ")
            ));
        };
        match seconds.parse() {
            Ok(seconds) if seconds > 0 => Ok(Self {
                state: *state,
                seconds,
            }),
            Ok(_) | Err(_) => Err(format!(
                "{seconds:?} is not a number of seconds, 1 or more, that 32 bits hold"
            )),
        }
    }
}

impl TryFrom<String> for NatTimeout {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for NatTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name, _) = NatState::ALL[self.state as usize];
        write!(f, "{name}={}", self.seconds)
    }
}
