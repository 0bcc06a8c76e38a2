//! Where the outside is, and by which device another node is reached.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{NoWay, NodeIndex, Route};

/// A device that packets leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// Largest IP packet in bytes.
    pub mtu: u32,
}

impl NodeIndex<'_> {
    /// The device of this name, which must be up and carry Ethernet frames.
    ///
    /// # Errors
    /// It is not there, or cannot be used.
    pub fn device(&self, name: &str) -> Result<Device, NoWay> {
        let ifindex = self
            .ifindex(name)
            .ok_or_else(|| NoWay::NoSuchInterface(name.to_owned()))?;
        self.usable_link(ifindex).map(|link| Device {
            ifindex,
            mtu: link.mtu,
        })
    }

    /// The device of the best default route of the address's family that can be used; none without a route.
    ///
    /// # Errors
    /// No device of such a route can be used.
    #[must_use]
    pub fn default_device(&self, address: IpAddr) -> Option<Result<Device, NoWay>> {
        let everything = match address {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        let usable = |route: &&Route| {
            self.usable_link(route.ifindex).map(|link| Device {
                ifindex: route.ifindex,
                mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
            })
        };
        let mut routes = self.routes.get(&everything)?.iter().map(usable);
        let first = routes.next()?;
        Some(first.or_else(|problem| routes.find_map(Result::ok).ok_or(problem)))
    }

    /// The device by which packets to another host leave, on-link or through a router.
    ///
    /// Unlike a next hop's, it need not carry Ethernet frames.
    #[must_use]
    pub fn device_towards(&self, host: IpAddr) -> Option<Device> {
        if self.is_own_address(host) {
            return None;
        }
        self.routes_to(host).iter().find_map(|route| {
            let link = self.view.links.get(&route.ifindex)?;
            let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
            (link.up && !link.loopback).then_some(Device {
                ifindex: route.ifindex,
                mtu,
            })
        })
    }

    /// The addresses of a device that other hosts can send to, in order.
    pub fn addresses_of(&self, ifindex: u32) -> impl Iterator<Item = IpAddr> {
        let of_device = self
            .view
            .addresses
            .iter()
            .filter(move |(device, _)| *device == ifindex);
        of_device
            .map(|(_, net)| net.addr())
            .filter(|address| match address {
                IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
                IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
            })
    }
}
