//! The real binary as a process: what it takes, and when it is ready.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};

/// The port is free in a network namespace of its own.
const PAGES: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);
/// How long a start, or a stop, may take before something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running agent; with it goes all that it has put into the kernel.
pub(super) struct Agent {
    child: Child,
    binary: PathBuf,
    pins: PathBuf,
    state: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts it in the calling thread's network namespace, with resources, pins, state and log below these folders.
    pub(super) fn start(folder: &Path, pins: &Path) -> Result<Self> {
        let binary = env::current_exe()?.with_file_name("egress");
        let (state, log) = (folder.join("state"), folder.join("log"));
        let output = File::create(&log)?;
        let child = Command::new(&binary)
            .args(["run", "--node", "n1", "--local-cidr", "10.0.0.0/8"])
            .args(["--next-hop-probe", "off", "--metrics-listen"])
            .arg(PAGES.to_string())
            .args([Path::new("--pin-dir"), pins])
            .args([Path::new("--state-dir"), &state])
            .args([Path::new("--resources"), &folder.join("resources")])
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start {}: `cargo xtask bench` builds it",
                    binary.display()
                )
            })?;
        Ok(Self {
            child,
            binary,
            pins: pins.to_owned(),
            state,
            log,
        })
    }

    /// Waits until the kernel holds what the files say.
    pub(super) fn ready(&mut self) -> Result<()> {
        let began = Instant::now();
        while !get("/readyz").is_ok_and(|(page, _)| page.starts_with("HTTP/1.1 200")) {
            self.ensure_patience(began)?;
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Fails if it has ended, or has been waited for since then in vain.
    pub(super) fn ensure_patience(&mut self, since: Instant) -> Result<()> {
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        if let Some(status) = self.child.try_wait()? {
            bail!("the agent has ended with {status}: {}", log());
        }
        ensure!(
            since.elapsed() < PATIENCE,
            "the agent takes longer than {PATIENCE:?}: {}",
            log()
        );
        Ok(())
    }

    /// Processor time that it has taken.
    pub(super) fn processor_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // Behind the name, which may have spaces: user and system time are the fields 14 and 15 of proc(5).
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        let second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel's clock has no rate")?;
        Ok(Duration::from_millis(ticks * 1000 / u64::try_from(second)?))
    }

    /// Bytes of its memory that are resident.
    pub(super) fn resident(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: f64 = kib.context("no VmRSS")?.trim().parse()?;
        Ok(kib * 1024.0)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw);
        if let Ok(pid) = pid {
            // It may have ended by itself.
            let _ended = kill(pid, Signal::SIGTERM);
        }
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < PATIENCE {
            sleep(Duration::from_millis(5));
        }
        drop(self.child.kill());
        drop(self.child.wait());
        let detached = Command::new(&self.binary)
            .arg("detach")
            .args([Path::new("--pin-dir"), &self.pins])
            .args([Path::new("--state-dir"), &self.state])
            .output();
        drop(detached);
        drop(fs::remove_dir_all(&self.pins));
    }
}

/// Asks for a page, and says how long the answer took.
pub(super) fn get(path: &str) -> Result<(String, Duration)> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(PAGES)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((answer, began.elapsed()))
}
