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
    time::Duration,
};

use anyhow::Context as _;

use super::{BROKEN, UNFINISHED, page_of, text};

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
    loop {
        let next = if waiting.is_empty() {
            jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            jobs.recv_timeout(RETRY)
        };
        let ended = matches!(next, Err(RecvTimeoutError::Disconnected));
        // Of several versions of a file the last one counts, however many came while the disk was busy.
        waiting.extend(next.ok());
        waiting.extend(jobs.try_iter());
        waiting.retain(|file, job| {
            let page = page_of(directory, file);
            match carry_out(directory, &page, file, job) {
                Ok(()) => {
                    faults.mended(&page);
                    faults.mended(directory);
                    false
                }
                Err(error) => {
                    let reason = format!(
                        "the last good version of what is in {} is not kept: {error:#}",
                        file.display()
                    );
                    faults.note(&page, reason);
                    true
                }
            }
        });
        if ended {
            return;
        }
    }
}

fn carry_out(directory: &Path, page: &Path, file: &Path, job: &Job) -> anyhow::Result<()> {
    match job {
        Job::Keep { whole, manifests } => {
            let text = text(file, *whole, manifests)?;
            write(directory, page, &text)
        }
        Job::Forget => Ok(crate::state_dir::remove_own_file(page)?),
    }
}

/// Writes a page anew; when this returns it survives a crash, and until then the old one does.
fn write(directory: &Path, page: &Path, text: &str) -> anyhow::Result<()> {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.with_context(|| format!("cannot make {}", directory.display()))?;
    let new = page.with_extension(UNFINISHED);
    let write = || -> io::Result<()> {
        // What is left of an earlier attempt may be anything.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, page)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", page.display()))
}
