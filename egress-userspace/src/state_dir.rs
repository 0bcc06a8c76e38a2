//! What must outlive the agent beside the kernel: the names of counters, the addresses that it has put on
//! interfaces, the last good version of every object, and a lock.

mod names;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::names::Journal;
use crate::{
    sources::files::{Faults, remove_kept},
    state::Names,
};

/// An agent's state directory, which no other agent has while this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    faults: Faults,
    /// None until names are kept, and where that has failed.
    names: Option<Journal>,
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
        let faults = Faults::default();
        let file = lock_file(path);
        // What is there may be somebody else's: it is not emptied.
        let made = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file);
        let (lock, locked) = match made {
            Ok(lock) => (lock, file),
            // A disk that cannot be written, or something else by that name: the directory can be locked itself.
            Err(error) => {
                faults.note(&file, format!("cannot be made: {error}"));
                let directory =
                    File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                (directory, path.to_owned())
            }
        };
        Ok(Self {
            path: path.to_owned(),
            faults,
            names: None,
            _lock: lock_for_one(lock, &locked, path, "--pin-dir and --state-dir")?,
        })
    }

    /// What is wrong here, as those who use the directory find it.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.faults.clone()
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

    /// Keeps names; when this returns they survive the agent.
    ///
    /// If that fails, older ones are not kept either: counters that begin anew are better than such as count for
    /// others. That is noted, and no reason to leave the kernel without its changes.
    pub fn keep_names(&mut self, names: &Arc<Names>) {
        let file = names_file(&self.path);
        let kept = match self.names.take().filter(|journal| journal.takes(names)) {
            Some(mut journal) => journal.keep(names).map(|()| journal),
            None => Journal::begin(&file, names),
        };
        self.kept_names(&file, kept);
    }

    /// Whether the names that were given last are kept.
    #[must_use]
    pub fn keeps_names(&self) -> bool {
        self.names.as_ref().is_some_and(Journal::is_there)
    }

    /// Writes names anew where that makes the file much shorter: for when nobody waits.
    pub fn tidy_names(&mut self) {
        if let Some(journal) = self.names.take_if(|journal| journal.is_long()) {
            let file = names_file(&self.path);
            let kept = Journal::begin(&file, &journal.names());
            self.kept_names(&file, kept);
        }
    }

    fn kept_names(&mut self, file: &Path, kept: anyhow::Result<Journal>) {
        match kept {
            Ok(journal) => {
                self.names = Some(journal);
                self.faults.mended(file);
            }
            Err(error) => {
                let removed = remove_own_file(file);
                let also = removed
                    .err()
                    .map_or_else(String::new, |e| format!("; {e:#}"));
                let reason = format!("counters begin anew at the next start: {error:#}{also}");
                self.faults.note(file, reason);
            }
        }
    }

    /// The book of addresses that agents have put on interfaces.
    #[must_use]
    pub fn address_book(&self) -> AddressBook {
        AddressBook {
            directory: self.path.clone(),
        }
    }

    /// Where an agent writes down which overlay device it has made.
    #[must_use]
    pub fn overlay_file(&self) -> PathBuf {
        self.path.join("overlay.json")
    }

    /// Where the last good version of every object is kept.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        objects(&self.path)
    }

    /// Sets aside what is there and cannot be what an agent has written, so that it is made anew, and notes it.
    ///
    /// Losing these costs the names of counters, and the knowledge of what on the node is an agent's.
    pub fn set_aside_broken(&self) {
        for (file, is_understood) in [
            (names_file(&self.path), names_understood as Understood),
            (addresses_file(&self.path), json_understood),
            (self.overlay_file(), json_understood),
        ] {
            let Some(reason) = fault_of(&file, is_understood) else {
                continue;
            };
            let aside = file.with_extension("broken");
            let reason = match fs::rename(&file, &aside) {
                Ok(()) => format!("{reason}; it is {} now, and made anew", aside.display()),
                Err(error) => format!("{reason}, and cannot be moved away: {error}"),
            };
            self.faults.lost(&file, reason);
        }
    }

    /// Removes what an agent leaves there, and the directory unless it has other files.
    ///
    /// Returns whether the directory is gone.
    pub fn remove(self) -> anyhow::Result<bool> {
        // The lock last: until then nobody else is in here.
        for file in [
            names_file(&self.path),
            self.overlay_file(),
            addresses_file(&self.path),
        ] {
            remove_own_file(&file)?;
            remove_own_file(&unfinished(&file))?;
            remove_own_file(&file.with_extension("broken"))?;
        }
        remove_kept(&self.objects())?;
        remove_own_file(&lock_file(&self.path))?;
        remove_if_empty(&self.path)
    }
}

/// Reads the names kept in a state directory, without its lock.
pub fn read_names(directory: &Path) -> anyhow::Result<Names> {
    names::read(&names_file(directory))
}

/// Reads the egress addresses that are written down in a state directory, without its lock.
pub fn read_assigned(directory: &Path) -> anyhow::Result<BTreeSet<IpAddr>> {
    let book = AddressBook {
        directory: directory.to_owned(),
    };
    Ok(book.read()?.into_iter().map(|a| a.address).collect())
}

