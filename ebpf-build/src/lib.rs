//! Builds an eBPF object and leaves it in `OUT_DIR`, from where a package embeds it: for build scripts, and for who looks at
//! the same programs.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SETUP_HINT: &str = "run `cargo xtask setup`";

/// Programs that a package of this workspace has, for the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    /// The package.
    pub package: &'a str,
    /// Its binary.
    pub binary: &'a str,
    /// Folders and files, from the workspace's root, that the object is made of.
    pub sources: &'a [&'a str],
    /// Features of the package to build with.
    pub features: &'a [&'a str],
    /// The object's name in `OUT_DIR`.
    pub object: &'a str,
}

/// Builds them, and tells cargo what went wrong: what a build script's `main` returns.
#[must_use]
pub fn build(programs: &Programs<'_>) -> ExitCode {
    match try_build(programs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            // Cargo shows what a build script wrote to stderr only when the script itself fails; one
            // clear sentence needs no more than the line above.
            if error.is::<InnerBuildFailed>() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            }
        }
    }
}

/// The inner cargo has already written to stderr why.
#[derive(Debug)]
struct InnerBuildFailed(String);

impl std::fmt::Display for InnerBuildFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for InnerBuildFailed {}

/// The variable by which cargo is told the linker of a target. It counts among what a crate was built with.
#[must_use]
pub fn linker_variable(target: &str) -> String {
    format!(
        "CARGO_TARGET_{}_LINKER",
        target.to_uppercase().replace('-', "_")
    )
}

/// What the compiler is told of every crate of the programs, on a machine of this architecture, as
/// `CARGO_ENCODED_RUSTFLAGS` has it: whoever says the same, and names the same linker, finds built what was built.
#[must_use]
pub fn flags(arch: &str) -> String {
    [
        &*format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // By words where they are aligned, not byte by byte.
        "-Clink-arg=--disable-expand-memcpy-in-order",
    ]
    .join("\x1f")
}

fn try_build(programs: &Programs<'_>) -> Result<()> {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = package
        .parent()
        .ok_or("the package has no parent folder: the workspace is incomplete")?;
    let record = workspace.join("target/ebpf-toolchain.env");
    for path in programs.sources.iter().chain(&["Cargo.toml", "Cargo.lock"]) {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    println!("cargo::rerun-if-changed={}", record.display());

    let toolchain = Toolchain::read(&record)?;
    // An update in place (`rustup update`) changes the compiler behind the same path.
    println!("cargo::rerun-if-changed={}", toolchain.rustc.display());
    println!("cargo::rerun-if-changed={}", toolchain.linker.display());

    // One folder for all: build scripts run anew for every choice of features and profiles that cargo makes, and most
    // of what they build is the same. What is built last lies where others were, so nobody builds until it is copied.
    let target_dir = workspace.join("target/ebpf");
    fs::create_dir_all(&target_dir)?;
    let alone = fs::File::create(target_dir.join("build.lock"))?;
    alone.lock()?;
    let object = toolchain.build_object(workspace, &target_dir, programs)?;
    let embedded = PathBuf::from(variable("OUT_DIR")?).join(programs.object);
    fs::copy(&object, &embedded).map_err(|error| {
        format!(
            "cannot copy {} to {}: {error}",
            object.display(),
            embedded.display()
        )
    })?;
    Ok(())
}

/// What `cargo xtask setup` found or installed.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    linker: PathBuf,
    /// Set where a stable compiler has to accept `-Z build-std`.
    bootstrap: Option<String>,
}

