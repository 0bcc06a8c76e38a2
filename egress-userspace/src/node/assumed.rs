//! A node as it would be if every pod and gateway were in order: for answers without the node itself.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Link, NodeView, Route};
use crate::model::{Exit, Model, Phase};

const MTU: u32 = 1500;
const UPLINK: &str = "uplink";
// What stands in an answer where resources name no interface.
const OF_POD: &str = "an interface of its own";
const OF_NEXT_HOP: &str = "the interface that leads there";

impl NodeView {
    /// A node on which each pod has an interface of its own, each next hop is on-link, the outside is behind one
    /// uplink, and the overlay device of that name is there.
    #[must_use]
    pub fn assumed(model: &Model, overlay_device: &str) -> Self {
        let mut view = Self::default();
        let uplink = view.add_link(Some(UPLINK), UPLINK);
        for destination in [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())] {
            view.add_route(destination, uplink);
        }
        view.add_link(Some(overlay_device), overlay_device);
        for pod in model.pods.values() {
            if pod.host_network || pod.phase == Phase::Finished || pod.addresses.is_empty() {
                continue;
            }
            let ifindex = view.add_link(pod.interface.as_deref(), OF_POD);
            for address in &pod.addresses {
                view.add_route(IpNet::from(*address), ifindex);
            }
        }
        for gateway in model.gateways.values() {
            let ifindex = view.add_link(gateway.interface.as_deref(), OF_NEXT_HOP);
            match &gateway.exit {
                Exit::NextHops { addresses, .. } => {
                    for next_hop in addresses {
                        view.add_route(IpNet::from(*next_hop), ifindex);
                    }
                }
                Exit::Node(_) => {}
            }
        }
        view
    }

    /// The link of that name; without one, a new link, called as it is known.
    fn add_link(&mut self, name: Option<&str>, known_as: &str) -> u32 {
        if let Some(name) = name
            && let Some((index, _)) = self.links.iter().find(|(_, link)| link.name == name)
        {
            return *index;
        }
        let index = self.links.keys().next_back().map_or(1, |last| last + 1);
        let name = name.unwrap_or(known_as).to_owned();
        let link = Link {
            name,
            mtu: MTU,
            up: true,
            bridge: false,
            loopback: false,
            ethernet: true,
            master: None,
        };
        self.links.insert(index, link);
        index
    }

    fn add_route(&mut self, destination: IpNet, ifindex: u32) {
        self.routes.push(Route {
            destination,
            gateway: None,
            ifindex,
            metric: 0,
            mtu: None,
        });
    }
}
