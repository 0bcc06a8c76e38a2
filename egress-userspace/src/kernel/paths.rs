//! Where things are pinned.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use egress_common::maps;
use nix::{
    fcntl::Flock,
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::object::Program;
use crate::state_dir::{lock_for_one, remove_if_empty, remove_own_file};

const BPFFS: &str = "/sys/fs/bpf";
/// The inode number that the kernel gives the root of every file system of this kind (`fs/libfs.c`).
const ROOT_INODE: u64 = 1;
const CLSACT: &str = "clsact-";
const CURRENT: &str = "maps";
const OLD: &str = "old";
/// Between a map's name and the number of its layout: a dot may not be in the name of a pin.
const LAYOUT: char = '-';
const SEGMENT: &str = "LINES_";
const TRIE_SEGMENT: &str = "TRIE_";
const CLASSES: &str = "CLASSES_";
const QDISC: &str = "qdisc-";

/// The pin directory of one agent.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    /// The directory of the maps' generation.
    generation: &'static str,
}

impl Paths {
    /// The paths below `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            generation: CURRENT,
        }
    }

    /// The same for the maps of an earlier generation, which is at work until the new one is filled.
    pub(super) fn old(&self) -> Self {
        Self {
            generation: OLD,
            ..self.clone()
        }
    }

    /// The directory that says that hooks may have programs of the new generation already.
    pub(super) fn switching(&self) -> PathBuf {
        self.root.join("switching")
    }

    /// The pin directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a map is pinned, in the layout that this version knows.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        match maps::layout(name) {
            1 => self.maps().join(name),
            layout => self.maps().join(format!("{name}{LAYOUT}{layout}")),
        }
    }

    /// Where a segment of the line store is pinned.
    #[must_use]
    pub fn segment(&self, index: u32) -> PathBuf {
        self.maps().join(format!("{SEGMENT}{index}"))
    }

    /// Where a segment of the prefix trie is pinned.
    #[must_use]
    pub fn trie_segment(&self, index: u32) -> PathBuf {
        self.maps().join(format!("{TRIE_SEGMENT}{index}"))
    }

    /// Where a segment of the list of prefixes is pinned.
    #[must_use]
    pub fn classes(&self, index: u32) -> PathBuf {
        self.maps().join(format!("{CLASSES}{index}"))
    }

    /// Whether a path is that of a segment of this generation.
    pub(super) fn is_segment(&self, path: &Path) -> bool {
        path.parent() == Some(&self.maps()) && path.file_name().is_some_and(is_segment)
    }

    /// Where the link of a program on an interface is pinned.
    #[must_use]
    pub fn link(&self, program: Program, ifindex: u32) -> PathBuf {
        self.links().join(format!("{}-{ifindex}", program.name()))
    }

    /// The pin that marks a clsact filter, which has no link to pin.
    #[must_use]
    pub fn clsact_marker(&self, program: Program, ifindex: u32) -> PathBuf {
        self.links()
            .join(format!("{CLSACT}{}-{ifindex}", program.name()))
    }

    /// Where a new marker is pinned before it takes the old one's place.
    #[must_use]
    pub fn new_marker(&self) -> PathBuf {
        self.root.join("marker")
    }

    /// The directory that says that an interface's clsact qdisc is of our making.
    #[must_use]
    pub fn own_qdisc(&self, ifindex: u32) -> PathBuf {
        self.root.join(format!("{QDISC}{ifindex}"))
    }

    /// Reads the name of a pinned link or marker: the program, the interface, whether it is a marker.
    #[must_use]
    pub fn parse_link(path: &Path) -> Option<(Program, u32, bool)> {
        let name = path.file_name()?.to_str()?;
        let (clsact, name) = match name.strip_prefix(CLSACT) {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let (program, ifindex) = name.rsplit_once('-')?;
        let program = Program::ALL.iter().find(|known| known.name() == program)?;
        Some((*program, ifindex.parse().ok()?, clsact))
    }

    /// The directory of the maps.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.root.join(self.generation)
    }

    /// Makes the directory of the maps.
    pub(super) fn make_maps(&self) -> anyhow::Result<()> {
        make(&self.maps())
    }

    /// The directory of the links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Whether maps of an earlier run are there.
    #[must_use]
    pub fn has_maps(&self) -> bool {
        let has_entries = |directory: &Path| {
            fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
        };
        has_entries(&self.maps()) || has_entries(&self.old().maps())
    }

    /// Mounts the BPF file system where it should be and is not.
    ///
    /// # Errors
    /// It cannot be mounted: that takes CAP_SYS_ADMIN.
    pub fn mount(&self) -> anyhow::Result<()> {
        if self.root.starts_with(BPFFS) {
            mount_bpffs(Path::new(BPFFS))?;
        }
        Ok(())
    }

    /// Makes the directories, mounts the BPF file system where it should be and is not, and locks.
    pub fn prepare(&self) -> anyhow::Result<Flock<File>> {
        self.mount()?;
        make(&self.root)?;
        let lock = self.lock()?;
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot close {} to others", self.root.display()))?;
        make(&self.maps())?;
        make(&self.links())?;
        Ok(lock)
    }

    /// Makes the directories again that something else removed, and takes the new pin directory.
    ///
    /// # Errors
    /// Another agent was there first.
    pub fn make_again(&self, lock: &mut Flock<File>) -> anyhow::Result<()> {
        let taken = lock.metadata()?;
        let is_there = fs::metadata(&self.root)
            .is_ok_and(|there| (there.dev(), there.ino()) == (taken.dev(), taken.ino()));
        if !is_there {
            *lock = self.prepare()?;
            return Ok(());
        }
        make(&self.maps())?;
        make(&self.links())
    }

    /// Takes the pin directory, which exists, for as long as the lock lives.
    ///
    /// # Errors
    /// An agent has it, or it is no place for pins.
    pub fn lock(&self) -> anyhow::Result<Flock<File>> {
        let root = File::open(&self.root)
            .with_context(|| format!("cannot open the pin directory {}", self.root.display()))?;
        let kind = statfs(&self.root)
            .with_context(|| format!("cannot look at {}", self.root.display()))?
            .filesystem_type();
        ensure!(
            kind == BPF_FS_MAGIC,
            "--pin-dir {} is not on a BPF file system: choose a directory below {BPFFS}, or \
             mount one with `mount -t bpf bpf DIR` and choose a directory below that",
            self.root.display()
        );
        ensure!(
            root.metadata()?.ino() != ROOT_INODE,
            "--pin-dir {} is the whole BPF file system, where others have pins too: choose a \
             directory below it, such as {}",
            self.root.display(),
            self.root.join("egress").display()
        );
        lock_for_one(root, &self.root, &self.root, "--pin-dir")
    }

    /// Removes every pin of ours, and the directories unless something else is in them.
    ///
    /// What the pins of links hold must be detached before. Returns whether the pin directory is gone.
    ///
    /// # Errors
    /// The first pin that could not be removed.
    pub fn remove(&self) -> anyhow::Result<bool> {
        for link in entries(&self.links())? {
            let path = self.links().join(link);
            if Self::parse_link(&path).is_some() {
                remove_own_file(&path)?;
            }
        }
        remove_maps(&self.old())?;
        remove_maps(self)?;
        remove_if_empty(&self.switching())?;
        remove_own_file(&self.new_marker())?;
        for mark in entries(&self.root)? {
            if let Some(ifindex) = number_after(&mark, QDISC) {
                remove_if_empty(&self.own_qdisc(ifindex))?;
            }
        }
        remove_if_empty(&self.links())?;
        remove_if_empty(&self.root)
    }
}

