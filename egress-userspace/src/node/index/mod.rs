//! Questions that one reading of the node answers: where is a pod's interface, how is a next hop reached?

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use egress_common::Mac;
use ipnet::IpNet;

use super::{InterfaceProblem, Link, NoWay, NodeView, Route, Way};

mod outside;
#[cfg(test)]
mod tests;

pub use outside::Device;

/// A [`NodeView`] arranged for questions about many addresses.
#[derive(Clone, Debug)]
pub struct NodeIndex<'a> {
    view: &'a NodeView,
    by_name: HashMap<&'a str, u32>,
    own: HashSet<IpAddr>,
    /// Routes to each prefix, the best first.
    routes: HashMap<IpNet, Vec<&'a Route>>,
    /// Prefix lengths that occur, the longest first: of IPv4, then of IPv6.
    lengths: [Vec<u8>; 2],
    /// Devices that a default route leads out of, with the ports to its routers.
    uplinks: HashSet<u32>,
    neighbours: HashMap<(u32, IpAddr), Mac>,
    /// Ports by bridge and MAC. Bridges that keep VLANs apart may have several.
    ports: HashMap<(u32, Mac), Vec<u32>>,
}

/// Where a pod's interface was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// The interface.
    pub ifindex: u32,
    /// Whether a bridge's tables had a say in it: what they learn, a pod can forge.
    pub learned: bool,
}

impl NodeView {
    /// Arranges the view for questions about many addresses.
    #[must_use]
    pub fn index(&self) -> NodeIndex<'_> {
        NodeIndex::new(self)
    }

    /// [`NodeIndex::pod_interface`] for a single question.
    ///
    /// # Errors
    /// The interface is not known, or not the pod's own.
    pub fn pod_interface(
        &self,
        addresses: &[IpAddr],
        hint: Option<&str>,
    ) -> Result<u32, InterfaceProblem> {
        self.index().pod_interface(addresses, hint)
    }

    /// [`NodeIndex::way_to`] for a single question.
    ///
    /// # Errors
    /// The next hop cannot be used.
    pub fn way_to(&self, next_hop: IpAddr, interface: Option<&str>) -> Result<Way, NoWay> {
        self.index().way_to(next_hop, interface)
    }

    /// Whether the node itself has this address.
    #[must_use]
    pub fn is_own_address(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.iter().any(|(_, net)| net.addr() == address)
    }
}

impl<'a> NodeIndex<'a> {
    fn new(view: &'a NodeView) -> Self {
        let mut routes: HashMap<IpNet, Vec<&Route>> = HashMap::new();
        for route in &view.routes {
            routes.entry(route.destination).or_default().push(route);
        }
        let mut lengths = [Vec::new(), Vec::new()];
        for (net, list) in &mut routes {
            list.sort_unstable_by_key(|r| (r.metric, r.gateway, r.ifindex));
            lengths[family(net.addr())].push(net.prefix_len());
        }
        for list in &mut lengths {
            list.sort_unstable_by(|a, b| b.cmp(a));
            list.dedup();
        }
        let mut ports: HashMap<_, Vec<u32>> = HashMap::new();
        for entry in &view.forwarding {
            if let Some(bridge) = view.master(entry.port) {
                ports
                    .entry((bridge, entry.mac))
                    .or_default()
                    .push(entry.port);
            }
        }
        let neighbours: HashMap<_, _> = view
            .neighbours
            .iter()
            .map(|n| ((n.ifindex, n.address), n.mac))
            .collect();
        let mut uplinks = HashSet::new();
        for route in view
            .routes
            .iter()
            .filter(|r| r.destination.prefix_len() == 0)
        {
            uplinks.insert(route.ifindex);
            // A bridge's port to the outside is an uplink as much as the bridge.
            let port = route
                .gateway
                .and_then(|router| neighbours.get(&(route.ifindex, router)))
                .and_then(|&mac| ports.get(&(route.ifindex, mac)));
            uplinks.extend(port.into_iter().flatten());
        }
        Self {
            view,
            by_name: view
                .links
                .iter()
                .map(|(&ifindex, link)| (link.name.as_str(), ifindex))
                .collect(),
            own: view.addresses.iter().map(|(_, net)| net.addr()).collect(),
            routes,
            lengths,
            uplinks,
            neighbours,
            ports,
        }
    }

