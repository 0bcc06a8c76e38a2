//! The pins that say what is attached, to this run and to the next, and taking off what they say.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::{errno::Errno, net::if_::if_indextoname};

use super::{
    attach::{AttachMode, Hook, filter},
    clsact, fault,
    object::Program,
    paths::Paths,
    syscall,
};
use crate::state_dir::remove_own_file;

/// Pins something new, and only then lets it take the place of what an earlier run has pinned.
pub(super) fn pin_over(
    place: &Path,
    paths: &Paths,
    pin: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let new = paths.new_marker();
    if new.exists() {
        remove_file(&new)?;
    }
    pin(&new).with_context(|| format!("cannot pin {}", new.display()))?;
    let moved = fault::step("move a pin to its place").and_then(|()| fs::rename(&new, place));
    moved.with_context(|| {
        // Unfinished, it is found and removed by the next one; a link would work until then.
        let _removed = fs::remove_file(&new);
        format!("cannot pin {}", place.display())
    })
}

/// Says that an interface's qdisc is of our making; a mark that is left of an earlier one is as good.
pub(super) fn mark_own_qdisc(paths: &Paths, ifindex: u32) -> anyhow::Result<()> {
    let own = paths.own_qdisc(ifindex);
    match fs::create_dir(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", own.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A pin that says that a program is attached.
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) program: Program,
    pub(super) ifindex: u32,
    clsact: bool,
    pub(super) path: PathBuf,
}

impl Pin {
    pub(super) fn new(paths: &Paths, mode: AttachMode, hook: &Hook) -> Self {
        let path = match mode {
            AttachMode::Tcx => paths.link(hook.program, hook.ifindex),
            AttachMode::Clsact => paths.clsact_marker(hook.program, hook.ifindex),
        };
        Self {
            program: hook.program,
            ifindex: hook.ifindex,
            clsact: mode == AttachMode::Clsact,
            path,
        }
    }

    /// What tells it from others.
    pub(super) const fn key(&self) -> (Program, u32, bool) {
        (self.program, self.ifindex, self.clsact)
    }

    /// Takes the program off its hook.
    pub(super) fn remove(&self, paths: &Paths) -> anyhow::Result<()> {
        fault::step("detach")?;
        if self.clsact {
            clsact::remove_filter(filter(self.program, self.ifindex)).with_context(|| {
                format!(
                    "cannot remove the filter of {} from the interface with index {}",
                    self.program.name(),
                    self.ifindex
                )
            })?;
            self.remove_own_qdisc(paths)?;
        } else if is_gone(self.ifindex) {
            // The link is dead, or about to be. To ask would be to wait for whoever changes any other interface.
        } else if let Err(error) = syscall::detach_pinned_link(&self.path) {
            // The interface may have gone just now.
            tracing::debug!(path = %self.path.display(), %error, "removing a dead link");
        }
        fault::step("remove a pin")?;
        // Something else may have removed it.
        remove_own_file(&self.path)
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

/// Whether there is no interface of this index any more.
pub(super) fn is_gone(ifindex: u32) -> bool {
    matches!(if_indextoname(ifindex), Err(Errno::ENXIO | Errno::ENODEV))
}

/// What is attached, of this run or an earlier one.
pub(super) fn pins(paths: &Paths) -> anyhow::Result<Vec<Pin>> {
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

/// The interfaces where an earlier run's program is at work.
///
/// # Errors
/// The kernel cannot be asked.
pub fn programmed(paths: &Paths, program: Program) -> anyhow::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for pin in pins(paths)?.iter().filter(|pin| pin.program == program) {
        let is_there = if pin.clsact {
            clsact::has_filter(filter(program, pin.ifindex))?
        } else {
            let link = syscall::open_pinned(&pin.path)
                .with_context(|| format!("cannot open the pin {}", pin.path.display()))?;
            syscall::tcx_link_is_attached(link.as_fd())?
        };
        if is_there {
            found.insert(pin.ifindex);
        }
    }
    Ok(found)
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

pub(super) fn remove_file(path: &Path) -> anyhow::Result<()> {
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}