/// Removes the pins of a generation's maps, of whichever layout, and the directory unless something else is in it.
pub(super) fn remove_maps(paths: &Paths) -> anyhow::Result<bool> {
    for name in entries(&paths.maps())? {
        let mut maps = maps::ALL.iter().chain(maps::FORMER);
        if maps.any(|map| is_map(&name, map)) || is_segment(&name) {
            remove_own_file(&paths.maps().join(name))?;
        }
    }
    remove_if_empty(&paths.maps())
}

/// Removes a generation that is no longer needed: all that is in its directory, for another version may have had maps
/// that this one does not know, and would find what is left taken for a switch that broke off.
pub(super) fn remove_generation(paths: &Paths) -> anyhow::Result<()> {
    let directory = paths.maps();
    for name in entries(&directory)? {
        remove_own_file(&directory.join(name))?;
    }
    ensure!(
        remove_if_empty(&directory)?,
        "cannot remove {}: something is put into it",
        directory.display()
    );
    Ok(())
}

fn is_segment(name: &OsStr) -> bool {
    [SEGMENT, TRIE_SEGMENT, CLASSES]
        .iter()
        .any(|segments| number_after(name, segments).is_some())
}

/// Whether a pin's name is that of a map, in any layout.
fn is_map(name: &OsStr, map: &str) -> bool {
    name.to_str()
        .and_then(|name| name.strip_prefix(map))
        .is_some_and(|rest| {
            rest.is_empty()
                || rest
                    .strip_prefix(LAYOUT)
                    .is_some_and(|layout| layout.parse::<u32>().is_ok())
        })
}