    /// [`Self::find_pod`], whoever told.
    ///
    /// # Errors
    /// The interface is not known (yet), or is not the pod's own.
    pub fn pod_interface(
        &self,
        addresses: &[IpAddr],
        hint: Option<&str>,
    ) -> Result<u32, InterfaceProblem> {
        self.find_pod(addresses, hint).map(|found| found.ifindex)
    }

    /// The host-side interface of the pod with these addresses.
    ///
    /// It is the device of the host route; where that is a bridge, the port of it that `hint` names, else the
    /// port behind the pod's MAC; where all that tells nothing, the device that `hint` names.
    ///
    /// # Errors
    /// The interface is not known (yet), or is not the pod's own.
    pub fn find_pod(
        &self,
        addresses: &[IpAddr],
        hint: Option<&str>,
    ) -> Result<PodInterface, InterfaceProblem> {
        let mut found: Option<PodInterface> = None;
        let mut problem: Option<InterfaceProblem> = None;
        let mut learned = false;
        for &address in addresses {
            match self.interface_of(address, hint, &mut learned) {
                Ok(new) => match &mut found {
                    Some(other) if other.ifindex != new.ifindex => {
                        return Err(InterfaceProblem::Disagree {
                            first: self.name(other.ifindex),
                            second: self.name(new.ifindex),
                        });
                    }
                    // A route that says the same as the tables confirms them.
                    Some(other) => other.learned &= new.learned,
                    None => found = Some(new),
                },
                Err(own @ InterfaceProblem::OwnAddress { .. }) => return Err(own),
                // The one that time does not solve is the one to tell.
                Err(new) => {
                    if problem.as_ref().is_none_or(InterfaceProblem::may_pass) && !new.may_pass()
                        || problem.is_none()
                    {
                        problem = Some(new);
                    }
                }
            }
        }
        match (found, problem, hint) {
            (Some(found), _, _) => Ok(found),
            // That the tables tell nothing may be the pod's doing too.
            (None, Some(_), Some(name)) => self
                .hinted(name)
                .map(|ifindex| PodInterface { ifindex, learned }),
            (None, Some(problem), None) => Err(problem),
            (None, None, _) => Err(InterfaceProblem::NoRoute {
                address: IpAddr::from([0, 0, 0, 0]),
            }),
        }
    }

    /// How packets reach `next_hop`, which must be on-link, on `interface` if one is given.
    ///
    /// # Errors
    /// The next hop is not on-link there, or the device cannot be used.
    pub fn way_to(&self, next_hop: IpAddr, interface: Option<&str>) -> Result<Way, NoWay> {
        if next_hop.is_unspecified() || next_hop.is_multicast() || self.is_broadcast(next_hop) {
            return Err(NoWay::NotAHost(next_hop));
        }
        if self.is_own_address(next_hop) {
            return Err(NoWay::OwnAddress(next_hop));
        }
        let route = match interface {
            Some(name) => self.route_on(next_hop, name)?,
            None if is_link_local_v6(next_hop) => return Err(NoWay::NeedsInterface(next_hop)),
            None => self.route_on_link(next_hop)?,
        };
        let link = self.usable_link(route.ifindex)?;
        Ok(Way {
            next_hop,
            ifindex: route.ifindex,
            mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        })
    }

    /// How packets reach `next_hop` on a device that somebody vouches for, whatever the routes say.
    ///
    /// # Errors
    /// The device cannot be used.
    pub fn way_over(&self, next_hop: IpAddr, interface: &str) -> Result<Way, NoWay> {
        let ifindex = self
            .ifindex(interface)
            .ok_or_else(|| NoWay::NoSuchInterface(interface.to_owned()))?;
        let link = self.usable_link(ifindex)?;
        Ok(Way {
            next_hop,
            ifindex,
            mtu: link.mtu,
        })
    }

