//! What a benchmark is to whoever runs them all: groups that can be asked for, and gates over their figures.

use std::time::Duration;

use anyhow::Result;

use crate::{gates::Gate, measured::Measured, progress::Progress};

/// A benchmark.
pub(crate) struct Benchmark {
    /// What it measures, in this order.
    pub(crate) groups: &'static [Group],
    /// What has to hold of its figures.
    pub(crate) gates: &'static [Gate],
    /// Measures one of its groups.
    pub(crate) measure: fn(&Group, Effort, &Progress) -> Result<Vec<Measured>>,
}

/// What is measured together, so that its figures can be compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// What tables call it.
    pub(crate) name: &'static str,
    /// How long making it takes, about.
    pub(crate) setup: Spans,
    /// How long its rounds go on, unless the user says otherwise; for no time where no gate looks at it, and then it is
    /// left out when little is measured.
    pub(crate) rounds: Spans,
}

/// How long something takes, when all is measured and when little is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spans {
    pub(crate) thorough: Duration,
    pub(crate) quick: Duration,
}

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// How long a group's rounds go on, if not for as long as is its own.
    pub(crate) time: Option<Duration>,
    /// Whether scenes are left out that no gate asks for.
    pub(crate) quick: bool,
}

impl Spans {
    /// In seconds.
    pub(crate) const fn seconds(thorough: u64, quick: u64) -> Self {
        Self {
            thorough: Duration::from_secs(thorough),
            quick: Duration::from_secs(quick),
        }
    }

    const fn of(self, effort: Effort) -> Duration {
        if effort.quick {
            self.quick
        } else {
            self.thorough
        }
    }
}

impl Group {
    /// Whether it is measured by who does not name it.
    pub(crate) const fn is_asked_for(&self, quick: bool) -> bool {
        !quick || !self.rounds.quick.is_zero()
    }

    /// How long its rounds go on.
    pub(crate) fn time(&self, effort: Effort) -> Duration {
        effort.time.unwrap_or_else(|| self.rounds.of(effort))
    }

    /// How long making it takes, about.
    pub(crate) const fn setup(&self, effort: Effort) -> Duration {
        self.setup.of(effort)
    }

    /// How long all of it takes, about.
    pub(crate) fn expected(&self, effort: Effort) -> Duration {
        self.setup(effort) + self.time(effort)
    }
}
