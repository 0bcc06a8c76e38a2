//! Debian packages: the programs that tests use, and what a compiler or linker lacks.

use std::{ffi::OsStr, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::command::{self, find_program, say};

/// What tests and the demo start, with the package that has it.
const TEST_TOOLS: [(&str, &str); 10] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("traceroute", "traceroute"),
    ("iperf3", "iperf3"),
    ("sha256sum", "coreutils"),
    ("getent", "libc-bin"),
    ("nsenter", "util-linux"),
    ("umount", "mount"),
    ("bash", "bash"),
];

/// What benchmarks start beside those, with the package that has it.
const BENCH_TOOLS: [(&str, &str); 2] = [("wrk", "wrk"), ("setpriv", "util-linux")];

/// What boots other kernels, with the package that has it.
const KERNEL_TOOLS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("timeout", "coreutils"),
    ("ldd", "libc-bin"),
];

/// What libFuzzer is built with, with the package that has it.
const FUZZ_TOOLS: [(&str, &str); 1] = [("c++", "g++")];

/// Installs the programs of the tests that are missing.
pub(super) fn install_test_tools() -> Result<()> {
    install_missing(&TEST_TOOLS, "programs that the tests and the demo use")
}

/// Installs the programs of the benchmarks that are missing.
pub(super) fn install_bench_tools() -> Result<()> {
    install_missing(&BENCH_TOOLS, "programs that the benchmarks use")
}

/// Installs the programs that boot other kernels, where they are missing.
pub(super) fn install_kernel_tools() -> Result<()> {
    install_missing(
        &KERNEL_TOOLS,
        "what boots other kernels in virtual machines",
    )
}

/// Installs what libFuzzer is built with, where it is missing.
pub(super) fn install_fuzz_tools() -> Result<()> {
    install_missing(&FUZZ_TOOLS, "what libFuzzer is built with")
}

fn install_missing(tools: &[(&str, &str)], purpose: &str) -> Result<()> {
    let missing: Vec<&str> = tools
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|&(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing, purpose)
}

/// Installs packages, after saying so.
pub(super) fn install(packages: &[&str], purpose: &str) -> Result<()> {
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "missing: {list} ({purpose}); there is no apt-get here, so install what your distribution \
             calls these, and start this again"
        );
    }
    say(format_args!("installing {list} ({purpose})"));
    // Lists that cannot be fetched may still name what is wanted.
    if let Err(error) = command::run(apt()?.args(["-qq", "update"])) {
        say(format_args!(
            "{error:#}; going on with the package lists that are here"
        ));
    }
    command::run(
        apt()?
            .args(["-qq", "install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
    .with_context(|| format!("cannot install {list} ({purpose})"))
}

fn apt() -> Result<Command> {
    let mut apt = command::elevated(
        "apt-get",
        &[("DEBIAN_FRONTEND", OsStr::new("noninteractive"))],
    )?;
    // Another apt at work is no failure.
    apt.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]);
    Ok(apt)
}
