//! The agent: the real binary, run on the scene's node.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Host, Scene,
    host::run,
    scrape::{self, Metrics},
    topology::{CLUSTER_CIDRS, NODE},
    wait,
};

/// Where the agent serves HTTP, inside the node.
pub const HTTP: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);

/// How long an agent may take to start: the kernel verifies its programs on processors that others use too.
const START: Duration = Duration::from_secs(60);

/// How an agent is started; it can be started again, and takes over what the last one left.
#[derive(Clone, Debug)]
pub struct Setup {
    binary: PathBuf,
    node: Host,
    name: String,
    files: PathBuf,
    /// The BPF file system, or a directory in it, below which the agent pins.
    pub bpffs: PathBuf,
    /// Words of a command that the agent is started with.
    pub wrapper: Vec<String>,
    /// Files and directories with resources.
    pub resources: Vec<PathBuf>,
    /// Prefixes of the cluster.
    pub local_cidrs: Vec<String>,
    /// Further arguments of `egress run`.
    pub arguments: Vec<String>,
    /// A file that tells the agent at which step of an apply to die or fail.
    pub faults: Option<PathBuf>,
}

impl Setup {
    /// An agent for the scene's node that reads `resources`.
    pub fn new(scene: &Scene, resources: impl Into<PathBuf>) -> Result<Self> {
        let local_cidrs = CLUSTER_CIDRS.map(str::to_owned).to_vec();
        Ok(Self {
            bpffs: scene.bpffs(),
            local_cidrs,
            ..Self::on(&scene.node, NODE, scene.files(), resources.into())?
        })
    }

    /// An agent for the node called `name`, with its files and, once `bpffs` is set, its pins in directories of its own.
    pub(crate) fn on(node: &Host, name: &str, files: PathBuf, resources: PathBuf) -> Result<Self> {
        Ok(Self {
            binary: binary("egress", "EGRESS_BIN")?,
            node: node.clone(),
            name: name.to_owned(),
            bpffs: files.clone(),
            files,
            wrapper: Vec::new(),
            resources: vec![resources],
            local_cidrs: Vec::new(),
            arguments: Vec::new(),
            faults: None,
        })
    }

    /// The same with a build whose maps have another layout.
    pub fn of_other_layout(&self) -> Result<Self> {
        Ok(Self {
            binary: binary("egress-other-layout", "EGRESS_OTHER_LAYOUT_BIN")?,
            ..self.clone()
        })
    }

    /// Starts the agent and waits until it is ready.
    pub fn start(&self) -> Result<Agent> {
        let mut agent = self.spawn()?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts the agent.
    pub fn spawn(&self) -> Result<Agent> {
        let log = self.files.join("agent.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = self.run_command();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        Ok(Agent {
            setup: self.clone(),
            child,
            log,
        })
    }

    /// Starts an agent that is to refuse, and gives what it says.
    pub fn refusal(&self) -> Result<String> {
        let mut agent = self.spawn()?;
        let said = agent.log().len();
        let status = wait::until("the agent refuses", || {
            agent.child.try_wait()?.context("it is still running")
        })?;
        let log = agent.log().split_off(said);
        ensure!(
            status.code() == Some(1),
            "the agent ended with {status}, and said {log}"
        );
        Ok(log)
    }

    /// What `egress run --dry-run` does with the same arguments.
    pub fn dry_run(&self) -> Result<Output> {
        Ok(self.run_command().arg("--dry-run").output()?)
    }

    fn run_command(&self) -> Command {
        let mut words = self.wrapper.iter().map(OsString::from);
        let mut command = match words.next() {
            None => self.node.command(&self.binary),
            Some(first) => {
                let mut command = self.node.command(first);
                command.args(words).arg(&self.binary);
                command
            }
        };
        command
            .arg("run")
            .args(["--node", &self.name, "--metrics-listen", &HTTP.to_string()])
            .arg("--pin-dir")
            .arg(self.pin_dir())
            .arg("--state-dir")
            .arg(self.state_dir());
        for path in &self.resources {
            command.arg("--resources").arg(path);
        }
        for cidr in &self.local_cidrs {
            command.args(["--local-cidr", cidr]);
        }
        command.args(&self.arguments);
        if let Some(file) = &self.faults {
            command.env("EGRESS_TEST_FAULTS", file);
        }
        command
    }

