//! Pods, their node and a gateway in a row: what steers on the node is what differs from way to way.

use std::fmt::Write as _;

use anyhow::Result;
use egress_common::{gateway::Settings, verdict::Replies};
use egress_userspace::kernel::Program;

use super::{
    host::Host,
    laid::{A_DAY, CABLE, ENTRY, EXIT, Laid, TRANSLATED, mac, neighbours, translation},
    right::{NextHop, Right, Source},
};
use crate::{
    lab::{Capacity, Ours, POD, Reference, References, UPLINK, next_hop, resolved},
    world::{HOST_MAC, POD_MAC, Target, World},
};

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

/// Connects the hosts and sets the node up.
pub(super) fn lay(steering: Steering, world: &World) -> Result<Laid> {
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
    let mut laid = Laid::new(pod, node, gateway);
    let node = &laid.node;
    laid.right = match steering {
        Steering::Ours => {
            let way = resolved(world, |number| next_hop(number, false, Replies::Kernel));
            let mut ours = Ours::load(&way, &Settings::default(), Capacity::default())?;
            node.enter(|| {
                ours.attach(Program::FromPod, ENTRY)?;
                ours.attach(Program::ToPod, ENTRY)?;
                ours.attach(Program::ToUplink, EXIT)
            })?;
            laid.keeps.push(Box::new(ours));
            Right::forwarded(NextHop::OfGateway)
        }
        Steering::Bare(reference) => {
            let mut references = References::empty()?;
            node.enter(|| references.attach(reference, ENTRY))?;
            laid.keeps.push(Box::new(references));
            Right {
                next_hop: if reference == Reference::RedirectNeigh {
                    NextHop::First
                } else {
                    NextHop::Untouched
                },
                source: Source::Own,
                lowered: 0,
            }
        }
        Steering::Route => Right::forwarded(NextHop::First),
        Steering::Rules => {
            node.ip(&rules(world, |gateway| {
                format!("via {} dev {EXIT}", NextHop::address(gateway + 1))
            })?)?;
            Right::forwarded(NextHop::OfGateway)
        }
        Steering::Translation => {
            node.nft(&translation(&format!("snat to {TRANSLATED}")))?;
            node.settings(&[("netfilter/nf_conntrack_udp_timeout", A_DAY)])?;
            Right {
                source: Source::One(TRANSLATED.into()),
                ..Right::forwarded(NextHop::First)
            }
        }
    };
    Ok(laid)
}

/// A table for each policy, and a rule for each pod; `way` says how to a gateway.
pub(super) fn rules(world: &World, way: impl Fn(u32) -> String) -> Result<String> {
    let mut lines = String::new();
    for (number, policy) in world.policies.iter().enumerate() {
        let table = TABLES + number;
        for (net, target) in policy.rules() {
            match target {
                Target::Local => writeln!(lines, "route add throw {net} table {table}")?,
                Target::Gateway(gateway) => {
                    writeln!(lines, "route add {net} {} table {table}", way(gateway))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Scale;

    #[test]
    fn each_pod_has_a_rule_and_each_prefix_of_its_policy_a_route() -> Result<()> {
        let world = World::new(&Scale::new(3, 20))?;
        let rules = rules(&world, |gateway| format!("via 192.0.2.{gateway}"))?;
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
