//! What is needed to speak on an interface below IP: its hardware address, and the addresses to speak from.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use egress_common::Mac;
use nix::{ifaddrs::getifaddrs, sys::socket::LinkAddr};

/// An interface of the network namespace that the caller is in.
#[derive(Clone, Debug)]
pub struct LinkLayer {
    /// Its name.
    pub name: String,
    /// Where packet sockets are bound and send to.
    pub address: LinkAddr,
    /// Its hardware address; none if it carries no Ethernet frames.
    pub mac: Option<Mac>,
    /// Its IPv4 addresses with their masks.
    sources: Vec<(Ipv4Addr, Ipv4Addr)>,
}

impl LinkLayer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn read(ifindex: u32) -> Result<Self> {
        let mut link: Option<(String, LinkAddr)> = None;
        let mut addresses = Vec::new();
        for interface in getifaddrs().context("cannot list the node's interfaces")? {
            let Some(address) = interface.address else {
                continue;
            };
            if let Some(found) = address.as_link_addr() {
                if u32::try_from(found.ifindex()) == Ok(ifindex) {
                    link = Some((interface.interface_name, *found));
                }
            } else if let Some(found) = address.as_sockaddr_in() {
                let mask = interface.netmask.as_ref().and_then(|m| m.as_sockaddr_in());
                let mask = mask.map_or(Ipv4Addr::BROADCAST, |mask| mask.ip());
                addresses.push((interface.interface_name, (found.ip(), mask)));
            }
        }
        let (name, address) =
            link.with_context(|| format!("there is no interface {ifindex} any more"))?;
        let is_ethernet = address.hatype() == libc::ARPHRD_ETHER && address.halen() == 6;
        Ok(Self {
            sources: addresses
                .into_iter()
                .filter(|(of, _)| *of == name)
                .map(|(_, source)| source)
                .collect(),
            mac: address.addr().filter(|_| is_ethernet).map(Mac),
            name,
            address,
        })
    }

    /// The address to ask a neighbour from: one of the neighbour's network, or any of the interface; unspecified, as
    /// in a probe (RFC 5227, 2.1.1), if it has none.
    #[must_use]
    pub fn source_towards(&self, neighbour: Ipv4Addr) -> Ipv4Addr {
        let shares = |(address, mask): &&(Ipv4Addr, Ipv4Addr)| {
            let mask = u32::from(*mask);
            u32::from(*address) & mask == u32::from(neighbour) & mask
        };
        let found = self.sources.iter().find(shares).or(self.sources.first());
        found.map_or(Ipv4Addr::UNSPECIFIED, |(address, _)| *address)
    }
}
