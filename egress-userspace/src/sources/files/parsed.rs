//! What files hold: read and parsed again only where they may have changed, two at a time where those are several.

use std::{
    fs::{File, Metadata},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    diagnostic::{Diagnostic, Source},
    resources::{Entry, ParsedFile, parse},
};

/// How often a file is read that somebody writes to meanwhile; what is written later is another change.
const TRIES: usize = 3;
/// How long the clocks of file systems take at most to tick, and more: those that count seconds or two, and those that count
/// fractions, which are the kernel's.
const SLOW_TICK: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(100);
/// Bytes that are worth a thread.
const MUCH: u64 = 256 << 10;
/// The largest file that is read.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;

/// What a file held when its text had this hash.
#[derive(Debug)]
pub(super) struct Cached {
    hash: u64,
    /// What was found in it, but for the objects.
    pub(super) file: ParsedFile,
    /// The objects, in order.
    pub(super) entries: Vec<Arc<Entry>>,
    pub(super) source: Arc<Source>,
    /// What the file was when it was read, if whoever changes it after that cannot leave it the same.
    stamp: Option<Stamp>,
}

/// What tells a file from itself after a change, as long as that does not follow at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last change of content, and of anything.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the file has been left alone for longer than any clock of a file system takes to tick: a change from now on
    /// gives it another stamp.
    fn is_settled(&self) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let since_1970 = u64::try_from(seconds)
            .ok()
            .zip(u32::try_from(nanoseconds).ok());
        let changed = since_1970.map(|(seconds, rest)| UNIX_EPOCH + Duration::new(seconds, rest));
        let left_alone = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        let tick = if self.modified.1 == 0 || self.changed.1 == 0 {
            SLOW_TICK
        } else {
            TICK
        };
        left_alone.is_some_and(|left_alone| left_alone > tick)
    }
}

/// How to know what a file holds.
pub(super) enum Step {
    /// As it was.
    Known(Cached),
    /// By reading it.
    Read {
        size: u64,
        stamp: Option<Stamp>,
        before: Option<Cached>,
    },
}

pub(super) type Parsed = Result<Cached, Box<Diagnostic>>;

impl Step {
    /// For a file of which this was known before.
    pub(super) fn of(path: &Path, before: Option<Cached>) -> Self {
        let now = std::fs::metadata(path).ok().map(|file| Stamp::of(&file));
        match before {
            Some(cached) if cached.stamp.is_some() && cached.stamp == now => Self::Known(cached),
            before => Self::Read {
                size: now.map_or(0, |now| now.size),
                // Before it is read: a file that is changed meanwhile has another stamp the next time.
                stamp: now.filter(Stamp::is_settled),
                before,
            },
        }
    }

    fn carry_out(self, path: &Path) -> Parsed {
        match self {
            Self::Known(cached) => Ok(cached),
            Self::Read { stamp, before, .. } => Ok(parse_again(path, read(path)?, stamp, before)),
        }
    }
}

/// What all files hold, in their order. At the start that is two files at a time: each may take much memory.
pub(super) fn parse_all(steps: Vec<(PathBuf, Step)>) -> Vec<(PathBuf, Parsed)> {
    let sizes = steps.iter().filter_map(|(_, step)| match step {
        Step::Read { size, .. } => Some(*size),
        Step::Known(_) => None,
    });
    let (files, bytes) = sizes.fold((0, 0_u64), |(files, bytes), size| {
        (files + 1, bytes.saturating_add(size))
    });
    if files < 2 || bytes < MUCH {
        let carry_out = |(path, step): (PathBuf, Step)| {
            let parsed = step.carry_out(&path);
            (path, parsed)
        };
        return steps.into_iter().map(carry_out).collect();
    }
    let queue = Mutex::new(steps.into_iter().enumerate());
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.next()
    };
    let work = || {
        let mut parsed = Vec::new();
        while let Some((index, (path, step))) = next() {
            let result = step.carry_out(&path);
            parsed.push((index, (path, result)));
        }
        parsed
    };
    let mut parsed = thread::scope(|scope| {
        // Without another thread this one does it all.
        let other = thread::Builder::new()
            .name("files".to_owned())
            .spawn_scoped(scope, work);
        let mut parsed = work();
        match other.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(others)) => parsed.extend(others),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => {}
        }
        parsed
    });
    parsed.sort_unstable_by_key(|(index, _)| *index);
    parsed.into_iter().map(|(_, parsed)| parsed).collect()
}

/// Parses a file, unless its text is the same as before.
fn parse_again(path: &Path, text: String, stamp: Option<Stamp>, before: Option<Cached>) -> Cached {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let hash = hasher.finish();
    match before.filter(|cached| cached.hash == hash) {
        Some(cached) => Cached { stamp, ..cached },
        None => {
            let source = Arc::new(Source::new(path, text));
            let mut file = parse(&source);
            let entries = std::mem::take(&mut file.entries);
            Cached {
                hash,
                file,
                entries: entries.into_iter().map(Arc::new).collect(),
                source,
                stamp,
            }
        }
    }
}

/// Reads a file whole, if it is a regular one of a size that a manifest may have.
fn read(path: &Path) -> Result<String, Box<Diagnostic>> {
    let unreadable = |error: std::io::Error| {
        let fault = Diagnostic::of_file(path, format!("cannot be read: {error}"));
        Box::new(fault.with_help("what came from this file before stays in force"))
    };
    let too_large = || {
        let message = format!("is larger than {} MiB", MAX_FILE_BYTES >> 20);
        Box::new(Diagnostic::of_file(path, message).with_help("split the file"))
    };
    // A named pipe would block the open.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        let fault = Diagnostic::of_file(path, "is not a regular file");
        return Err(Box::new(fault.with_help("name files and directories only")));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    for _ in 0..TRIES {
        bytes.clear();
        let mut file = File::open(path).map_err(unreadable)?;
        let before = file.metadata().map_err(unreadable)?;
        let mut part = (&mut file).take(MAX_FILE_BYTES + 1);
        part.read_to_end(&mut bytes).map_err(unreadable)?;
        let after = file.metadata().map_err(unreadable)?;
        let of = |metadata: &Metadata| (metadata.len(), metadata.modified().ok());
        if of(&before) == of(&after) {
            break;
        }
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let source = Source::new(path, text);
        let fault = Diagnostic::at(&source, valid..valid, "the file is not UTF-8 here");
        Box::new(
            fault.with_help("save it as UTF-8; what came from this file before stays in force"),
        )
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_settled_once_no_clock_is_too_coarse() {
        let ago = |milliseconds, fraction: bool| {
            let then = SystemTime::now() - Duration::from_millis(milliseconds);
            let then = then.duration_since(UNIX_EPOCH).unwrap();
            let rest = if fraction { then.subsec_nanos() | 1 } else { 0 };
            (i64::try_from(then.as_secs()).unwrap(), i64::from(rest))
        };
        let rows = [
            (ago(5, true), false),
            (ago(60, true), false),
            (ago(400, true), true),
            (ago(400, false), false),
            (ago(1900, false), false),
            (ago(4100, false), true),
            ((i64::MAX, 1), false),
            ((-1, 1), false),
        ];
        for (changed, settled) in rows {
            let stamp = Stamp {
                device: 1,
                inode: 1,
                size: 1,
                modified: changed,
                changed,
            };
            assert_eq!(stamp.is_settled(), settled, "{changed:?}");
        }
    }
}
