//! Seeing that a file changed.
//!
//! Directories are watched, never files: editors and ConfigMaps replace files instead of writing them.
//! Every link on the way to a path is watched too, and for a path that does not exist the nearest
//! directory that does. What to watch is worked out anew after each change.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};

use super::find;

/// A change is told once nothing happened for so long,
const QUIET: Duration = Duration::from_millis(10);
/// or at the latest after this, when something is written without a pause.
const LONGEST_DELAY: Duration = Duration::from_millis(50);
/// or at the latest after this, when somebody has written to a file and not closed it: half a file is no change.
const LONGEST_WRITE: Duration = Duration::from_millis(500);
/// and at the earliest so long after the last one was: who writes many files writes them one after another.
const PACE: Duration = Duration::from_millis(40);
/// Links on the way to a path that are followed: as many as the kernel follows.
const MAX_LINKS: usize = 40;
/// Rounds in which directories may appear while others are looked at.
const MAX_ROUNDS: usize = 10;

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Guard {
    stop: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // An error means that the thread has ended already.
        if self.stop.send(Message::Stop).is_ok()
            && let Some(thread) = self.thread.take()
        {
            drop(thread.join());
        }
    }
}

/// Sends `()` a few milliseconds after the files and directories at these paths change.
///
/// Call it before the first load, so that no change falls between the two. A message that the channel
/// has no room for is dropped: the one in it says the same.
pub fn watch(paths: Vec<PathBuf>, changes: tokio::sync::mpsc::Sender<()>) -> notify::Result<Guard> {
    let (sender, receiver) = channel();
    let events = sender.clone();
    let watcher = notify::recommended_watcher(move |event| {
        // The receiver is gone only when the guard is.
        let _ended = events.send(Message::Event(event));
    })?;
    let mut watched = Watched {
        paths: paths
            .into_iter()
            .map(std::path::absolute)
            .collect::<Result<_, _>>()
            .map_err(notify::Error::io)?,
        watcher,
        directories: BTreeMap::new(),
        ways: BTreeSet::new(),
    };
    watched.refresh();
    let thread = std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || run(&mut watched, &receiver, &changes))
        .map_err(notify::Error::io)?;
    Ok(Guard {
        stop: sender,
        thread: Some(thread),
    })
}

enum Message {
    Event(notify::Result<Event>),
    Stop,
}

fn run(
    watched: &mut Watched,
    messages: &Receiver<Message>,
    changes: &tokio::sync::mpsc::Sender<()>,
) {
    let mut last_told: Option<Instant> = None;
    while let Ok(Message::Event(event)) = messages.recv() {
        if !watched.concerns(&event) {
            continue;
        }
        let began = Instant::now();
        let earliest = last_told.map_or(began, |last| last + PACE);
        let mut elsewhere = watched.may_lead_elsewhere(&event);
        let mut quiet_from = began + QUIET;
        let mut unclosed = BTreeSet::new();
        note_writers(&event, &mut unclosed);
        loop {
            let due = if unclosed.is_empty() {
                quiet_from.min(began + LONGEST_DELAY).max(earliest)
            } else {
                began + LONGEST_WRITE
            };
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::Event(event)) if watched.concerns(&event) => {
                    quiet_from = Instant::now() + QUIET;
                    elsewhere = elsewhere || watched.may_lead_elsewhere(&event);
                    note_writers(&event, &mut unclosed);
                }
                Ok(Message::Event(_)) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
            }
            // A queue that is never empty never times out.
            if began.elapsed() > LONGEST_WRITE {
                break;
            }
        }
        if elsewhere {
            watched.refresh();
        }
        last_told = Some(Instant::now());
        // A full channel holds this very message; a closed one means that nobody listens any more.
        let _full_or_closed = changes.try_send(());
    }
}

/// Notes who has written and not closed.
fn note_writers(event: &notify::Result<Event>, unclosed: &mut BTreeSet<PathBuf>) {
    let Ok(event) = event else {
        // Whether somebody closed may be what was missed.
        unclosed.clear();
        return;
    };
    let writes = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
    let ends = matches!(
        event.kind,
        EventKind::Access(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
    );
    for path in &event.paths {
        if writes {
            unclosed.insert(path.clone());
        } else if ends {
            unclosed.remove(path);
        }
    }
}

struct Watched {
    paths: Vec<PathBuf>,
    watcher: RecommendedWatcher,
    /// The directories that are watched: which inode each was, and what in it matters.
    directories: BTreeMap<PathBuf, (Option<(u64, u64)>, Interest)>,
    /// What leads there, or might: given paths, links, and what could not be looked at.
    ways: BTreeSet<PathBuf>,
}

/// What matters in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Interest {
    Everything,
    Names(BTreeSet<OsString>),
}

