//! Apply: the only writer of live maps, in the order that the plan gives.

mod guard;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use anyhow::{Context, bail};
use egress_common::{
    WireU16,
    gateway::{self, EGRESS_DOWN, GatewayId},
    pod::{PodFacts, UdpPorts},
};

use super::sweep::Sweeper;
use crate::{
    counters::Counters,
    diff::{self, Change, Plan},
    health::OverlayProber,
    http::ReadMaps,
    kernel::{
        CounterMaps, CounterReader, Datapath, GatewayProbes, Hook, Maps, NatMaps, NatSweep,
        OwnConnections, Paths, Program, ProgramLog, fault,
    },
    settings::Settings,
    snapshot::AttachedProgram,
    state::{DesiredState, Facts, KernelState, Limits, Names},
    state_dir::StateDir,
    translation,
};

/// What has to be there before the first packet leaves: it receives replies, or what pods of other nodes
/// send, or sees connections come in.
const RECEIVING: [Program; 4] = [
    Program::FromGateway,
    Program::FromUplink,
    Program::FromOverlay,
    Program::ToPod,
];

/// The datapath, what is known of its content, and what its numbers mean.
pub(super) struct Kernel {
    datapath: Datapath,
    zeroing: CounterMaps,
    reader: Arc<CounterReader>,
    state_dir: StateDir,
    paths: Paths,
    limits: Limits,
    state: Arc<KernelState>,
    translation: translation::State,
    names: Arc<Names>,
    /// Whether what an earlier run steered or owned is still what the maps say.
    took_over: bool,
    /// Whether the maps may differ from `state`, because an apply broke off.
    unsure: bool,
    /// What programs of an earlier run still go by, whose maps are of another layout.
    earlier: Option<Earlier>,
}

/// What programs of an earlier run go by until theirs are swapped.
struct Earlier {
    /// The pods, and nothing else.
    state: Arc<KernelState>,
    egress: BTreeSet<IpAddr>,
}

impl Kernel {
    /// Loads the datapath, and reads what an earlier run has left in its maps.
    pub(super) fn load(settings: &Settings, state_dir: StateDir) -> anyhow::Result<Self> {
        let took_over = settings.load.paths.has_maps();
        let mut datapath = Datapath::load(&settings.load)?;
        // The last run may have freed something just before it ended.
        datapath.maps.grace()?;
        let state = diff::trace(&datapath.maps).context("cannot read the maps of the last run")?;
        let translation = datapath.maps.translation()?;
        let names = state_dir.names();
        let earlier = datapath.earlier_pods().map(|pods| Earlier {
            state: Arc::new(KernelState {
                pods: pods.into_iter().collect(),
                ..KernelState::default()
            }),
            egress: datapath
                .earlier_egress_addresses()
                .into_iter()
                .map(IpAddr::from)
                .collect(),
        });
        if let Some(earlier) = &earlier {
            tracing::info!(
                pods = earlier.state.pods.len(),
                egress_addresses = earlier.egress.len(),
                "the last run's programs go on with its maps until new ones are filled"
            );
        }
        let anything = !(state.pods.is_empty() && translation.addresses.is_empty())
            || earlier
                .as_ref()
                .is_some_and(|e| !(e.state.pods.is_empty() && e.egress.is_empty()));
        tracing::debug!(
            took_over,
            pods = state.pods.len(),
            egress_addresses = translation.addresses.len(),
            "loaded"
        );
        Ok(Self {
            zeroing: CounterMaps::open(&settings.load.paths)?,
            reader: Arc::new(CounterReader::open(&settings.load.paths)?),
            datapath,
            state_dir,
            paths: settings.load.paths.clone(),
            limits: settings.limits,
            took_over: took_over && anything,
            state: Arc::new(state),
            translation,
            names: Arc::new(names),
            unsure: false,
            earlier,
        })
    }

    /// The counters, going on from where the last run was.
    pub(super) fn counters(&self) -> Arc<Counters> {
        let source = Arc::clone(&self.reader);
        Arc::new(Counters::taking_over(source, &self.names))
    }

