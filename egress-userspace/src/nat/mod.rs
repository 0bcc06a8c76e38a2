//! What the entries of translated connections mean: when they end, and what they add up to. Pure.

mod label;
mod statistics;
mod walk;

use egress_common::nat::{NatBack, NatBackKey, NatOut, NatOutKey, NatState};

pub use label::protocol_name;
pub use statistics::{Load, Ports, Remote, Statistics, Tally};
pub use walk::{Found, ORPHANED_AFTER, Orphans, OutHalves, Walk};

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// How long a connection may be silent, by its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    seconds: [u32; NatState::COUNT],
}

impl Timeouts {
    /// The timeouts that the datapath goes by; none until they were written.
    #[must_use]
    pub fn of(seconds: [u32; NatState::COUNT]) -> Option<Self> {
        (!seconds.contains(&0)).then_some(Self { seconds })
    }

    /// The nanoseconds of silence that end a connection in the state with this number.
    ///
    /// A number that is no state has the longest time of all: what is not understood is left alone.
    #[must_use]
    pub fn nanoseconds(&self, state: u8) -> u64 {
        let seconds = self.seconds.get(usize::from(state)).copied();
        let longest = || self.seconds.iter().copied().max().unwrap_or(u32::MAX);
        u64::from(seconds.unwrap_or_else(longest)) * SECOND
    }

    /// Nanoseconds until a connection ends that was last seen then; none if it has ended.
    ///
    /// All times are of `CLOCK_MONOTONIC`. A packet may come in after the clock was read.
    #[must_use]
    pub fn left(&self, state: u8, last_seen: u64, now: u64) -> Option<u64> {
        let silent = now.saturating_sub(last_seen);
        self.nanoseconds(state)
            .checked_sub(silent)
            .filter(|left| *left > 0)
    }
}

/// The key under which the other half of a reply's entry is.
#[must_use]
pub fn out_key(key: &NatBackKey, back: &NatBack) -> NatOutKey {
    NatOutKey {
        pod: back.pod,
        remote: key.remote,
        pod_port: back.pod_port,
        remote_port: key.remote_port,
        gateway: back.gateway,
        protocol: key.protocol,
        pad: [0; 3],
    }
}

/// The key under which the other half of a pod's entry is.
#[must_use]
pub fn back_key(key: &NatOutKey, out: &NatOut) -> NatBackKey {
    NatBackKey {
        egress: out.egress,
        remote: key.remote,
        egress_port: out.egress_port,
        remote_port: key.remote_port,
        protocol: key.protocol,
        pad: [0; 3],
    }
}

#[cfg(test)]
mod tests;
