//! The other nodes: where the overlay's frames for them go, and what fits into one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Overlay, Settings};
use crate::{
    model::Model,
    node::{Device, NoWay, NodeIndex},
    state::{OtherNode, Way},
};

/// What VXLAN over IPv4 puts before the inner packet: IPv4, UDP, VXLAN and Ethernet headers (RFC 7348, 5).
const OVERHEAD_V4: u32 = 20 + 8 + 8 + 14;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 40 + 8 + 8 + 14;
/// Nodes that a warning names.
const NAMED: usize = 3;

/// Every other node, as this one reaches it.
pub(super) struct Nodes<'a> {
    here: &'a str,
    overlay: Option<&'a Overlay>,
    /// The overlay device, or why it cannot be used.
    device: Result<Device, String>,
    others: BTreeMap<&'a str, Result<Reached, String>>,
}

/// A node that can be reached.
#[derive(Clone)]
struct Reached {
    /// All its addresses.
    addresses: Vec<IpAddr>,
    /// The one that frames are sent to.
    address: IpAddr,
    /// Largest IP packet in bytes that fits a frame to it, as far as the underlay goes.
    mtu: u32,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(
        model: &'a Model,
        index: &NodeIndex<'_>,
        settings: &'a Settings,
        warnings: &mut BTreeSet<String>,
    ) -> Self {
        let overlay = settings.overlay.as_ref();
        let device = overlay.map_or_else(
            || Err("there is no overlay".to_owned()),
            |overlay| overlay_device(&overlay.device, index),
        );
        let here = settings.node_name.as_str();
        let mut nodes = Self {
            here,
            overlay,
            device,
            others: BTreeMap::new(),
        };
        // Nobody sends to other nodes without a key, and what they are like is of no interest then.
        if overlay.is_some() {
            nodes.others = others(model, index, here, warnings);
            nodes.warn_of_unreached(warnings);
        }
        nodes
    }

    /// How packets for an egress address get to the node that owns it.
    pub(super) fn way_to(&self, node: &str, egress: IpAddr) -> Result<Way, String> {
        let Some(overlay) = self.overlay else {
            return Err(format!(
                "the way to its node {node} needs --overlay-key-file: without a key there is no overlay"
            ));
        };
        let reached = match self.others.get(node) {
            Some(reached) => reached.as_ref().map_err(Clone::clone)?,
            None => {
                return Err(format!(
                    "its node {node} is not among the Node resources: add them to the sources, or correct the name"
                ));
            }
        };
        let device = self.device.as_ref().map_err(Clone::clone)?;
        Ok(Way::Overlay {
            egress,
            node: node.to_owned(),
            address: reached.address,
            ifindex: device.ifindex,
            mtu: reached.mtu.min(device.mtu),
            tag: overlay.keys.tag(overlay.vni, self.here, node),
        })
    }

    /// Every other node that can be reached; none without a key.
    pub(super) fn others(&self) -> BTreeMap<String, OtherNode> {
        let Some(overlay) = self.overlay else {
            return BTreeMap::new();
        };
        let most = self.device.as_ref().map_or(u32::MAX, |device| device.mtu);
        self.others
            .iter()
            .filter_map(|(name, reached)| {
                let reached = reached.as_ref().ok()?;
                let node = OtherNode {
                    addresses: reached.addresses.clone(),
                    address: reached.address,
                    mtu: reached.mtu.min(most),
                    send: overlay.keys.tag(overlay.vni, self.here, name),
                    accept: overlay.keys.accepted(overlay.vni, name, self.here),
                };
                Some(((*name).to_owned(), node))
            })
            .collect()
    }

    fn warn_of_unreached(&self, warnings: &mut BTreeSet<String>) {
        let unreached: Vec<_> = self
            .others
            .iter()
            .filter_map(|(name, reached)| Some((*name, reached.as_ref().err()?)))
            .collect();
        for (_, why) in unreached.iter().take(NAMED) {
            warnings.insert(format!("nothing is sent over the overlay: {why}"));
        }
        if let Some(more) = unreached.len().checked_sub(NAMED).filter(|more| *more > 0) {
            warnings.insert(format!(
                "nothing is sent over the overlay to {more} more nodes without an address that this node has a route to"
            ));
        }
    }
}

fn overlay_device(name: &str, index: &NodeIndex<'_>) -> Result<Device, String> {
    index.device(name).map_err(|problem| {
        if let NoWay::NoSuchInterface(_) = problem {
            format!("the overlay device {name} is not there yet")
        } else {
            format!("the overlay device {name} cannot be used yet: {problem}")
        }
    })
}

fn others<'a>(
    model: &'a Model,
    index: &NodeIndex<'_>,
    here: &str,
    warnings: &mut BTreeSet<String>,
) -> BTreeMap<&'a str, Result<Reached, String>> {
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for address in model.nodes.get(here).into_iter().flat_map(|n| &n.addresses) {
        owners.insert(*address, here);
    }
    let mut others = BTreeMap::new();
    for (name, node) in model.nodes.iter().filter(|(name, _)| *name != here) {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in &node.addresses {
            let owner = *owners.entry(*address).or_insert(name);
            if owner != name {
                // A frame's sender is known by its address, so that can be one node's only.
                warnings.insert(format!(
                    "the nodes {owner} and {name} both have the address {address}, which counts as {owner}'s alone: \
                     correct the Node resources"
                ));
            } else if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        others.insert(name.as_str(), reach(name, addresses, index));
    }
    others
}

/// The first address that this node has a route to.
fn reach(name: &str, addresses: Vec<IpAddr>, index: &NodeIndex<'_>) -> Result<Reached, String> {
    let found = addresses
        .iter()
        .find_map(|address| Some((*address, index.device_towards(*address)?)));
    let Some((address, device)) = found else {
        return Err(if addresses.is_empty() {
            format!("the Node resource of {name} has no address of its own")
        } else {
            let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            format!("no route leads to the node {name} ({})", list.join(", "))
        });
    };
    let overhead = match address {
        IpAddr::V4(_) => OVERHEAD_V4,
        IpAddr::V6(_) => OVERHEAD_V6,
    };
    Ok(Reached {
        addresses,
        address,
        mtu: device.mtu.saturating_sub(overhead),
    })
}