    /// Where the agent keeps the names of its counters.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.files.join("state")
    }

    /// Where the agent pins its maps and links.
    #[must_use]
    pub fn pin_dir(&self) -> PathBuf {
        self.bpffs.join("egress")
    }

    /// Runs another command of the binary on the node.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        run(self.node.command(&self.binary).args(words))
    }

    /// Runs another command of the binary on the node, whatever its exit code.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        Ok(self.node.command(&self.binary).args(words).output()?)
    }

    /// Removes everything of the agent from the kernel.
    pub fn detach(&self) -> Result<String> {
        let (pins, state) = (self.pin_dir(), self.state_dir());
        self.command(&[
            "detach",
            "--pin-dir",
            &pins.display().to_string(),
            "--state-dir",
            &state.display().to_string(),
        ])
    }
}

/// A running agent; dropping it kills it and prints its log, which the test runner shows on failure.
#[derive(Debug)]
pub struct Agent {
    setup: Setup,
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// How it was started.
    #[must_use]
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Waits until `/readyz` says so.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        self.wait_until_ready_within(START)
    }

    /// Waits until `/readyz` says so, but not longer than `patience`.
    pub fn wait_until_ready_within(&mut self, patience: Duration) -> Result<()> {
        wait::until_within("the agent is ready", patience, || {
            if let Some(status) = self.child.try_wait()? {
                // Asking on would be in vain.
                return Ok(Err(anyhow!("the agent ended: {status}")));
            }
            let (status, body) = self.get("/readyz")?;
            ensure!(status == 200, "/readyz says {status} {body}");
            Ok(Ok(()))
        })
        .flatten()
        .with_context(|| format!("the agent's log:\n{}", self.log_tail()))
    }

    /// Fetches a path from its HTTP server.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        scrape::get(&self.setup.node, HTTP, path)
    }

    /// Scrapes its metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics says {status} {body}");
        Metrics::parse(&body)
    }

    /// Scrapes until `condition` holds.
    pub fn wait_for_metrics(
        &self,
        what: &str,
        mut condition: impl FnMut(&Metrics) -> Result<()>,
    ) -> Result<Metrics> {
        wait::until(what, || {
            let metrics = self.metrics()?;
            condition(&metrics)?;
            Ok(metrics)
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Asks it to end, and waits.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        wait::until("the agent ends", || {
            self.child.try_wait()?.context("it is still running")
        })
    }

    /// Kills it as the kernel would, without a chance to do anything.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        let status = self.child.wait()?;
        ensure!(
            status.signal() == Some(9),
            "it was not the signal that ended the agent: {status}"
        );
        Ok(())
    }

    /// Whether it is gone because it was killed, by whomever.
    ///
    /// # Errors
    /// It ended in another way.
    pub fn was_killed(&mut self) -> Result<bool> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(false);
        };
        ensure!(
            status.signal() == Some(9),
            "it was not the signal that ended the agent: {status}"
        );
        Ok(true)
    }

    /// All that it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Kilobytes that it has in memory.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_whitespace().nth(1))
            .and_then(|number| number.parse().ok())
            .context("it has no memory: it has ended")
    }

    /// Its process.
    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Agent {
    #[expect(
        clippy::print_stderr,
        reason = "the test runner keeps this and shows it when the test fails"
    )]
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if env::var_os("NEXTEST").is_some() || cfg!(test) || std::thread::panicking() {
            eprintln!("--- end of the agent's log\n{}\n---", self.log_tail());
        }
    }
}

/// A binary: what the variable names, or what lies beside this program.
pub fn binary(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        ensure!(
            path.is_file(),
            "{variable} names {}, which is no file",
            path.display()
        );
        return Ok(path.canonicalize()?);
    }
    let own = env::current_exe()?;
    for directory in own.ancestors().skip(1).take(2) {
        let path = Path::new(directory).join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "there is no {name} to run: `cargo xtask test` builds it; else set {variable}, or put it beside {} (see \
         xtask/src/build.rs)",
        own.display()
    )
}
