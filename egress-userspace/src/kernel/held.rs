//! Pins that something else removes: what they named is held open, and pinned again.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;

use super::syscall;

/// What is pinned, open, so that it outlives its pin.
#[derive(Debug, Default)]
pub(super) struct Held {
    open: BTreeMap<PathBuf, OwnedFd>,
    /// The directories that they are pinned in, as they were when none was missing.
    whole: BTreeMap<PathBuf, Stamp>,
}

/// What tells a directory from itself after something in it was made or removed, or it was itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

/// How long a directory has been left alone, at least, whose next change gives it another stamp for certain: longer than
/// the kernel's clock takes to tick.
const SETTLED: Duration = Duration::from_millis(100);

impl Stamp {
    /// None where the directory is not there, or has changed just now.
    fn of(directory: &Path) -> Option<Self> {
        let metadata = fs::symlink_metadata(directory).ok()?;
        let age = SystemTime::now().duration_since(metadata.modified().ok()?);
        (age.ok()? > SETTLED).then_some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
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
        self.whole.clear();
        Ok(())
    }

    /// Holds what is open, and pinned there or about to be.
    ///
    /// # Errors
    /// The process has too many files open.
    pub(super) fn hold_open(&mut self, path: PathBuf, object: BorrowedFd<'_>) -> io::Result<()> {
        self.open.insert(path, object.try_clone_to_owned()?);
        self.whole.clear();
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
    pub(super) fn restore(&mut self) -> anyhow::Result<usize> {
        let directories = self.open.keys().filter_map(|path| path.parent());
        // In order: those of one directory follow each other.
        let mut stamps: Vec<(&Path, Option<Stamp>)> = Vec::new();
        for directory in directories {
            if stamps.last().is_none_or(|(last, _)| *last != directory) {
                stamps.push((directory, Stamp::of(directory)));
            }
        }
        let is_whole = |(directory, stamp): &(&Path, Option<Stamp>)| {
            stamp.is_some() && self.whole.get(*directory) == stamp.as_ref()
        };
        if stamps.iter().all(is_whole) {
            return Ok(0);
        }
        let whole = stamps.into_iter();
        let whole = whole.filter_map(|(directory, stamp)| Some((directory.to_owned(), stamp?)));
        let whole: BTreeMap<PathBuf, Stamp> = whole.collect();
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
        let all_there = restored == 0 && first.is_ok();
        self.whole = if all_there { whole } else { BTreeMap::new() };
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
