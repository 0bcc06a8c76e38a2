//! What a virtual machine boots into: a file system in memory with the tests and what they start.
//!
//! An initramfs may be several archives one after the other: what is the same for all kernels is put together once,
//! a kernel's modules are another.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::packages::{Kernel, program};
use crate::command::{self, find_program};

/// What the tests start, beside the agent.
const TOOLS: [&str; 6] = ["ip", "tc", "nft", "nsenter", "curl", "umount"];

/// Modules that nodes have, where they are modules and exist: kernels differ in both.
const MODULES: [&str; 20] = [
    "veth",
    "bridge",
    "vxlan",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_counter",
    "nft_ct",
    "nft_limit",
    "nft_masq",
    "nft_nat",
    "nft_objref",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_fib_inet",
];

/// The first process. What it says in lines that begin with `VM-` is for `outcome`.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
export PATH=/usr/bin HOME=/tmp
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mount -t bpf bpf /sys/fs/bpf
$b mount -t cgroup2 cgroup /sys/fs/cgroup
for module in /modules/*.ko; do $b insmod $module || echo "VM-NOTE insmod $module failed"; done
echo 1 >/proc/sys/net/core/bpf_jit_enable
ip link set lo up
export EGRESS_BIN=/egress EGRESS_TESTS_REPORT=/report RUST_BACKTRACE=0
step() {
    name=$1; shift
    echo "VM-START $name"
    /tests --test-threads=1 "$@"
    code=$?
    echo
    [ -e /report ] && $b sed 's/^/VM-MEASURED /' /report
    $b rm -f /report
    echo "VM-STEP $name $code $($b cut -d' ' -f1 /proc/uptime)"
}
# Left out: tests of times that leave the second to spare that an emulated processor may take for a packet.
step packets packets_ --skip each_state_has_its_time --skip either_half_keeps_a_connection
step end-to-end end_to_end
$b poweroff -f
"#;

/// The archive that is the same for all kernels.
pub(super) fn base(egress: &Path, tests: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "run", "sys", "tmp"] {
        archive.folder(folder);
    }
    archive.file("init", INIT.as_bytes(), 0o755);
    archive.file("etc/passwd", b"root:x:0:0:root:/tmp:/bin/sh\n", 0o644);
    archive.file("etc/group", b"root:x:0:\n", 0o644);
    let mut libraries = BTreeSet::new();
    for (path, name) in [(egress, "egress"), (tests, "tests")] {
        libraries.extend(libraries_of(path)?);
        archive.file(name, &stripped(path)?, 0o755);
    }
    let busybox = program("busybox")?;
    libraries.extend(libraries_of(&busybox)?);
    archive.file("bin/busybox", &read(&busybox)?, 0o755);
    for tool in TOOLS {
        let path = program(tool)?;
        libraries.extend(libraries_of(&path)?);
        archive.file(&format!("usr/bin/{tool}"), &read(&path)?, 0o755);
    }
    for library in libraries {
        let inside = library.strip_prefix("/")?.to_string_lossy().into_owned();
        archive.file(&inside, &read(&library)?, 0o755);
    }
    Ok(archive.finish())
}

/// The archive with a kernel's modules, in the order in which they can be loaded.
pub(super) fn modules(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    for module in MODULES {
        // What a kernel does not have, or has built in, is no file.
        let told = Command::new(program("modprobe")?)
            .arg("-d")
            .arg(kernel.folder())
            .args(["-S", &kernel.release(), "--show-depends", module])
            .output()
            .context("cannot run modprobe")?;
        for line in String::from_utf8_lossy(&told.stdout).lines() {
            let file = line.strip_prefix("insmod ").map(str::trim);
            if let Some(file) = file.map(PathBuf::from)
                && !files.contains(&file)
            {
                files.push(file);
            }
        }
    }
    let mut archive = Archive::default();
    for (number, file) in files.iter().enumerate() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.split('.').next().unwrap_or_default();
        let content = decompressed(file)?;
        archive.file(&format!("modules/{number:03}-{stem}.ko"), &content, 0o644);
    }
    Ok(archive.finish())
}

fn decompressed(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return read(file),
    };
    let mut command = Command::new(program(tool)?);
    command.arg("-dc").arg(file);
    let told = command
        .output()
        .with_context(|| format!("cannot run `{}`", command::line(&command)))?;
    anyhow::ensure!(
        told.status.success(),
        "`{}` failed ({})",
        command::line(&command),
        told.status
    );
    Ok(told.stdout)
}

/// A program without what only debuggers read: a machine keeps it in memory.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let Some(strip) = find_program("strip") else {
        return read(path);
    };
    let copy = path.with_extension("stripped");
    command::run(Command::new(strip).arg("-o").arg(&copy).arg(path))?;
    let content = read(&copy)?;
    fs::remove_file(&copy)?;
    Ok(content)
}

/// The shared libraries of a program, and their loader; none for a static one.
fn libraries_of(path: &Path) -> Result<Vec<PathBuf>> {
    let told = Command::new(program("ldd")?)
        .arg(path)
        .output()
        .context("cannot run ldd")?;
    Ok(paths_in(&String::from_utf8_lossy(&told.stdout)))
}

fn paths_in(listing: &str) -> Vec<PathBuf> {
    listing
        .lines()
        .filter(|line| line.contains(" (0x"))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// An archive as the kernel unpacks it: cpio's `newc` (`Documentation/driver-api/early-userspace/buffer-format.rst`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.folder(parent);
        }
        if self.folders.insert(name.to_owned()) {
            self.entry(name, &[], 0o040_755);
        }
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) {
        if let Some((folder, _)) = name.rsplit_once('/') {
            self.folder(folder);
        }
        let mode = 0o100_000 | Permissions::from_mode(mode).mode();
        self.entry(name, content, mode);
    }

    fn entry(&mut self, name: &str, content: &[u8], mode: u32) {
        self.entries += 1;
        let (number, links, size) = (self.entries, 1, content.len());
        let name_size = name.len() + 1;
        // Number, mode, owner, group, links, time, size, four parts of devices, the name's size, no checksum.
        self.bytes.extend(
            format!(
                "070701{number:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{size:08x}\
                 {0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
                0
            )
            .into_bytes(),
        );
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", &[], 0);
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("a/b", b"12345", 0o644);
        let bytes = archive.finish();
        let folder = &bytes[..112];
        assert_eq!(&folder[..14], b"07070100000001");
        assert_eq!(&folder[14..22], b"000041ed");
        assert_eq!(&folder[110..], b"a\0");
        let file = &bytes[112..];
        assert_eq!(&file[14..22], b"000081a4");
        assert_eq!(&file[54..62], b"00000005");
        assert_eq!(&file[94..102], b"00000004");
        assert_eq!(&file[110..124], b"a/b\0\0\x0012345\0\0\0");
        assert_eq!(&file[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn ldd_lists_libraries_and_the_loader() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                       \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f52)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f52)\n";
        assert_eq!(
            paths_in(listing),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(PathBuf::from)
        );
        assert!(paths_in("\tnot a dynamic executable\n").is_empty());
    }
}
