//! The overlay's device: a VXLAN device that leaves addresses and identifier of each packet to programs.

use std::io;

use anyhow::{Context as _, Result, anyhow};
use futures_util::TryStreamExt as _;
use nix::errno::Errno;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVxlan,
    packet_route::link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVxlan, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage,
    },
};

use super::Netlink;

/// Largest packet that the device takes: what UDP over IPv6 leaves of the largest IP packet. What fits the way
/// to a node is the programs' to know; the device stands in the way of none.
const MTU: u32 = 65_535 - 70;

/// A device that has the overlay's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayDevice {
    /// Its index.
    pub ifindex: u32,
    /// Whether it is administratively up: open for frames.
    pub up: bool,
    /// The UDP port, if it is a VXLAN device of the kind that the overlay needs.
    pub port: Option<u16>,
}

/// Why the overlay's device cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum OverlayProblem {
    /// Something has the port, for IPv4 or IPv6.
    #[error(
        "UDP port {port} is taken, by another VXLAN device or by a process (`ss -ulpn`): free it, or choose \
         another with --overlay-port on every node"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The kernel cannot make VXLAN devices.
    #[error(
        "this kernel has no VXLAN devices: build or load it with CONFIG_VXLAN (`modprobe vxlan`)"
    )]
    NoVxlan,
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Netlink {
    /// The device of this name.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub async fn overlay_device(&self, name: &str) -> Result<Option<OverlayDevice>> {
        let request = self.handle().link().get().match_name(name.to_owned());
        match request.execute().try_next().await {
            Ok(message) => Ok(message.map(|message| device(&message))),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot look at the device {name}")),
        }
    }

    /// Makes the device, closed.
    ///
    /// # Errors
    /// The port is taken by a device of the same kind, or the kernel refuses.
    pub async fn make_overlay_device(&self, name: &str, port: u16) -> Result<(), OverlayProblem> {
        // Packets carry checksums of their own; over IPv6 a peer may leave that of UDP out (RFC 6935).
        let message = LinkMessageBuilder::<LinkVxlan>::new(name)
            .collect_metadata(true)
            .learning(false)
            .port(port)
            .udp_zero_csum6_rx(true)
            .udp_zero_csum6_tx(true)
            .mtu(MTU)
            .build();
        let made = self.handle().link().add(message).execute().await;
        made.map_err(|error| match errno(&error) {
            // The name is free: its owner was asked for before. So it is the port.
            Some(Errno::EEXIST | Errno::EADDRINUSE) => OverlayProblem::PortTaken { port },
            Some(Errno::EOPNOTSUPP) => OverlayProblem::NoVxlan,
            _ => anyhow!(error)
                .context(format!("cannot make the VXLAN device {name}"))
                .into(),
        })?;
        Ok(self.forbid_addresses(name).await?)
    }

    /// Keeps the kernel from giving the device an address when it opens.
    async fn forbid_addresses(&self, name: &str) -> Result<()> {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let message = LinkUnspec::new_with_name(name)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![none],
            )]))
            .build();
        match self.handle().link().set(message).execute().await {
            Ok(()) => Ok(()),
            // There is no IPv6 here to give it one.
            Err(error) if errno(&error) == Some(Errno::EAFNOSUPPORT) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot keep IPv6 addresses off {name}"))
            }
        }
    }

    /// Opens or closes the device.
    ///
    /// # Errors
    /// Opening takes the port, which may be another's.
    pub async fn open_overlay_device(
        &self,
        device: OverlayDevice,
        open: bool,
    ) -> Result<(), OverlayProblem> {
        let message = LinkUnspec::new_with_index(device.ifindex);
        let message = if open { message.up() } else { message.down() };
        let result = self.handle().link().set(message.build()).execute().await;
        result.map_err(|error| match (errno(&error), device.port) {
            (Some(Errno::EADDRINUSE), Some(port)) => OverlayProblem::PortTaken { port },
            _ => {
                let what = if open { "open" } else { "close" };
                anyhow!(error)
                    .context(format!("cannot {what} the overlay device"))
                    .into()
            }
        })
    }

    /// Removes the device; one that is gone is as good.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_overlay_device(&self, ifindex: u32) -> Result<()> {
        match self.handle().link().del(ifindex).execute().await {
            Ok(()) => Ok(()),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(()),
            Err(error) => Err(error)
                .with_context(|| format!("cannot remove the overlay device with index {ifindex}")),
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else went wrong has no number"
)]
fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => io::Error::from(message.clone())
            .raw_os_error()
            .map(Errno::from_raw),
        _ => None,
    }
}

fn device(message: &LinkMessage) -> OverlayDevice {
    let data = message.attributes.iter().find_map(|attribute| {
        let LinkAttribute::LinkInfo(infos) = attribute else {
            return None;
        };
        infos.iter().find_map(|info| {
            let LinkInfo::Data(InfoData::Vxlan(data)) = info else {
                return None;
            };
            Some(data)
        })
    });
    OverlayDevice {
        ifindex: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        port: data.and_then(|data| port(data)),
    }
}

/// The port of a VXLAN device that collects metadata and learns nothing.
fn port(data: &[InfoVxlan]) -> Option<u16> {
    let collects = data.contains(&InfoVxlan::CollectMetadata(true));
    let learns = data.contains(&InfoVxlan::Learning(true));
    let port = data.iter().find_map(|info| {
        let InfoVxlan::Port(port) = info else {
            return None;
        };
        Some(*port)
    });
    port.filter(|_| collects && !learns)
}
