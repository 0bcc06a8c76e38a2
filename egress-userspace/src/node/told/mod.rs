//! What the kernel tells of a change, applied to what is known: reading all again costs as much as there is, and pods
//! come and go all the time.
//!
//! Only what a message says for certain is applied. Of some consequences the kernel says nothing, such as the IPv4 routes
//! that go with an address or when an interface is shut: after those everything is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use rtnetlink::{
    packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::LinkMessage,
        route::{RouteAttribute, RouteHeader, RouteMessage},
    },
};

use tokio::time::Instant;

use super::{
    NodeView,
    netlink::{link, own_address, routes},
};

/// A change that the kernel tells of.
pub(super) type Message = NetlinkMessage<RouteNetlinkMessage>;

/// Whoever applies changes, from one reading of everything to the next.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Links that came since, and have not been up: nothing can have used them.
    fresh: BTreeSet<u32>,
    /// Pods' links that went down, and when: of routes that went with them nothing is told, unless the links go too.
    shut: BTreeMap<u32, Instant>,
}

/// How long a pod's link may be down before everything is read: mostly it is removed next, after a grace period. Until
/// then the view has routes that lead nowhere.
const REMOVED_WITHIN: Duration = Duration::from_secs(1);

/// Whether all that a message means is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Certain {
    Yes,
    No,
}

impl Telling {
    /// Applies messages in their order, and says whether the view is what the kernel has then. Else it is to be read.
    pub(super) fn apply(&mut self, view: &mut NodeView, messages: Vec<Message>) -> bool {
        messages
            .into_iter()
            .all(|message| self.apply_one(view, message) == Certain::Yes)
    }

    /// When everything has to be read, if not before for another reason.
    pub(super) fn due(&self) -> Option<Instant> {
        Some(*self.shut.values().min()? + REMOVED_WITHIN)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what nobody has thought of is no reason to believe that nothing changed"
    )]
    fn apply_one(&mut self, view: &mut NodeView, message: Message) -> Certain {
        let replaces = message.header.flags & NLM_F_REPLACE != 0;
        let NetlinkPayload::InnerMessage(inner) = message.payload else {
            return Certain::No;
        };
        match inner {
            RouteNetlinkMessage::NewLink(message) => self.new_link(view, message),
            RouteNetlinkMessage::DelLink(message) => self.del_link(view, &message),
            RouteNetlinkMessage::NewAddress(message) => {
                let address = own_address(RouteNetlinkMessage::NewAddress(message));
                if let Some(address) = address {
                    insert(&mut view.addresses, address);
                }
                Certain::Yes
            }
            RouteNetlinkMessage::DelAddress(message) => del_address(view, message),
            RouteNetlinkMessage::NewRoute(message) if !replaces => self.new_route(view, message),
            RouteNetlinkMessage::DelRoute(message) => del_route(view, message),
            _ => Certain::No,
        }
    }

    fn new_link(&mut self, view: &mut NodeView, message: LinkMessage) -> Certain {
        // Bridges tell of their ports, in messages that say less of the link.
        if message.header.interface_family != AddressFamily::Unspec {
            return Certain::No;
        }
        let Some((index, new)) = link(RouteNetlinkMessage::NewLink(message)) else {
            return Certain::No;
        };
        let before = view.links.get(&index);
        let bridged = |link: &super::Link| link.bridge || link.master.is_some();
        if bridged(&new) || before.is_some_and(bridged) {
            return Certain::No;
        }
        match before {
            None if !new.up => drop(self.fresh.insert(index)),
            None => {}
            Some(before) if before.up && !new.up => {
                if !is_pods(view, index) {
                    return Certain::No;
                }
                self.shut.insert(index, Instant::now());
            }
            // Routes of several paths may have one again that was dead.
            Some(before) if !before.up && new.up => {
                if !self.fresh.remove(&index) {
                    return Certain::No;
                }
                self.shut.remove(&index);
            }
            Some(_) => {}
        }
        view.links.insert(index, new);
        Certain::Yes
    }

    fn del_link(&mut self, view: &mut NodeView, message: &LinkMessage) -> Certain {
        // A port that leaves its bridge is told like this.
        if message.header.interface_family != AddressFamily::Unspec {
            return Certain::No;
        }
        let index = message.header.index;
        self.fresh.remove(&index);
        self.shut.remove(&index);
        let gone = view.links.remove(&index);
        if gone.is_some_and(|link| link.bridge || link.master.is_some()) {
            return Certain::No;
        }
        // Routes with this source address go as well, wherever they lead.
        let had_ipv4 = view
            .addresses
            .iter()
            .any(|(i, net)| *i == index && is_ipv4(net));
        view.addresses.retain(|(ifindex, _)| *ifindex != index);
        view.routes.retain(|route| route.ifindex != index);
        view.ruled.retain(|(ifindex, _)| *ifindex != index);
        if had_ipv4 { Certain::No } else { Certain::Yes }
    }

    fn new_route(&mut self, view: &mut NodeView, message: RouteMessage) -> Certain {
        if !is_simple(&message) {
            return Certain::No;
        }
        for (table, route) in routes(RouteNetlinkMessage::NewRoute(message)) {
            match view.links.get(&route.ifindex) {
                Some(link) if link.up => {}
                // It may have gone with its link, unheard, if all was read since this was told.
                Some(_) => drop(self.shut.entry(route.ifindex).or_insert_with(Instant::now)),
                None => return Certain::No,
            }
            if table == u32::from(RouteHeader::RT_TABLE_MAIN) {
                let differs = |other: &&super::Route| **other != route;
                if similar(view, &route).any(|other| differs(&other)) {
                    return Certain::No;
                }
                insert(&mut view.routes, route);
            } else if !route.is_host_on_link() {
                view.ruled.insert((route.ifindex, route.destination));
            }
        }
        Certain::Yes
    }
}

