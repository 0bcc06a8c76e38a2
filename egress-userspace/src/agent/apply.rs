//! Apply: the only writer of live maps, in the order that the plan gives.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, bail};

use super::sweep::Sweeper;
use crate::{
    counters::Counters,
    diff::{self, Change, Plan},
    http::ReadMaps,
    kernel::{
        CounterMaps, CounterReader, Datapath, Hook, Maps, NatMaps, NatSweep, Paths, Program,
        ProgramLog,
    },
    settings::Settings,
    snapshot::AttachedProgram,
    state::{DesiredState, KernelState, Limits, Names},
    state_dir::StateDir,
};

/// The datapath, what is known of its content, and what its numbers mean.
pub(super) struct Kernel {
    datapath: Datapath,
    zeroing: CounterMaps,
    reader: Arc<CounterReader>,
    state_dir: StateDir,
    paths: Paths,
    limits: Limits,
    state: Arc<KernelState>,
    names: Arc<Names>,
    /// Whether what an earlier run steered is still what the maps say.
    took_over: bool,
    /// Whether the maps may differ from `state`, because an apply broke off.
    unsure: bool,
}

impl Kernel {
    /// Loads the datapath, and reads what an earlier run has left in its maps.
    pub(super) fn load(settings: &Settings, state_dir: StateDir) -> anyhow::Result<Self> {
        let took_over = settings.load.paths.has_maps();
        let mut datapath = Datapath::load(&settings.load)?;
        // The last run may have freed something just before it ended.
        datapath.maps.grace()?;
        let state = diff::trace(&datapath.maps).context("cannot read the maps of the last run")?;
        let names = state_dir.names();
        tracing::debug!(took_over, pods = state.pods.len(), "loaded");
        Ok(Self {
            zeroing: CounterMaps::open(&settings.load.paths)?,
            reader: Arc::new(CounterReader::open(&settings.load.paths)?),
            datapath,
            state_dir,
            paths: settings.load.paths.clone(),
            limits: settings.limits,
            took_over: took_over && !state.pods.is_empty(),
            state: Arc::new(state),
            names: Arc::new(names),
            unsure: false,
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

    pub(super) fn attach_mode(&self) -> &'static str {
        self.datapath.attachments.mode().name()
    }

    /// Whether an earlier run left pods that are steered, and this one has not changed that yet.
    pub(super) fn took_over(&self) -> bool {
        self.took_over
    }

    pub(super) fn state(&self) -> Arc<KernelState> {
        Arc::clone(&self.state)
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
        let (attachments, ebpf) = self.datapath.attaching();
        attachments.forget_lost(ebpf)
    }

    /// Brings maps and hooks to the desired state.
    ///
    /// Packets never meet a program without what belongs to it. Replies find theirs before the first
    /// packet leaves for the gateway, and until the last one has left. Programs of pods that are let go are
    /// detached before the maps forget them, or their packets would be dropped as spoofed; those of new
    /// pods are attached once the maps know them.
    ///
    /// # Errors
    /// The maps could not be changed. Hooks that failed are part of what was brought.
    pub(super) fn bring_to(
        &mut self,
        desired: &DesiredState,
        hooks: &BTreeSet<Hook>,
        counters: &Counters,
    ) -> anyhow::Result<Brought> {
        if self.unsure {
            self.datapath.maps.grace()?;
            self.state = Arc::new(diff::trace(&self.datapath.maps)?);
            self.unsure = false;
        }
        let plan = diff::plan(&self.state, &self.names, desired, &self.limits)?;
        let changes = plan.changes.len();
        let (attachments, ebpf) = self.datapath.attaching();
        let before = attachments.attached().clone();
        let mut errors = attachments.attach(ebpf, Program::FromGateway, hooks);
        errors.extend(attachments.detach_others(Program::FromPod, hooks));
        if changes > 0 || plan.names != *self.names {
            self.unsure = true;
            self.change(plan, counters)?;
            self.unsure = false;
        }
        self.took_over = false;
        let (attachments, ebpf) = self.datapath.attaching();
        errors.extend(attachments.attach(ebpf, Program::FromPod, hooks));
        errors.extend(attachments.detach_others(Program::FromGateway, hooks));
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

    fn change(&mut self, plan: Plan, counters: &Counters) -> anyhow::Result<()> {
        // A number may carry what a label had that nobody knows any more: it starts from zero.
        for id in fresh(&self.names, &plan.names) {
            match id {
                Number::Member(id) => self.zeroing.clear_member(id)?,
                Number::Policy(id) => self.zeroing.clear_policy(id)?,
                Number::Gateway(id) => self.zeroing.clear_gateway(id)?,
            }
        }
        // Both are named until the last packet of the old ones is through.
        let both = union(&self.names, &plan);
        self.state_dir.keep_names(&both)?;
        self.names = Arc::new(both);
        told(counters.adopt(&self.names));
        for change in &plan.changes {
            self.datapath
                .maps
                .carry_out(change)
                .with_context(|| format!("while changing the maps ({})", describe(change)))?;
        }
        told(counters.retain(&plan.names));
        self.state_dir.keep_names(&plan.names)?;
        self.state = Arc::new(plan.after);
        self.names = Arc::new(plan.names);
        Ok(())
    }
}

/// What became of an apply whose maps are changed.
pub(super) struct Brought {
    changes: usize,
    errors: Vec<anyhow::Error>,
}

impl Brought {
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

fn union(before: &Names, plan: &Plan) -> Names {
    let mut both = plan.names.clone();
    both.members.extend(plan.retired_members.iter().cloned());
    both.members.sort();
    for (policy, id) in &plan.retired_policies {
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
            std::net::IpAddr::from(key.addr),
            key.ifindex
        ),
        Change::RemovePod { key } => format!(
            "remove pod {} on interface {}",
            std::net::IpAddr::from(key.addr),
            key.ifindex
        ),
        Change::RemovePrefix { prefix } => format!("withdraw {prefix}"),
        Change::Grace => "wait for packets in flight".to_owned(),
    }
}
