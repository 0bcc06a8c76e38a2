//! Reads the node's network over rtnetlink.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use egress_common::Mac;
use futures_util::StreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{
            InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType,
            LinkMessage,
        },
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
            RouteNextHopFlags, RouteType, RouteVia,
        },
    },
};
use tokio::{task::JoinHandle, time::timeout};

use super::{ForwardingEntry, Link, Neighbour, NodeView, Route};

/// A connection to the kernel's view of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    /// Carries the messages; it ends with us.
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// `RT_TABLE_LOCAL` of `linux/rtnetlink.h`.
const RT_TABLE_LOCAL: u32 = 255;
/// How long a reading may take before something is wrong.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a dump that the kernel calls inconsistent is begun again.
const DUMP_ATTEMPTS: u32 = 20;

impl Netlink {
    /// Connects to the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn connect() -> Result<Self> {
        let (mut connection, handle, unsolicited) =
            rtnetlink::new_connection().context("cannot open a netlink socket")?;
        // The last message of a dump is the one that tells whether it was interrupted.
        connection.set_forward_done(true);
        drop(unsolicited);
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Reads links, addresses, routes, neighbours and forwarding entries.
    ///
    /// # Errors
    /// The kernel refuses a dump, does not answer, or keeps interrupting it.
    pub async fn read(&self) -> Result<NodeView> {
        timeout(READ_TIMEOUT, self.read_all())
            .await
            .context("the kernel did not answer netlink dumps in time")?
    }

    /// Makes the kernel ask for the MAC of `address` on the device `ifindex`.
    ///
    /// A bridge learns pods when they send or are asked for. Waiting until a pod sends would let its first
    /// packets pass unsteered. The answer arrives as a change of the view.
    ///
    /// # Errors
    /// The kernel refuses the request.
    pub async fn solicit(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        self.handle
            .neighbours()
            .add(ifindex, address)
            .flags(NeighbourFlags::Use)
            .state(NeighbourState::None)
            .replace()
            .execute()
            .await
            .with_context(|| {
                format!("cannot ask for the neighbour {address} on interface {ifindex}")
            })
    }

    /// For what else is asked of the kernel, or told to it.
    pub(super) const fn handle(&self) -> &Handle {
        &self.handle
    }

    async fn read_all(&self) -> Result<NodeView> {
        let mut view = NodeView {
            links: self
                .dump("links", links_request(), link)
                .await?
                .into_iter()
                .collect(),
            addresses: self
                .dump(
                    "addresses",
                    RouteNetlinkMessage::GetAddress(AddressMessage::default()),
                    own_address,
                )
                .await?,
            ..NodeView::default()
        };
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let routes = self
                .dump("routes", RouteNetlinkMessage::GetRoute(request), |m| {
                    Some(routes(m))
                })
                .await?;
            for (table, route) in routes.into_iter().flatten() {
                if table == u32::from(RouteHeader::RT_TABLE_MAIN) {
                    view.routes.push(route);
                } else if !route.is_host_on_link() {
                    view.ruled.insert((route.ifindex, route.destination));
                }
            }
        }
        self.read_neighbours(&mut view).await?;
        Ok(view)
    }

    /// Reads what ages and is learned again, and leaves the rest of `view` as it is.
    pub(super) async fn read_neighbours(&self, view: &mut NodeView) -> Result<()> {
        let request = |family| {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            RouteNetlinkMessage::GetNeighbour(request)
        };
        view.neighbours = self
            .dump("neighbours", request(AddressFamily::Unspec), neighbour)
            .await?;
        let links = &view.links;
        view.neighbours
            .retain(|n| links.get(&n.ifindex).is_some_and(|link| link.bridge));
        view.forwarding = self
            .dump(
                "forwarding entries",
                request(AddressFamily::Bridge),
                forwarding_entry,
            )
            .await?;
        view.forwarding.retain(|entry| {
            links
                .get(&entry.port)
                .is_some_and(|link| link.master.is_some())
        });
        view.sort();
        Ok(())
    }

    /// One dump, begun again while the kernel says that it changed underneath.
    async fn dump<T>(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
        convert: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(items) = self
                .try_dump(request.clone(), &convert)
                .await
                .with_context(|| format!("cannot read the {what} of this node"))?
            {
                return Ok(items);
            }
        }
        bail!("the {what} of this node changed during each of {DUMP_ATTEMPTS} readings")
    }

    /// One dump, or nothing if it was interrupted.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else comes is no answer to a dump"
    )]
    async fn try_dump<T>(
        &self,
        request: RouteNetlinkMessage,
        convert: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.handle.clone().request(message)?;
        let mut items = Vec::new();
        let mut interrupted = false;
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => items.extend(convert(inner)),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(std::io::Error::from_raw_os_error(-done.code).into());
                }
                NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(items)),
                NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                other => bail!("unexpected answer: {other:?}"),
            }
        }
        bail!("the answer ended before it was complete")
    }
}

