//! `egress_from_pod` and `egress_from_gateway`: which policy, which prefix, which gateway.

use anyhow::{Context as _, Result, ensure};
use aya::programs::SchedClassifier;
use egress_common::{Family, gateway::Settings, maps, verdict::Replies};
use egress_userspace::kernel::Program;

use super::{PREFIXES, STEERING, check, translating};
use crate::{
    lab::{Action, Capacity, Ours, POD, Reference, References, Shim, UPLINK, next_hop, resolved},
    measured::{Measured, Unit},
    progress::Progress,
    rounds::Bed,
    world::{Flow, Scale, Template, World},
};

/// Flows of a scene.
const FLOWS: usize = 10_000;
/// Flows of a scene with very many prefixes: they reach all parts of the table.
const MANY_FLOWS: usize = 50_000;
/// How often each flow is seen before recorded ones are measured, so that all are.
const SEEN: usize = 2;

/// Subjects' names, which gates look for.
pub(crate) const OURS: &str = "ours";
pub(crate) const RECORDED: &str = "ours, replies recorded";
const TO_OVERLAY: &str = "ours, to the overlay";
const HERE: &str = "ours, translated here";
const REPLY: &str = "ours, a recorded reply";

/// The scale at which most is asked for.
const LARGE: Scale = Scale::new(1000, 100);
const LARGE_V6: Scale = Scale {
    family: Family::V6,
    ..LARGE
};
/// What ours is measured beside there.
const IN_FULL: [Reference; 6] = [
    Reference::Redirect,
    Reference::RedirectNeigh,
    Reference::Floor,
    Reference::FloorUncounted,
    Reference::LpmPolicy,
    Reference::LpmSource,
];

/// Pods and prefixes, from few to many.
pub(super) fn scales(quick: bool, progress: &Progress) -> Result<(Vec<Bed>, Vec<Measured>)> {
    let distinct = Scale {
        distinct: true,
        ..LARGE
    };
    let mut scales = vec![Scale::new(1, 100), LARGE, distinct, LARGE_V6];
    if !quick {
        let shared = Scale {
            policies: 10,
            ..LARGE
        };
        scales.extend([Scale::new(1, 1), Scale::new(100, 100), shared]);
    }
    make(STEERING, &scales, FLOWS, &IN_FULL, progress)
}

/// One policy with ever more prefixes.
pub(super) fn sizes(quick: bool, progress: &Progress) -> Result<(Vec<Bed>, Vec<Measured>)> {
    let mut scales = vec![Scale::new(1, 10_000), Scale::new(1, 1_000_000)];
    if !quick {
        scales.push(Scale::new(1, 100_000));
    }
    let references = [Reference::Floor, Reference::LpmPolicy];
    make(PREFIXES, &scales, MANY_FLOWS, &references, progress)
}

fn make(
    group: &str,
    scales: &[Scale],
    flows: usize,
    references: &[Reference],
    progress: &Progress,
) -> Result<(Vec<Bed>, Vec<Measured>)> {
    let mut beds = Vec::new();
    let mut figures = Vec::new();
    for scale in scales {
        let name = scale.name();
        progress.making(&name);
        let (more, bytes) = scene(scale, flows, references).with_context(|| name.clone())?;
        beds.extend(more);
        figures.extend(
            bytes.map(|(what, bytes)| Measured::exactly(group, &name, what, Unit::Bytes, bytes)),
        );
    }
    Ok((beds, figures))
}

