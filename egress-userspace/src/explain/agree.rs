//! Whether resources and maps say the same.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Explanation, GatewayShare, KernelDecision, KernelVerdict, Outcome, WayKind};
use crate::state::Names;

/// The share below which a gateway may be left without a slot.
const LEAST_SHARE: f64 = 1.0 / 1024.0;

/// Every difference between what the resources ask for and what the maps do, a sentence each.
#[must_use]
pub fn disagreements(wanted: &Explanation, kernel: &KernelVerdict, names: &Names) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(broken) = &kernel.broken {
        found.push(format!("the kernel's maps are broken: {broken}"));
    }
    if let (Some(policy), Some(id)) = (&wanted.policy, kernel.policy)
        && names.policies.get(policy) != Some(&id)
    {
        found.push(format!(
            "the resources count the packet for policy {policy}, the kernel for policy number {id}"
        ));
    }
    match (&wanted.verdict, &kernel.decision) {
        (Outcome::Unmatched, KernelDecision::Unmatched)
        | (Outcome::Local, KernelDecision::Local) => {}
        (Outcome::Drop(wanted), KernelDecision::Drop(is)) if wanted == is => {}
        (Outcome::Gateway, KernelDecision::Members(members)) => {
            let is: BTreeSet<SeenWay> = members
                .iter()
                .map(|m| (m.way, m.address, m.ifindex, m.mtu))
                .collect();
            let asked: BTreeSet<_> = wanted.gateways.iter().map(seen).collect();
            for way in is.difference(&asked) {
                found.push(format!(
                    "the kernel uses {}, which the resources do not ask for",
                    spell(way)
                ));
            }
            for gateway in &wanted.gateways {
                let way = seen(gateway);
                if gateway.share >= LEAST_SHARE && !is.contains(&way) {
                    found.push(format!(
                        "the resources ask for {}, which the kernel does not use",
                        spell(&way)
                    ));
                }
            }
        }
        (wanted, is) => found.push(format!(
            "the resources say {}, the kernel says {}",
            wanted.phrase(),
            is.phrase()
        )),
    }
    found
}

/// Kind, address, device and MTU: what both sides know of a way.
type SeenWay = (WayKind, IpAddr, u32, u32);

fn seen(gateway: &GatewayShare) -> SeenWay {
    // Where this node translates, a member does not say by which device: its egress address does.
    let ifindex = match gateway.way {
        WayKind::NextHop | WayKind::Overlay => gateway.ifindex,
        WayKind::Local => 0,
    };
    (gateway.way, gateway.address, ifindex, gateway.mtu)
}

fn spell((way, address, ifindex, mtu): &SeenWay) -> String {
    match way {
        WayKind::NextHop => format!("next hop {address} on device #{ifindex} with MTU {mtu}"),
        WayKind::Overlay => {
            format!("the overlay to {address} by device #{ifindex} with MTU {mtu}")
        }
        WayKind::Local => format!("{address} on this node with MTU {mtu}"),
    }
}