fn links_request() -> RouteNetlinkMessage {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(request)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel tells dozens of attributes, and more with each release"
)]
pub(super) fn link(message: RouteNetlinkMessage) -> Option<(u32, Link)> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let header = message.header;
    let mut link = Link {
        name: String::new(),
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        bridge: false,
        loopback: header.flags.contains(LinkFlags::Loopback),
        ethernet: header.link_layer_type == LinkLayerType::Ether,
        master: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::LinkInfo(infos) => {
                link.bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    Some((header.index, link))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of an address's attributes two matter"
)]
pub(super) fn own_address(message: RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let (mut local, mut prefix) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(address),
            AddressAttribute::Address(address) => prefix = Some(address),
            _ => {}
        }
    }
    let own = local.or(prefix)?;
    // Between two points the prefix is the peer's, and ours is the address alone.
    let net = if prefix.is_none_or(|address| address == own) {
        IpNet::new(own, message.header.prefix_len).ok()?
    } else {
        IpNet::from(own)
    };
    Some((message.header.index, net))
}

/// The route's table and paths, unless it is of the node's own addresses, of another kind or a cached exception.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of a route's attributes seven matter"
)]
pub(super) fn routes(message: RouteNetlinkMessage) -> Vec<(u32, Route)> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return Vec::new();
    };
    let header = message.header;
    let mut table = u32::from(header.table);
    let mut destination = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let (mut gateway, mut ifindex, mut metric, mut mtu) = (None, None, 0, None);
    let mut paths = Vec::new();
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = number,
            RouteAttribute::Destination(address) => match ip(&address) {
                Some(address) => destination = address,
                None => return Vec::new(),
            },
            RouteAttribute::Oif(index) => ifindex = Some(index),
            RouteAttribute::Priority(number) => metric = number,
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(hops) => paths = hops,
            other => gateway = gateway.or_else(|| router(&other)),
        }
    }
    let Ok(destination) = IpNet::new(destination, header.destination_prefix_length) else {
        return Vec::new();
    };
    if table == RT_TABLE_LOCAL
        || header.kind != RouteType::Unicast
        || header.flags.contains(RouteFlags::Cloned)
    {
        return Vec::new();
    }
    let path = |gateway, ifindex| {
        let route = Route {
            destination,
            gateway,
            ifindex,
            metric,
            mtu,
        };
        (table, route)
    };
    paths
        .iter()
        .filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead))
        .map(|hop| path(hop.attributes.iter().find_map(router), hop.interface_index))
        .chain(
            ifindex
                .filter(|_| paths.is_empty() && !header.flags.contains(RouteFlags::Dead))
                .map(|ifindex| path(gateway, ifindex)),
        )
        .collect()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "two attributes name a router"
)]
fn router(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of all kinds of address two are IP"
)]
pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a state that we do not know has no MAC that we trust"
)]
fn neighbour(message: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    // NUD_VALID: the states in which the kernel would use the MAC.
    match message.header.state {
        NeighbourState::Permanent
        | NeighbourState::Noarp
        | NeighbourState::Reachable
        | NeighbourState::Probe
        | NeighbourState::Stale
        | NeighbourState::Delay => {}
        _ => return None,
    }
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(IpAddr::from(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some(IpAddr::from(*a)),
            _ => None,
        })
        // The kernel makes those of groups by itself, tells nobody, and they are no pod's.
        .filter(|address| !address.is_multicast())?;
    Some(Neighbour {
        ifindex: message.header.ifindex,
        address,
        mac: mac(&message)?,
    })
}

fn forwarding_entry(message: RouteNetlinkMessage) -> Option<ForwardingEntry> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    // Permanent entries are the MACs of the ports themselves. Entries without a bridge belong to the device
    // below, such as a VXLAN's peers.
    let of_bridge = message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, NeighbourAttribute::Controller(_)));
    if !of_bridge || message.header.state == NeighbourState::Permanent {
        return None;
    }
    Some(ForwardingEntry {
        port: message.header.ifindex,
        mac: mac(&message)?,
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "one attribute is the MAC")]
fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                Some(Mac(bytes.as_slice().try_into().ok()?))
            }
            _ => None,
        })
}
