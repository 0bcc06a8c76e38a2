//! Resources in files: reading them, keeping what was last good, seeing when they change.

mod find;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use watch::{Guard, watch};

use crate::{
    diagnostic::{Diagnostic, Severity, Source},
    model::{Model, ObjectName},
    resources::{Entry, Object, ObjectId, ParsedFile, Places, parse},
};

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Reads resources again and again, and remembers the last good version of each object.
#[derive(Debug)]
pub struct Loader {
    paths: Vec<PathBuf>,
    good: BTreeMap<ObjectId, Good>,
    parsed: BTreeMap<PathBuf, Cached>,
}

/// What one reading of all files gives.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Everything that is in force.
    pub model: Model,
    /// What is wrong, file by file.
    pub diagnostics: Vec<Diagnostic>,
    /// The number of errors in each file that is or should be there; 0 for those without.
    pub errors_by_file: BTreeMap<PathBuf, usize>,
    /// Objects of kinds that are not understood, counted by `apiVersion kind`.
    pub skipped: BTreeMap<String, usize>,
    /// The objects for which the last good version is in force, such as "EgressGatewayPolicy egw-policy".
    pub degraded: BTreeSet<String>,
    /// The objects that are invalid and have no last good version.
    pub refused: BTreeSet<ObjectId>,
    /// Where each object in force is written.
    pub places: BTreeMap<ObjectId, Places>,
    /// The files' texts, to show those places.
    pub sources: BTreeMap<PathBuf, Arc<Source>>,
}

/// The last good version of an object, and the file that it came from.
#[derive(Clone, Debug)]
struct Good {
    file: PathBuf,
    entry: Entry,
}

/// What a file held when its text had this hash.
#[derive(Debug)]
struct Cached {
    hash: u64,
    file: Arc<ParsedFile>,
}

impl Loader {
    /// A loader of these files and directories.
    #[must_use]
    pub const fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            good: BTreeMap::new(),
            parsed: BTreeMap::new(),
        }
    }

    /// Reads everything.
    ///
    /// An invalid object keeps its last good version. A document or file that cannot be read keeps the
    /// objects that came from it, unless they are seen elsewhere. What is gone from a good file is gone.
    pub fn load(&mut self) -> Loaded {
        let found = find::files(&self.paths);
        let mut loaded = Loaded::default();
        for fault in found.faults {
            loaded.note(fault);
        }
        let mut unreadable = found.unreadable;
        let mut merge = Merge::default();
        let mut cache = BTreeMap::new();
        for path in found.files {
            loaded.errors_by_file.entry(path.clone()).or_default();
            match read(&path) {
                Ok(text) => {
                    let (source, cached) = self.parse(&path, text);
                    let file = Arc::clone(&cached.file);
                    cache.insert(path.clone(), cached);
                    if file.incomplete {
                        unreadable.push(path.clone());
                    }
                    merge.add(&path, &source, &file, &mut loaded);
                    loaded.sources.insert(path, source);
                }
                Err(fault) => {
                    loaded.note(*fault);
                    unreadable.push(path);
                }
            }
        }
        self.parsed = cache;
        self.good = merge.finish(&self.good, &unreadable, &mut loaded);
        loaded
    }

    fn parse(&mut self, path: &Path, text: String) -> (Arc<Source>, Cached) {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        let source = Arc::new(Source::new(path, text));
        let file = self
            .parsed
            .remove(path)
            .filter(|cached| cached.hash == hash)
            .map_or_else(|| Arc::new(parse(&source)), |cached| cached.file);
        (source, Cached { hash, file })
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
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
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

impl Loaded {
    fn note(&mut self, diagnostic: Diagnostic) {
        let errors = self
            .errors_by_file
            .entry(diagnostic.file.to_path_buf())
            .or_default();
        *errors += usize::from(diagnostic.severity == Severity::Error);
        self.diagnostics.push(diagnostic);
    }

    fn put_in_force(&mut self, entry: &Entry) {
        let Some(object) = entry.object.clone() else {
            return;
        };
        let name = entry.id.name.clone();
        let full_name = || {
            let namespace = entry.id.namespace.clone().unwrap_or_default();
            ObjectName::new(namespace, name.clone())
        };
        let model = &mut self.model;
        match object {
            Object::Namespace(object) => drop(model.namespaces.insert(name, object)),
            Object::Pod(object) => drop(model.pods.insert(full_name(), object)),
            Object::Node(object) => drop(model.nodes.insert(name, object)),
            Object::Policy(object) => drop(model.policies.insert(name, object)),
            Object::Gateway(object) => drop(model.gateways.insert(full_name(), object)),
            Object::ClusterPrefixes(prefixes) => model.cluster_prefixes.extend(prefixes),
        }
        self.places.insert(entry.id.clone(), entry.places.clone());
    }
}

/// The objects of all files, put together.
#[derive(Default)]
struct Merge {
    seen: BTreeMap<ObjectId, Good>,
}

impl Merge {
    /// Takes a file's objects; one that is there already is refused.
    fn add(&mut self, path: &Path, source: &Source, file: &ParsedFile, loaded: &mut Loaded) {
        for diagnostic in &file.diagnostics {
            loaded.note(diagnostic.clone());
        }
        for (kind, count) in &file.skipped {
            *loaded.skipped.entry(kind.clone()).or_default() += count;
        }
        for entry in &file.entries {
            if let Some(first) = self.seen.get(&entry.id) {
                let span = entry.places.object.position.span.clone();
                let message = format!("the object is at {} too", first.entry.places.object);
                loaded.note(
                    Diagnostic::at(source, span, message)
                        .with_object(entry.id.to_string())
                        .with_help("remove one of the two; the first one is in force"),
                );
                continue;
            }
            let good = Good {
                file: path.to_owned(),
                entry: entry.clone(),
            };
            self.seen.insert(entry.id.clone(), good);
        }
    }

    /// Decides which version of each object is in force; gives those that are good.
    fn finish(
        mut self,
        last_good: &BTreeMap<ObjectId, Good>,
        unreadable: &[PathBuf],
        loaded: &mut Loaded,
    ) -> BTreeMap<ObjectId, Good> {
        for (id, last) in last_good {
            let replaced = match self.seen.get(id) {
                Some(found) => !found.entry.valid,
                None => unreadable.iter().any(|path| last.file.starts_with(path)),
            };
            if replaced {
                loaded.degraded.insert(id.to_string());
                self.seen.insert(id.clone(), last.clone());
            }
        }
        for good in self.seen.values() {
            if !good.entry.valid {
                loaded.refused.insert(good.entry.id.clone());
            }
            loaded.put_in_force(&good.entry);
        }
        self.seen.retain(|_, good| good.entry.valid);
        self.seen
    }
}
