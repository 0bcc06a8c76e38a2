//! The control plane: a real agent on a node of its own, files that change, pods that come and go.

mod agent;
mod changes;
mod gates;
mod manifests;
mod pods;
mod stage;

use anyhow::Result;

use crate::{
    benchmark::{Benchmark, Effort, Group, Spans},
    measured::Measured,
    progress::Progress,
};

/// The benchmark.
pub(crate) const BENCHMARK: Benchmark = Benchmark {
    groups: GROUPS,
    gates: gates::GATES,
    measure,
};

/// From a file that is written to the kernel that holds it.
const CHANGES: &str = "changes of a policy";
/// From the agent's start to all being in the kernel.
const LOADS: &str = "initial load";
/// What the agent takes.
const PODS: &str = "the agent";

const GROUPS: &[Group] = &[
    group(CHANGES, Spans::seconds(45, 13)),
    group(LOADS, Spans::seconds(40, 8)),
    group(PODS, Spans::seconds(60, 19)),
];

const fn group(name: &'static str, rounds: Spans) -> Group {
    Group {
        name,
        setup: Spans::seconds(2, 2),
        rounds,
    }
}

/// Measures a group.
fn measure(group: &Group, effort: Effort, progress: &Progress) -> Result<Vec<Measured>> {
    progress.made(group.setup(effort));
    match group.name {
        CHANGES => changes::changes(group.time(effort), effort.quick, progress),
        LOADS => changes::loads(effort.quick, progress),
        _ => pods::measure(group.time(effort), effort.quick, progress),
    }
}
