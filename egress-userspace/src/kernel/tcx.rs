//! Attaching by TCX links.

use std::{
    cmp::Reverse,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::Context as _;
use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::SchedClassifierLink,
    },
};

use super::{
    attach::{Hook, direction, priority},
    load::classifier,
    object::Program,
    paths::Paths,
    pins::pin_over,
    syscall,
};

/// A command of `enum bpf_cmd` (`linux/bpf.h`).
const BPF_LINK_CREATE: libc::c_long = 28;
/// Where a program comes among others: before one, after one, and that is named by its id.
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
const BPF_F_ID: u32 = 1 << 5;

/// The fields of `union bpf_attr` for `BPF_LINK_CREATE`, as a TCX link takes them.
#[repr(C)]
struct TcxLinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_id: u32,
    _padding: u32,
    expected_revision: u64,
}

/// The programs that packets meet before this one on an interface, the last of them first.
pub(super) fn before(program: Program) -> Vec<Program> {
    let mut before: Vec<Program> = Program::ALL
        .iter()
        .copied()
        .filter(|other| direction(*other) == direction(program))
        .filter(|other| priority(*other) < priority(program))
        .collect();
    before.sort_by_key(|other| Reverse(priority(*other)));
    before
}

/// Attaches by a link that is pinned in its place; where an earlier run may have pinned one, that is swapped to this program.
///
/// The program comes before all others but the first of `after` that is still there. Gives the link unless it was there before.
///
/// # Errors
/// The kernel refuses, or the link cannot be pinned: then nothing is attached.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    hook: &Hook,
    after: &[Program],
    paths: &Paths,
    may_be_pinned: bool,
) -> anyhow::Result<Option<OwnedFd>> {
    let path = paths.link(hook.program, hook.ifindex);
    if may_be_pinned && swap(ebpf, hook, &path)? {
        return Ok(None);
    }
    let egress = direction(hook.program) == TcAttachType::Egress;
    let after = running(ebpf, hook.ifindex, egress, after)?;
    let program: &SchedClassifier = classifier(ebpf, hook.program)?;
    // By index: the hook's name may be that of another interface by now.
    let link = create_link(program.fd()?.as_fd(), hook.ifindex, egress, after)?;
    if !may_be_pinned {
        match syscall::pin(link.as_fd(), &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            pinned => {
                pinned.with_context(|| format!("cannot pin {}", path.display()))?;
                return Ok(Some(link));
            }
        }
    }
    pin_over(&path, paths, |new| Ok(syscall::pin(link.as_fd(), new)?))?;
    Ok(Some(link))
}

/// The id of the first of these programs that TCX runs on one side of an interface: something else may have taken others away.
fn running(
    ebpf: &mut Ebpf,
    ifindex: u32,
    egress: bool,
    programs: &[Program],
) -> anyhow::Result<Option<u32>> {
    if programs.is_empty() {
        return Ok(None);
    }
    let running = syscall::tcx_programs(ifindex, egress)
        .context("cannot ask which programs TCX runs there")?;
    for program in programs {
        let id = match classifier(ebpf, *program)?.info() {
            Ok(info) => info.id(),
            // What this run has not loaded is another's, if it is there at all.
            Err(ProgramError::NotLoaded) => continue,
            Err(error) => return Err(error.into()),
        };
        if running.contains(&id) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// Attaches a program to one side of an interface, before all others there or right after the one with this id.
///
/// # Errors
/// `ENODEV`, and `ENOENT` where there is no program of that id any more.
fn create_link(
    program: BorrowedFd<'_>,
    ifindex: u32,
    egress: bool,
    after: Option<u32>,
) -> io::Result<OwnedFd> {
    let attributes = TcxLinkCreate {
        prog_fd: syscall::number(program)?,
        target_ifindex: ifindex,
        attach_type: syscall::tcx_side(egress),
        flags: match after {
            None => BPF_F_BEFORE,
            Some(_) => BPF_F_AFTER | BPF_F_ID,
        },
        relative_id: after.unwrap_or_default(),
        _padding: 0,
        expected_revision: 0,
    };
    syscall::owned(syscall::bpf(BPF_LINK_CREATE, &attributes)?)
}

/// Swaps the link that is pinned there, if there is one and it is alive.
fn swap(ebpf: &mut Ebpf, hook: &Hook, path: &Path) -> anyhow::Result<bool> {
    let Ok(pinned) = PinnedLink::from_pin(path) else {
        return Ok(false);
    };
    let program = classifier(ebpf, hook.program)?;
    let swapped = SchedClassifierLink::try_from(FdLink::from(pinned))
        .map_err(anyhow::Error::from)
        .and_then(|link| Ok(program.attach_to_link(link)?));
    match swapped {
        Ok(id) => {
            // The pin holds the link; only this descriptor goes.
            drop(program.take_link(id)?);
            Ok(true)
        }
        // Most likely its interface is gone, but should it be alive, it stays until there is another.
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "a link cannot be updated");
            Ok(false)
        }
    }
}
