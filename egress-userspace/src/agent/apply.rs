//! Apply: the only writer of live maps, in the order that the plan gives.

mod answers;
mod guard;
mod load;
mod names;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use anyhow::{Context, bail};
use egress_common::{
    WireU16,
    gateway::{self, GatewayId},
    pod::{PodFacts, UdpPorts},
};

pub(crate) use self::names::describe;
use self::names::{Number, fresh, union};
use crate::{
    counters::Counters,
    diff::{self, Change, Plan},
    kernel::{CounterMaps, CounterReader, Datapath, Hook, Paths, Program, fault},
    state::{DesiredState, Facts, KernelState, Limits, Names},
    state_dir::StateDir,
    translation,
};

/// What has to be there before the first packet leaves: it receives replies, or what pods of other nodes
/// send, or sees connections come in.
const RECEIVING: [Program; 5] = [
    Program::FromUnderlay,
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
    /// What is remembered of the plan that led to `state`.
    planned: diff::Memo,
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
    /// The gateways of this node that nothing got out by.
    down: BTreeSet<GatewayId>,
}

impl Kernel {
    /// Makes hooks that something else took away be attached again by the next apply, and counts them.
    pub(super) fn forget_lost_hooks(&mut self) -> anyhow::Result<usize> {
        self.datapath.attachments.forget_lost()
    }

    /// Pins again what something else has unpinned, and says how many those were.
    pub(super) fn restore_pins(&mut self) -> anyhow::Result<usize> {
        self.datapath.restore_pins()
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

    /// What an apply leaves to be done when nobody waits.
    pub(super) fn tidy(&mut self) {
        self.state_dir.tidy_names();
    }

    /// Reads what the maps say if an apply broke off.
    fn be_sure(&mut self) -> anyhow::Result<()> {
        if self.unsure {
            self.datapath.maps.grace()?;
            self.datapath.maps.repair()?;
            self.planned = diff::Memo::default();
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
        let (policy, memo) = diff::plan_again(
            &self.state,
            &self.names,
            desired,
            &self.limits,
            &self.planned,
        )?;
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
            memo,
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
    /// A program is refused, or the maps could not be changed. Hooks that failed are part of what was brought.
    pub(super) fn bring_to(
        &mut self,
        plans: Plans,
        desired: &DesiredState,
        hooks: &BTreeSet<Hook>,
        counters: &Counters,
    ) -> anyhow::Result<Brought> {
        // What is swapped is swapped without a pause, and what cannot be verified changes nothing.
        self.datapath
            .require(hooks.iter().map(|hook| hook.program))?;
        let mut changes = plans.policy.changes.len() + plans.translation.changes();
        let (attachments, ebpf) = self.datapath.attaching();
        let moves = attachments.moves();
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
            // Before a new segment can lose its pin.
            told(self.datapath.hold_segments());
        } else {
            // What is remembered is of this state, be there anything in it that tells it from what was read.
            self.state = Arc::new(plans.policy.after);
            self.planned = plans.memo;
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
        let hooks_changed = self.datapath.attachments.moves() - moves;
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
        let renames = plans.names != *self.names;
        if renames {
            self.begin_to_rename(&plans, counters)?;
        }
        self.translate(&plans.translation.additions)?;
        tracing::debug!("named");
        let mut turning = false;
        for run in Change::runs(&plans.policy.changes) {
            let [change, ..] = run else {
                continue;
            };
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
                .carry_out_run(run)
                .with_context(|| format!("while changing the maps ({})", describe(change)))?;
        }
        self.translate(&plans.translation.removals)?;
        if renames {
            told(counters.retain(&plans.names));
        }
        if renames || !self.state_dir.keeps_names() {
            fault::step("keep the new names")?;
            self.names = Arc::new(plans.names);
            self.state_dir.keep_names(&self.names);
        }
        self.state = Arc::new(plans.policy.after);
        self.planned = plans.memo;
        self.translation = plans.translation.after;
        Ok(())
    }

    /// Names what is new beside what is there, before anything counts for it.
    fn begin_to_rename(&mut self, plans: &Plans, counters: &Counters) -> anyhow::Result<()> {
        // A number may carry what a label had that nobody knows any more: it starts from zero.
        for id in fresh(&self.names, &plans.names) {
            match id {
                Number::Member(id) => self.zeroing.clear_member(id)?,
                Number::Policy(id) => self.zeroing.clear_policy(id)?,
                Number::Gateway(id) => self.zeroing.clear_gateway(id)?,
            }
        }
        // Both are named until the last packet of the old ones is through.
        let both = union(&self.names, plans);
        // Where members only go nothing is new, and their packets need not wait for a disk.
        if both != *self.names {
            fault::step("keep both names")?;
            self.names = Arc::new(both);
            self.state_dir.keep_names(&self.names);
            told(counters.adopt(&self.names));
        }
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
    memo: diff::Memo,
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
