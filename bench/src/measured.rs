//! What a benchmark hands on: figures with what they are of, and nothing of how they came about.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::statistics;

/// One figure: of something, in some scene, over many samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Which benchmark: what one table shows together, such as `pods and prefixes`.
    pub(crate) group: String,
    /// What was set up, such as `1000 × 100`.
    pub(crate) scene: String,
    /// What was measured, such as `ours` or `LPM {source, destination}`.
    pub(crate) subject: String,
    /// What the numbers are.
    pub(crate) unit: Unit,
    /// The smallest sample: what it costs where nothing disturbs.
    pub(crate) min: f64,
    /// The median sample.
    pub(crate) median: f64,
    /// How many samples there were.
    pub(crate) samples: usize,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Nanoseconds of a packet, without what an empty program costs in the same scene.
    Nanoseconds,
    /// Nanoseconds of a packet, with all that it takes to send one.
    GrossNanoseconds,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Packets a second.
    PacketsPerSecond,
    /// Bits a second.
    BitsPerSecond,
    /// Bytes of memory.
    Bytes,
    /// Hundredths of one core.
    PercentOfCore,
    /// Pods a second.
    PodsPerSecond,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nanoseconds | Self::GrossNanoseconds => "ns",
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::PacketsPerSecond => "packets/s",
            Self::BitsPerSecond => "bit/s",
            Self::Bytes => "bytes",
            Self::PercentOfCore => "% of a core",
            Self::PodsPerSecond => "pods/s",
        })
    }
}

impl Measured {
    /// From samples, of which there must be one at least.
    pub(crate) fn of_samples(
        group: &str,
        scene: &str,
        subject: &str,
        unit: Unit,
        samples: &[f64],
    ) -> Self {
        Self {
            group: group.to_owned(),
            scene: scene.to_owned(),
            subject: subject.to_owned(),
            unit,
            min: statistics::min(samples),
            median: statistics::median(samples),
            samples: samples.len(),
        }
    }

    /// What does not vary, such as memory.
    pub(crate) fn exactly(group: &str, scene: &str, subject: &str, unit: Unit, value: f64) -> Self {
        Self::of_samples(group, scene, subject, unit, &[value])
    }

    /// Whether it is this figure.
    pub(crate) fn is(&self, group: &str, scene: &str, subject: &str) -> bool {
        self.group == group && self.scene == scene && self.subject == subject
    }
}