    /// Reads what the live maps say, beside whoever writes them.
    pub(super) fn reading_maps(&self) -> Arc<ReadMaps> {
        let paths = self.paths.clone();
        Arc::new(move || diff::trace(&Maps::open(&paths)?))
    }

    /// The programs' log, if there is one.
    pub(super) fn log(&mut self) -> anyhow::Result<Option<ProgramLog>> {
        self.datapath.log()
    }

    /// Whoever rids the tables of connections of what has ended.
    pub(super) fn sweeper(&mut self) -> anyhow::Result<Sweeper> {
        let program = NatSweep::new(self.datapath.nat_sweep()?)?;
        Ok(Sweeper::new(NatMaps::open(&self.paths)?, program))
    }

    /// Whoever asks gateways on other nodes whether they are in order.
    pub(super) fn prober(&mut self) -> anyhow::Result<OverlayProber> {
        let program = self.datapath.probe()?;
        Ok(OverlayProber::new(GatewayProbes::open(
            &self.paths,
            program,
        )?))
    }

    /// What lets the node's own sockets ask from egress addresses.
    pub(super) fn own_connections(&self) -> anyhow::Result<OwnConnections> {
        OwnConnections::open(&self.paths)
    }

    /// The gateways of this node that nothing got out by when the maps were read.
    pub(super) fn down_gateways(&self) -> BTreeSet<GatewayId> {
        let translation = &self.translation;
        let indexes = translation.gateways.values();
        indexes
            .filter_map(|index| translation.egress.get(index))
            .filter(|egress| egress.flags & EGRESS_DOWN != 0)
            .map(|egress| egress.gateway)
            .collect()
    }

