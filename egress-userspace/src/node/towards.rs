//! The address that the kernel sends from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAttribute, RouteHeader, RouteMessage},
};

use super::{Netlink, netlink::ip};

impl Netlink {
    /// The source address that the kernel gives packets to `host`, which nobody has bound to another.
    ///
    /// # Errors
    /// No route leads there.
    pub async fn source_towards(&self, host: IpAddr) -> Result<IpAddr> {
        let request = match host {
            IpAddr::V4(host) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(host, 32)
                .build(),
            IpAddr::V6(host) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(host, 128)
                .build(),
        };
        let mut answers = self.handle().route().get(question(request)).execute();
        let answer = answers
            .try_next()
            .await
            .with_context(|| format!("no route leads to {host}"))?;
        answer
            .iter()
            .flat_map(|route| &route.attributes)
            .find_map(preferred_source)
            .with_context(|| format!("the kernel tells no source address for packets to {host}"))
    }
}

/// A route is asked for by its destination alone.
fn question(mut message: RouteMessage) -> RouteMessage {
    let family = message.header.address_family;
    let length = message.header.destination_prefix_length;
    message.header = RouteHeader {
        address_family: family,
        destination_prefix_length: length,
        ..RouteHeader::default()
    };
    message
}

fn preferred_source(attribute: &RouteAttribute) -> Option<IpAddr> {
    let RouteAttribute::PrefSource(address) = attribute else {
        return None;
    };
    ip(address)
}