impl Toolchain {
    fn read(record: &Path) -> Result<Self> {
        let text = fs::read_to_string(record).map_err(|_missing| {
            format!(
                "no toolchain for eBPF is recorded in {}: {SETUP_HINT}",
                record.display()
            )
        })?;
        let mut values: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let mut take = |key: &str| values.remove(key).filter(|value| !value.is_empty());
        let mut existing = |key: &str| match take(key).map(PathBuf::from) {
            Some(path) if path.is_file() => Ok(path),
            Some(path) => Err(format!(
                "{key}={} in {} does not exist any more: {SETUP_HINT}",
                path.display(),
                record.display()
            )),
            None => Err(format!(
                "{key} is missing in {}: {SETUP_HINT}",
                record.display()
            )),
        };

        let toolchain = Self {
            cargo: existing("CARGO")?,
            rustc: existing("RUSTC")?,
            linker: existing("LINKER")?,
            bootstrap: take("RUSTC_BOOTSTRAP").map(str::to_owned),
        };
        if let Some(recorded) = take("RUSTC_VERSION") {
            let actual = toolchain.rustc_version()?;
            if actual != recorded {
                return Err(format!(
                    "the eBPF compiler is now \"{actual}\", {} was written for \"{recorded}\": {SETUP_HINT}",
                    record.display()
                )
                .into());
            }
        }
        Ok(toolchain)
    }

    fn rustc_version(&self) -> Result<String> {
        let output = Command::new(&self.rustc)
            .arg("--version")
            .output()
            .map_err(|error| {
                format!("cannot run {}: {error}: {SETUP_HINT}", self.rustc.display())
            })?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs the inner cargo; its messages go to our stderr, which cargo shows in full when we fail.
    fn build_object(
        &self,
        workspace: &Path,
        target_dir: &Path,
        programs: &Programs<'_>,
    ) -> Result<PathBuf> {
        let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
            "big" => "bpfeb-unknown-none",
            _ => "bpfel-unknown-none",
        };
        let arch = variable("CARGO_CFG_TARGET_ARCH")?;
        let mut command = Command::new(&self.cargo);
        command
            .current_dir(workspace)
            .args([
                "build",
                "--quiet",
                "--package",
                programs.package,
                "--bin",
                programs.binary,
            ])
            .args([
                "--profile",
                "ebpf",
                "-Z",
                "build-std=core",
                "--target",
                target,
            ])
            // Not the usual one: the outer cargo holds its lock while we run.
            .arg("--target-dir")
            .arg(target_dir);
        for feature in programs.features {
            command.args(["--features", feature]);
        }
        // What the outer cargo (or clippy, or a user's shell) tells its own compiler is not for this one.
        for (key, _) in env::vars_os() {
            if is_for_the_outer_build(&key) {
                command.env_remove(key);
            }
        }
        command
            .env("CARGO_BUILD_BUILD_DIR", target_dir)
            .env("RUSTC", &self.rustc)
            .env(linker_variable(target), &self.linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(&arch));
        if let Some(bootstrap) = &self.bootstrap {
            command.env("RUSTC_BOOTSTRAP", bootstrap);
        }

        let status = command.status().map_err(|error| {
            format!("cannot run {}: {error}: {SETUP_HINT}", self.cargo.display())
        })?;
        if !status.success() {
            return Err(InnerBuildFailed(format!(
                "the eBPF programs do not build; the messages of `{} build --package {}` are below",
                self.cargo.display(),
                programs.package
            ))
            .into());
        }
        Ok(target_dir.join(target).join("ebpf").join(programs.binary))
    }
}

fn is_for_the_outer_build(key: &OsString) -> bool {
    let Some(key) = key.to_str() else {
        return false;
    };
    matches!(
        key,
        "RUSTC"
            | "RUSTDOC"
            | "RUSTFLAGS"
            | "RUSTUP_TOOLCHAIN"
            | "RUSTC_BOOTSTRAP"
            | "RUSTC_LINKER"
            | "RUSTC_WRAPPER"
            | "RUSTC_WORKSPACE_WRAPPER"
            | "CARGO_ENCODED_RUSTFLAGS"
            | "CARGO_TARGET_DIR"
            | "CARGO_INCREMENTAL"
            | "CLIPPY_ARGS"
            | "CLIPPY_CONF_DIR"
            | "TARGET"
            | "HOST"
            | "PROFILE"
            | "DEBUG"
            | "OPT_LEVEL"
            | "OUT_DIR"
    ) || [
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_PROFILE_",
        "CARGO_FEATURE_",
        "CARGO_PKG_",
        "CARGO_UNSTABLE_",
    ]
    .iter()
    .any(|prefix| key.starts_with(prefix))
}

fn variable(name: &str) -> Result<String> {
    env::var(name)
        .map_err(|error| format!("{name}: {error}; cargo sets it for build scripts").into())
}