    pub(super) fn attach_mode(&self) -> &'static str {
        self.datapath.attachments.mode().name()
    }

    /// Whether an earlier run left pods that are steered or egress addresses, and this one has not changed that yet.
    pub(super) fn took_over(&self) -> bool {
        self.took_over
    }

    pub(super) fn state(&self) -> Arc<KernelState> {
        Arc::clone(&self.state)
    }

    /// The pods that are steered now, by this run or by programs of an earlier one.
    pub(super) fn steered(&self) -> Arc<KernelState> {
        let earlier = self.earlier.as_ref();
        Arc::clone(earlier.map_or(&self.state, |earlier| &earlier.state))
    }

    /// The egress addresses that replies find now, by this run or by programs of an earlier one.
    pub(super) fn egress_addresses(&self) -> BTreeSet<IpAddr> {
        if let Some(earlier) = &self.earlier {
            return earlier.egress.clone();
        }
        let addresses = self.translation.addresses.keys();
        addresses.map(|address| IpAddr::from(*address)).collect()
    }

    pub(super) fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
    }

    /// Which of the programs that are wanted are attached.
    pub(super) fn programs(&self, wanted: &BTreeSet<Hook>) -> Vec<AttachedProgram> {
        let attached = self.datapath.attachments.attached();
        wanted
            .iter()
            .map(|hook| AttachedProgram {
                interface: hook.interface.clone(),
                program: hook.program.name().to_owned(),
                attached: attached.contains(&(hook.program, hook.ifindex)),
                mode: self.attach_mode().to_owned(),
            })
            .collect()
    }

    /// Makes hooks that something else took away be attached again by the next apply, and counts them.
    pub(super) fn forget_lost_hooks(&mut self) -> anyhow::Result<usize> {
        self.datapath.attachments.forget_lost()
    }

    /// Pins again what something else has unpinned, and says how many those were.
    pub(super) fn restore_pins(&mut self) -> anyhow::Result<usize> {
        self.datapath.restore_pins()
    }

    /// The interfaces where this run has attached a program.
    pub(super) fn interfaces_of(&self, program: Program) -> BTreeSet<u32> {
        let attached = self.datapath.attachments.attached().iter();
        attached
            .filter(|(other, _)| *other == program)
            .map(|(_, ifindex)| *ifindex)
            .collect()
    }

    /// Whether a program is attached to an interface, be it one of an earlier run that is still at work.
    pub(super) fn is_attached(&self, program: Program, ifindex: u32) -> bool {
        let attached = self.datapath.attachments.attached();
        attached.contains(&(program, ifindex)) || self.keeps(program, ifindex)
    }

    /// Whether an earlier run's program stays on an interface until the maps are filled for the new one.
    fn keeps(&self, program: Program, ifindex: u32) -> bool {
        self.datapath.is_switching() && self.has_pin(program, ifindex)
    }

    /// Whether this agent, in this run or an earlier one, has attached a program to an interface.
    pub(super) fn has_pin(&self, program: Program, ifindex: u32) -> bool {
        self.paths.link(program, ifindex).exists()
            || self.paths.clsact_marker(program, ifindex).exists()
    }

    /// Attaches a program before there is a desired state; where it is attached already it stays.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn attach(&mut self, hook: Hook) -> anyhow::Result<()> {
        let program = hook.program;
        if self.keeps(program, hook.ifindex) {
            return Ok(());
        }
        let (attachments, ebpf) = self.datapath.attaching();
        let mut errors = attachments.attach(ebpf, program, &BTreeSet::from([hook]));
        errors.pop().map_or(Ok(()), Err)
    }

    /// Reads what the maps say if an apply broke off.
    fn be_sure(&mut self) -> anyhow::Result<()> {
        if self.unsure {
            self.datapath.maps.grace()?;
            self.datapath.maps.repair()?;
            self.state = Arc::new(diff::trace(&self.datapath.maps)?);
            self.translation = self.datapath.maps.translation()?;
            self.unsure = false;
        }
        Ok(())
    }

    /// Plans how maps and hooks come to the desired state, and changes nothing of what they say.
    ///
    /// # Errors
    /// The maps cannot be read or have no room.
    pub(super) fn plan(
        &mut self,
        desired: &DesiredState,
        settings: &gateway::Settings,
    ) -> anyhow::Result<Plans> {
        self.be_sure()?;
        let policy = diff::plan(&self.state, &self.names, desired, &self.limits)?;
        let translation = translation::plan(
            &self.translation,
            &self.names,
            &desired.translation,
            settings,
            &self.datapath.maps.translation_limits(),
        )?;
        Ok(Plans {
            names: Names {
                gateways: translation.gateways.clone(),
                nodes: translation.nodes.clone(),
                ..policy.names.clone()
            },
            policy,
            translation,
        })
    }

    /// Brings maps and hooks to the desired state, as it was planned.
    ///
    /// Packets never meet a program without what belongs to it. Replies find theirs before the first
    /// packet leaves for the gateway, and until the last one has left. Programs of pods that are let go are
    /// detached before the maps forget them, or their packets would be dropped as spoofed; those of new
    /// pods are attached once the maps know them. Egress addresses and nodes are there before the policies
    /// that lead to them, and go after them.
    ///
    /// # Errors
    /// The maps could not be changed. Hooks that failed are part of what was brought.
    pub(super) fn bring_to(
        &mut self,
        plans: Plans,
        desired: &DesiredState,
        hooks: &BTreeSet<Hook>,
        counters: &Counters,
    ) -> anyhow::Result<Brought> {
        let mut changes = plans.policy.changes.len() + plans.translation.changes();
        let (attachments, ebpf) = self.datapath.attaching();
        let before = attachments.attached().clone();
        let mut errors = Vec::new();
        // New maps, beside those of programs at work, know nobody yet.
        let first = if self.earlier.is_some() {
            &[][..]
        } else {
            &RECEIVING[..]
        };
        for program in first {
            errors.extend(attachments.attach(ebpf, *program, hooks));
        }
        errors.extend(attachments.detach_others(Program::FromPod, hooks));
        self.unsure = true;
        changes += self.write_facts(desired, &plans.policy.after)?;
        if changes > 0 || plans.names != *self.names {
            self.change(plans, counters)?;
        }
        if self.earlier.is_some() {
            fault::step("begin to switch")?;
            self.datapath.begin_switch()?;
        }
        self.unsure = false;
        self.took_over = false;
        let (attachments, ebpf) = self.datapath.attaching();
        if self.earlier.is_some() {
            for program in RECEIVING {
                errors.extend(attachments.attach(ebpf, program, hooks));
            }
            let (guarded, unguarded) = self.attach_guards(hooks);
            errors.extend(unguarded);
            if guarded {
                self.set_guarded(true)?;
            }
        }
        let (attachments, ebpf) = self.datapath.attaching();
        errors.extend(attachments.attach(ebpf, Program::FromPod, hooks));
        for program in RECEIVING.iter().rev().chain([&Program::ToUplink]) {
            errors.extend(attachments.detach_others(*program, hooks));
        }
        // Where a swap has failed an old program goes on with its maps, which it holds, until the next try.
        if self.earlier.take().is_some()
            && let Err(error) = fault::step("end the switch")
                .map_err(anyhow::Error::from)
                .and_then(|()| self.datapath.end_switch())
        {
            errors.push(error);
        }
        let attachments = &self.datapath.attachments;
        let hooks_changed = attachments.attached().symmetric_difference(&before).count();
        if let Err(error) = self
            .reader
            .set_state(&self.state, self.limits.matrix_memory)
        {
            errors.push(error);
        }
        Ok(Brought {
            changes: changes + hooks_changed,
            errors,
        })
    }

    /// Tells each pod's slot its facts: before a new pod can be found.
    fn write_facts(
        &mut self,
        desired: &DesiredState,
        after: &KernelState,
    ) -> anyhow::Result<usize> {
        let mut written = 0;
        for (key, slot) in &after.pods {
            let facts = desired.facts.get(key).map(facts).unwrap_or_default();
            written += usize::from(self.datapath.maps.set_facts(*slot, facts)?);
        }
        Ok(written)
    }

    fn change(&mut self, plans: Plans, counters: &Counters) -> anyhow::Result<()> {
        // A number may carry what a label had that nobody knows any more: it starts from zero.
        for id in fresh(&self.names, &plans.names) {
            match id {
                Number::Member(id) => self.zeroing.clear_member(id)?,
                Number::Policy(id) => self.zeroing.clear_policy(id)?,
                Number::Gateway(id) => self.zeroing.clear_gateway(id)?,
            }
        }
        // Both are named until the last packet of the old ones is through.
        let both = union(&self.names, &plans);
        // Where members only go nothing is new, and their packets need not wait for a disk.
        if both != *self.names {
            fault::step("keep both names")?;
            self.state_dir.keep_names(&both);
            self.names = Arc::new(both);
            told(counters.adopt(&self.names));
        }
        self.translate(&plans.translation.additions)?;
        tracing::debug!("named");
        let mut turning = false;
        for change in &plans.policy.changes {
            let turns = matches!(change, Change::TurnPod { .. });
            if turns && !turning {
                fault::step("turn pods")?;
                tracing::debug!("pods are turned from now on");
            }
            if turning && !turns {
                tracing::debug!("pods are turned");
            }
            turning = turns;
            self.datapath
                .maps
                .carry_out(change)
                .with_context(|| format!("while changing the maps ({})", describe(change)))?;
        }
        self.translate(&plans.translation.removals)?;
        told(counters.retain(&plans.names));
        fault::step("keep the new names")?;
        self.state_dir.keep_names(&plans.names);
        self.state = Arc::new(plans.policy.after);
        self.translation = plans.translation.after;
        self.names = Arc::new(plans.names);
        Ok(())
    }

    fn translate(&mut self, changes: &[translation::Change]) -> anyhow::Result<()> {
        changes
            .iter()
            .try_for_each(|change| self.datapath.maps.translate(change))
            .context("while changing the maps of egress addresses and nodes")
    }
}

