//! Kernels from the distribution's packages, downloaded and unpacked, never installed.
//!
//! A machine's own apt knows one release; kernels of other series are in other suites of the same mirrors. So apt is
//! run with a state of its own, and the machine's is left alone. What was unpacked is kept in the user's cache, and
//! used again without a network.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    command::{self, find_program, say},
    workspace::Workspace,
};

/// The kernels for virtual machines: small, with what nodes use.
const FLAVOUR: &str = "-cloud-amd64";
/// Releases by which the main archive and the security archive are known, and suites there that have kernels.
const SUITES: [(&[&str], &[&str]); 2] = [
    (
        &[
            "bookworm",
            "trixie",
            "forky",
            "oldstable",
            "stable",
            "testing",
        ],
        &[
            "bookworm",
            "bookworm-backports",
            "trixie",
            "trixie-backports",
        ],
    ),
    (
        &[
            "bookworm-security",
            "trixie-security",
            "oldstable-security",
            "stable-security",
        ],
        &["bullseye-security", "bookworm-security", "trixie-security"],
    ),
];
/// What the archives' lists are signed with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Written last into a folder that is whole.
const WHOLE: &str = "whole";

/// A kernel that is unpacked.
pub(super) struct Kernel {
    series: String,
    version: String,
    folder: PathBuf,
}

impl Kernel {
    /// The series that was asked for.
    pub(super) fn series(&self) -> &str {
        &self.series
    }

    /// Its release, as `uname -r` says it.
    pub(super) fn release(&self) -> String {
        format!("{}{FLAVOUR}", self.version)
    }

    /// Its release without the flavour.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// What has its modules below `lib/modules`.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The image to boot.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let release = self.release();
        // Since 6.19 the image is with the modules.
        [
            format!("boot/vmlinuz-{release}"),
            format!("usr/lib/modules/{release}/vmlinuz"),
            format!("lib/modules/{release}/vmlinuz"),
        ]
        .iter()
        .map(|path| self.folder.join(path))
        .find(|path| path.is_file())
        .with_context(|| format!("no kernel image below {}", self.folder.display()))
    }
}

/// Kernels, in the cache and in the archives.
pub(super) struct Packages {
    folder: PathBuf,
    /// The names of the kernels' packages, once asked for.
    known: Option<Vec<String>>,
}

impl Packages {
    /// Opens the cache.
    pub(super) fn open(workspace: &Workspace) -> Result<Self> {
        let cache = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
            .filter(|folder| folder.is_absolute());
        let folder = match cache {
            Some(cache) => cache.join("egress-kernels"),
            None => workspace.root().join("target/kernels/cache"),
        };
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self {
            folder,
            known: None,
        })
    }

    /// The newest kernel of a series: one that is in the cache, else from the archives.
    pub(super) fn kernel(&mut self, series: &str) -> Result<Kernel> {
        let cached = entries(&self.folder)?
            .into_iter()
            .filter(|name| self.folder.join(name).join(WHOLE).exists());
        let version = match newest(cached, series) {
            Some(version) => version,
            None => {
                let version = newest(self.known()?.iter().cloned(), series)
                    .context("the archives have no such kernel")?;
                self.unpack(&version)?;
                version
            }
        };
        Ok(Kernel {
            series: series.to_owned(),
            folder: self.folder.join(&version),
            version,
        })
    }

    /// Every kernel that the archives have.
    fn known(&mut self) -> Result<&[String]> {
        if self.known.is_none() {
            self.update()?;
            let names = command::output(self.apt("apt-cache")?.args(["pkgnames", "linux-image-"]))?;
            self.known = Some(versions(&names));
        }
        Ok(self.known.as_deref().unwrap_or_default())
    }

    /// Fetches the archives' lists into a state of our own.
    fn update(&self) -> Result<()> {
        ensure!(
            find_program("apt-get").is_some(),
            "kernels are taken from Debian's packages, and there is no apt-get here"
        );
        let state = self.folder.join("apt");
        for folder in ["lists/partial", "archives/partial", "parts"] {
            let folder = state.join(folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let targets = command::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ]))?;
        let sources = sources(&targets);
        ensure!(
            !sources.is_empty(),
            "kernels are taken from Debian's archives, and this machine has none configured"
        );
        let list = state.join("sources.list");
        fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))?;
        let path = self.configuration();
        fs::write(&path, configuration(&state))
            .with_context(|| format!("cannot write {}", path.display()))?;
        say(format_args!(
            "fetching the archives' lists of kernels into {}",
            state.display()
        ));
        // One archive without one of the suites is enough for a failure; the other lists are there all the same.
        if let Err(error) = command::run(self.apt("apt-get")?.args(["-qq", "update"])) {
            say(format_args!(
                "{error:#}; going on with the lists that are here"
            ));
        }
        Ok(())
    }

    /// Downloads a kernel and makes its folder.
    fn unpack(&self, version: &str) -> Result<()> {
        let folder = self.folder.join(version);
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        let downloads = folder.join("packages");
        fs::create_dir_all(&downloads)
            .with_context(|| format!("cannot make {}", downloads.display()))?;
        let release = format!("{version}{FLAVOUR}");
        say(format_args!(
            "downloading the kernel {release} into {}",
            folder.display()
        ));
        // Since 6.19 the image's package is empty, and needs these.
        let parts = [
            format!("linux-binary-{release}"),
            format!("linux-modules-{release}"),
        ];
        let names = if self.is_known(&parts[0])? {
            parts.to_vec()
        } else {
            vec![format!("linux-image-{release}")]
        };
        command::run(
            self.apt("apt-get")?
                .current_dir(&downloads)
                .args(["-qq", "download"])
                .args(names),
        )?;
        for name in entries(&downloads)? {
            command::run(
                Command::new("dpkg")
                    .arg("-x")
                    .arg(downloads.join(name))
                    .arg(&folder),
            )?;
        }
        fs::remove_dir_all(&downloads)?;
        let modules = folder.join("lib");
        if !modules.exists() {
            std::os::unix::fs::symlink("usr/lib", &modules)
                .with_context(|| format!("cannot make {}", modules.display()))?;
        }
        // Which module needs which is not in the packages: it is made when they are installed.
        command::run(
            Command::new(program("depmod")?)
                .arg("-b")
                .arg(&folder)
                .arg(&release),
        )?;
        fs::write(folder.join(WHOLE), "")?;
        Ok(())
    }

    fn is_known(&self, package: &str) -> Result<bool> {
        let shown = self
            .apt("apt-cache")?
            .args(["pkgnames", package])
            .output()?;
        let names = String::from_utf8_lossy(&shown.stdout);
        Ok(names.lines().any(|name| name == package))
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("apt/apt.conf")
    }

    fn apt(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(program(name)?);
        command.env("APT_CONFIG", self.configuration());
        Ok(command)
    }
}

