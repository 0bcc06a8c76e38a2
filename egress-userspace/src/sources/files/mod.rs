//! Resources in files: reading them, keeping what was last good, seeing when they change.

mod find;
mod kept;
mod parsed;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use kept::remove as remove_kept;
pub use kept::{Faults, Keeper};
pub use watch::{Guard, watch};

use kept::Job;
use parsed::{Cached, MAX_FILE_BYTES, Step, parse_all};

use crate::{
    diagnostic::{Diagnostic, Severity, Source},
    model::{Model, ObjectName},
    resources::{Entry, Manifest, Object, ObjectId, Places},
};

/// Faults of all files that are told; the rest is counted.
const MAX_DIAGNOSTICS: usize = 5000;
/// Reads resources again and again, and remembers the last good version of each object.
#[derive(Debug)]
pub struct Loader {
    paths: Vec<PathBuf>,
    good: BTreeMap<ObjectId, Good>,
    parsed: BTreeMap<PathBuf, Cached>,
    /// The files that something is known of, by their absolute paths.
    known: BTreeMap<PathBuf, Known>,
    /// Given directories that had manifests in the last run, and none yet in this one.
    awaited: BTreeSet<PathBuf>,
    /// What the last run kept, by the file that it was read from.
    restored: BTreeMap<PathBuf, Arc<Source>>,
    keeper: Option<Keeper>,
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
    /// What could not be read in full, and was not in an earlier run either: it may hold any object.
    pub unknown: BTreeSet<PathBuf>,
    /// The objects in force as the last run kept them, by the file that they came from.
    pub restored: BTreeMap<PathBuf, BTreeSet<String>>,
}

/// The last good version of an object, and the file that it came from.
#[derive(Clone, Debug)]
struct Good {
    /// By its absolute path.
    file: Arc<Path>,
    entry: Arc<Entry>,
    /// Whether it is of the last run, and was not seen in this one.
    restored: bool,
}

/// What is known of a file.
#[derive(Debug, Default)]
struct Known {
    /// Whether all of it was read once.
    whole: bool,
    /// What was last given to the keeper.
    kept: Option<u64>,
}

