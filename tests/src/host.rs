//! One host: a network namespace, and what can be done inside.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::programs::{SchedClassifier, tc::TcAttachType};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::wait;

/// A network namespace that plays a host; its workspace removes it.
#[derive(Clone, Debug)]
pub struct Host {
    role: String,
    path: PathBuf,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes of their IP packets, without Ethernet headers.
    pub bytes: u64,
}

impl Host {
    pub(crate) fn new(role: &str, path: PathBuf) -> Self {
        Self {
            role: role.to_owned(),
            path,
        }
    }

    /// The namespace's name, as `ip netns` knows it.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    /// Where the namespace is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread inside the host: sockets that it opens stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let namespace = File::open(&self.path)
                        .with_context(|| format!("the host {} is gone", self.role))?;
                    setns(namespace, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("cannot enter {}", self.path.display()))?;
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .with_context(|| format!("on the host {}", self.role))
    }

    /// A command that will run inside the host, with the machine's own mounts (bpffs among them).
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path.display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a command inside the host and returns what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no command was given")?;
        run(self.command(program).args(arguments))
    }

    /// Runs lines of `ip` commands, written as after the word `ip`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        feed(
            Command::new("ip").args(["-n", self.namespace(), "-batch", "-"]),
            lines,
        )
        .map(drop)
    }

    /// Loads nftables rules.
    pub fn nft(&self, rules: &str) -> Result<()> {
        feed(self.command("nft").args(["-f", "-"]), rules).map(drop)
    }

    /// Sets kernel parameters of this host: pairs of a path below `/proc/sys/net` and a value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys/net").join(key);
                fs::write(&path, value)
                    .with_context(|| format!("cannot write {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }

    /// Checks that every interface drops what its routes would not send back by it.
    pub fn expect_strict_reverse_paths(&self) -> Result<()> {
        self.enter(|| {
            for entry in fs::read_dir("/proc/sys/net/ipv4/conf")? {
                let path = entry?.path().join("rp_filter");
                let value = fs::read_to_string(&path)?;
                ensure!(value.trim() == "1", "{} is {value}", path.display());
            }
            Ok(())
        })
    }

    /// The named nftables counters of this host.
    pub fn counters(&self) -> Result<BTreeMap<String, Count>> {
        let listing: Value = serde_json::from_str(&self.run(&["nft", "-j", "list", "counters"])?)?;
        let items = listing["nftables"]
            .as_array()
            .context("nft printed no list")?;
        items
            .iter()
            .map(|item| &item["counter"])
            .filter(|counter| counter.is_object())
            .map(|counter| {
                let number = |field: &str| counter[field].as_u64().context("nft printed no number");
                Ok((
                    counter["name"].as_str().unwrap_or_default().to_owned(),
                    Count {
                        packets: number("packets")?,
                        bytes: number("bytes")?,
                    },
                ))
            })
            .collect()
    }

    /// One named nftables counter.
    pub fn counter(&self, name: &str) -> Result<Count> {
        self.counters()?
            .remove(name)
            .with_context(|| format!("the host {} has no counter {name}", self.role))
    }

    /// Everything that an agent could have left in the host's network: links, programs, qdiscs, addresses, routes,
    /// rules, and tables of nftables.
    pub fn inventory(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let links: Value = serde_json::from_str(&self.run(&["ip", "-j", "link"])?)?;
        for link in links.as_array().context("ip printed no list")? {
            let name = link["ifname"].as_str().context("a link without name")?;
            found.push(format!("{name} {}", link["flags"]));
            for program in self.programs_on(name)? {
                found.push(format!("{name}: {program}"));
            }
        }
        for words in [
            &["tc", "qdisc", "show"][..],
            &["ip", "-o", "addr"],
            &["ip", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["nft", "list", "tables"],
        ] {
            found.extend(self.run(words)?.lines().map(|line| line.trim().to_owned()));
        }
        Ok(found)
    }

    /// Every program on an interface's TC hooks, of whoever: TCX programs by number and name, filters as `tc` shows them.
    pub fn programs_on(&self, interface: &str) -> Result<Vec<String>> {
        let mut found = self.enter(|| {
            let mut found = Vec::new();
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                // A kernel without TCX has filters only.
                let Ok((_, programs)) = SchedClassifier::query_tcx(interface, hook) else {
                    continue;
                };
                for program in programs {
                    let name = program.name_as_str().unwrap_or_default();
                    found.push(format!("{hook:?} program {} {name}", program.id()));
                }
            }
            Ok(found)
        })?;
        for hook in ["ingress", "egress"] {
            let filters = self.run(&["tc", "filter", "show", "dev", interface, hook])?;
            found.extend(filters.lines().map(str::to_owned));
        }
        Ok(found)
    }

    /// The hardware address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let links: Value =
            serde_json::from_str(&self.run(&["ip", "-j", "link", "show", "dev", interface])?)?;
        let text = links[0]["address"].as_str().context("no address")?;
        let bytes = text
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<Vec<_>, _>>()?;
        bytes
            .try_into()
            .map_err(|_| anyhow!("{text} is no Ethernet address"))
    }

    /// Waits until every link is up and every address can be used.
    pub fn wait_until_up(&self) -> Result<()> {
        wait::until(&format!("links of the host {} are up", self.role), || {
            let listing: Value = serde_json::from_str(&run(Command::new("ip").args([
                "-n",
                self.namespace(),
                "-j",
                "addr",
            ]))?)?;
            for link in listing.as_array().context("ip printed no list")? {
                let name = &link["ifname"];
                let state = link["operstate"].as_str().unwrap_or_default();
                ensure!(
                    name == "lo" || state == "UP",
                    "{name} is {state}: {listing}"
                );
                let addresses = link["addr_info"].as_array().map_or(&[][..], Vec::as_slice);
                ensure!(
                    addresses.iter().all(|address| address["tentative"] != true),
                    "{name} has tentative addresses"
                );
                ensure!(
                    link["master"].is_string()
                        || addresses.iter().any(|address| address["family"] == "inet6"),
                    "{name} has no IPv6 address"
                );
            }
            Ok(())
        })
    }
}

/// Runs a command to its end and returns what it printed; the error says all that it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    finish(command, &output)
}

fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // A command that ends early says why on its standard error: more than the broken pipe would.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output()?;
    finish(command, &output).with_context(|| format!("the input was:\n{input}"))
}

fn finish(command: &Command, output: &std::process::Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}): {}{text}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}