/// An address that an agent has put on an interface, or was about to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Assigned {
    /// The address.
    pub address: IpAddr,
    /// The interface.
    pub ifindex: u32,
    /// Its name: an index may be given out again.
    pub interface: String,
}

/// What agents have put on interfaces and not taken off again. Whoever has it holds the lock of its directory.
#[derive(Clone, Debug)]
pub struct AddressBook {
    directory: PathBuf,
}

/// The file of the book.
#[derive(Default, Serialize, Deserialize)]
struct Page {
    /// Addresses do not outlive the kernel that they were given to.
    boot: String,
    addresses: BTreeSet<Assigned>,
}

impl AddressBook {
    /// What is written in it, of this boot.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn read(&self) -> anyhow::Result<BTreeSet<Assigned>> {
        let page: Page = read(&addresses_file(&self.directory)).context(
            "which addresses an agent has put on this node is not known: take those off that no gateway has (`ip \
             address`), and remove the file",
        )?;
        if page.boot == boot()? {
            Ok(page.addresses)
        } else {
            Ok(BTreeSet::new())
        }
    }

    /// Writes it anew; when this returns it survives a crash.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, addresses: &BTreeSet<Assigned>) -> anyhow::Result<()> {
        let page = Page {
            boot: boot()?,
            addresses: addresses.clone(),
        };
        keep(&page, &addresses_file(&self.directory))
    }
}

/// A number that the kernel draws when it starts.
fn boot() -> anyhow::Result<String> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
    Ok(id.trim().to_owned())
}

/// Writes a file anew; when this returns it survives a crash.
pub(crate) fn keep(what: &impl Serialize, path: &Path) -> anyhow::Result<()> {
    write_anew(&serde_json::to_vec(what)?, path).map(drop)
}

/// Writes a file anew, and gives it to whoever goes on writing; when this returns it survives a crash.
fn write_anew(bytes: &[u8], path: &Path) -> anyhow::Result<File> {
    let new = unfinished(path);
    let write = || -> io::Result<File> {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        Ok(file)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads what was kept; what is not there is as good as empty.
fn read<T: DeserializeOwned + Default>(path: &Path) -> anyhow::Result<T> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("cannot understand {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Locks a file or directory for one agent, which others learn by `place` and can avoid by `flags`.
pub(crate) fn lock_for_one(
    file: File,
    path: &Path,
    place: &Path,
    flags: &str,
) -> anyhow::Result<Flock<File>> {
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "another agent uses {}: stop it, or give this one its own {flags}",
            place.display()
        ),
        Err((_, error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    };
    // `egress detach` may have removed it between opening and locking; the next agent makes a new one.
    let locked = lock.metadata()?;
    let is_there = fs::metadata(path)
        .is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino()));
    ensure!(
        is_there,
        "`egress detach` has just removed {}: try again",
        path.display()
    );
    Ok(lock)
}

/// Removes a file of ours, which may be gone already.
pub(crate) fn remove_own_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a directory unless something is in it, or mounted on it; returns whether it is gone.
pub(crate) fn remove_if_empty(path: &Path) -> anyhow::Result<bool> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};

    match fs::remove_dir(path).map_err(|error| (error.kind(), error)) {
        Ok(()) | Err((NotFound, _)) => Ok(true),
        Err((DirectoryNotEmpty | ResourceBusy, _)) => Ok(false),
        Err((_, error)) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Why a file's content is none of an agent's, if it is not.
type Understood = fn(&[u8]) -> anyhow::Result<()>;

fn json_understood(bytes: &[u8]) -> anyhow::Result<()> {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes)?;
    Ok(())
}

fn names_understood(bytes: &[u8]) -> anyhow::Result<()> {
    names::understand(bytes).map(drop)
}

/// Why a file cannot be read, if it is there.
fn fault_of(file: &Path, is_understood: Understood) -> Option<String> {
    match fs::symlink_metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(format!("cannot be looked at: {error}")),
        // Opening a named pipe would wait for ever.
        Ok(metadata) if !metadata.is_file() => return Some("is not a regular file".to_owned()),
        Ok(_) => {}
    }
    match fs::read(file) {
        Ok(bytes) => is_understood(&bytes)
            .err()
            .map(|error| format!("cannot be understood: {error:#}")),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}

/// Where the last good version of every object is kept in a state directory.
pub(crate) fn objects(directory: &Path) -> PathBuf {
    directory.join("objects")
}

fn names_file(directory: &Path) -> PathBuf {
    directory.join("names.json")
}

fn addresses_file(directory: &Path) -> PathBuf {
    directory.join("addresses.json")
}

/// What a file is called until it is written in full.
fn unfinished(file: &Path) -> PathBuf {
    file.with_extension("new")
}

fn lock_file(directory: &Path) -> PathBuf {
    directory.join("lock")
}

#[cfg(test)]
mod tests;