fn make(directory: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make the pin directory {}", directory.display()))
}

/// The names in a directory, which may be missing.
fn entries(directory: &Path) -> anyhow::Result<Vec<OsString>> {
    let read = || -> io::Result<Vec<_>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names.with_context(|| format!("cannot read {}", directory.display())),
    }
}

fn number_after(name: &OsStr, prefix: &str) -> Option<u32> {
    name.to_str()?.strip_prefix(prefix)?.parse().ok()
}

fn mount_bpffs(at: &Path) -> anyhow::Result<()> {
    let kind = statfs(at)
        .with_context(|| {
            format!(
                "cannot look at {}: is /sys mounted, and does the kernel have BPF?",
                at.display()
            )
        })?
        .filesystem_type();
    if kind == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(
        Some("bpf"),
        at,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .with_context(|| {
        format!(
            "cannot mount the BPF file system on {at}, which takes CAP_SYS_ADMIN: let the unit or an init container \
             run `mount -t bpf bpf {at}` first",
            at = at.display()
        )
    })?;
    tracing::info!(path = %at.display(), "mounted the BPF file system");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use super::*;

    /// A directory of ordinary files, which have names as pins have.
    fn pinned(directory: &Path) -> Paths {
        let paths = Paths::new(directory.join("agent"));
        for directory in [
            paths.maps(),
            paths.old().maps(),
            paths.links(),
            paths.own_qdisc(3),
            paths.switching(),
        ] {
            make(&directory).unwrap();
        }
        let pins =
            maps::ALL
                .iter()
                .map(|map| paths.map(map))
                .chain([paths.segment(0), paths.segment(17), paths.new_marker()])
                .chain([
                    paths.trie_segment(3),
                    paths.classes(0),
                    paths.map("PREFIXES4"),
                ])
                .chain([paths.maps().join("MEMBERS-17"), paths.old().map("PODS")])
                .chain(Program::ALL.iter().flat_map(|&program| {
                    [paths.link(program, 2), paths.clsact_marker(program, 3)]
                }));
        for pin in pins {
            fs::write(pin, b"").unwrap();
        }
        paths
    }

    #[test]
    fn every_pin_of_ours_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let paths = pinned(directory.path());
        assert!(paths.remove().unwrap());
        assert!(!paths.root().exists());
        assert!(paths.remove().unwrap(), "once more is no error");
    }

    #[test]
    fn pins_of_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let paths = pinned(directory.path());
        let foreign = [
            paths.root().join("theirs"),
            paths.root().join("qdisc-x"),
            paths.map("LINES_x"),
            paths.map("THEIRS"),
            paths.maps().join("PODS-x"),
            paths.links().join("theirs-2"),
        ];
        for path in &foreign {
            fs::write(path, b"").unwrap();
        }
        assert!(!paths.remove().unwrap());
        for path in &foreign {
            assert!(path.exists(), "{} is gone", path.display());
        }
        // The directories of maps and links are there for what is in them.
        assert_eq!(entries(paths.root()).unwrap().len(), 4);
        assert_eq!(entries(&paths.maps()).unwrap().len(), 3);
        assert_eq!(entries(&paths.links()).unwrap().len(), 1);
    }

    #[test]
    fn a_directory_elsewhere_is_no_place_for_pins() {
        let directory = tempfile::tempdir().unwrap();
        let error = Paths::new(directory.path()).lock().unwrap_err();
        assert!(
            error.to_string().contains("choose a directory"),
            "{error:#}"
        );
    }
}