impl Loader {
    /// A loader of these files and directories.
    #[must_use]
    pub const fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            good: BTreeMap::new(),
            parsed: BTreeMap::new(),
            known: BTreeMap::new(),
            awaited: BTreeSet::new(),
            restored: BTreeMap::new(),
            keeper: None,
        }
    }

    /// A loader that goes on from what the last run kept, and keeps what it reads for the next one.
    #[must_use]
    pub fn keeping(paths: Vec<PathBuf>, keeper: Keeper) -> Self {
        let pages = keeper.read();
        let mut loader = Self::after(paths, pages);
        loader.keeper = Some(keeper);
        loader
    }

    /// A loader that goes on from what the last run kept in this directory, and changes nothing there.
    #[must_use]
    pub fn going_on(paths: Vec<PathBuf>, directory: &Path) -> Self {
        Self::after(paths, kept::read(directory).0)
    }

    fn after(paths: Vec<PathBuf>, pages: Vec<kept::Page>) -> Self {
        let mut loader = Self::new(paths);
        for page in pages {
            let (file, source) = (page.file, page.source);
            let shared: Arc<Path> = file.as_path().into();
            let manifests: Vec<_> = page.entries.iter().map(|e| e.manifest.clone()).collect();
            for entry in page.entries {
                let good = Good {
                    file: Arc::clone(&shared),
                    entry: Arc::new(entry),
                    restored: true,
                };
                loader.good.insert(good.entry.id.clone(), good);
            }
            let known = Known {
                whole: page.whole,
                kept: Some(content(page.whole, manifests.iter().flatten())),
            };
            let given = loader.paths.iter().map(|path| absolute(path));
            loader
                .awaited
                .extend(given.filter(|path| file != *path && file.starts_with(path)));
            loader.restored.insert(source.file().to_path_buf(), source);
            loader.known.insert(file, known);
        }
        loader
    }

    /// Reads everything.
    ///
    /// An invalid object keeps its last good version. A document or file that cannot be read keeps the
    /// objects that came from it, unless they are seen elsewhere. What is gone from a good file is gone,
    /// and so is what came from a file that is gone from a directory that can be read. A directory that had
    /// manifests in the last run and has none at all in this one is taken for one that cannot be read: a volume
    /// that is not mounted looks like that.
    pub fn load(&mut self) -> Loaded {
        let found = find::files(&self.paths);
        let mut loaded = Loaded::default();
        for fault in found.faults {
            loaded.note(fault);
        }
        let mut unreadable: BTreeSet<_> = found.unreadable.iter().map(|p| absolute(p)).collect();
        self.await_manifests(&found.files, &mut unreadable, &mut loaded);
        let mut whole = BTreeSet::new();
        let mut merge = Merge::default();
        let mut cache = BTreeMap::new();
        let steps = found.files.into_iter().map(|path| {
            // It is what it held before, unless it was changed since.
            let before = self.parsed.remove(&path);
            let step = Step::of(&path, before);
            (path, step)
        });
        for (path, parsed) in parse_all(steps.collect()) {
            loaded.errors_by_file.entry(path.clone()).or_default();
            match parsed {
                Ok(cached) => {
                    let source = Arc::clone(&cached.source);
                    if cached.file.incomplete {
                        unreadable.insert(absolute(&path));
                    } else {
                        whole.insert(absolute(&path));
                    }
                    merge.add(&path, &cached, &mut loaded);
                    cache.insert(path.clone(), cached);
                    loaded.sources.insert(path, source);
                }
                Err(fault) => {
                    loaded.note(*fault);
                    unreadable.insert(absolute(&path));
                }
            }
        }
        self.parsed = cache;
        self.good = merge.finish(&self.good, &unreadable, &mut loaded);
        self.learn(&whole, &unreadable);
        loaded.unknown = unreadable
            .into_iter()
            .filter(|path| !self.knows(path))
            .collect();
        self.show_restored(&mut loaded);
        self.keep();
        loaded
    }

    /// Takes directories that should have manifests, and have none, for such as cannot be read.
    fn await_manifests(
        &mut self,
        found: &[PathBuf],
        unreadable: &mut BTreeSet<PathBuf>,
        loaded: &mut Loaded,
    ) {
        self.awaited
            .retain(|path| !found.iter().any(|file| absolute(file).starts_with(path)));
        for path in self.awaited.difference(&unreadable.clone()) {
            let fault = Diagnostic::of_file(
                path,
                "there is no manifest in it, and there was in the last run",
            );
            loaded.note(fault.with_help(
                "is it mounted? what came from it before stays in force; if that is to go, put a file in it that \
                 may be empty, such as none.yaml",
            ));
            unreadable.insert(path.clone());
        }
    }

    /// Notes which files something is known of now.
    fn learn(&mut self, whole: &BTreeSet<PathBuf>, unreadable: &BTreeSet<PathBuf>) {
        for file in whole {
            self.known.entry(file.clone()).or_default().whole = true;
        }
        for (file, _) in by_file(&self.good) {
            if !self.known.contains_key(file) {
                self.known.insert(file.to_owned(), Known::default());
            }
        }
        let keeper = &mut self.keeper;
        self.known.retain(|file, _| {
            let stays = whole.contains(file) || file.ancestors().any(|at| unreadable.contains(at));
            if !stays && let Some(keeper) = keeper {
                keeper.submit(file, Job::Forget);
            }
            stays
        });
    }

    /// Whether all that a file or directory holds is known, from now or before.
    fn knows(&self, path: &Path) -> bool {
        let mut below = self
            .known
            .range(path.to_owned()..)
            .take_while(|(file, _)| file.starts_with(path))
            .peekable();
        below.peek().is_some() && below.all(|(_, known)| known.whole)
    }

    /// Tells what is in force only because the last run kept it.
    fn show_restored(&mut self, loaded: &mut Loaded) {
        let mut shown = BTreeSet::new();
        for (id, good) in self.good.iter().filter(|(_, good)| good.restored) {
            let objects = loaded.restored.entry(good.file.to_path_buf()).or_default();
            objects.insert(id.to_string());
            shown.insert(good.entry.places.object.file.to_path_buf());
        }
        self.restored.retain(|page, _| shown.contains(page));
        let sources = self.restored.iter();
        loaded
            .sources
            .extend(sources.map(|(page, source)| (page.clone(), Arc::clone(source))));
    }

    /// Gives the keeper what has changed.
    fn keep(&mut self) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        let mut manifests: BTreeMap<&Path, Vec<&Manifest>> = BTreeMap::new();
        for (file, of_file) in by_file(&self.good) {
            let manifests = manifests.entry(file).or_default();
            manifests.extend(
                of_file
                    .iter()
                    .filter_map(|good| good.entry.manifest.as_ref()),
            );
        }
        for (file, known) in &mut self.known {
            let manifests = manifests.remove(file.as_path()).unwrap_or_default();
            let hash = content(known.whole, manifests.iter().copied());
            if known.kept.replace(hash) != Some(hash) {
                let texts = manifests.iter().map(|manifest| Arc::clone(&manifest.text));
                let job = Job::Keep {
                    whole: known.whole,
                    manifests: texts.collect(),
                };
                keeper.submit(file, job);
            }
        }
    }
}