/// A program that set-up has installed.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("there is no program {name} here"))
}

fn configuration(state: &Path) -> String {
    let state = state.display();
    format!(
        "Dir::State::Lists \"{state}/lists\";\n\
         Dir::Cache \"{state}\";\n\
         Dir::Etc::sourcelist \"{state}/sources.list\";\n\
         Dir::Etc::sourceparts \"{state}/parts\";\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n"
    )
}

/// apt's list of sources: other suites of the archives that the machine is configured with, which `targets` tells
/// as lines of an archive's address, a release and a component.
fn sources(targets: &str) -> String {
    let mut lines = BTreeSet::new();
    for line in targets.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Archives of others often call their releases after Debian's, but seldom have this component.
        let &[archive, release, "main"] = words.as_slice() else {
            continue;
        };
        let found = SUITES
            .iter()
            .find(|(releases, _)| releases.contains(&release));
        for suite in found.iter().flat_map(|(_, suites)| suites.iter()) {
            lines.insert(format!(
                "deb [signed-by={KEYRING}] {archive} {suite} main\n"
            ));
        }
    }
    lines.into_iter().collect()
}

/// The kernels of our flavour among names of packages, without `linux-image-` and the flavour.
fn versions(names: &str) -> Vec<String> {
    names
        .lines()
        .filter_map(|name| {
            let version = name.strip_prefix("linux-image-")?.strip_suffix(FLAVOUR)?;
            Some(version.to_owned())
        })
        .collect()
}

/// The newest version of a series.
fn newest(versions: impl IntoIterator<Item = String>, series: &str) -> Option<String> {
    versions
        .into_iter()
        .filter(|version| {
            let rest = version.strip_prefix(series);
            // The 6.1 of 6.12 is another series.
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .max_by_key(|version| numbers(version))
}

/// The numbers in a version, in order.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn entries(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let listing =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in listing {
        match entry?.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(name) => bail!("{} has a strange file {name:?}", folder.display()),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_the_series_and_of_no_other() {
        let names = "linux-image-6.1.0-9-cloud-amd64\n\
                     linux-image-6.1.0-41-cloud-amd64\n\
                     linux-image-6.12.9+deb12-cloud-amd64\n\
                     linux-image-6.12.38+deb12-cloud-amd64\n\
                     linux-image-6.12.63+deb12-amd64\n\
                     linux-image-cloud-amd64\n";
        for (series, expected) in [
            ("6.1", Some("6.1.0-41")),
            ("6.12", Some("6.12.38+deb12")),
            ("6", Some("6.12.38+deb12")),
            ("5.10", None),
        ] {
            assert_eq!(
                newest(versions(names), series).as_deref(),
                expected,
                "{series}"
            );
        }
    }

    #[test]
    fn other_suites_of_the_same_archives() {
        let targets = "http://archive.example/debian/ bookworm main\n\
                       http://archive.example/debian/ bookworm-updates main\n\
                       http://archive.example/security/ stable-security main\n\
                       http://archive.example/else/ bookworm stable\n";
        let sources = sources(targets);
        let lines: Vec<&str> = sources.lines().collect();
        assert_eq!(lines.len(), 7, "{sources}");
        for (archive, suite) in [
            ("debian", "trixie-backports"),
            ("security", "bullseye-security"),
        ] {
            let line =
                format!("deb [signed-by={KEYRING}] http://archive.example/{archive}/ {suite} main");
            assert!(lines.contains(&line.as_str()), "{line} in {sources}");
        }
        assert!(!sources.contains("else"), "{sources}");
    }
}
