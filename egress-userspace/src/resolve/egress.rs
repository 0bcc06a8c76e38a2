//! Egress addresses: on which node, by which way, and what this node has to do for those that it owns.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egress_common::gateway::GatewayId;

use super::{Assigned, Settings, nodes::Nodes};
use crate::{
    model::{Model, ObjectName, Phase},
    node::{Device, NodeIndex},
    state::{EgressAddress, Holder, Translation, Way},
};

/// Finds the ways to egress addresses, and collects those that this node owns.
pub(super) struct Owned<'a> {
    model: &'a Model,
    index: &'a NodeIndex<'a>,
    settings: &'a Settings,
    assigned: &'a Assigned,
    nodes: Nodes<'a>,
    addresses: BTreeMap<IpAddr, EgressAddress>,
    of_nodes: BTreeMap<IpAddr, Vec<&'a str>>,
    of_pods: BTreeMap<IpAddr, Vec<&'a ObjectName>>,
}

/// What a gateway with egress addresses asks for.
pub(super) struct Request<'a> {
    pub(super) name: &'a ObjectName,
    pub(super) id: GatewayId,
    /// The node that owns the addresses.
    pub(super) node: &'a str,
    pub(super) interface: Option<&'a str>,
    pub(super) held_by: HeldBy,
}

/// By whom the addresses are held, as far as the resources tell.
#[derive(Clone, Copy)]
pub(super) enum HeldBy {
    Pod,
    Node {
        assign: bool,
        allow_local_services: bool,
        ports: Option<(u16, u16)>,
        /// Whether the node probes the outside from them.
        probed: bool,
    },
}

impl<'a> Owned<'a> {
    pub(super) fn new(
        model: &'a Model,
        index: &'a NodeIndex<'a>,
        settings: &'a Settings,
        assigned: &'a Assigned,
        warnings: &mut BTreeSet<String>,
    ) -> Self {
        Self {
            model,
            index,
            settings,
            assigned,
            nodes: Nodes::new(model, index, settings, warnings),
            addresses: BTreeMap::new(),
            of_nodes: nodes_addresses(model),
            of_pods: pods_addresses(model),
        }
    }

    /// Why a gateway must not have an egress address: replies would be taken from the one that it belongs to.
    pub(super) fn check_owner(&self, request: &Request<'_>, egress: IpAddr) -> Result<(), String> {
        let mut nodes = self.of_nodes.get(&egress).into_iter().flatten();
        if let Some(node) = nodes.find(|node| **node != request.node) {
            return Err(format!(
                "the egress address {egress} is an address of the node {node}: replies would be taken from that node; \
                 use an address of the gateway's own"
            ));
        }
        let own_pod = match request.held_by {
            HeldBy::Pod => Some(request.name),
            HeldBy::Node { .. } => None,
        };
        let mut pods = self.of_pods.get(&egress).into_iter().flatten();
        if let Some(pod) = pods.find(|pod| Some(**pod) != own_pod) {
            return Err(format!(
                "the egress address {egress} is that of the pod {pod}: replies would be taken from that pod; use an \
                 address of the gateway's own"
            ));
        }
        Ok(())
    }

    /// The way to one address of a gateway, or why there is none.
    pub(super) fn way(&mut self, request: &Request<'_>, egress: IpAddr) -> Result<Way, String> {
        if request.node != self.settings.node_name {
            return self.nodes.way_to(request.node, egress);
        }
        let device = self.uplink(egress, request.interface)?;
        let (holder, ports, allow_local_services) = match request.held_by {
            // The address is the pod's: what is not translated is for the pod, as it always was.
            HeldBy::Pod => (Holder::Pod, self.ports(None)?, true),
            HeldBy::Node {
                assign,
                allow_local_services,
                ports: asked,
                probed,
            } => {
                let ports = self.ports(asked)?;
                let holder = if self.is_nodes_own(egress) {
                    self.check_shared(egress, asked, ports)?;
                    Holder::Node
                } else if assign {
                    Holder::Agent
                } else if probed {
                    return Err(format!(
                        "its probes could not be answered: {egress} is on no interface of its node {}, so the kernel \
                         there takes nothing that is sent to it; remove `assign: false`, put the address on an \
                         interface such as lo and set spec.portRange, or remove spec.probes",
                        request.node
                    ));
                } else {
                    Holder::Routing
                };
                (holder, ports, allow_local_services)
            }
        };
        let Device { ifindex, mtu } = device;
        self.addresses.insert(
            egress,
            EgressAddress {
                gateway: request.name.clone(),
                id: request.id,
                ifindex,
                interface: self.index.name(ifindex),
                mtu,
                ports,
                holder,
                allow_local_services,
                is_down: false,
            },
        );
        Ok(Way::Here {
            egress,
            node: request.node.to_owned(),
            ifindex,
            mtu,
        })
    }

    /// Has other nodes told that nothing gets out by an address of this node.
    pub(super) fn mark_down(&mut self, egress: IpAddr) {
        if let Some(address) = self.addresses.get_mut(&egress) {
            address.is_down = true;
        }
    }

