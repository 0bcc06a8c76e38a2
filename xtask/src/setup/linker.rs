//! `bpf-linker`: reads what the compiler wrote, so its LLVM has to be of the same major version.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    slice,
};

use anyhow::{Context as _, Result, bail};

use super::packages;
use crate::{
    command::{self, find_program, is_executable, say},
    workspace::Workspace,
};

const NAME: &str = "bpf-linker";
/// What is built from source; its features name the LLVM versions below.
const VERSION: &str = "0.13.0";
const BUILDABLE_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// A linker whose LLVM fits.
pub(crate) struct Linker {
    path: PathBuf,
}

impl Linker {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// One that is there: the user's own first, then the one that set-up built before.
    pub(super) fn find(workspace: &Workspace, llvm: u32) -> Option<Self> {
        // Cargo puts its folders in front of PATH; a user's own cargo folder may not be on it at all.
        let users_own = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
            .map(|home| home.join("bin").join(NAME));
        find_program(NAME)
            .into_iter()
            .chain(users_own)
            .chain([ours(workspace)])
            .find(|path| is_executable(path) && llvm_of(path) == Some(llvm))
            .map(|path| Self { path })
    }

    /// Downloads a built one where that is possible, else builds it.
    pub(super) fn install(workspace: &Workspace, llvm: u32) -> Result<Self> {
        if find_program("cargo-binstall").is_some() {
            say(format_args!(
                "installing {NAME} into {} with cargo binstall",
                workspace.tools().display()
            ));
            // No release may fit this platform or this LLVM; the source is left then.
            let downloaded = command::run(
                command::cargo()
                    .args([
                        "binstall",
                        "--no-confirm",
                        "--disable-strategies",
                        "compile",
                    ])
                    .arg("--root")
                    .arg(workspace.tools())
                    .arg(NAME),
            );
            match (downloaded, Self::find(workspace, llvm)) {
                (Ok(()), Some(linker)) => return Ok(linker),
                (Ok(()), None) => say(format_args!(
                    "the {NAME} it installed has another LLVM than {llvm}"
                )),
                (Err(error), _) => say(format_args!("{error:#}")),
            }
        }
        build(workspace, llvm)?;
        Self::find(workspace, llvm).with_context(|| {
            format!(
                "{} was built, but does not say that its LLVM is {llvm}",
                ours(workspace).display()
            )
        })
    }
}

fn ours(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("bin").join(NAME)
}

fn build(workspace: &Workspace, llvm: u32) -> Result<()> {
    if !BUILDABLE_LLVM.contains(&llvm) {
        bail!(
            "the compiler has LLVM {llvm}, and {NAME} {VERSION} can be built with LLVM {} to {} only",
            BUILDABLE_LLVM.start(),
            BUILDABLE_LLVM.end()
        );
    }
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    // Linked against the shared library, so nothing that LLVM itself needs has to be there as well.
    if !prefix.join("lib/libLLVM.so").exists() {
        let package = format!("llvm-{llvm}-dev");
        packages::install(slice::from_ref(&&*package), "what bpf-linker is built with")?;
    }
    say(format_args!(
        "building {NAME} {VERSION} with LLVM {llvm} into {} (a minute or two)",
        workspace.tools().display()
    ));
    fs::create_dir_all(workspace.tools())
        .with_context(|| format!("cannot create {}", workspace.tools().display()))?;
    command::run(
        command::cargo()
            // Away from the workspace, whose configuration is not meant for it.
            .current_dir(workspace.tools())
            .env("LLVM_PREFIX", &prefix)
            .args(["install", NAME, "--version", VERSION, "--locked", "--force"])
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{llvm}"),
            ])
            .arg("--root")
            .arg(workspace.tools()),
    )
}

/// The major version of a linker's LLVM.
fn llvm_of(linker: &Path) -> Option<u32> {
    // `--version` speaks of bpf-linker alone; LLVM answers for itself before any file is opened.
    let answer = command::output(Command::new(linker).args([
        "--llvm-args=--version",
        "-o",
        "/dev/null",
        "/dev/null",
    ]));
    llvm_major(&answer.ok()?)
}

fn llvm_major(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("LLVM version ")?;
    version.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_says_its_own_version() {
        assert_eq!(
            llvm_major("Debian LLVM version 22.1.8\n  Optimized build.\n"),
            Some(22)
        );
        assert_eq!(
            llvm_major("LLVM (http://llvm.org/):\n  LLVM version 21.1.3\n"),
            Some(21)
        );
        assert_eq!(llvm_major("LLVM version 23\n"), Some(23));
        assert_eq!(llvm_major("bpf-linker 0.13.0\n"), None);
    }
}
