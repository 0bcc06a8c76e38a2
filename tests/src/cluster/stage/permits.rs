//! What may leave the uplinks, and whether anything else did.

use std::net::IpAddr;

use anyhow::Result;
use egress_common::overlay::Tag;
use ipnet::IpNet;

use super::{ClusterStage, GATEWAY_NODE, OVERLAY_PORT};
use crate::{
    cluster::{Cluster, Egress, LOCAL_CIDRS},
    sniffer::{Capture, Forged, Permit, Rules, Sniffer},
    topology::Destination,
};

impl ClusterStage {
    /// Checks that not one packet left an uplink so far that should not have.
    pub fn verify(&self) -> Result<()> {
        let mut rules = self.cluster.rules(&self.permits);
        rules.forged.clone_from(&self.forged);
        rules.gone.clone_from(&self.gone);
        self.sniffed()?.verify(&rules)
    }

    /// What left the uplinks so far.
    pub fn sniffed(&self) -> Result<Capture> {
        self.sniffer.so_far()
    }

    /// Listens anew, keeping apart what services on these ports answer.
    pub fn sniff_services(&mut self, ports: &[u16]) -> Result<()> {
        self.verify()?;
        self.sniffer = self.cluster.sniff(ports)?;
        Ok(())
    }

    /// Lets a node's uplink send to these with an egress address.
    pub fn permit_at(&mut self, node: &str, egress: Egress, destinations: &[Destination]) {
        for destination in destinations {
            for address in destination.addresses() {
                self.permits.push(Permit {
                    node: node.to_owned(),
                    source: egress.like(address),
                    destination: address.into(),
                    service: None,
                });
            }
        }
    }

    /// Lets the usual gateway node send to these with an egress address.
    pub fn permit(&mut self, egress: Egress, destinations: &[Destination]) {
        self.permit_at(GATEWAY_NODE, egress, destinations);
    }

    /// Lets a node send to these with its own address: for pods that are not steered.
    pub fn permit_node(&mut self, name: &str, destinations: &[Destination]) -> Result<()> {
        let node = self.node(name)?.clone();
        for destination in destinations {
            for address in destination.addresses() {
                self.permit_exactly(name, node.address_like(address), address.into(), None);
            }
        }
        Ok(())
    }

    /// Lets a node send with this source to this destination, from the port of this service or any.
    pub fn permit_exactly(
        &mut self,
        node: &str,
        source: IpAddr,
        destination: IpNet,
        service: Option<u16>,
    ) {
        self.permits.push(Permit {
            node: node.to_owned(),
            source,
            destination,
            service,
        });
    }

    /// Lets nodes say that they cannot deliver what comes for an egress address that they no longer have.
    pub fn permit_gone(&mut self, egress: Egress) {
        self.gone
            .extend([egress.v4.into(), egress.v6.into()] as [IpAddr; 2]);
    }

    /// Lets frames of the overlay with this tag leave a node: those that the test forges there.
    pub fn permit_forged(&mut self, node: &str, tag: Tag) {
        self.forged.push(Forged {
            node: node.to_owned(),
            tag,
        });
    }
}

impl Cluster {
    /// Begins to listen on every node's uplink.
    pub fn sniff(&self, services: &[u16]) -> Result<Sniffer> {
        Sniffer::start(
            self.nodes.iter().map(|node| (node.name, &node.host)),
            "eth0",
            services,
            OVERLAY_PORT,
        )
    }

    /// The rules of what leaves uplinks, with these permits.
    #[must_use]
    pub fn rules(&self, permits: &[Permit]) -> Rules {
        let prefix = |text: String| text.parse().ok();
        Rules {
            inside: LOCAL_CIDRS
                .iter()
                .filter_map(|cidr| prefix((*cidr).to_owned()))
                .collect(),
            nodes: self
                .nodes
                .iter()
                .map(|node| {
                    let pods = [
                        prefix(format!("10.65.{}.0/24", node.number)),
                        prefix(format!("fd00:65:0:{}::/64", node.number)),
                    ];
                    (
                        node.name.to_owned(),
                        vec![node.v4.into(), node.v6.into()],
                        pods.into_iter().flatten().collect(),
                    )
                })
                .collect(),
            permits: permits.to_vec(),
            forged: Vec::new(),
            gone: Vec::new(),
        }
    }
}