/// What is good, by file and in order.
///
/// Paths take longer to compare than all else that is done with most objects, so these look for theirs but once.
fn by_file(good: &BTreeMap<ObjectId, Good>) -> Vec<(&Path, Vec<&Good>)> {
    let mut files: Vec<(&Path, Vec<&Good>)> = Vec::new();
    let mut by_path: BTreeMap<&Path, usize> = BTreeMap::new();
    let mut by_address: HashMap<*const u8, usize> = HashMap::new();
    for good in good.values() {
        let address = Arc::as_ptr(&good.file).cast();
        let place = *by_address.entry(address).or_insert_with(|| {
            *by_path.entry(&good.file).or_insert_with(|| {
                files.push((&good.file, Vec::new()));
                files.len() - 1
            })
        });
        files[place].1.push(good);
    }
    files
}

/// A hash of what a page says.
fn content<'a>(whole: bool, manifests: impl IntoIterator<Item = &'a Manifest>) -> u64 {
    let mut hasher = DefaultHasher::new();
    whole.hash(&mut hasher);
    for manifest in manifests {
        manifest.hash.hash(&mut hasher);
    }
    hasher.finish()
}

/// The path as the next run finds it, wherever that is started.
fn absolute(path: &Path) -> PathBuf {
    // Without a working directory a relative path leads nowhere, and stays what it is.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl Loaded {
    fn note(&mut self, diagnostic: Diagnostic) {
        let errors = self
            .errors_by_file
            .entry(diagnostic.file.to_path_buf())
            .or_default();
        *errors += usize::from(diagnostic.severity == Severity::Error);
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            self.diagnostics.push(diagnostic);
        }
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
            Object::ServiceAccount(labels) => {
                drop(model.service_accounts.insert(full_name(), labels));
            }
            Object::NetworkPolicy(Some(policy)) => {
                drop(model.network_policies.insert(entry.id.to_string(), policy));
            }
            Object::NetworkPolicy(None) => {}
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
    fn add(&mut self, path: &Path, cached: &Cached, loaded: &mut Loaded) {
        let Cached { file, source, .. } = cached;
        for diagnostic in &file.diagnostics {
            loaded.note(diagnostic.clone());
        }
        if file.untold > 0 {
            let message = format!("{} more errors are not shown", file.untold);
            loaded.note(Diagnostic::of_file(path, message).with_help("mend those that are"));
            // The line above is one of them.
            *loaded.errors_by_file.entry(path.to_owned()).or_default() += file.untold - 1;
        }
        for (kind, count) in &file.skipped {
            *loaded.skipped.entry(kind.clone()).or_default() += count;
        }
        let file: Arc<Path> = absolute(path).into();
        for entry in &*cached.entries {
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
                file: Arc::clone(&file),
                entry: Arc::clone(entry),
                restored: false,
            };
            self.seen.insert(entry.id.clone(), good);
        }
    }

    /// Decides which version of each object is in force; gives those that are good.
    fn finish(
        mut self,
        last_good: &BTreeMap<ObjectId, Good>,
        unreadable: &BTreeSet<PathBuf>,
        loaded: &mut Loaded,
    ) -> BTreeMap<ObjectId, Good> {
        for (id, last) in last_good {
            let file = match self.seen.get(id) {
                Some(found) if found.entry.valid => continue,
                // Where it is now, whatever becomes of the file that the last good version came from.
                Some(found) => &found.file,
                None if last.file.ancestors().any(|at| unreadable.contains(at)) => &last.file,
                None => continue,
            };
            let stays = Good {
                file: Arc::clone(file),
                ..last.clone()
            };
            loaded.degraded.insert(id.to_string());
            self.seen.insert(id.clone(), stays);
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
