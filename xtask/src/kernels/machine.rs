//! One virtual machine: booted, run to its end, and what it said.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{
    initramfs,
    outcome::Outcome,
    packages::{Kernel, program},
};
use crate::command::{self, say};

/// Memory in MiB: three agents, their maps and the file system itself.
const MEMORY: u32 = 1024;
/// Processors: agents verify their programs at the same time, and per-CPU maps have more than one of each.
const PROCESSORS: u32 = 2;
/// Seconds after which a machine is given up, which is several times what the slowest kernel takes.
const PATIENCE: u32 = 1800;

/// A machine to boot.
pub(super) struct Machine<'a> {
    /// What it boots.
    pub(super) kernel: &'a Kernel,
    /// The part of its file system that is the same for all kernels.
    pub(super) base: &'a [u8],
    /// Where what it says is kept.
    pub(super) logs: &'a Path,
}

impl Machine<'_> {
    /// Boots it and waits for its end.
    pub(super) fn run(&self) -> Result<Outcome> {
        let version = self.kernel.version();
        let log = self.logs.join(format!("{version}.log"));
        let memory = self.logs.join(format!("{version}.cpio"));
        let parts = [self.base, &initramfs::modules(self.kernel)?].concat();
        fs::write(&memory, parts).with_context(|| format!("cannot write {}", memory.display()))?;
        let said = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        say(format_args!(
            "kernel {version}: booting; what it says is in {}",
            log.display()
        ));
        let start = Instant::now();
        let mut qemu = Command::new(program("timeout")?);
        qemu.args(["--foreground", "--kill-after=5", &PATIENCE.to_string()])
            .arg(program("qemu-system-x86_64")?)
            // Emulated in software on purpose: it works also where a machine cannot have machines.
            .args(["-accel", "tcg", "-cpu", "max"])
            .args(["-smp", &PROCESSORS.to_string()])
            .args(["-m", &MEMORY.to_string(), "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(self.kernel.image()?)
            .arg("-initrd")
            .arg(&memory)
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .stdin(Stdio::null())
            .stderr(said.try_clone()?)
            .stdout(said);
        let status = command::status(&mut qemu)?;
        fs::remove_file(&memory)?;
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        let seconds = start.elapsed().as_secs();
        let outcome = Outcome::read(self.kernel.series(), version, &text, seconds);
        if let Some(why) = &outcome.why {
            say(format_args!(
                "kernel {version}: {why} after {seconds} s ({status}); the end of {}:",
                log.display()
            ));
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(60)..] {
                say(format_args!("  {line}"));
            }
        } else {
            say(format_args!("kernel {version}: passed in {seconds} s"));
        }
        Ok(outcome)
    }
}