/// What takes memory, and how many bytes.
type Memory = [(&'static str, f64); 2];

/// One scale, and the memory that it takes; where there is much of everything, also other ways and the way back.
fn scene(scale: &Scale, flows: usize, references: &[Reference]) -> Result<(Vec<Bed>, Memory)> {
    let world = World::new(scale)?;
    let mut ground = Ground::new(scale, &world, flows)?;
    if scale.family == Family::V4 {
        ground.references(references)?;
    }
    let memory = ground.ours(OURS, Replies::Kernel)?;
    let mut replies = None;
    if *scale == LARGE || *scale == LARGE_V6 {
        replies = Some(ground.recorded()?);
        ground.elsewhere()?;
    }
    Ok(([ground.bed].into_iter().chain(replies).collect(), memory))
}

/// A world with the packets that are sent through it.
struct Ground<'a> {
    world: &'a World,
    flows: Vec<Flow>,
    templates: Vec<Template>,
    /// Packets of all kinds, whose verdicts are checked.
    mixed: Vec<Flow>,
    mixed_templates: Vec<Template>,
    bed: Bed,
}

impl<'a> Ground<'a> {
    fn new(scale: &Scale, world: &'a World, flows: usize) -> Result<Self> {
        let flows = world.steered(flows);
        let mixed = world.mixed(check::PACKETS);
        let templates: Vec<Template> = flows.iter().map(Flow::template).collect();
        let references = References::empty()?;
        let empty = references.program(Reference::Empty)?;
        let empty = Shim::new(empty, &templates, POD, None)?;
        Ok(Self {
            world,
            bed: Bed::new(scale.name(), empty),
            mixed_templates: mixed.iter().map(Flow::template).collect(),
            mixed,
            templates,
            flows,
        })
    }

    fn shim(&self, program: &SchedClassifier) -> Result<Shim> {
        Shim::new(program, &self.templates, POD, None)
    }

    fn mixed_shim(&self, program: &SchedClassifier) -> Result<Shim> {
        Shim::new(program, &self.mixed_templates, POD, None)
    }

    /// Adds reference programs, all over the same tables.
    fn references(&mut self, which: &[Reference]) -> Result<()> {
        let by_source = which.contains(&Reference::LpmSource);
        let references = References::of(self.world, by_source)?;
        for reference in which {
            let program = references.program(*reference)?;
            let mut mixed = self.mixed_shim(program)?;
            check::reference(self.world, &references, *reference, &self.mixed, &mut mixed)?;
            let shim = self.shim(program)?;
            self.bed.add(reference.name(), shim, Action::Redirect);
        }
        Ok(())
    }

    /// Adds our program, with next hops as gateways, and tells how much memory it takes.
    #[expect(
        clippy::cast_precision_loss,
        reason = "memory of one machine is counted exactly"
    )]
    fn ours(&mut self, name: &str, replies: Replies) -> Result<Memory> {
        let (ours, shim) = self.next_hops(replies)?;
        self.bed.add(name, shim, Action::Redirect);
        Ok([
            ("ours, matrix", ours.matrix as f64),
            ("ours, trie", ours.trie as f64),
        ])
    }

    /// Adds the same with replies recorded, and makes a bed of the replies.
    fn recorded(&mut self) -> Result<Bed> {
        let (mut ours, mut shim) = self.next_hops(Replies::Recorded)?;
        shim.all(self.flows.len(), SEEN)?;
        let back: Vec<Flow> = self.flows.iter().map(Flow::reversed).collect();
        let templates: Vec<Template> = back.iter().map(Flow::template).collect();
        let references = References::empty()?;
        let empty = references.program(Reference::Empty)?;
        let empty = Shim::new(empty, &templates, UPLINK, None)?;
        let mut bed = Bed::new(format!("{}, replies", self.bed.scene()), empty);
        let program = ours.program(Program::FromGateway)?;
        let mut replies = Shim::new(program, &templates, UPLINK, None)?;
        for (index, flow) in back.iter().enumerate().take(check::PACKETS) {
            let (action, frame) = replies.one(index)?;
            ensure!(
                action == Action::Redirect && Flow::read(&frame) == Some(*flow),
                "the reply {flow:?} of a recorded connection is not delivered: {action:?}"
            );
        }
        bed.add(REPLY, replies, Action::Redirect);
        self.bed.add(RECORDED, shim, Action::Redirect);
        Ok(bed)
    }

    fn next_hops(&self, replies: Replies) -> Result<(Ours, Shim)> {
        let v6 = self.flows[0].source.is_ipv6();
        let resolved = resolved(self.world, |number| next_hop(number, v6, replies));
        let capacity = Capacity {
            replies: maps::capacity::REPLIES,
            ..Capacity::default()
        };
        let mut ours = Ours::load(&resolved, &Settings::default(), capacity)?;
        let shim = self.checked(&mut ours, check::Leaves::Steered)?;
        Ok((ours, shim))
    }

    /// Adds our program with gateways on another node, and with gateways of this one.
    fn elsewhere(&mut self) -> Result<()> {
        let v6 = self.flows[0].source.is_ipv6();
        let node = translating::Node::new(v6);
        let mut ours = node.load(
            resolved(self.world, |number| node.overlay(number)),
            Capacity::default(),
        )?;
        let shim = self.checked(&mut ours, check::Leaves::Steered)?;
        self.bed.add(TO_OVERLAY, shim, Action::Redirect);
        let capacity = Capacity {
            connections: maps::capacity::NAT,
            ..Capacity::default()
        };
        let mut ours = node.load(resolved(self.world, |number| node.here(number)), capacity)?;
        let leaves = check::Leaves::Translated(if v6 {
            translating::egress6
        } else {
            translating::egress4
        });
        let mut shim = self.checked(&mut ours, leaves)?;
        shim.all(self.flows.len(), SEEN)?;
        self.bed.add(HERE, shim, Action::Redirect);
        Ok(())
    }

    fn checked(&self, ours: &mut Ours, leaves: check::Leaves) -> Result<Shim> {
        let mut mixed = self.mixed_shim(ours.program(Program::FromPod)?)?;
        check::ours(self.world, ours, &self.mixed, &mut mixed, leaves)
            .with_context(|| format!("our program, {leaves:?}"))?;
        self.shim(ours.program(Program::FromPod)?)
    }
}
