//! Packets through network namespaces: from pods over their node to a gateway, and the whole way to the outside.
//!
//! One core does it all: it sends frames as the pods would, and every host's part of the way runs in the
//! interrupts that follow. What differs from way to way is what steers.

mod core;
mod gates;
mod host;
mod laid;
mod line;
mod right;
mod road;
mod rounds;
mod server;
mod talk;
mod whole;

use anyhow::{Context as _, Result};

use self::{core::Core, laid::Laid, line::Steering, rounds::Way, talk::Talk};
use crate::{
    benchmark::{Benchmark, Effort, Group, Spans},
    lab::Reference,
    measured::{Measured, Unit},
    progress::Progress,
    world::{Scale, World},
};

/// The benchmark.
pub(crate) const BENCHMARK: Benchmark = Benchmark {
    groups: GROUPS,
    gates: gates::GATES,
    measure,
};

/// From pods to a gateway.
pub(crate) const FORWARDING: &str = "forwarding";

/// From pods over the overlay, translated on another node, to the outside.
pub(crate) const WHOLE: &str = "the whole way";

/// A pod and a server over the same ways.
const TALKING: &str = "TCP and HTTP";

const GROUPS: &[Group] = &[
    Group {
        name: FORWARDING,
        setup: Spans::seconds(12, 8),
        rounds: Spans::seconds(30, 8),
    },
    Group {
        name: WHOLE,
        setup: Spans::seconds(4, 4),
        rounds: Spans::seconds(15, 4),
    },
    Group {
        name: TALKING,
        setup: Spans::seconds(6, 6),
        // No gate looks at it.
        rounds: Spans::seconds(40, 0),
    },
];

/// Subjects' names, which gates and pictures look for.
pub(crate) const OURS: &str = crate::program::OURS;
pub(crate) const NEIGHBOUR: &str = "redirect_neigh alone";
pub(crate) const RULES: &str = "ip rules";
/// The scene of ways that end at a next hop.
const NEXT_HOP: &str = "to a next hop";
const REDIRECT: &str = "redirect alone";
const ROUTE: &str = "kernel route";
const KERNEL: &str = "kernel VXLAN, nftables SNAT";
const KERNEL_RULES: &str = "ip rules, kernel VXLAN, nftables SNAT";
const TRANSLATION: &str = "kernel route, nftables SNAT";

/// Flows that packets are drawn of.
const FLOWS: usize = 10_000;
/// Prefixes of a policy.
const PREFIXES: usize = 100;

/// The scale at which most is asked for.
const LARGE: usize = 1000;

/// Measures a group.
fn measure(group: &Group, effort: Effort, progress: &Progress) -> Result<Vec<Measured>> {
    if group.name == TALKING {
        let talks = talks(progress).context("cannot set it up")?;
        progress.made(group.setup(effort));
        return talk::measure(group.name, talks, group.time(effort), progress);
    }
    let core = Core::take()?;
    let ways = match group.name {
        FORWARDING => forwarding(effort.quick, &core, progress),
        _ => the_whole_way(effort.quick, &core, progress),
    };
    let mut ways = ways.context("cannot set it up")?;
    if let Some(way) = ways.first() {
        way.is_counted(&core)?;
    }
    progress.made(group.setup(effort));
    let time = group.time(effort);
    let mut figures = rounds::measure(group.name, &mut ways, &core, time, progress)?;
    if group.name == WHOLE {
        let rates: Vec<Measured> = figures.iter().map(a_second).collect();
        figures.extend(rates);
    }
    Ok(figures)
}

/// Packets a second, of nanoseconds a packet.
fn a_second(figure: &Measured) -> Measured {
    Measured {
        subject: format!("{}, packets a second", figure.subject),
        unit: Unit::PacketsPerSecond,
        min: 1e9 / figure.min,
        median: 1e9 / figure.median,
        ..figure.clone()
    }
}

/// Pods with a policy each, of which every subject knows all.
fn forwarding(quick: bool, core: &Core, progress: &Progress) -> Result<Vec<Way>> {
    let growing = [
        (OURS, Steering::Ours),
        (NEIGHBOUR, Steering::Bare(Reference::RedirectNeigh)),
        (RULES, Steering::Rules),
    ];
    let mut fixed = vec![(ROUTE, Steering::Route)];
    let scales: &[usize] = if quick { &[LARGE] } else { &[10, 100, LARGE] };
    if !quick {
        fixed.extend([
            (REDIRECT, Steering::Bare(Reference::Redirect)),
            (TRANSLATION, Steering::Translation),
        ]);
    }
    let mut ways = Vec::new();
    for pods in scales {
        let scale = Scale::new(*pods, PREFIXES);
        let scene = scale.name();
        progress.making(&format!("{FORWARDING}, {scene}"));
        let world = World::new(&scale)?;
        let flows = world.steered(FLOWS);
        let more: &[_] = if *pods == LARGE { &fixed } else { &[] };
        for (subject, steering) in growing.iter().chain(more) {
            let laid = line::lay(*steering, &world);
            let laid = laid.with_context(|| format!("{scene}, {subject}"))?;
            ways.push(Way::new(&scene, subject, laid, &world, &flows, core)?);
        }
    }
    Ok(ways)
}

/// Pods of one node with a policy each; what leaves has the addresses of another.
fn the_whole_way(quick: bool, core: &Core, progress: &Progress) -> Result<Vec<Way>> {
    let scale = Scale::new(LARGE, PREFIXES);
    let scene = scale.name();
    progress.making(&format!("{WHOLE}, {scene}"));
    let world = World::new(&scale)?;
    let flows = world.steered(FLOWS);
    let mut ways = Vec::new();
    let mut steerings = vec![
        (OURS, whole::Steering::Ours),
        (KERNEL, whole::Steering::Kernel),
    ];
    if !quick {
        steerings.push((KERNEL_RULES, whole::Steering::Rules));
    }
    for (subject, steering) in steerings {
        let laid = whole::lay(steering, &world);
        let laid = laid.with_context(|| format!("{scene}, {subject}"))?;
        ways.push(Way::new(&scene, subject, laid, &world, &flows, core)?);
    }
    Ok(ways)
}

/// A pod of many, and a server.
fn talks(progress: &Progress) -> Result<Vec<Talk>> {
    progress.making(TALKING);
    let world = World::new(&Scale::new(LARGE, PREFIXES))?;
    let flows = world.steered(1);
    let talk = |scene, subject, laid: Result<Laid>| {
        laid.and_then(|laid| Talk::new(scene, subject, laid, &world, &flows[0]))
            .with_context(|| format!("{scene}, {subject}"))
    };
    Ok(vec![
        talk(NEXT_HOP, OURS, line::lay(Steering::Ours, &world))?,
        talk(NEXT_HOP, ROUTE, line::lay(Steering::Route, &world))?,
        talk(WHOLE, OURS, whole::lay(whole::Steering::Ours, &world))?,
        talk(WHOLE, KERNEL, whole::lay(whole::Steering::Kernel, &world))?,
    ])
}
