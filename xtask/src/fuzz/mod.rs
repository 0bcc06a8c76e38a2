//! `cargo xtask test --fuzz`: libFuzzer on every target of `fuzz/`, for a bounded time.
//!
//! Without a sanitizer, which would be a nightly's: nothing that the targets run has `unsafe` of its own to look at, and
//! the coverage that libFuzzer goes by is any compiler's.

mod outcome;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use self::outcome::{Outcome, Progress};
use crate::{
    command::{self, say},
    setup,
    workspace::Workspace,
};

/// Time between two lines that say how far a target is.
const PAUSE: Duration = Duration::from_secs(10);
/// Seconds after which one input counts as one that never ends, and memory in MiB that none may need.
const TIMEOUT: &str = "-timeout=30";
const MEMORY: &str = "-rss_limit_mb=3000";
/// Bytes of an input.
const LARGEST: &str = "-max_len=4096";

/// What was asked for.
pub(crate) struct Options<'a> {
    /// How long each target runs.
    pub(crate) seconds: u32,
    /// Whether inputs that reach something new go into the kept corpus.
    pub(crate) keep: bool,
    /// Which targets; none are all.
    pub(crate) targets: &'a [String],
}

/// Builds the targets, runs one after the other, and fails if one found something.
pub(crate) fn run(workspace: &Workspace, options: &Options<'_>) -> Result<()> {
    setup::build_tools(workspace)?;
    let cargo_fuzz = setup::fuzz_tools(workspace)?;
    let folders = Folders::new(workspace);
    let targets = chosen(folders.targets()?, options.targets)?;
    let triple = host()?;
    build(&folders, &cargo_fuzz, &triple)?;
    let mut outcomes = Vec::new();
    for target in targets {
        say(format_args!("fuzzing {target} for {} s", options.seconds));
        let binary = folders.binary(&triple, &target);
        let outcome = fuzz(&folders, &binary, &target, options.seconds)?;
        if options.keep && outcome.crash.is_none() {
            merge(&folders, &binary, &target)?;
        }
        outcomes.push(outcome);
    }
    say(format_args!("{}", outcome::table(&outcomes)));
    let crashes: Vec<_> = outcomes.iter().filter_map(Outcome::told_crash).collect();
    ensure!(crashes.is_empty(), "{}", crashes.join("\n"));
    Ok(())
}

/// Where things are.
struct Folders {
    root: PathBuf,
    fuzz: PathBuf,
    /// What is built, found and written; never committed.
    work: PathBuf,
}

impl Folders {
    fn new(workspace: &Workspace) -> Self {
        Self {
            root: workspace.root().to_owned(),
            fuzz: workspace.root().join("fuzz"),
            work: workspace.root().join("target/fuzz"),
        }
    }

    /// The names of all targets.
    fn targets(&self) -> Result<Vec<String>> {
        let folder = self.fuzz.join("fuzz_targets");
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if let Some(name) = path.file_stem() {
                names.push(name.to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn binary(&self, triple: &str, target: &str) -> PathBuf {
        self.work.join(triple).join("release").join(target)
    }

    /// What is kept, committed.
    fn corpus(&self, target: &str) -> PathBuf {
        self.fuzz.join("corpus").join(target)
    }

    /// A folder below `work`, made as the user who will want to remove it.
    fn made(&self, kind: &str, target: &str) -> Result<PathBuf> {
        let folder = self.work.join(kind).join(target);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }
}

/// The targets that were asked for, in the order of all.
fn chosen(all: Vec<String>, wanted: &[String]) -> Result<Vec<String>> {
    for name in wanted {
        if !all.contains(name) {
            bail!(
                "there is no fuzz target {name}: there are {}",
                all.join(", ")
            );
        }
    }
    let is_wanted = |name: &String| wanted.is_empty() || wanted.contains(name);
    Ok(all.into_iter().filter(is_wanted).collect())
}

/// The platform that we build for: this one.
fn host() -> Result<String> {
    let told = command::output(Command::new("rustc").arg("-vV"))?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

fn build(folders: &Folders, cargo_fuzz: &Path, triple: &str) -> Result<()> {
    say(format_args!(
        "building the fuzz targets into {} (minutes, the first time)",
        folders.work.display()
    ));
    command::run(
        Command::new(cargo_fuzz)
            .current_dir(&folders.root)
            .args(["build", "--sanitizer", "none", "--codegen-units", "16"])
            .args(["--target", triple, "--target-dir"])
            .arg(&folders.work),
    )
}

/// A target with what every run of it is told; frames are root's, since they are run by the kernel.
fn command(binary: &Path, target: &str) -> Result<Command> {
    let mut command = if target.ends_with("_packet") || target.ends_with("_frame") {
        command::elevated(binary, &[])?
    } else {
        Command::new(binary)
    };
    command.args([LARGEST, TIMEOUT, MEMORY]);
    Ok(command)
}

/// Runs a target, says how far it is, and keeps all that it says in a file.
fn fuzz(folders: &Folders, binary: &Path, target: &str, seconds: u32) -> Result<Outcome> {
    let grown = folders.made("corpus", target)?;
    let artifacts = folders.made("artifacts", target)?;
    let logs = folders.made("logs", "")?;
    let mut command = command(binary, target)?;
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1");
    let dictionary = folders.fuzz.join(format!("dictionaries/{target}.dict"));
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(&grown).arg(folders.corpus(target));
    let log = logs.join(format!("{target}.log"));
    let mut kept = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;

    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", command::line(&command)))?;
    let mut progress = Progress::default();
    let mut said = start;
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.context("cannot read what the fuzzer says")?;
            let line = String::from_utf8_lossy(&line);
            writeln!(kept, "{line}").with_context(|| format!("cannot write {}", log.display()))?;
            progress.read(&line);
            if said.elapsed() >= PAUSE {
                said = Instant::now();
                say(format_args!(
                    "{target}: {} s, {progress}",
                    start.elapsed().as_secs()
                ));
            }
        }
    }
    let status = child.wait().context("the fuzzer is gone")?;
    let crash = (!status.success()).then(|| {
        let artifact = progress.artifact.clone();
        outcome::Crash {
            replay: artifact.as_deref().map_or_else(
                || format!("no input was written ({status})"),
                |path| format!("{} {path}", binary.display()),
            ),
            keep: artifact
                .map(|path| format!("cp {path} {}/NAME", folders.corpus(target).display())),
            log,
        }
    });
    Ok(Outcome {
        target: target.to_owned(),
        seconds: start.elapsed().as_secs(),
        progress,
        crash,
    })
}

/// Takes what reaches something that nothing kept does into the kept corpus.
fn merge(folders: &Folders, binary: &Path, target: &str) -> Result<()> {
    let mut command = command(binary, target)?;
    command
        .arg("-merge=1")
        .arg(folders.corpus(target))
        .arg(folders.made("corpus", target)?)
        .stderr(Stdio::null());
    command::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_chosen_by_their_names() {
        let all = || ["cidr", "selector", "yaml"].map(str::to_owned).to_vec();
        let wanted =
            |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).into()).collect() };
        assert_eq!(chosen(all(), &[]).ok(), Some(all()));
        assert_eq!(
            chosen(all(), &wanted(&["yaml", "cidr"])).ok(),
            Some(wanted(&["cidr", "yaml"]))
        );
        let error = chosen(all(), &wanted(&["yml"]))
            .err()
            .map(|e| e.to_string());
        assert_eq!(
            error.as_deref(),
            Some("there is no fuzz target yml: there are cidr, selector, yaml")
        );
    }
}
