//! Which program is attached where, by TCX where the kernel has it, else by clsact filters.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::{Context, bail};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use nix::{errno::Errno, net::if_::if_indextoname};

use super::{
    clsact, fault,
    held::Held,
    load::classifier,
    object::Program,
    paths::Paths,
    pins::{Pin, mark_own_qdisc, pin_over, pins, remove_file},
    syscall,
};

/// The index of the loopback device (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK: u32 = 1;

/// Fixed, so that a filter is found again by the next run; 1 is before everything else on the hook.
///
/// Where two programs share an interface, replies from the gateway are let through before the other one
/// takes them for a pod's packets.
const fn priority(program: Program) -> u16 {
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
const fn direction(program: Program) -> TcAttachType {
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    /// The program.
    pub program: Program,
    /// The interface's index.
    pub ifindex: u32,
    /// The interface's name.
    pub interface: String,
}

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
    pinned: Option<BTreeMap<PathBuf, Pin>>,
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
        let keep: BTreeSet<u32> = wanted
            .iter()
            .filter(|hook| hook.program == program)
            .map(|hook| hook.ifindex)
            .collect();
        let others = |of: Program, ifindex: &u32| of == program && !keep.contains(ifindex);
        let gone: Vec<_> = self
            .attached
            .iter()
            .copied()
            .filter(|(program, ifindex)| others(*program, ifindex))
            .collect();
        for (program, ifindex) in gone {
            self.attached.remove(&(program, ifindex));
            self.held.let_go(&self.pin(program, ifindex));
        }
        let attached = &self.attached;
        self.own_qdiscs
            .retain(|ifindex| attached.iter().any(|(_, used)| used == ifindex));
        let pinned = match &mut self.pinned {
            Some(pinned) => pinned,
            None => match pins(&self.paths) {
                Ok(pins) => {
                    let by_path = pins.into_iter().map(|pin| (pin.path.clone(), pin));
                    self.pinned.insert(by_path.collect())
                }
                Err(error) => return vec![error],
            },
        };
        let paths = &self.paths;
        let mut errors = Vec::new();
        pinned.retain(|_, pin| {
            if !others(pin.program, &pin.ifindex) {
                return true;
            }
            let removed = pin.remove(paths);
            let stays = removed.is_err();
            errors.extend(removed.err());
            stays
        });
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
        for hook in wanted.iter().filter(|hook| hook.program == program) {
            if self.attached.contains(&(hook.program, hook.ifindex)) {
                continue;
            }
            match self.attach_one(ebpf, hook) {
                Ok(()) => {
                    self.attached.insert((hook.program, hook.ifindex));
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
        let is_gone =
            |ifindex| matches!(if_indextoname(ifindex), Err(Errno::ENXIO | Errno::ENODEV));
        wanted
            .iter()
            .filter(|hook| hook.program == program)
            .any(|hook| !self.attached.contains(&(program, hook.ifindex)) && !is_gone(hook.ifindex))
    }

    /// Attaches, and then takes away what an earlier run has attached by the other mechanism: with both,
    /// packets would be counted twice.
    fn attach_one(&mut self, ebpf: &mut Ebpf, hook: &Hook) -> anyhow::Result<()> {
        fault::step("attach")?;
        if let Some(pinned) = &mut self.pinned {
            // Whatever comes of it.
            let pin = Pin::new(&self.paths, self.mode, hook);
            pinned.insert(pin.path.clone(), pin);
        }
        match self.mode {
            AttachMode::Tcx => attach_tcx(ebpf, hook, &self.paths)?,
            AttachMode::Clsact => attach_clsact(ebpf, hook, &self.paths)?,
        }
        self.held.hold(&self.pin(hook.program, hook.ifindex))?;
        if self.paths.own_qdisc(hook.ifindex).exists() {
            self.own_qdiscs.insert(hook.ifindex);
        }
        let other = Pin::new(&self.paths, self.mode.other(), hook);
        if other.path.exists() {
            other.remove(&self.paths)?;
        }
        if let Some(pinned) = &mut self.pinned {
            pinned.remove(&other.path);
        }
        Ok(())
    }
}

/// The kernel's id of a program, if this run has loaded it.
fn loaded_id(ebpf: &Ebpf, program: Program) -> anyhow::Result<Option<u32>> {
    let program = ebpf
        .program(program.name())
        .with_context(|| format!("the embedded object has no program {}", program.name()))?;
    match program.info() {
        Ok(info) => Ok(Some(info.id())),
        Err(ProgramError::NotLoaded) => Ok(None),
        Err(error) => Err(error.into()),
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

fn attach_tcx(ebpf: &mut Ebpf, hook: &Hook, paths: &Paths) -> anyhow::Result<()> {
    let path = paths.link(hook.program, hook.ifindex);
    // The hook's name may be that of another interface by now; its index never is.
    let interface = name_of(hook.ifindex)?;
    if let Ok(pinned) = PinnedLink::from_pin(&path) {
        let program = classifier(ebpf, hook.program)?;
        let swapped = SchedClassifierLink::try_from(FdLink::from(pinned))
            .map_err(anyhow::Error::from)
            .and_then(|link| Ok(program.attach_to_link(link)?));
        match swapped {
            Ok(id) => {
                // The pin holds the link; only this descriptor goes.
                drop(program.take_link(id)?);
                return Ok(());
            }
            // Most likely its interface is gone, but should it be alive, it stays until there is another.
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "a link cannot be updated");
            }
        }
    }
    let options = TcAttachOptions::TcxOrder(tcx_order(ebpf, hook.program, &interface)?);
    let program = classifier(ebpf, hook.program)?;
    let id = program.attach_with_options(&interface, direction(hook.program), options)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    pin_over(&path, paths, |new| {
        // Only the descriptor goes.
        drop(link.pin(new)?);
        Ok(())
    })
}

/// Before all others, in the same order as the filters' priorities.
fn tcx_order(ebpf: &mut Ebpf, program: Program, interface: &str) -> anyhow::Result<LinkOrder> {
    let mut before: Vec<Program> = Program::ALL
        .iter()
        .copied()
        .filter(|other| direction(*other) == direction(program))
        .filter(|other| priority(*other) < priority(program))
        .collect();
    before.sort_by_key(|other| Reverse(priority(*other)));
    for other in before {
        let Some(id) = loaded_id(ebpf, other)? else {
            continue;
        };
        if has_tcx_program(interface, direction(program), id)? {
            let other: &SchedClassifier = classifier(ebpf, other)?;
            return Ok(LinkOrder::after_program(other)?);
        }
    }
    Ok(LinkOrder::first())
}

/// Whether a program is among those that TCX runs on one side of an interface.
fn has_tcx_program(interface: &str, side: TcAttachType, id: u32) -> anyhow::Result<bool> {
    let ifindex = nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("there is no interface {interface}"))?;
    let egress = side == TcAttachType::Egress;
    let programs = syscall::tcx_programs(ifindex, egress)
        .with_context(|| format!("cannot ask which programs TCX runs on {interface}"))?;
    Ok(programs.contains(&id))
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