    /// Whether the node itself has this address.
    #[must_use]
    pub fn is_own_address(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.own.contains(&address)
    }

    /// Whether there is a link with this index.
    #[must_use]
    pub fn exists(&self, ifindex: u32) -> bool {
        self.view.links.contains_key(&ifindex)
    }

    /// The link's name, or its number where it has gone.
    #[must_use]
    pub fn name(&self, ifindex: u32) -> String {
        self.view
            .links
            .get(&ifindex)
            .map_or_else(|| format!("if{ifindex}"), |link| link.name.clone())
    }

    /// Largest IP packet in bytes that the link takes; zero where it has gone.
    #[must_use]
    pub fn mtu(&self, ifindex: u32) -> u32 {
        self.view.links.get(&ifindex).map_or(0, |link| link.mtu)
    }

    fn ifindex(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// What the routes, and behind a bridge `hint` or its tables, say of one address.
    ///
    /// Sets `learned` where the tables had to be asked, also in vain.
    fn interface_of(
        &self,
        address: IpAddr,
        hint: Option<&str>,
        learned: &mut bool,
    ) -> Result<PodInterface, InterfaceProblem> {
        if self.is_own_address(address) {
            return Err(InterfaceProblem::OwnAddress { address });
        }
        let best = self.routes_to(address);
        let Some((route, link)) = best
            .first()
            .and_then(|route| Some((route, self.view.links.get(&route.ifindex)?)))
        else {
            return Err(InterfaceProblem::NoRoute { address });
        };
        if let Some(router) = route.gateway {
            return Err(InterfaceProblem::Remote { address, router });
        }
        if link.bridge {
            if let Some((port, link)) = self.port_named(route.ifindex, hint) {
                return self.exclusive(port, link).map(told);
            }
            *learned = true;
            let port = self.bridge_port(route.ifindex, &link.name, address)?;
            return Ok(PodInterface {
                ifindex: port,
                learned: true,
            });
        }
        if route.destination.prefix_len() != route.destination.max_prefix_len() {
            return Err(not_its_own(link, SUBNET));
        }
        if best
            .iter()
            .any(|r| r.metric == route.metric && r.ifindex != route.ifindex)
        {
            return Err(not_its_own(link, MULTIPATH));
        }
        self.exclusive(route.ifindex, link).map(told)
    }

    /// The port of this very bridge that the hint names: who runs the cluster knows better than its tables.
    fn port_named(&self, bridge: u32, hint: Option<&str>) -> Option<(u32, &'a Link)> {
        let port = self.ifindex(hint?)?;
        let link = self.view.links.get(&port)?;
        (link.master == Some(bridge)).then_some((port, link))
    }

    fn bridge_port(
        &self,
        bridge: u32,
        device: &str,
        address: IpAddr,
    ) -> Result<u32, InterfaceProblem> {
        let Some(&mac) = self.neighbours.get(&(bridge, address)) else {
            return Err(InterfaceProblem::NeighbourUnknown {
                address,
                ifindex: bridge,
                device: device.to_owned(),
            });
        };
        let ports = self
            .ports
            .get(&(bridge, mac))
            .map_or(&[][..], Vec::as_slice);
        let Some((&port, link)) = ports
            .first()
            .and_then(|port| Some((port, self.view.links.get(port)?)))
        else {
            return Err(InterfaceProblem::PortUnknown {
                address,
                ifindex: bridge,
                device: device.to_owned(),
            });
        };
        if ports.iter().any(|&other| other != port) {
            return Err(not_its_own(link, SEVERAL_PORTS));
        }
        self.exclusive(port, link)
    }

    fn hinted(&self, name: &str) -> Result<u32, InterfaceProblem> {
        let Some((ifindex, link)) = self
            .ifindex(name)
            .and_then(|ifindex| Some((ifindex, self.view.links.get(&ifindex)?)))
        else {
            return Err(InterfaceProblem::HintMissing {
                name: name.to_owned(),
            });
        };
        if link.bridge {
            return Err(not_its_own(link, BRIDGE));
        }
        self.exclusive(ifindex, link)
    }

    /// Refuses devices whose every unknown source cannot be taken for a spoofed one.
    fn exclusive(&self, ifindex: u32, link: &Link) -> Result<u32, InterfaceProblem> {
        if link.loopback {
            Err(not_its_own(link, LOOPBACK))
        } else if self.uplinks.contains(&ifindex) {
            Err(not_its_own(link, UPLINK))
        } else if !link.ethernet {
            Err(not_its_own(link, NOT_ETHERNET))
        } else {
            Ok(ifindex)
        }
    }

    /// The best route to `next_hop`, if it needs no router.
    fn route_on_link(&self, next_hop: IpAddr) -> Result<&'a Route, NoWay> {
        let routes = self.routes_to(next_hop);
        let Some(best) = routes.first() else {
            return Err(NoWay::NoRoute(next_hop));
        };
        if let Some(router) = routes
            .iter()
            .filter(|r| r.metric == best.metric)
            .find_map(|r| r.gateway)
        {
            return Err(NoWay::Routed { next_hop, router });
        }
        // Two interfaces on one network: the kernel would take the first even without a carrier.
        Ok(routes
            .iter()
            .filter(|r| r.gateway.is_none())
            .find(|r| self.usable_link(r.ifindex).is_ok())
            .unwrap_or(best))
    }