    /// What this node has to do, once every gateway has asked.
    pub(super) fn translation(self) -> Translation {
        Translation {
            own: self.own(),
            nodes: self.nodes.others(),
            addresses: self.addresses,
            ..Translation::default()
        }
    }

    /// The device by which what is translated to an address leaves.
    fn uplink(&self, egress: IpAddr, interface: Option<&str>) -> Result<Device, String> {
        if let Some(name) = interface {
            return self
                .index
                .device(name)
                .map_err(|problem| problem.to_string());
        }
        let mut named = self.settings.uplinks.iter().map(|n| self.index.device(n));
        if let Some(first) = named.next() {
            return first
                .or_else(|problem| named.find_map(Result::ok).ok_or(problem))
                .map_err(|problem| format!("--uplink: {problem}"));
        }
        let family = if egress.is_ipv4() { "IPv4" } else { "IPv6" };
        match self.index.default_device(egress) {
            Some(device) => device.map_err(|problem| problem.to_string()),
            None => Err(format!(
                "no default route of {family} says where the outside is: set spec.interface, or start the agent of \
                 this node with --uplink"
            )),
        }
    }

    /// The ports that connections may be given.
    fn ports(&self, asked: Option<(u16, u16)>) -> Result<(u16, u16), String> {
        let allowed = self.settings.nat_ports;
        let Some(asked) = asked else {
            return Ok(allowed);
        };
        let both = (asked.0.max(allowed.0), asked.1.min(allowed.1));
        if both.0 > both.1 {
            return Err(format!(
                "its portRange {}-{} has no port in common with --nat-port-range {}-{}",
                asked.0, asked.1, allowed.0, allowed.1
            ));
        }
        Ok(both)
    }

    /// Whether the node has the address without our doing.
    fn is_nodes_own(&self, address: IpAddr) -> bool {
        let node = self.model.nodes.get(&self.settings.node_name);
        node.is_some_and(|node| node.addresses.contains(&address))
            || self.index.is_own_address(address) && !self.assigned.contains(&address)
    }

    /// Refuses ports that the node uses for itself.
    fn check_shared(
        &self,
        address: IpAddr,
        asked: Option<(u16, u16)>,
        ports: (u16, u16),
    ) -> Result<(), String> {
        let local = self.settings.local_ports;
        if asked.is_none() {
            return Err(format!(
                "{address} is an address of its node {} anyway: set spec.portRange to ports that nothing on the node \
                 uses, outside {}-{} (net.ipv4.ip_local_port_range), or use an address of the gateway's own",
                self.settings.node_name, local.0, local.1
            ));
        }
        if ports.0 <= local.1 && local.0 <= ports.1 {
            return Err(format!(
                "{address} is an address of its node {} anyway, and the ports {}-{} overlap those that the node gives \
                 its own connections, {}-{}: narrow spec.portRange, or the node's net.ipv4.ip_local_port_range",
                self.settings.node_name, ports.0, ports.1, local.0, local.1
            ));
        }
        if let Some(overlay) = &self.settings.overlay
            && (ports.0..=ports.1).contains(&overlay.port)
        {
            return Err(format!(
                "{address} is an address of its node {} anyway, and the ports {}-{} include the overlay's, {}: take it \
                 out of spec.portRange",
                self.settings.node_name, ports.0, ports.1, overlay.port
            ));
        }
        Ok(())
    }

    /// The node's own addresses for ICMP messages: what its Node resource says, else its uplink's.
    fn own(&self) -> Vec<IpAddr> {
        let node = self.model.nodes.get(&self.settings.node_name);
        let families = [IpAddr::from([0; 4]), IpAddr::from([0_u16; 8])];
        families
            .into_iter()
            .filter_map(|family| {
                let same = |address: &IpAddr| address.is_ipv4() == family.is_ipv4();
                node.and_then(|node| node.addresses.iter().copied().find(same))
                    .or_else(|| {
                        let uplink = self.uplink(family, None).ok()?;
                        self.index
                            .addresses_of(uplink.ifindex)
                            .filter(|address| !self.assigned.contains(address))
                            .find(same)
                    })
            })
            .collect()
    }
}

fn nodes_addresses(model: &Model) -> BTreeMap<IpAddr, Vec<&str>> {
    let mut owners: BTreeMap<IpAddr, Vec<&str>> = BTreeMap::new();
    for (name, node) in &model.nodes {
        for address in &node.addresses {
            owners.entry(*address).or_default().push(name);
        }
    }
    owners
}

/// Pods with addresses of their own, which are theirs for as long as they live.
fn pods_addresses(model: &Model) -> BTreeMap<IpAddr, Vec<&ObjectName>> {
    let mut owners: BTreeMap<IpAddr, Vec<&ObjectName>> = BTreeMap::new();
    let alive = model
        .pods
        .iter()
        .filter(|(_, pod)| pod.phase == Phase::Alive && !pod.host_network);
    for (name, pod) in alive {
        for address in &pod.addresses {
            owners.entry(*address).or_default().push(name);
        }
    }
    owners
}
