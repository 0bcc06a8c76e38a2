//! Where things are in this checkout.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The folders and files that the tasks agree on.
pub(crate) struct Workspace {
    root: PathBuf,
    /// The folder of this very program, without the profile.
    artifacts: PathBuf,
}

impl Workspace {
    /// Finds the checkout that this program belongs to.
    pub(crate) fn find() -> Result<Self> {
        // `cargo run` says where the package is now; what it was when we were compiled is a guess for
        // whoever starts the binary by hand.
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package
            .parent()
            .context("the folder of the xtask package has no parent")?
            .to_path_buf();
        // The same cargo with the same settings builds the other binaries, so they land where we did,
        // whatever CARGO_TARGET_DIR or a configuration file says.
        let program = env::current_exe().context("cannot find this program's own file")?;
        let artifacts = program
            .ancestors()
            .nth(2)
            .with_context(|| format!("{} is not in a target folder", program.display()))?
            .to_path_buf();
        Ok(Self { root, artifacts })
    }

    /// The root of the checkout.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo puts a binary of ours.
    pub(crate) fn binary(&self, profile: Profile, name: &str) -> PathBuf {
        self.artifacts.join(profile.folder()).join(name)
    }

    /// What set-up writes and the build script of `egress-userspace` reads.
    ///
    /// Always in the checkout, also where the target folder is elsewhere: the build script cannot know
    /// about that.
    pub(crate) fn toolchain_record(&self) -> PathBuf {
        self.root.join("target/ebpf-toolchain.env")
    }

    /// Where what virtual machines of other kernels say is kept.
    pub(crate) fn kernel_logs(&self) -> PathBuf {
        self.root.join("target/kernels")
    }

    /// Where set-up installs programs that only this checkout uses.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }
}

/// How the userspace binaries are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// The arguments that tell cargo.
    pub(crate) const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
        }
    }

    const fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}
