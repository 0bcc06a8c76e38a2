//! Where things are pinned.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::object::Program;

const BPFFS: &str = "/sys/fs/bpf";
const CLSACT: &str = "clsact-";

/// The pin directory of one agent.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// The paths below `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The pin directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where a segment of the line store is pinned.
    #[must_use]
    pub fn segment(&self, index: u32) -> PathBuf {
        self.maps().join(format!("LINES_{index}"))
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
        self.root.join(format!("qdisc-{ifindex}"))
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
        self.root.join("maps")
    }

    /// The directory of the links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Whether maps of an earlier run are there.
    #[must_use]
    pub fn has_maps(&self) -> bool {
        fs::read_dir(self.maps()).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Makes the directories, and mounts the BPF file system where it should be and is not.
    pub fn prepare(&self) -> anyhow::Result<()> {
        if self.root.starts_with(BPFFS) {
            mount_bpffs(Path::new(BPFFS))?;
        }
        for directory in [self.root.clone(), self.maps(), self.links()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .with_context(|| {
                    format!("cannot make the pin directory {}", directory.display())
                })?;
        }
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot close {} to others", self.root.display()))?;
        let kind = statfs(&self.root)
            .with_context(|| format!("cannot look at {}", self.root.display()))?
            .filesystem_type();
        if kind != BPF_FS_MAGIC {
            bail!(
                "--pin-dir {} is not on a BPF file system: choose a directory below {BPFFS}, or \
                 mount one with `mount -t bpf bpf DIR`",
                self.root.display()
            );
        }
        Ok(())
    }
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
    .with_context(|| format!("cannot mount the BPF file system on {}", at.display()))?;
    tracing::info!(path = %at.display(), "mounted the BPF file system");
    Ok(())
}
