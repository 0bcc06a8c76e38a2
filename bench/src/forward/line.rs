//! Pods, their node and a gateway in a row: what steers on the node is what differs from way to way.

use std::{any::Any, fmt::Write as _, net::Ipv4Addr};

use anyhow::Result;
use egress_common::{gateway::Settings, verdict::Replies};
use egress_userspace::kernel::Program;

use super::{
    host::Host,
    right::{NextHop, Right, Source},
    road::{CABLE, Road},
};
use crate::{
    lab::{Capacity, Ours, POD, Reference, References, UPLINK, next_hop, resolved},
    world::{Flow, GATEWAYS, HOST_MAC, POD_MAC, Target, World},
};

/// The node's interfaces.
const ENTRY: &str = "pod";
const EXIT: &str = "uplink";
/// The address that nftables gives packets.
const TRANSLATED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 100);
/// No connection ends while it is measured.
const A_DAY: &str = "86400";
/// The first table of those that rules lead to, and the priority of the first rule.
const TABLES: usize = 1000;

/// What steers on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steering {
    Ours,
    Bare(Reference),
    /// One default route.
    Route,
    /// A rule of the kernel's for each pod, and a table with a route for each prefix of its policy.
    Rules,
    /// One default route, and source NAT.
    Translation,
}

/// A road, how frames have to arrive on it, and what has to stay for that.
pub(super) struct Made {
    pub(super) road: Road,
    pub(super) right: Right,
    pub(super) keeps: Vec<Box<dyn Any>>,
}

/// Connects the hosts and sets the node up.
pub(super) fn make(steering: Steering, world: &World, flows: &[Flow]) -> Result<Made> {
    let (pod, node, gateway) = (Host::new()?, Host::new()?, Host::new()?);
    node.ip(&format!(
        "link add {ENTRY} index {POD} address {host} type veth peer name {CABLE} address {pods} netns {pod}
         link add {EXIT} index {UPLINK} address {host} type veth peer name {CABLE} netns {gateway}
         link set {ENTRY} up
         link set {EXIT} up
         route add 10.65.0.0/16 dev {ENTRY}
         addr add 198.51.100.254/24 dev {EXIT}
         route add default via {first}
         {neighbours}",
        host = mac(HOST_MAC),
        pods = mac(POD_MAC),
        pod = pod.path(),
        gateway = gateway.path(),
        first = NextHop::address(0),
        neighbours = neighbours(),
    ))?;
    for host in [&pod, &gateway] {
        host.ip(&format!("link set {CABLE} up"))?;
    }
    let mut keeps: Vec<Box<dyn Any>> = Vec::new();
    let right = match steering {
        Steering::Ours => {
            let way = resolved(world, |number| next_hop(number, false, Replies::Kernel));
            let mut ours = Ours::load(&way, &Settings::default(), Capacity::default())?;
            node.enter(|| ours.attach(Program::FromPod, ENTRY))?;
            keeps.push(Box::new(ours));
            Right::forwarded(NextHop::OfGateway)
        }
        Steering::Bare(reference) => {
            let mut references = References::empty()?;
            node.enter(|| references.attach(reference, ENTRY))?;
            keeps.push(Box::new(references));
            Right {
                next_hop: match reference {
                    Reference::RedirectNeigh => NextHop::First,
                    _ => NextHop::Untouched,
                },
                source: Source::Own,
                lowered: 0,
            }
        }
        Steering::Route => Right::forwarded(NextHop::First),
        Steering::Rules => {
            node.ip(&rules(world)?)?;
            Right::forwarded(NextHop::OfGateway)
        }
        Steering::Translation => {
            node.nft(&translation(EXIT))?;
            node.settings(&[("netfilter/nf_conntrack_udp_timeout", A_DAY)])?;
            Right {
                source: Source::One(TRANSLATED.into()),
                ..Right::forwarded(NextHop::First)
            }
        }
    };
    let road = Road::new(pod, (&node, ENTRY), gateway, flows)?;
    keeps.push(Box::new(node));
    Ok(Made { road, right, keeps })
}

/// All next hops, as nobody has to ask for them.
pub(super) fn neighbours() -> String {
    let mut lines = String::new();
    for number in 0..=GATEWAYS {
        let _infallible = writeln!(
            lines,
            "neigh add {} lladdr {} dev {EXIT} nud permanent",
            NextHop::address(number),
            mac(NextHop::mac(number))
        );
    }
    lines
}

/// What gives packets that leave by an interface another source.
pub(super) fn translation(exit: &str) -> String {
    format!(
        "table ip bench {{
           chain out {{
             type nat hook postrouting priority srcnat; policy accept;
             oifname \"{exit}\" snat to {TRANSLATED}
           }}
         }}"
    )
}

/// A table for each policy, and a rule for each pod.
fn rules(world: &World) -> Result<String> {
    let mut lines = String::new();
    for (number, policy) in world.policies.iter().enumerate() {
        let table = TABLES + number;
        for (net, target) in policy.rules() {
            match target {
                Target::Local => writeln!(lines, "route add throw {net} table {table}")?,
                Target::Gateway(gateway) => {
                    let via = NextHop::address(gateway + 1);
                    writeln!(lines, "route add {net} via {via} dev {EXIT} table {table}")?;
                }
            }
        }
    }
    for (number, pod) in world.pods.iter().enumerate() {
        writeln!(
            lines,
            "rule add from {} lookup {} priority {}",
            pod.address,
            TABLES + pod.policy,
            TABLES + number
        )?;
    }
    Ok(lines)
}

/// As `ip` writes it.
pub(super) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Scale;

    #[test]
    fn each_pod_has_a_rule_and_each_prefix_of_its_policy_a_route() -> Result<()> {
        let world = World::new(&Scale::new(3, 20))?;
        let rules = rules(&world)?;
        let count = |begin: &str| rules.lines().filter(|line| line.starts_with(begin)).count();
        assert_eq!(count("rule add from "), 3);
        assert_eq!(count("route add "), 60);
        let steered: usize = world
            .policies
            .iter()
            .map(|policy| policy.steered().len())
            .sum();
        assert_eq!(count("route add ") - count("route add throw "), steered);
        Ok(())
    }
}