impl Watched {
    fn concerns(&self, event: &notify::Result<Event>) -> bool {
        let Ok(event) = event else {
            // Something was missed.
            return true;
        };
        // Reading is not changing: the loader itself opens and closes these files.
        if let EventKind::Access(kind) = event.kind
            && kind != AccessKind::Close(AccessMode::Write)
        {
            return false;
        }
        event.paths.is_empty() || event.paths.iter().any(|path| self.is_of_interest(path))
    }

    fn is_of_interest(&self, path: &Path) -> bool {
        if self.directories.contains_key(path) {
            return true;
        }
        let Some((directory, name)) = path.parent().zip(path.file_name()) else {
            return true;
        };
        self.directories
            .get(directory)
            .is_some_and(|(_, interest)| match interest {
                Interest::Everything => true,
                Interest::Names(names) => names.contains(name),
            })
    }

    /// Whether there may be other directories to watch after an event. Files in those that are looked through come and go
    /// all the time, and lead nowhere.
    fn may_lead_elsewhere(&self, event: &notify::Result<Event>) -> bool {
        let Ok(event) = event else {
            return true;
        };
        let is_plain = |path: &PathBuf| {
            let directory = path
                .parent()
                .and_then(|parent| self.directories.get(parent));
            matches!(directory, Some((_, Interest::Everything)))
                && !self.directories.contains_key(path)
                && !self.ways.contains(path)
                && match path.symlink_metadata() {
                    Ok(metadata) => metadata.is_file(),
                    // Whatever it was, it was none of those that lead anywhere.
                    Err(error) => error.kind() == io::ErrorKind::NotFound,
                }
        };
        event.need_rescan() || event.paths.is_empty() || !event.paths.iter().all(is_plain)
    }

    /// Watches what there is to watch now.
    fn refresh(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let wanted;
            (wanted, self.ways) = directories_of_interest(&self.paths);
            let mut changed = false;
            let gone: Vec<_> = self
                .directories
                .iter()
                .filter(|(path, (inode, _))| {
                    !wanted.contains_key(*path) || *inode != inode_of(path)
                })
                .map(|(path, _)| path.clone())
                .collect();
            for path in gone {
                // The watch of a directory that was deleted has ended by itself.
                let _ended = self.watcher.unwatch(&path);
                self.directories.remove(&path);
                changed = true;
            }
            for (path, interest) in wanted {
                if let Some((_, known)) = self.directories.get_mut(&path) {
                    *known = interest;
                    continue;
                }
                let inode = inode_of(&path);
                match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                    Ok(()) => {
                        self.directories.insert(path, (inode, interest));
                        changed = true;
                    }
                    Err(error) => tracing::warn!(
                        "cannot watch {}: {error}; changes in it are seen at the next reload",
                        path.display()
                    ),
                }
            }
            if !changed {
                return;
            }
        }
    }
}

fn inode_of(path: &Path) -> Option<(u64, u64)> {
    let metadata = path.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The directories to watch, and what leads to them.
fn directories_of_interest(paths: &[PathBuf]) -> (BTreeMap<PathBuf, Interest>, BTreeSet<PathBuf>) {
    let mut directories = BTreeMap::new();
    let found = find::files(paths);
    let mut steps = paths.to_vec();
    steps.extend(found.elsewhere);
    steps.extend(found.directories.iter().cloned());
    steps.extend(found.unreadable);
    for path in &steps {
        watch_the_way(path, &mut directories);
    }
    for directory in found.directories {
        directories.insert(directory, Interest::Everything);
    }
    (directories, steps.into_iter().collect())
}

/// Adds the directories in which a step on the way to a path may change: its last name, the links
/// before it, or the first name that is missing.
fn watch_the_way(path: &Path, directories: &mut BTreeMap<PathBuf, Interest>) {
    let mut rest: Vec<OsString> = names_reversed(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let target = next.read_link().ok().filter(|_| links < MAX_LINKS);
        let missing = next.symlink_metadata().is_err();
        if target.is_some() || missing || rest.is_empty() {
            let interest = directories
                .entry(at.clone())
                .or_insert_with(|| Interest::Names(BTreeSet::new()));
            if let Interest::Names(names) = interest {
                names.insert(name);
            }
        }
        if missing {
            return;
        }
        if let Some(target) = target {
            links += 1;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            rest.extend(names_reversed(&target));
        } else {
            at = next;
        }
    }
}

fn names_reversed(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
