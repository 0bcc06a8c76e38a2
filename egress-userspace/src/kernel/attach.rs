//! Which program is attached where, by TCX where the kernel has it, else by clsact filters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};

use super::{clsact, load::classifier, object::Program, paths::Paths};

/// Fixed, so that a filter is found again by the next run; 1 is before everything else on the hook.
const PRIORITY: u16 = 1;
/// "eg" and "eh": among filters of one priority, ours. Two programs may share an interface.
const fn handle(program: Program) -> TcHandle {
    match program {
        Program::FromPod => TcHandle::new(0, 0x6567),
        Program::FromGateway => TcHandle::new(0, 0x6568),
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
    attached: BTreeMap<(Program, u32), String>,
}

impl Attachments {
    pub(super) fn new(
        ebpf: &mut Ebpf,
        paths: Paths,
        mode: Option<AttachMode>,
    ) -> anyhow::Result<Self> {
        let mode = match mode {
            Some(mode) => mode,
            None => probe(classifier(ebpf, Program::FromGateway)?),
        };
        Ok(Self {
            mode,
            paths,
            attached: BTreeMap::new(),
        })
    }

    /// The mechanism in use.
    #[must_use]
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Hooks that this run has attached or taken over.
    #[must_use]
    pub fn attached(&self) -> BTreeSet<Hook> {
        self.attached
            .iter()
            .map(|(&(program, ifindex), interface)| Hook {
                program,
                ifindex,
                interface: interface.clone(),
            })
            .collect()
    }

    /// Forgets the hooks that something else took away, so that they are attached again, and counts them.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn forget_lost(&mut self, ebpf: &Ebpf) -> anyhow::Result<usize> {
        let mut lost = Vec::new();
        for (&(program, ifindex), interface) in &self.attached {
            // The node's links tell of an interface that is gone; there is nothing to attach to.
            if nix::net::if_::if_indextoname(ifindex).is_ok()
                && !self.is_there(ebpf, program, ifindex)?
            {
                tracing::warn!(
                    %interface,
                    program = program.name(),
                    "something else removed the program; attaching it again"
                );
                lost.push((program, ifindex));
            }
        }
        for key in &lost {
            self.attached.remove(key);
        }
        Ok(lost.len())
    }

    fn is_there(&self, ebpf: &Ebpf, program: Program, ifindex: u32) -> anyhow::Result<bool> {
        match self.mode {
            AttachMode::Tcx => {
                if !self.paths.link(program, ifindex).exists() {
                    return Ok(false);
                }
                let own = loaded_id(ebpf, program)?;
                let name = nix::net::if_::if_indextoname(ifindex)?;
                let (_, programs) =
                    SchedClassifier::query_tcx(&name.to_string_lossy(), TcAttachType::Ingress)?;
                Ok(programs.iter().any(|info| info.id() == own))
            }
            AttachMode::Clsact => Ok(clsact::has_filter(
                ifindex,
                PRIORITY,
                handle(program).into(),
            )?),
        }
    }

    /// Detaches every program, of this run or an earlier one, that is not wanted.
    ///
    /// # Errors
    /// The hooks that could not be detached, each with its reason; the others are.
    pub fn detach_others(&mut self, wanted: &BTreeSet<Hook>) -> Vec<anyhow::Error> {
        let keep: BTreeSet<(Program, u32)> = wanted
            .iter()
            .map(|hook| (hook.program, hook.ifindex))
            .collect();
        let mut errors = Vec::new();
        self.attached.retain(|key, _| keep.contains(key));
        match pins(&self.paths) {
            Ok(pins) => {
                for pin in pins
                    .iter()
                    .filter(|pin| !keep.contains(&(pin.program, pin.ifindex)))
                {
                    if let Err(error) = pin.remove(&self.paths) {
                        errors.push(error);
                    }
                }
            }
            Err(error) => errors.push(error),
        }
        errors
    }

    /// Attaches what is wanted and not attached by this run; a link of an earlier run is swapped to the
    /// new program atomically.
    ///
    /// # Errors
    /// The hooks that could not be attached, each with its reason; the others are.
    pub fn attach(&mut self, ebpf: &mut Ebpf, wanted: &BTreeSet<Hook>) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        for hook in wanted {
            if self.attached.contains_key(&(hook.program, hook.ifindex)) {
                continue;
            }
            match self.attach_one(ebpf, hook) {
                Ok(()) => {
                    self.attached
                        .insert((hook.program, hook.ifindex), hook.interface.clone());
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

    fn attach_one(&self, ebpf: &mut Ebpf, hook: &Hook) -> anyhow::Result<()> {
        let program = classifier(ebpf, hook.program)?;
        match self.mode {
            AttachMode::Tcx => attach_tcx(program, hook, &self.paths),
            AttachMode::Clsact => attach_clsact(program, hook, &self.paths),
        }
    }
}

/// The kernel's id of the program that this run has loaded.
fn loaded_id(ebpf: &Ebpf, program: Program) -> anyhow::Result<u32> {
    let loaded = ebpf
        .program(program.name())
        .with_context(|| format!("the embedded object has no program {}", program.name()))?;
    Ok(loaded.info()?.id())
}

/// Whether the kernel has TCX is asked of the kernel: a link on the loopback device, let go at once.
fn probe(program: &mut SchedClassifier) -> AttachMode {
    let options = TcAttachOptions::TcxOrder(LinkOrder::last());
    match program.attach_with_options("lo", TcAttachType::Ingress, options) {
        Ok(id) => {
            if let Err(error) = program.detach(id) {
                tracing::warn!(%error, "cannot detach the probe from lo");
            }
            AttachMode::Tcx
        }
        Err(error) => {
            tracing::info!(%error, "no TCX here: attaching by clsact filters");
            AttachMode::Clsact
        }
    }
}

fn attach_tcx(program: &mut SchedClassifier, hook: &Hook, paths: &Paths) -> anyhow::Result<()> {
    let path = paths.link(hook.program, hook.ifindex);
    if let Ok(pinned) = PinnedLink::from_pin(&path) {
        let swapped = SchedClassifierLink::try_from(FdLink::from(pinned))
            .map_err(anyhow::Error::from)
            .and_then(|link| Ok(program.attach_to_link(link)?));
        match swapped {
            Ok(id) => {
                // The pin holds the link; only our descriptor goes.
                drop(program.take_link(id)?);
                return Ok(());
            }
            Err(error) => {
                // A link whose interface is gone cannot be updated, and holds nothing any more.
                tracing::debug!(path = %path.display(), %error, "replacing a dead link");
                remove_file(&path)?;
            }
        }
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&hook.interface, TcAttachType::Ingress, options)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(&path)
        .with_context(|| format!("cannot pin {}", path.display()))?;
    Ok(())
}

fn attach_clsact(program: &mut SchedClassifier, hook: &Hook, paths: &Paths) -> anyhow::Result<()> {
    // Marks come before what they mark, or a crash between them would leave what nobody finds again.
    mark(
        program,
        &paths.clsact_marker(hook.program, hook.ifindex),
        paths,
    )?;
    if clsact::add_qdisc(hook.ifindex).context("cannot add the clsact qdisc")? {
        tracing::debug!(interface = %hook.interface, "added the clsact qdisc");
        let own = paths.own_qdisc(hook.ifindex);
        // One that is left from a qdisc that something else removed is as good.
        match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make {}", own.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let known = SchedClassifierLink::attached(
        &hook.interface,
        TcAttachType::Ingress,
        PRIORITY,
        handle(hook.program),
        None,
    )?;
    let id = match program.attach_to_link(known) {
        Ok(id) => id,
        Err(_missing) => program.attach_with_options(
            &hook.interface,
            TcAttachType::Ingress,
            TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: handle(hook.program),
                classid: None,
            }),
        )?,
    };
    // Dropping the link would take the filter away.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Pins the program as a marker, in the place of an earlier run's.
fn mark(program: &mut SchedClassifier, marker: &Path, paths: &Paths) -> anyhow::Result<()> {
    let new = paths.new_marker();
    if new.exists() {
        remove_file(&new)?;
    }
    program
        .pin(&new)
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(fs::rename(&new, marker)?))
        .with_context(|| format!("cannot leave the marker {}", marker.display()))
}

/// A pin that says that a program is attached.
struct Pin {
    program: Program,
    ifindex: u32,
    clsact: bool,
    path: PathBuf,
}

impl Pin {
    /// Takes the program off its hook.
    fn remove(&self, paths: &Paths) -> anyhow::Result<()> {
        if self.clsact {
            let handle = handle(self.program).into();
            clsact::remove_filter(self.ifindex, PRIORITY, handle).with_context(|| {
                format!(
                    "cannot remove the filter of {} from the interface with index {}",
                    self.program.name(),
                    self.ifindex
                )
            })?;
            self.remove_own_qdisc(paths)?;
        }
        remove_file(&self.path)
    }

    /// Removes the qdisc if an agent made it; what others have put into it keeps it, as theirs.
    fn remove_own_qdisc(&self, paths: &Paths) -> anyhow::Result<()> {
        let own = paths.own_qdisc(self.ifindex);
        let shared = pins(paths)?
            .iter()
            .any(|pin| pin.clsact && pin.ifindex == self.ifindex && pin.program != self.program);
        if shared || !own.exists() {
            return Ok(());
        }
        clsact::remove_unused_qdisc(self.ifindex).with_context(|| {
            format!(
                "cannot remove the clsact qdisc of the interface with index {}",
                self.ifindex
            )
        })?;
        fs::remove_dir(&own).with_context(|| format!("cannot remove {}", own.display()))
    }
}

/// What is attached, of this run or an earlier one.
fn pins(paths: &Paths) -> anyhow::Result<Vec<Pin>> {
    let directory = paths.links();
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", directory.display()));
        }
    };
    let mut pins = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some((program, ifindex, clsact)) = Paths::parse_link(&path) {
            pins.push(Pin {
                program,
                ifindex,
                clsact,
                path,
            });
        }
    }
    Ok(pins)
}

/// Detaches everything that is pinned here.
///
/// # Errors
/// The hooks that could not be detached, each with its reason.
pub fn detach_all(paths: &Paths) -> Vec<anyhow::Error> {
    match pins(paths) {
        Ok(pins) => pins
            .iter()
            .filter_map(|pin| pin.remove(paths).err())
            .collect(),
        Err(error) => vec![error],
    }
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}
