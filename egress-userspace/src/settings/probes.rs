//! How gateways are probed: its flags, checked.

use std::{str::FromStr, time::Duration};

use anyhow::ensure;
use serde::Deserialize;

use super::Flags;
use crate::health::{NextHopProbe, Timing};

/// Probing more often costs more than it tells.
const SHORTEST: Duration = Duration::from_millis(10);

/// How gateways are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeOptions {
    /// When a gateway counts as down or up.
    pub timing: Timing,
    /// How next hops are asked.
    pub next_hops: NextHopProbe,
    /// How long connections of a gateway that is drained may stay.
    pub drain_timeout: Duration,
}

/// How long connections may stay unless somebody says otherwise.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(600);

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            next_hops: NextHopProbe::default(),
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}

impl Flags {
    /// The probes, as these flags have them.
    pub(super) fn probes(&self) -> anyhow::Result<ProbeOptions> {
        let default = Timing::default();
        let time = |flag: Option<Milliseconds>, default| flag.map_or(default, |time| time.0);
        let timing = Timing {
            interval: time(self.probe_interval, default.interval),
            timeout: time(self.probe_timeout, default.timeout),
            up_after: time(self.probe_up_after, default.up_after),
        };
        ensure!(
            timing.interval >= SHORTEST,
            "--probe-interval is below {} ms: probes would cost more than they tell",
            SHORTEST.as_millis()
        );
        ensure!(
            timing.timeout >= timing.interval * 2,
            "--probe-timeout {:?} is less than twice --probe-interval {:?}: one lost probe would count as a gateway \
             that is down",
            timing.timeout,
            timing.interval
        );
        Ok(ProbeOptions {
            timing,
            next_hops: self.next_hop_probe.unwrap_or_default(),
            drain_timeout: time(self.drain_timeout, DRAIN_TIMEOUT),
        })
    }
}

/// A time, in milliseconds at best: a number with the unit `ms`, `s`, `m` or `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Milliseconds(pub Duration);

impl FromStr for Milliseconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{text:?} is no time: write a number with its unit, ms, s, m or h, such as 300ms"
            )
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| refuse())?;
        let milliseconds = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1000),
            "m" => number.checked_mul(60_000),
            "h" => number.checked_mul(3_600_000),
            _ => None,
        };
        milliseconds
            .map(|number| Self(Duration::from_millis(number)))
            .ok_or_else(refuse)
    }
}

impl TryFrom<String> for Milliseconds {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
