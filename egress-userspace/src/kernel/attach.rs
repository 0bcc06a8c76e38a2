//! Which program is attached where, by TCX where the kernel has it, else by clsact filters.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
    path::PathBuf,
};

use anyhow::{Context, bail};
use aya::{
    Ebpf,
    programs::{
        TcAttachType,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use nix::net::if_::if_indextoname;

use super::{
    clsact, fault,
    held::Held,
    load::classifier,
    object::Program,
    paths::Paths,
    pins::{Pin, is_gone, mark_own_qdisc, pin_over, pins, remove_file},
    syscall, tcx,
};

/// The index of the loopback device (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK: u32 = 1;

/// Fixed, so that a filter is found again by the next run; 1 is before everything else on the hook.
///
/// Where two programs share an interface, replies from the gateway are let through before the other one
/// takes them for a pod's packets.
pub(super) const fn priority(program: Program) -> u16 {
    match program {
        // Frames of other nodes are for nobody else, and cost the others a look.
        Program::FromUnderlay | Program::FromGateway => 1,
        Program::FromUplink => 2,
        Program::FromPod => 3,
        // Alone on their hooks, among our own.
        Program::FromOverlay | Program::ToPod | Program::ToUplink => 1,
    }
}

/// Whether a program sees what its interface sends, or what it receives.
pub(super) const fn direction(program: Program) -> TcAttachType {
    match program {
        Program::ToPod | Program::ToUplink => TcAttachType::Egress,
        Program::FromPod
        | Program::FromGateway
        | Program::FromOverlay
        | Program::FromUplink
        | Program::FromUnderlay => TcAttachType::Ingress,
    }
}

/// The filter of a program on an interface.
pub(super) fn filter(program: Program, ifindex: u32) -> clsact::Filter {
    clsact::Filter {
        ifindex,
        egress: direction(program) == TcAttachType::Egress,
        priority: priority(program),
        handle: handle(program).into(),
    }
}

/// "eg" and on: among filters of one priority, ours.
const fn handle(program: Program) -> TcHandle {
    match program {
        Program::FromPod => TcHandle::new(0, 0x6567),
        Program::FromGateway => TcHandle::new(0, 0x6568),
        Program::ToPod => TcHandle::new(0, 0x6569),
        Program::FromOverlay => TcHandle::new(0, 0x656a),
        Program::FromUplink => TcHandle::new(0, 0x656b),
        Program::ToUplink => TcHandle::new(0, 0x656c),
        Program::FromUnderlay => TcHandle::new(0, 0x656d),
    }
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachMode {
    /// TCX links (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl AttachMode {
    const fn other(self) -> Self {
        match self {
            Self::Tcx => Self::Clsact,
            Self::Clsact => Self::Tcx,
        }
    }

    /// The mode as metrics and status spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// A place for a program.
// In an order that has those of a program together, and those of an interface among them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    /// The program.
    pub program: Program,
    /// The interface's index.
    pub ifindex: u32,
    /// The interface's name.
    pub interface: String,
}

impl Hook {
    /// Those of a program among others.
    fn of(program: Program, hooks: &BTreeSet<Self>) -> impl Iterator<Item = &Self> {
        hooks
            .range(Self::first(program, 0)..)
            .take_while(move |hook| hook.program == program)
    }

    /// Whether a program is among others on an interface.
    fn is_among(program: Program, ifindex: u32, hooks: &BTreeSet<Self>) -> bool {
        let mut from = hooks.range(Self::first(program, ifindex)..);
        from.next()
            .is_some_and(|hook| hook.program == program && hook.ifindex == ifindex)
    }

    /// The least of a program on an interface.
    const fn first(program: Program, ifindex: u32) -> Self {
        Self {
            program,
            ifindex,
            interface: String::new(),
        }
    }
}

/// What a pin is known by: program, interface, and whether it marks a filter.
type PinKey = (Program, u32, bool);

/// The attached programs.
#[derive(Debug)]
pub struct Attachments {
    mode: AttachMode,
    paths: Paths,
    attached: BTreeSet<(Program, u32)>,
    /// Their links, or their filters' marks: without its pin a link would let go of its program.
    held: Held,
    /// Interfaces with a clsact qdisc of our making.
    own_qdiscs: BTreeSet<u32>,
    /// The pins of this run and of earlier ones, once they were read; nobody else makes any.
    pinned: Option<BTreeMap<PinKey, Pin>>,
    /// How often a program was attached or detached.
    moves: usize,
}

impl Attachments {
    pub(super) fn new(paths: Paths, mode: Option<AttachMode>) -> anyhow::Result<Self> {
        // A run that died between the two steps of pinning leaves what nobody counts on yet.
        let unfinished = paths.new_marker();
        if unfinished.exists() {
            remove_file(&unfinished)?;
        }
        Ok(Self {
            mode: mode.unwrap_or_else(probe),
            paths,
            attached: BTreeSet::new(),
            held: Held::default(),
            own_qdiscs: BTreeSet::new(),
            pinned: None,
            moves: 0,
        })
    }

    /// The mechanism in use.
    #[must_use]
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Programs that this run has attached or taken over, each with its interface's index.
    #[must_use]
    pub fn attached(&self) -> &BTreeSet<(Program, u32)> {
        &self.attached
    }

    /// How often a program was attached or detached so far.
    #[must_use]
    pub const fn moves(&self) -> usize {
        self.moves
    }

    /// Forgets the hooks that something else took away, so that they are attached again, and counts them.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn forget_lost(&mut self) -> anyhow::Result<usize> {
        let mut lost = Vec::new();
        for &(program, ifindex) in &self.attached {
            if self.is_there(program, ifindex)? {
                continue;
            }
            // The node's links tell of an interface that is gone; there is nothing to attach to.
            let Ok(interface) = name_of(ifindex) else {
                continue;
            };
            tracing::warn!(
                interface,
                program = program.name(),
                "something else removed the program; attaching it again"
            );
            lost.push((program, ifindex));
        }
        for (program, ifindex) in &lost {
            self.attached.remove(&(*program, *ifindex));
            self.held.let_go(&self.pin(*program, *ifindex));
        }
        Ok(lost.len())
    }

    fn is_there(&self, program: Program, ifindex: u32) -> anyhow::Result<bool> {
        match self.mode {
            AttachMode::Tcx => match self.held.get(&self.paths.link(program, ifindex)) {
                Some(link) => Ok(syscall::tcx_link_is_attached(link)?),
                None => Ok(false),
            },
            AttachMode::Clsact => Ok(clsact::has_filter(filter(program, ifindex))?),
        }
    }

    fn pin(&self, program: Program, ifindex: u32) -> PathBuf {
        match self.mode {
            AttachMode::Tcx => self.paths.link(program, ifindex),
            AttachMode::Clsact => self.paths.clsact_marker(program, ifindex),
        }
    }

    /// Pins links and marks again that something else has unpinned, and says how many those were.
    pub(super) fn restore_pins(&mut self) -> anyhow::Result<usize> {
        for &ifindex in &self.own_qdiscs {
            mark_own_qdisc(&self.paths, ifindex)?;
        }
        self.held.restore()
    }

    /// Detaches `program`, of this run or an earlier one, from where it is not wanted.
    ///
    /// # Errors
    /// The hooks that could not be detached, each with its reason; the others are.
    pub fn detach_others(
        &mut self,
        program: Program,
        wanted: &BTreeSet<Hook>,
    ) -> Vec<anyhow::Error> {
        if self.pinned.is_none() {
            match pins(&self.paths) {
                Ok(pins) => {
                    let by_key = pins.into_iter().map(|pin| (pin.key(), pin));
                    self.pinned = Some(by_key.collect());
                }
                Err(error) => return vec![error],
            }
        }
        let is_other = |ifindex: u32| !Hook::is_among(program, ifindex, wanted);
        let attached = self.attached.range((program, 0)..=(program, u32::MAX));
        let gone: Vec<_> = attached
            .copied()
            .filter(|(_, ifindex)| is_other(*ifindex))
            .collect();
        for (program, ifindex) in &gone {
            self.attached.remove(&(*program, *ifindex));
            self.held.let_go(&self.pin(*program, *ifindex));
            self.moves += 1;
        }
        if !gone.is_empty() {
            let attached = &self.attached;
            self.own_qdiscs
                .retain(|ifindex| attached.iter().any(|(_, used)| used == ifindex));
        }
        let mut errors = Vec::new();
        let Some(pinned) = &mut self.pinned else {
            return errors;
        };
        let of_program = (program, 0, false)..=(program, u32::MAX, true);
        let others: Vec<PinKey> = pinned
            .range(of_program)
            .filter(|((_, ifindex, _), _)| is_other(*ifindex))
            .map(|(key, _)| *key)
            .collect();
        for key in others {
            match pinned.get(&key).map(|pin| pin.remove(&self.paths)) {
                Some(Err(error)) => errors.push(error),
                Some(Ok(())) | None => drop(pinned.remove(&key)),
            }
        }
        errors
    }

    /// Attaches `program` where it is wanted and not attached by this run; a link of an earlier run is
    /// swapped to the new program atomically.
    ///
    /// # Errors
    /// The hooks that could not be attached, each with its reason; the others are.
    pub fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        program: Program,
        wanted: &BTreeSet<Hook>,
    ) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        for hook in Hook::of(program, wanted) {
            if self.attached.contains(&(hook.program, hook.ifindex)) {
                continue;
            }
            match self.attach_one(ebpf, hook) {
                Ok(()) => {
                    self.attached.insert((hook.program, hook.ifindex));
                    self.moves += 1;
                }
                Err(error) => errors.push(error.context(format!(
                    "cannot attach {} to the interface {} ({})",
                    hook.program.name(),
                    hook.interface,
                    self.mode.name()
                ))),
            }
        }
        errors
    }

    /// Whether `program` is missing on an interface that wants it. One that is gone wants nothing.
    #[must_use]
    pub fn is_missing(&self, program: Program, wanted: &BTreeSet<Hook>) -> bool {
        Hook::of(program, wanted)
            .any(|hook| !self.attached.contains(&(program, hook.ifindex)) && !is_gone(hook.ifindex))
    }

    /// Attaches, and then takes away what an earlier run has attached by the other mechanism: with both,
    /// packets would be counted twice.
    fn attach_one(&mut self, ebpf: &mut Ebpf, hook: &Hook) -> anyhow::Result<()> {
        fault::step("attach")?;
        let pin = Pin::new(&self.paths, self.mode, hook);
        let other = Pin::new(&self.paths, self.mode.other(), hook);
        let knows = |key: PinKey| match &self.pinned {
            Some(pinned) => pinned.contains_key(&key),
            None => true,
        };
        let (may_be_pinned, may_have_other) = (knows(pin.key()), knows(other.key()));
        let may_have_qdisc = || {
            let marks = Program::ALL.iter();
            self.mode == AttachMode::Clsact
                || marks
                    .copied()
                    .any(|program| knows((program, hook.ifindex, true)))
        };
        let may_have_qdisc = may_have_qdisc();
        let path = pin.path.clone();
        if let Some(pinned) = &mut self.pinned {
            // Whatever comes of it.
            pinned.insert(pin.key(), pin);
        }
        match self.mode {
            AttachMode::Tcx => {
                let mut after = tcx::before(hook.program);
                after.retain(|other| self.attached.contains(&(*other, hook.ifindex)));
                match tcx::attach(ebpf, hook, &after, &self.paths, may_be_pinned)? {
                    Some(link) => self.held.hold_open(path, link.as_fd())?,
                    None => self.held.hold(&path)?,
                }
            }
            AttachMode::Clsact => {
                attach_clsact(ebpf, hook, &self.paths)?;
                self.held.hold(&path)?;
            }
        }
        if may_have_qdisc && self.paths.own_qdisc(hook.ifindex).exists() {
            self.own_qdiscs.insert(hook.ifindex);
        }
        if may_have_other && other.path.exists() {
            other.remove(&self.paths)?;
        }
        if let Some(pinned) = &mut self.pinned {
            pinned.remove(&other.key());
        }
        Ok(())
    }
}

