//! The compiler of the eBPF programs: one that accepts `-Z build-std` and has `core`'s source.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::packages;
use crate::command::{self, find_program, is_executable, say};

/// Names one source, for whoever has to build with that one (`rustup` or `debian`).
const CHOICE: &str = "EGRESS_EBPF_COMPILER";

/// Where Debian's pair is; a rustup in front of it on PATH does not hide it.
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Debian's own names of its newest Rust, kept current for its browsers.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Where a compiler can come from, in the order in which they are tried.
pub(super) enum Source {
    /// A nightly that rustup has.
    RustupNightly,
    /// Debian's pair, told to accept unstable flags.
    Debian,
    /// A nightly that rustup has yet to download.
    RustupDownload,
}

impl Source {
    /// All of them, or the one that the user named.
    pub(super) fn allowed() -> Result<Vec<Self>> {
        match env::var(CHOICE).as_deref() {
            Err(_) | Ok("") => Ok(vec![
                Self::RustupNightly,
                Self::Debian,
                Self::RustupDownload,
            ]),
            Ok("rustup") => Ok(vec![Self::RustupNightly, Self::RustupDownload]),
            Ok("debian") => Ok(vec![Self::Debian]),
            Ok(other) => bail!("{CHOICE}={other}: it can be \"rustup\" or \"debian\", or unset"),
        }
    }

    /// The compiler, when it is complete as it is.
    pub(super) fn find(&self) -> Option<Compiler> {
        match self {
            Self::RustupNightly => rustup_nightlies()
                .into_iter()
                .filter_map(rustup_compiler)
                .find(Compiler::has_source),
            Self::Debian => debian_compiler().filter(Compiler::has_source),
            Self::RustupDownload => None,
        }
    }

    /// The compiler, after installing what it lacks.
    pub(super) fn install(&self) -> Result<Compiler> {
        if let Some(compiler) = self.find() {
            return Ok(compiler);
        }
        match self {
            Self::RustupNightly => {
                let Some(nightly) = rustup_nightlies().into_iter().next() else {
                    bail!("rustup has no nightly toolchain");
                };
                say(format_args!(
                    "installing rust-src for rustup's {nightly} (source of core, for eBPF)"
                ));
                command::run(Command::new("rustup").args([
                    "component",
                    "add",
                    "rust-src",
                    "--toolchain",
                    &nightly,
                ]))?;
            }
            Self::Debian => {
                packages::install(&DEBIAN_PACKAGES, "the compiler of the eBPF programs")?
            }
            Self::RustupDownload => {
                if find_program("rustup").is_none() {
                    bail!("rustup is not installed");
                }
                say(format_args!(
                    "installing rustup's nightly toolchain with rust-src (compiler for eBPF)"
                ));
                command::run(
                    Command::new("rustup")
                        .args(["toolchain", "install", "nightly"])
                        .args(["--profile", "minimal", "--component", "rust-src,clippy"]),
                )?;
                return Self::RustupNightly
                    .find()
                    .context("the new nightly has no source of core");
            }
        }
        self.find()
            .context("it was installed, but still lacks a compiler or the source of core")
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RustupNightly => "rustup's nightly",
            Self::Debian => "Debian's rustc-web",
            Self::RustupDownload => "rustup's nightly, downloaded",
        })
    }
}

/// A compiler, its cargo, and what it says about itself.
pub(crate) struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
    version: Version,
    /// A stable compiler accepts unstable flags only when told to.
    stable: bool,
}

impl Compiler {
    fn ask(cargo: PathBuf, rustc: PathBuf) -> Option<Self> {
        if !is_executable(&cargo) || !is_executable(&rustc) {
            return None;
        }
        let version = Version::parse(&command::output(Command::new(&rustc).arg("-vV")).ok()?)?;
        let sysroot = command::output(Command::new(&rustc).args(["--print", "sysroot"])).ok()?;
        let stable = !version.release.contains("nightly");
        Some(Self {
            cargo,
            rustc,
            sysroot: PathBuf::from(sysroot.trim()),
            version,
            stable,
        })
    }

    pub(crate) fn cargo(&self) -> &Path {
        &self.cargo
    }

