//! A node with two uplinks to one neighbour, for addresses that come and go.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use egress_common::Mac;
use egress_userspace::node::{Netlink, NodeView, announcement};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
        sockopt::RcvBuf,
    },
};
use serde_json::Value;

use crate::{Host, wait, workspace::Workspace};

/// The node's own address.
pub const OWN: &str = "198.51.100.2";
/// The IPv6 one.
pub const OWN6: &str = "2001:db8::2";
/// The neighbour's address.
pub const NEIGHBOUR: &str = "198.51.100.9";
/// The IPv6 one.
pub const NEIGHBOUR6: &str = "2001:db8::9";

/// A node with the uplinks `up0` and `up1`, and their neighbour with `near0` and `near1`.
#[derive(Debug)]
pub struct Segment {
    // Removes the hosts in the end.
    workspace: Workspace,
    /// The node.
    pub node: Host,
    /// The neighbour.
    pub neighbour: Host,
}

impl Segment {
    /// Both hosts, up.
    pub fn new() -> Result<Self> {
        let workspace = Workspace::new()?;
        let (node, neighbour) = (workspace.host("node")?, workspace.host("near")?);
        node.ip(&format!(
            "link set lo up
             link add up0 type veth peer name near0 netns {near}
             link add up1 type veth peer name near1 netns {near}
             link set up0 up
             link set up1 up
             addr add {OWN}/24 dev up0
             addr add {OWN6}/64 dev up0 nodad
             ",
            near = neighbour.namespace(),
        ))?;
        neighbour.ip(&format!(
            "link set lo up
             link set near0 up
             link set near1 up
             addr add {NEIGHBOUR}/24 dev near0
             addr add {NEIGHBOUR6}/64 dev near0 nodad
             "
        ))?;
        for host in [&node, &neighbour] {
            host.wait_until_up()?;
        }
        Ok(Self {
            workspace,
            node,
            neighbour,
        })
    }

    /// Where an agent of the node keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.workspace.files().join("state")
    }

    /// What the node sees of itself; for threads inside it.
    pub fn view() -> Result<NodeView> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async { Netlink::connect()?.read().await })
    }

    /// The node's addresses on an interface, in the kernel's order, as `ip` shows them.
    pub fn addresses(&self, interface: &str) -> Result<Vec<Value>> {
        let listing: Value = serde_json::from_str(
            &self
                .node
                .run(&["ip", "-j", "addr", "show", "dev", interface])?,
        )?;
        let listing = listing[0]["addr_info"].as_array().context("no addresses")?;
        Ok(listing
            .iter()
            .filter(|address| address["scope"] != "link")
            .cloned()
            .collect())
    }

    /// Whether the node has an address on an interface.
    pub fn is_on(&self, interface: &str, address: &str) -> Result<bool> {
        let on = self.addresses(interface)?;
        Ok(on.iter().any(|known| known["local"] == address))
    }

    /// The source that the node's own traffic to `remote` has.
    pub fn source_to(&self, remote: &str) -> Result<String> {
        let route: Value =
            serde_json::from_str(&self.node.run(&["ip", "-j", "route", "get", remote])?)?;
        let source = route[0]["prefsrc"].as_str().context("no source")?;
        Ok(source.to_owned())
    }

    /// Makes the neighbour believe that an address is elsewhere.
    pub fn believe_elsewhere(&self, address: &str) -> Result<()> {
        self.neighbour.ip(&format!(
            "neigh replace {address} lladdr 02:00:00:00:00:99 dev near0 nud stale\n"
        ))
    }

    /// Waits until the neighbour believes that the address is at the node's uplink.
    pub fn wait_until_believed(&self, address: &str) -> Result<()> {
        let mac = Mac(self.node.mac("up0")?);
        let wanted = mac.0.map(|byte| format!("{byte:02x}")).join(":");
        wait::until("the neighbour learns where the address is", || {
            let entry = self
                .neighbour
                .run(&["ip", "neigh", "show", address, "dev", "near0"])?;
            ensure!(entry.contains(&wanted), "{entry} has not {wanted}");
            Ok(())
        })
    }
}

/// Every frame that a host receives.
#[derive(Debug)]
pub struct Arrivals {
    socket: OwnedFd,
    seen: BTreeMap<Vec<u8>, usize>,
}

impl Arrivals {
    /// Looks at what arrives from now on.
    pub fn start(host: &Host) -> Result<Self> {
        let socket = host.enter(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )?;
            setsockopt(&socket, RcvBuf, &(1 << 20))?;
            Ok(socket)
        })?;
        Ok(Self {
            socket,
            seen: BTreeMap::new(),
        })
    }

    /// Takes in what has arrived.
    pub fn look(&mut self) -> Result<()> {
        let mut frame = [0; 2048];
        loop {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => *self.seen.entry(frame[..length].to_vec()).or_default() += 1,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How often a frame has come since the start.
    #[must_use]
    pub fn times(&self, frame: &[u8]) -> usize {
        self.seen.get(frame).copied().unwrap_or(0)
    }

    /// Waits until each frame that announces the address has come this often since the start.
    pub fn wait_for(&mut self, mac: [u8; 6], address: &str, times: usize) -> Result<()> {
        let frames = announcement(Mac(mac), address.parse()?);
        wait::until(&format!("{address} is announced {times} times"), || {
            self.look()?;
            for frame in &frames {
                let seen = self.times(frame);
                ensure!(seen >= times, "{seen} times: {frame:02x?}");
            }
            Ok(())
        })
    }
}
