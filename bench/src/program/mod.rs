//! The program alone, by the kernel's test-run: a shim draws the packets, so that caches are as cold as in life.

mod check;
mod gates;
mod steering;
mod translating;

pub(crate) use self::{steering::OURS, translating::egress4};

use anyhow::{Context as _, Result};

use crate::{
    benchmark::{Benchmark, Effort, Group, Spans},
    lab::Network,
    measured::Measured,
    progress::Progress,
    rounds,
};

/// The benchmark.
pub(crate) const BENCHMARK: Benchmark = Benchmark {
    groups: GROUPS,
    gates: gates::GATES,
    measure,
};

/// Pods with policies over prefixes.
pub(crate) const STEERING: &str = "pods × prefixes";
/// One policy over very many.
pub(crate) const PREFIXES: &str = "prefixes of one policy";
/// Gateways of this node.
pub(crate) const TRANSLATING: &str = "source NAT";

const GROUPS: &[Group] = &[
    group(STEERING, Spans::seconds(40, 20)),
    group(PREFIXES, Spans::seconds(40, 20)),
    group(TRANSLATING, Spans::seconds(30, 10)),
];

const fn group(name: &'static str, setup: Spans) -> Group {
    Group {
        name,
        setup,
        rounds: Spans::seconds(45, 10),
    }
}

/// Measures a group.
fn measure(group: &Group, effort: Effort, progress: &Progress) -> Result<Vec<Measured>> {
    let _network = Network::enter()?;
    let made = match group.name {
        STEERING => steering::scales(effort.quick, progress),
        PREFIXES => steering::sizes(effort.quick, progress),
        _ => translating::flows(effort.quick, progress),
    };
    let (beds, memory) = made.context("cannot set it up")?;
    progress.made(group.setup(effort));
    let mut figures = rounds::measure(group.name, beds, group.time(effort), progress)?;
    figures.extend(memory);
    Ok(figures)
}
