//! The program alone, by the kernel's test-run: a shim draws the packets, so that caches are as cold as in life.

mod check;
mod steering;
mod translating;

pub(crate) use self::steering::OURS;

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{lab::Network, measured::Measured, progress::Progress, rounds};

/// Pods with policies over prefixes.
pub(crate) const STEERING: &str = "pods × prefixes";
/// One policy over very many.
pub(crate) const PREFIXES: &str = "prefixes of one policy";
/// Gateways of this node.
pub(crate) const TRANSLATING: &str = "source NAT";

/// Every group, and how long making it takes, about.
pub(crate) const GROUPS: [(&str, Duration); 3] = [
    (STEERING, Duration::from_secs(40)),
    (PREFIXES, Duration::from_secs(40)),
    (TRANSLATING, Duration::from_secs(30)),
];

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// How long a group's rounds go on.
    pub(crate) time: Duration,
    /// Whether scenes are left out that no gate asks for.
    pub(crate) quick: bool,
}

/// Measures a group.
pub(crate) fn measure(group: &str, effort: Effort, progress: &Progress) -> Result<Vec<Measured>> {
    let _network = Network::enter()?;
    let made = match group {
        STEERING => steering::scales(effort.quick, progress),
        PREFIXES => steering::sizes(effort.quick, progress),
        _ => translating::flows(effort.quick, progress),
    };
    let (beds, memory) = made.with_context(|| format!("cannot set up {group}"))?;
    let setup = GROUPS.iter().find(|(name, _)| *name == group);
    progress.made(setup.map_or(Duration::ZERO, |(_, expected)| *expected));
    let mut figures = rounds::measure(group, beds, effort.time, progress)?;
    figures.extend(memory);
    Ok(figures)
}