/// What one apply does to the maps, and what their numbers mean afterwards.
pub(super) struct Plans {
    policy: Plan,
    translation: translation::Plan,
    names: Names,
}

/// The facts as the maps hold them; ports that do not fit were refused with the pod.
fn facts(wanted: &Facts) -> PodFacts {
    let mut udp = UdpPorts::default();
    for (place, port) in udp.ports.iter_mut().zip(&wanted.udp_ports) {
        *place = WireU16::new(*port);
        udp.count += 1;
    }
    PodFacts {
        mtu: wanted.mtu,
        udp,
    }
}

/// What became of an apply whose maps are changed.
pub(super) struct Brought {
    changes: usize,
    errors: Vec<anyhow::Error>,
}

impl Brought {
    /// Adds what else went wrong.
    pub(super) fn but(mut self, errors: impl IntoIterator<Item = anyhow::Error>) -> Self {
        self.errors.extend(errors);
        self
    }

    /// How many changes it took, if all of it worked.
    pub(super) fn in_full(self) -> anyhow::Result<usize> {
        if let Some(first) = self.errors.first() {
            bail!("{first:#}{}", more(self.errors.len() - 1));
        }
        Ok(self.changes)
    }
}

/// A reading that fails costs a few counts, and is no reason to leave packets without their policy.
fn told(reading: anyhow::Result<()>) {
    if let Err(error) = reading {
        tracing::warn!("{error:#}");
    }
}

