//! The thread that writes what is to be kept: the disk may be slow, and nothing waits for it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{BROKEN, UNFINISHED, page_of, text};

/// From the end of one round of writing to the beginning of the next, at least: what comes and goes in between is not written
/// at all. What comes first after a while is written at once.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);
/// The pause before what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What is wrong in the state directory now: shared by those who find it and those who show it.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<BTreeMap<PathBuf, Fault>>>);

#[derive(Debug)]
struct Fault {
    reason: String,
    /// Whether something was lost, which is not mended by writing the file anew.
    lasting: bool,
}

impl Faults {
    /// What is wrong, by file.
    #[must_use]
    pub fn all(&self) -> BTreeMap<PathBuf, String> {
        let faults = self.lock();
        let faults = faults.iter();
        faults
            .map(|(path, fault)| (path.clone(), fault.reason.clone()))
            .collect()
    }

    /// Notes that a file cannot be used now, and says it in the log unless it was said.
    pub fn note(&self, path: &Path, reason: String) {
        self.insert(path, reason, false);
    }

    /// Notes that a file was broken, and what was in it is lost.
    pub fn lost(&self, path: &Path, reason: String) {
        self.insert(path, reason, true);
    }

    fn insert(&self, path: &Path, reason: String, lasting: bool) {
        let mut faults = self.lock();
        let before = faults.get(path);
        if before.is_some_and(|fault| fault.reason == reason) {
            return;
        }
        tracing::warn!("{}: {reason}", path.display());
        let lasting = lasting || before.is_some_and(|fault| fault.lasting);
        faults.insert(path.to_owned(), Fault { reason, lasting });
    }

    /// Notes that a file is as it should be.
    pub fn mended(&self, path: &Path) {
        let mut faults = self.lock();
        if faults.get(path).is_some_and(|fault| !fault.lasting) {
            faults.remove(path);
            tracing::info!("{} is as it should be again", path.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Fault>> {
        // Whoever panicked left a map that is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the last good versions in a directory; when it is dropped, all that it was given is written.
#[derive(Debug)]
pub struct Keeper {
    directory: PathBuf,
    faults: Faults,
    jobs: Option<Sender<(PathBuf, Job)>>,
    thread: Option<JoinHandle<()>>,
}

/// What is to become of the page of a file.
#[derive(Debug)]
pub(in crate::sources::files) enum Job {
    /// These objects are its content.
    Keep {
        whole: bool,
        manifests: Vec<Arc<str>>,
    },
    /// Nothing of it is in force any more.
    Forget,
}

impl Keeper {
    /// Keeps in this directory, which is made (mode 0700) when there is something to keep.
    #[must_use]
    pub fn new(directory: PathBuf, faults: Faults) -> Self {
        Self {
            directory,
            faults,
            jobs: None,
            thread: None,
        }
    }

    /// Reads what an earlier run has kept, and sets aside what is broken.
    pub(in crate::sources::files) fn read(&self) -> Vec<super::Page> {
        let (pages, faults) = super::read(&self.directory);
        for (path, reason) in faults {
            let reason = format!("the last good version of objects is lost: {reason}");
            self.faults.lost(&path, reason);
            // What cannot be moved is overwritten or fails again, and is said then.
            let _stays = fs::rename(&path, path.with_extension(BROKEN));
        }
        pages
    }

    pub(in crate::sources::files) fn submit(&mut self, file: &Path, job: Job) {
        let jobs = match &self.jobs {
            Some(jobs) => jobs,
            None => match self.start() {
                Ok(jobs) => self.jobs.insert(jobs),
                Err(error) => {
                    let reason = format!("nothing can be kept: {error}");
                    self.faults.note(&self.directory, reason);
                    return;
                }
            },
        };
        // The thread ends only when the sender is gone.
        let _ended = jobs.send((file.to_owned(), job));
    }

    fn start(&mut self) -> io::Result<Sender<(PathBuf, Job)>> {
        let (sender, receiver) = channel();
        let (directory, faults) = (self.directory.clone(), self.faults.clone());
        let thread = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || run(&directory, &faults, &receiver))?;
        self.thread = Some(thread);
        Ok(sender)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(directory: &Path, faults: &Faults, jobs: &Receiver<(PathBuf, Job)>) {
    let mut waiting = BTreeMap::new();
    let mut earliest = Instant::now();
    loop {
        let next = if waiting.is_empty() {
            jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            jobs.recv_timeout(RETRY)
        };
        let mut ended = matches!(next, Err(RecvTimeoutError::Disconnected));
        // Of several versions of a file the last one counts, however many came while the disk was busy.
        waiting.extend(next.ok());
        while !ended {
            match jobs.recv_timeout(earliest.saturating_duration_since(Instant::now())) {
                Ok((file, job)) => drop(waiting.insert(file, job)),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => ended = true,
            }
        }
        waiting = carry_out(directory, faults, waiting);
        earliest = Instant::now() + BETWEEN_ROUNDS;
        if ended {
            return;
        }
    }
}

/// Carries out jobs, and gives those that could not be.
fn carry_out(
    directory: &Path,
    faults: &Faults,
    jobs: BTreeMap<PathBuf, Job>,
) -> BTreeMap<PathBuf, Job> {
    let mut done = Vec::new();
    for (file, job) in jobs {
        let page = page_of(directory, &file);
        let result = match &job {
            Job::Keep { whole, manifests } => {
                text(&file, *whole, manifests).and_then(|text| write(directory, &page, &text))
            }
            Job::Forget => crate::state_dir::remove_own_file(&page),
        };
        done.push((file, job, page, result));
    }
    // The names of all of them at once.
    let written = |(_, job, _, result): &(_, Job, _, anyhow::Result<()>)| {
        matches!(job, Job::Keep { .. }) && result.is_ok()
    };
    let durable = if done.iter().any(written) {
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| format!("cannot write {}: {error}", directory.display()))
    } else {
        Ok(())
    };
    let mut left = BTreeMap::new();
    for (file, job, page, result) in done {
        let is_kept = matches!(job, Job::Keep { .. });
        let result = result.map_err(|error| format!("{error:#}"));
        match result.and_then(|()| if is_kept { durable.clone() } else { Ok(()) }) {
            Ok(()) => {
                faults.mended(&page);
                faults.mended(directory);
            }
            Err(error) => {
                let reason = format!(
                    "the last good version of what is in {} is not kept: {error}",
                    file.display()
                );
                faults.note(&page, reason);
                left.insert(file, job);
            }
        }
    }
    left
}

/// Writes a page anew; once the directory is synced it survives a crash, and until then the old one does.
fn write(directory: &Path, page: &Path, text: &str) -> anyhow::Result<()> {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.with_context(|| format!("cannot make {}", directory.display()))?;
    let new = page.with_extension(UNFINISHED);
    let create = || {
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600).open(&new)
    };
    let write = || -> io::Result<()> {
        let mut file = match create() {
            // What is left of an earlier attempt may be anything.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&new)?;
                create()?
            }
            created => created?,
        };
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, page)
    };
    write().with_context(|| format!("cannot write {}", page.display()))
}
