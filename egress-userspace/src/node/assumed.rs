//! A node as it would be if every pod and gateway were in order: for answers without the node itself.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Link, NodeView, Route};
use crate::model::{Model, Phase};

const MTU: u32 = 1500;

impl NodeView {
    /// A node on which each pod has an interface of its own, and each next hop is on-link.
    #[must_use]
    pub fn assumed(model: &Model) -> Self {
        let mut view = Self::default();
        for pod in model.pods.values() {
            if pod.host_network || pod.phase == Phase::Finished || pod.addresses.is_empty() {
                continue;
            }
            let ifindex = view.add_link(pod.interface.as_deref());
            for address in &pod.addresses {
                view.add_route(*address, ifindex);
            }
        }
        for gateway in model.gateways.values() {
            let ifindex = view.add_link(gateway.interface.as_deref());
            for next_hop in &gateway.next_hops {
                view.add_route(*next_hop, ifindex);
            }
        }
        view
    }

    fn add_link(&mut self, name: Option<&str>) -> u32 {
        if let Some(name) = name
            && let Some((index, _)) = self.links.iter().find(|(_, link)| link.name == name)
        {
            return *index;
        }
        let index = self.links.keys().next_back().map_or(1, |last| last + 1);
        let name = name.map_or_else(|| format!("assumed{index}"), str::to_owned);
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

    fn add_route(&mut self, address: IpAddr, ifindex: u32) {
        self.routes.push(Route {
            destination: IpNet::from(address),
            gateway: None,
            ifindex,
            metric: 0,
            mtu: None,
        });
    }
}