    /// The longest on-link route to `next_hop` over the device `name`.
    fn route_on(&self, next_hop: IpAddr, name: &str) -> Result<&'a Route, NoWay> {
        let ifindex = self
            .ifindex(name)
            .ok_or_else(|| NoWay::NoSuchInterface(name.to_owned()))?;
        self.covering(next_hop)
            .flatten()
            .find(|r| r.ifindex == ifindex && r.gateway.is_none())
            .copied()
            .ok_or_else(|| NoWay::NotOnLink {
                next_hop,
                interface: name.to_owned(),
            })
    }

    fn usable_link(&self, ifindex: u32) -> Result<&'a Link, NoWay> {
        match self.view.links.get(&ifindex) {
            None => Err(NoWay::NoSuchInterface(self.name(ifindex))),
            Some(link) if !link.ethernet || link.loopback => {
                Err(NoWay::NotEthernet(link.name.clone()))
            }
            Some(link) if !link.up => Err(NoWay::Down(link.name.clone())),
            Some(link) => Ok(link),
        }
    }

    fn is_broadcast(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else {
            return false;
        };
        address.is_broadcast()
            || self.view.addresses.iter().any(|(_, net)| match net {
                // RFC 3021: a /31 has none.
                IpNet::V4(net) => net.prefix_len() < 31 && net.broadcast() == address,
                IpNet::V6(_) => false,
            })
    }

    /// Routes of the longest prefix that covers `address`, the best first.
    fn routes_to(&self, address: IpAddr) -> &[&'a Route] {
        self.covering(address)
            .next()
            .map_or(&[], |routes| routes.as_slice())
    }

    /// Routes of every prefix that covers `address`, the longest first.
    fn covering(&self, address: IpAddr) -> impl Iterator<Item = &Vec<&'a Route>> {
        self.lengths[family(address)]
            .iter()
            .filter_map(move |&length| {
                let net = IpNet::new(address, length).ok()?.trunc();
                self.routes.get(&net)
            })
    }
}

const SUBNET: &str = "the route over it leads to a whole subnet";
const MULTIPATH: &str = "the pod's host route has several paths";
const SEVERAL_PORTS: &str = "the pod's MAC is behind several ports of the bridge";
const BRIDGE: &str = "it is a bridge";
const LOOPBACK: &str = "it is the loopback device";
const UPLINK: &str = "the node's default route leads out of it";
const NOT_ETHERNET: &str = "it does not carry Ethernet frames";

fn not_its_own(link: &Link, why: &'static str) -> InterfaceProblem {
    InterfaceProblem::NotItsOwn {
        device: link.name.clone(),
        why,
    }
}

const fn told(ifindex: u32) -> PodInterface {
    PodInterface {
        ifindex,
        learned: false,
    }
}

const fn family(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => 1,
    }
}

const fn is_link_local_v6(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}
