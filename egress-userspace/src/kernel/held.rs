//! Pins that something else removes: what they named is held open, and pinned again.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::syscall;

/// What is pinned, open, so that it outlives its pin.
#[derive(Debug, Default)]
pub(super) struct Held {
    open: BTreeMap<PathBuf, OwnedFd>,
}

impl Held {
    /// Holds what is pinned there, instead of what was held under that path before.
    ///
    /// # Errors
    /// Nothing is pinned there, or it cannot be opened.
    pub(super) fn hold(&mut self, path: &Path) -> anyhow::Result<()> {
        let object = syscall::open_pinned(path)
            .with_context(|| format!("cannot open the pin {}", path.display()))?;
        self.open.insert(path.to_owned(), object);
        Ok(())
    }

    /// Holds what is open, and pinned there or about to be.
    ///
    /// # Errors
    /// The process has too many files open.
    pub(super) fn hold_open(&mut self, path: PathBuf, object: BorrowedFd<'_>) -> io::Result<()> {
        self.open.insert(path, object.try_clone_to_owned()?);
        Ok(())
    }

    /// Whether anything is held under that path.
    pub(super) fn holds(&self, path: &Path) -> bool {
        self.open.contains_key(path)
    }

    /// What is held under that path.
    pub(super) fn get(&self, path: &Path) -> Option<BorrowedFd<'_>> {
        self.open.get(path).map(AsFd::as_fd)
    }

    /// Lets go of what is held under that path.
    pub(super) fn let_go(&mut self, path: &Path) {
        self.open.remove(path);
    }

    /// Lets go of what is held under other paths.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&Path) -> bool) {
        self.open.retain(|path, _| stays(path));
    }

    /// Pins again what has lost its pin. Says how many those were.
    ///
    /// # Errors
    /// The first that could not be pinned; the others are.
    pub(super) fn restore(&self) -> anyhow::Result<usize> {
        let mut restored = 0;
        let mut first = Ok(());
        for (path, object) in &self.open {
            match restore(object.as_fd(), path) {
                Ok(false) => {}
                Ok(true) => restored += 1,
                Err(error) if first.is_ok() => first = Err(error),
                Err(_) => {}
            }
        }
        first.map(|()| restored)
    }
}

fn restore(object: BorrowedFd<'_>, path: &Path) -> anyhow::Result<bool> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(false);
    }
    tracing::warn!(path = %path.display(), "something else removed the pin; pinning again");
    match syscall::pin(object, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot pin {} again", path.display()))
        }
        Ok(()) | Err(_) => Ok(true),
    }
}
