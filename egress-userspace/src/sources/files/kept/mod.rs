//! The last good version of every object, kept beside the kernel for the next run.
//!
//! One file for each file of resources: its objects as YAML, which the same parser reads as it reads any file, so
//! that nothing gets in this way that no file could say, and another version of the agent understands what it
//! would understand in a file. A line of its own says where the objects came from, and a checksum that they are
//! what was written. What cannot be trusted or understood is set aside and said; it never stops the agent.

mod keeper;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write as _,
    fs, io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

pub(super) use keeper::Job;
pub use keeper::{Faults, Keeper};

use super::MAX_FILE_BYTES;
use crate::{
    diagnostic::Source,
    resources::{Entry, MAX_DOCUMENTS, parse},
};

/// What the first line begins with; the number is that of the format.
const HEAD: &str = "# egress last good 1 sha256=";
const EXTENSION: &str = "yaml";
/// What a file is called that was set aside.
const BROKEN: &str = "broken";
/// What a file is called until it is written in full.
const UNFINISHED: &str = "new";

/// The objects that came from one file.
#[derive(Debug)]
pub(super) struct Page {
    /// The file, by its absolute path.
    pub(super) file: PathBuf,
    /// Whether all of the file was read once, so that no object of it is unknown.
    pub(super) whole: bool,
    /// The objects.
    pub(super) entries: Vec<Entry>,
    /// What they are read from, to show their places.
    pub(super) source: Arc<Source>,
}

/// Reads what an earlier run has kept. What is broken is told by path and reason.
pub(super) fn read(directory: &Path) -> (Vec<Page>, BTreeMap<PathBuf, String>) {
    let mut pages = Vec::new();
    let mut faults = BTreeMap::new();
    match list(directory) {
        Ok(files) => {
            for path in files {
                match read_page(&path) {
                    Ok(page) => pages.push(page),
                    Err(error) => drop(faults.insert(path, format!("{error:#}"))),
                }
            }
        }
        Err(error) => drop(faults.insert(directory.to_owned(), format!("{error:#}"))),
    }
    (pages, faults)
}

fn list(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let metadata = match directory.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        metadata => metadata?,
    };
    ensure!(metadata.is_dir(), "is not a directory");
    ensure_own(&metadata)?;
    let mut files = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == EXTENSION));
    files.sort();
    Ok(files)
}

/// Refuses what somebody else may have written: these objects decide who leaves by which gateway.
fn ensure_own(metadata: &fs::Metadata) -> anyhow::Result<()> {
    ensure!(
        metadata.uid() == nix::unistd::geteuid().as_raw(),
        "belongs to user {}, not to the agent's",
        metadata.uid()
    );
    ensure!(
        metadata.mode() & 0o022 == 0,
        "can be written by other users (mode {:o})",
        metadata.mode() & 0o7777
    );
    Ok(())
}

fn read_page(path: &Path) -> anyhow::Result<Page> {
    let metadata = path.symlink_metadata()?;
    ensure!(metadata.is_file(), "is not a regular file");
    ensure_own(&metadata)?;
    ensure!(
        metadata.len() <= MAX_FILE_BYTES,
        "is larger than {} MiB",
        MAX_FILE_BYTES >> 20
    );
    let text = String::from_utf8(fs::read(path)?).context("is not UTF-8")?;
    let (checksum, body) = text
        .strip_prefix(HEAD)
        .and_then(|rest| rest.split_once('\n'))
        .context("is not of this format")?;
    ensure!(checksum == sum(body), "its checksum is wrong");
    let (whole, file) = body.lines().next().and_then(origin).context(
        "does not say which file its objects came from, or is of another version's format",
    )?;
    let source = Arc::new(Source::new(path, text));
    let parsed = parse(&source);
    if parsed.incomplete {
        let first = parsed.diagnostics.first().map(|d| d.message.as_str());
        bail!("cannot be understood: {}", first.unwrap_or("no reason"));
    }
    Ok(Page {
        file,
        whole,
        // An object that this version refuses has no last good version for it.
        entries: parsed.entries.into_iter().filter(|e| e.valid).collect(),
        source,
    })
}

/// Writes down the objects of a file.
fn text(file: &Path, whole: bool, manifests: &[Arc<str>]) -> anyhow::Result<String> {
    ensure!(
        manifests.len() <= MAX_DOCUMENTS,
        "it holds more than {MAX_DOCUMENTS} objects"
    );
    let size: usize = manifests.iter().map(|manifest| manifest.len() + 5).sum();
    ensure!(
        size as u64 + 4096 * 4 <= MAX_FILE_BYTES,
        "its objects take more than {} MiB",
        MAX_FILE_BYTES >> 20
    );
    let mut body = String::with_capacity(size + 256);
    let part = if whole { "all" } else { "part" };
    body.push_str("# ");
    body.push_str(part);
    body.push_str(" of ");
    for byte in file.as_os_str().as_bytes() {
        if byte.is_ascii_graphic() && *byte != b'%' {
            body.push(char::from(*byte));
        } else {
            // Writing into a string cannot fail.
            let _cannot_fail = write!(body, "%{byte:02X}");
        }
    }
    body.push('\n');
    for manifest in manifests {
        body.push_str("---\n");
        body.push_str(manifest);
        body.push('\n');
    }
    Ok(format!("{HEAD}{}\n{body}", sum(&body)))
}

/// What the second line says: whether the objects are all of the file's, and which file.
fn origin(line: &str) -> Option<(bool, PathBuf)> {
    let (whole, written) = match line.strip_prefix("# all of ") {
        Some(written) => (true, written),
        None => (false, line.strip_prefix("# part of ")?),
    };
    let mut bytes = Vec::with_capacity(written.len());
    let mut rest = written.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?
            }
            _ => byte,
        });
    }
    Some((whole, OsString::from_vec(bytes).into()))
}

fn sum(body: &str) -> String {
    hex(&Sha256::digest(body))
}

/// The file that keeps the objects of `file`.
fn page_of(directory: &Path, file: &Path) -> PathBuf {
    let name = hex(&Sha256::digest(file.as_os_str().as_bytes())[..16]);
    directory.join(name).with_extension(EXTENSION)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing into a string cannot fail.
        let _cannot_fail = write!(out, "{byte:02x}");
        out
    })
}

/// Removes what was kept, and the directory unless it has other files.
pub(crate) fn remove(directory: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", directory.display()));
        }
    };
    for entry in entries {
        let path = entry?.path();
        let ours = [EXTENSION, BROKEN, UNFINISHED];
        if path
            .extension()
            .is_some_and(|e| ours.iter().any(|o| e == *o))
            && !path.is_dir()
        {
            crate::state_dir::remove_own_file(&path)?;
        }
    }
    crate::state_dir::remove_if_empty(directory).map(drop)
}