    pub(crate) fn rustc(&self) -> &Path {
        &self.rustc
    }

    /// The first line of `rustc --version`, by which a changed compiler is noticed.
    pub(crate) fn version(&self) -> &str {
        &self.version.line
    }

    /// The major version of its LLVM, which the linker has to share.
    pub(crate) const fn llvm(&self) -> u32 {
        self.version.llvm
    }

    /// The value of RUSTC_BOOTSTRAP that it needs.
    pub(crate) fn bootstrap(&self) -> Option<&'static str> {
        self.stable.then_some("1")
    }

    fn has_source(&self) -> bool {
        self.sysroot
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
    }
}

fn rustup_nightlies() -> Vec<String> {
    if find_program("rustup").is_none() {
        return Vec::new();
    }
    command::output(Command::new("rustup").args(["toolchain", "list"]))
        .map(|list| nightlies(&list))
        .unwrap_or_default()
}

fn rustup_compiler(toolchain: String) -> Option<Compiler> {
    let which = |program| {
        command::output(Command::new("rustup").args(["which", "--toolchain", &toolchain, program]))
            .ok()
            .map(|path| PathBuf::from(path.trim()))
    };
    Compiler::ask(which("cargo")?, which("rustc")?)
}

fn debian_compiler() -> Option<Compiler> {
    let compiler = Compiler::ask(DEBIAN_CARGO.into(), DEBIAN_RUSTC.into())?;
    // Without -web these paths are the distribution's release compiler, which is too old.
    (compiler.version.minor() >= OLDEST_MINOR).then_some(compiler)
}

/// The workspace's `rust-version`.
const OLDEST_MINOR: u32 = 95;

/// The nightly toolchains of `rustup toolchain list`: the rolling one first, dated ones newest first.
fn nightlies(list: &str) -> Vec<String> {
    let mut names: Vec<String> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect();
    let is_dated = |name: &str| name.strip_prefix("nightly-20").is_some();
    names.sort_by(|a, b| is_dated(a).cmp(&is_dated(b)).then_with(|| b.cmp(a)));
    names
}

/// What `rustc -vV` says.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    line: String,
    release: String,
    llvm: u32,
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key))
                .map(str::trim)
        };
        Some(Self {
            line: text.lines().next()?.trim().to_owned(),
            release: value("release:")?.to_owned(),
            llvm: value("LLVM version:")?.split('.').next()?.parse().ok()?,
        })
    }

    fn minor(&self) -> u32 {
        self.release
            .split('.')
            .nth(1)
            .and_then(|minor| minor.parse().ok())
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIGHTLY: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\n\
        commit-hash: e50aa6fba4e63ab34c72bf9acfd2c307c1155d1a\ncommit-date: 2026-05-19\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
        binary: rustc\nhost: aarch64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn a_compiler_says_its_release_and_llvm() {
        let nightly = Version::parse(NIGHTLY);
        assert_eq!(
            nightly,
            Some(Version {
                line: "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)".to_owned(),
                release: "1.97.0-nightly".to_owned(),
                llvm: 22,
            })
        );
        assert_eq!(nightly.map(|version| version.minor()), Some(97));
        assert_eq!(
            Version::parse(DEBIAN).map(|version| version.minor()),
            Some(96)
        );
    }

    #[test]
    fn a_compiler_without_llvm_is_none_of_ours() {
        assert_eq!(
            Version::parse(&NIGHTLY.replace("LLVM version: 22.1.4", "")),
            None
        );
        assert_eq!(Version::parse(""), None);
    }

    #[test]
    fn the_rolling_nightly_comes_first() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\n\
            nightly-2026-01-02-x86_64-unknown-linux-gnu\n\
            nightly-2026-03-04-x86_64-unknown-linux-gnu\n\
            nightly-x86_64-unknown-linux-gnu\n1.95.0-x86_64-unknown-linux-gnu\n";
        assert_eq!(
            nightlies(list),
            [
                "nightly-x86_64-unknown-linux-gnu",
                "nightly-2026-03-04-x86_64-unknown-linux-gnu",
                "nightly-2026-01-02-x86_64-unknown-linux-gnu",
            ]
        );
        assert!(nightlies("no installed toolchains\n").is_empty());
    }
}
