//! A network namespace that plays a host. It has no name, only this process has it open: it goes when the process does.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::{AsFd as _, AsRawFd as _},
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::geteuid,
};

/// Where a thread's own namespace is.
const OWN: &str = "/proc/thread-self/ns/net";
/// What every host is told: IPv4 is forwarded whatever way it came, and nobody speaks without being asked.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];

/// A host.
pub(super) struct Host {
    namespace: File,
}

/// The calling thread in another namespace, until this goes.
struct Visit {
    home: File,
}

impl Host {
    pub(super) fn new() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "this makes network namespaces: run `cargo xtask bench`, which becomes root"
        );
        let visit = Visit::begin()?;
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let host = Self {
            namespace: open_own()?,
        };
        drop(visit);
        host.settings(SETTINGS)?;
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// Does something inside; what is started there stays there.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let visit = Visit::begin()?;
        setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .context("cannot enter a network namespace")?;
        let done = work();
        drop(visit);
        done
    }

    /// As `ip` takes it for where an end of a cable goes.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.namespace.as_raw_fd())
    }

    /// Writes below `/proc/sys/net`.
    pub(super) fn settings(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
            }
            Ok(())
        })
    }

    /// Runs commands of `ip`, one a line.
    pub(super) fn ip(&self, commands: &str) -> Result<()> {
        self.feed(Command::new("ip").args(["-batch", "-"]), commands)
    }

    /// Adds rules of nftables.
    pub(super) fn nft(&self, rules: &str) -> Result<()> {
        self.feed(Command::new("nft").args(["-f", "-"]), rules)
    }

    fn feed(&self, command: &mut Command, input: &str) -> Result<()> {
        let name = command.get_program().to_string_lossy().into_owned();
        let command = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = self.enter(|| {
            let child = command.spawn();
            child.with_context(|| format!("cannot run {name}: `cargo xtask setup` installs it"))
        })?;
        let written = match child.stdin.take() {
            Some(mut stdin) => stdin.write_all(input.as_bytes()),
            None => Ok(()),
        };
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{name} ({}): {}", output.status, said.trim());
        }
        written.with_context(|| format!("cannot write to {name}"))
    }
}

impl Visit {
    fn begin() -> Result<Self> {
        Ok(Self { home: open_own()? })
    }
}

impl Drop for Visit {
    #[expect(
        clippy::expect_used,
        reason = "a thread that has lost its way home must not go on as if it were there"
    )]
    fn drop(&mut self) {
        setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET)
            .expect("the namespace that a thread came from is there");
    }
}

fn open_own() -> Result<File> {
    File::open(OWN).with_context(|| format!("cannot open {OWN}"))
}
