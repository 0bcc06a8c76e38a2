//! Which files there are, in an order that does not depend on the file system.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, DirEntry},
    path::{Path, PathBuf},
};

use crate::diagnostic::Diagnostic;

/// The files and directories that given paths lead to.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The files, each once.
    pub(super) files: Vec<PathBuf>,
    /// Those of them that are more than a name in one of the directories: given ones, and links.
    pub(super) elsewhere: Vec<PathBuf>,
    /// The directories that were looked through.
    pub(super) directories: Vec<PathBuf>,
    /// What could not be looked at; anything may be below it.
    pub(super) unreadable: Vec<PathBuf>,
    /// What to say of those.
    pub(super) faults: Vec<Diagnostic>,
    visited: BTreeSet<PathBuf>,
}

/// Finds the files that are given, and the manifests in directories that are given.
pub(super) fn files(paths: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for path in paths {
        found.add(path, true);
    }
    found
}

impl Found {
    fn add(&mut self, path: &Path, given: bool) {
        let resolved = match path.canonicalize() {
            Ok(resolved) => resolved,
            Err(error) => {
                let help = if given {
                    "create it, or remove it from the arguments; what came from it before stays in force"
                } else {
                    "remove the link, or what it leads to; what came from it before stays in force"
                };
                self.fault(path, &error, help);
                return;
            }
        };
        // The same file by two ways is one file; this also ends loops of links.
        if !self.visited.insert(resolved.clone()) {
            return;
        }
        if resolved.is_dir() {
            self.add_directory(path, &resolved);
        } else {
            self.files.push(path.to_owned());
            self.elsewhere.push(path.to_owned());
        }
    }

    fn add_directory(&mut self, path: &Path, resolved: &Path) {
        self.directories.push(path.to_owned());
        // What kind of thing a name is comes with it: the many that are files need not be looked at.
        let is_file = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
        let names = fs::read_dir(path).and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| (entry.file_name(), is_file(&entry))))
                .collect::<Result<BTreeMap<_, _>, _>>()
        });
        let names = match names {
            Ok(names) => names,
            Err(error) => {
                let help = "allow reading it; what came from it before stays in force";
                self.fault(path, &error, help);
                return;
            }
        };
        for (name, is_file) in names {
            let below = path.join(&name);
            let is_manifest = || is_manifest(&below) && !starts_with(&name, b".");
            if is_file {
                if is_manifest() && self.visited.insert(resolved.join(&name)) {
                    self.files.push(below);
                }
            } else if below.is_dir() {
                // A mounted ConfigMap has its versions in directories that begin so.
                if !starts_with(&name, b"..") {
                    self.add(&below, false);
                }
            } else if is_manifest() {
                self.add(&below, false);
            }
        }
    }

    fn fault(&mut self, path: &Path, error: &std::io::Error, help: &str) {
        self.faults
            .push(Diagnostic::of_file(path, format!("cannot be read: {error}")).with_help(help));
        self.unreadable.push(path.to_owned());
    }
}

fn starts_with(name: &OsStr, start: &[u8]) -> bool {
    name.as_encoded_bytes().starts_with(start)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        ["yaml", "yml", "json"]
            .iter()
            .any(|known| extension == *known)
    })
}