fn more(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " (and one more)".to_owned(),
        n => format!(" (and {n} more)"),
    }
}

enum Number {
    Member(u32),
    Policy(u32),
    Gateway(u32),
}

/// Numbers that `after` names and `before` did not.
fn fresh(before: &Names, after: &Names) -> Vec<Number> {
    let known: BTreeSet<u32> = before.members.iter().map(|(_, id)| *id).collect();
    let members = after
        .members
        .iter()
        .map(|(_, id)| *id)
        .filter(|id| !known.contains(id));
    let known: BTreeSet<u32> = before.policies.values().copied().collect();
    let policies = after
        .policies
        .values()
        .copied()
        .filter(|id| !known.contains(id));
    let known: BTreeSet<u32> = before.gateways.values().copied().collect();
    let gateways = after
        .gateways
        .values()
        .copied()
        .filter(|id| !known.contains(id));
    members
        .map(Number::Member)
        .chain(policies.map(Number::Policy))
        .chain(gateways.map(Number::Gateway))
        .collect()
}

fn union(before: &Names, plans: &Plans) -> Names {
    let mut both = plans.names.clone();
    let policy = &plans.policy;
    both.members.extend(policy.retired_members.iter().cloned());
    both.members.sort();
    both.gateways
        .extend(plans.translation.retired_gateways.iter().cloned());
    for (policy, id) in &policy.retired_policies {
        debug_assert!(
            before.policies.contains_key(policy),
            "only what was named is retired"
        );
        both.policies.insert(policy.clone(), *id);
    }
    both
}

/// A change in a few words, whatever its size.
pub(crate) fn describe(change: &Change) -> String {
    match change {
        Change::WriteLines { first_line, lines } => {
            format!("write {} lines from {first_line}", lines.len())
        }
        Change::WriteMember { id, .. } => format!("write member {id}"),
        Change::WriteVerdicts { base, verdicts } => {
            format!("write {} verdicts from {base}", verdicts.len())
        }
        Change::InsertPrefix { prefix, class } => format!("publish {prefix} as class {class}"),
        Change::TurnPod { slot, state } => {
            format!(
                "turn slot {slot} to row {} and rules {}",
                state.row(),
                state.rule_base()
            )
        }
        Change::InsertPod { key, slot } => format!(
            "add pod {} on interface {} as slot {slot}",
            IpAddr::from(key.addr),
            key.ifindex
        ),
        Change::RemovePod { key } => format!(
            "remove pod {} on interface {}",
            IpAddr::from(key.addr),
            key.ifindex
        ),
        Change::RemovePrefix { prefix } => format!("withdraw {prefix}"),
        Change::Grace => "wait for packets in flight".to_owned(),
    }
}
