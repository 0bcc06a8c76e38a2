//! A network namespace with the interfaces that programs look at; the calling thread is in it from then on.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

use crate::world::HOST_MAC;

/// The interface of all pods: packets are told apart by their sources.
pub(crate) const POD: u32 = 10;
/// The interface that leads out, and to next hops.
pub(crate) const UPLINK: u32 = 11;
/// What stands for the overlay device.
pub(crate) const OVERLAY: u32 = 12;

/// The namespace: it goes with the process.
pub(crate) struct Network(());

impl Network {
    /// Makes it, with an uplink that forwards and a route to everywhere, as a gateway node has.
    pub(crate) fn enter() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "this loads eBPF programs and makes a network namespace: run `cargo xtask bench`, which becomes root"
        );
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let mac = HOST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        for (name, index) in [("pod", POD), ("uplink", UPLINK), ("overlay", OVERLAY)] {
            ip(&format!(
                "link add {name} index {index} address {mac} type veth peer name far-{name} index {}",
                index + 10
            ))?;
            for end in [name, &format!("far-{name}")] {
                ip(&format!("link set {end} up"))?;
            }
        }
        for (path, value) in [
            ("/proc/sys/net/ipv4/conf/uplink/forwarding", "1"),
            ("/proc/sys/net/ipv6/conf/uplink/forwarding", "1"),
        ] {
            fs::write(path, value).with_context(|| format!("cannot write {path}"))?;
        }
        for command in [
            "addr add 198.51.100.254/24 dev uplink",
            "route add default via 198.51.100.1 dev uplink",
            "neigh add 198.51.100.1 lladdr 02:00:00:00:cc:09 dev uplink nud permanent",
            "addr add 2001:db8:fe::fe/64 dev uplink nodad",
            "route add default via 2001:db8:fe::1 dev uplink",
            "neigh add 2001:db8:fe::1 lladdr 02:00:00:00:cc:09 dev uplink nud permanent",
        ] {
            ip(command)?;
        }
        Ok(Self(()))
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("cannot run ip: install iproute2")?;
    if !output.status.success() {
        bail!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
