//! What must outlive the agent beside the kernel: the names of counters, and a lock.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::state::Names;

/// An agent's state directory, which no other agent has while this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Opens the directory, making it (mode 0700) where it is missing.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make the state directory {}", path.display()))?;
        let lock = path.join("lock");
        let file =
            File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
                "another agent uses {}: stop it, or give this one its own --pin-dir",
                path.display()
            ),
            Err((_, error)) => {
                Err(error).with_context(|| format!("cannot lock {}", lock.display()))
            }
        }
    }

    /// The names that the last agent kept.
    ///
    /// Without them counters begin anew; the datapath does not care.
    #[must_use]
    pub fn names(&self) -> Names {
        read_names(&self.path).unwrap_or_else(|error| {
            tracing::warn!("{error:#}; counters that are in the kernel begin anew");
            Names::default()
        })
    }

    /// Keeps names; when this returns they survive a crash.
    pub fn keep_names(&self, names: &Names) -> anyhow::Result<()> {
        let path = names_file(&self.path);
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(names)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the directory with everything that an agent leaves there.
    pub fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

/// Reads the names kept in a state directory, without its lock.
pub fn read_names(directory: &Path) -> anyhow::Result<Names> {
    let path = names_file(directory);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("cannot understand {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Names::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn names_file(directory: &Path) -> PathBuf {
    directory.join("names.json")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use super::*;

    #[test]
    fn names_survive_and_a_second_agent_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let names = Names {
            policies: [("p".to_owned(), 1)].into_iter().collect(),
            members: vec![],
        };
        let state = StateDir::open(&path).unwrap();
        state.keep_names(&names).unwrap();
        assert!(format!("{:#}", StateDir::open(&path).unwrap_err()).contains("another agent"));
        drop(state);
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.names(), names);
        state.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_broken_file_costs_the_names_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(names_file(directory.path()), b"{").unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        assert_eq!(state.names(), Names::default());
    }
}