/// Whether the kernel has TCX is asked of the kernel: what it runs on the loopback device, the first of each namespace.
fn probe() -> AttachMode {
    match syscall::tcx_programs(LOOPBACK, false) {
        Ok(_programs) => AttachMode::Tcx,
        Err(error) => {
            tracing::info!(%error, "no TCX here: attaching by clsact filters");
            AttachMode::Clsact
        }
    }
}

/// The name that an interface has at this moment.
fn name_of(ifindex: u32) -> anyhow::Result<String> {
    let name = if_indextoname(ifindex)
        .with_context(|| format!("there is no interface with index {ifindex}"))?;
    Ok(name.to_string_lossy().into_owned())
}

fn attach_clsact(ebpf: &mut Ebpf, hook: &Hook, paths: &Paths) -> anyhow::Result<()> {
    let interface = name_of(hook.ifindex)?;
    let program = classifier(ebpf, hook.program)?;
    // Marks come before what they mark, or a crash between them would leave what nobody finds again.
    let marker = paths.clsact_marker(hook.program, hook.ifindex);
    pin_over(&marker, paths, |new| Ok(program.pin(new)?))?;
    if clsact::add_qdisc(hook.ifindex).context("cannot add the clsact qdisc")? {
        tracing::debug!(interface, "added the clsact qdisc");
        mark_own_qdisc(paths, hook.ifindex)?;
    } else if direction(hook.program) == TcAttachType::Egress && !clsact::is_clsact(hook.ifindex)? {
        bail!(
            "something else has put a qdisc of the kind ingress there, where only one of the kind clsact sees what is \
             sent: have its owner use clsact, or remove it with `tc qdisc del dev {interface} ingress`"
        );
    }
    let known = SchedClassifierLink::attached(
        &interface,
        direction(hook.program),
        priority(hook.program),
        handle(hook.program),
        None,
    )?;
    fault::step("attach the filter")?;
    let id = match program.attach_to_link(known) {
        Ok(id) => id,
        Err(_missing) => program.attach_with_options(
            &interface,
            direction(hook.program),
            TcAttachOptions::Netlink(NlOptions {
                priority: priority(hook.program),
                handle: handle(hook.program),
                classid: None,
            }),
        )?,
    };
    // Dropping the link would take the filter away.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hooks_are_found_as_by_looking_at_all(hooks in proptest::collection::btree_set((0..7_usize, 0..6_u32), 0..20)) {
            let hook = |(program, ifindex): &(usize, u32)| Hook {
                program: Program::ALL[*program],
                ifindex: *ifindex,
                interface: format!("pod{ifindex}"),
            };
            let all: BTreeSet<Hook> = hooks.iter().map(hook).collect();
            for program in Program::ALL.iter().copied() {
                let by_looking: Vec<&Hook> = all.iter().filter(|hook| hook.program == program).collect();
                prop_assert_eq!(Hook::of(program, &all).collect::<Vec<_>>(), by_looking.clone());
                for ifindex in 0..7 {
                    let is_there = by_looking.iter().any(|hook| hook.ifindex == ifindex);
                    prop_assert_eq!(Hook::is_among(program, ifindex, &all), is_there);
                }
            }
        }
    }
}