/// Whether a link has only what a pod's has: routes to hosts, and what IPv6 gives every link.
fn is_pods(view: &NodeView, index: u32) -> bool {
    let mut addresses = view.addresses.iter().filter(|(i, _)| *i == index);
    let mut routes = view.routes.iter().filter(|route| route.ifindex == index);
    let is_link_local = |net: &IpNet| match net {
        IpNet::V4(_) => false,
        IpNet::V6(net) => net.addr().is_unicast_link_local(),
    };
    addresses.all(|(_, net)| is_link_local(net))
        && routes.all(|route| route.is_host_on_link() || is_link_local(&route.destination))
}

fn del_address(view: &mut NodeView, message: AddressMessage) -> Certain {
    let Some(address) = own_address(RouteNetlinkMessage::NewAddress(message)) else {
        return Certain::No;
    };
    if let Ok(at) = view.addresses.binary_search(&address) {
        view.addresses.remove(at);
    }
    // Routes go with it that nothing is told of.
    if is_ipv4(&address.1) {
        Certain::No
    } else {
        Certain::Yes
    }
}

fn del_route(view: &mut NodeView, message: RouteMessage) -> Certain {
    if !is_simple(&message) {
        return Certain::No;
    }
    for (table, route) in routes(RouteNetlinkMessage::NewRoute(message)) {
        if table == u32::from(RouteHeader::RT_TABLE_MAIN) {
            if let Ok(at) = view.routes.binary_search(&route) {
                view.routes.remove(at);
            } else if similar(view, &route).next().is_some() {
                return Certain::No;
            }
        } else if !route.is_host_on_link() {
            // Another table may have one to the same destination.
            return Certain::No;
        }
    }
    Certain::Yes
}

/// Whether a route has one path, and no other route differs from it in nothing that the view knows.
fn is_simple(message: &RouteMessage) -> bool {
    let several = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::MultiPath(_));
    message.header.tos == 0
        && message.header.source_prefix_length == 0
        && !message.attributes.iter().any(several)
}

/// Routes of the same destination, device and metric.
fn similar<'v>(
    view: &'v NodeView,
    route: &super::Route,
) -> impl Iterator<Item = &'v super::Route> + use<'v> {
    let (destination, ifindex, metric) = (route.destination, route.ifindex, route.metric);
    let from = view
        .routes
        .partition_point(|other| other.destination < destination);
    view.routes[from..]
        .iter()
        .take_while(move |other| other.destination == destination)
        .filter(move |other| other.ifindex == ifindex && other.metric == metric)
}

fn insert<T: Ord>(sorted: &mut Vec<T>, new: T) {
    if let Err(at) = sorted.binary_search(&new) {
        sorted.insert(at, new);
    }
}

fn is_ipv4(net: &IpNet) -> bool {
    matches!(net.addr(), IpAddr::V4(_))
}

#[cfg(test)]
mod tests;
