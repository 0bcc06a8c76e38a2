//! Why a packet goes where it goes: the rule that wins, those that lose, and whether the kernel agrees.
//!
//! Two independent answers: [`explain`] reads what was resolved from the resources, [`kernel_verdict`]
//! walks the maps as the datapath does. [`against_kernel`] gives both and says where they differ.

use std::{collections::BTreeMap, net::IpAddr};

use egress_common::{Addr, DropReason, Family, keys::PodKey};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    model::ObjectName,
    resolve::{
        Action, EffectiveRule, Fate, PodState, Resolved, SourcePod, Standing, UsableGateway, Way,
    },
    snapshot::Snapshot,
};

mod agree;
mod kernel;
mod text;

pub use agree::disagreements;
pub use kernel::{KernelDecision, KernelMember, KernelVerdict, choose, kernel_verdict};

/// What happens to packets from a pod to an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The pod.
    pub pod: ObjectName,
    /// The address its packets go to.
    pub destination: IpAddr,
    /// What happens to them.
    pub verdict: Outcome,
    /// Why, in a sentence.
    pub because: String,
    /// The pod's policy.
    pub policy: Option<String>,
    /// The pod's host-side interface.
    pub interface: Option<String>,
    /// The pod's address of the destination's family.
    pub source: Option<IpAddr>,
    /// The longest prefix of the cluster that contains the destination.
    pub cluster_prefix: Option<IpNet>,
    /// Every rule of the policy, the winner first.
    pub rules: Vec<RuleLine>,
    /// Where the packets leave.
    pub gateways: Vec<GatewayShare>,
    /// The egress network policies that what the pod's policy sends to gateways goes past, or would.
    #[serde(default)]
    pub network_policies: Vec<String>,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The pod is not steered: the kernel routes its packets as it would without us.
    NotSteered,
    /// No rule matches: the same.
    Unmatched,
    /// A rule or the cluster says so: the same.
    Local,
    /// Through one of the gateways.
    Gateway,
    /// Dropped, for the reason of this name.
    Drop(String),
}

/// How a rule fared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleLine {
    /// The rule's destination, or "default".
    pub rule: String,
    /// What it asks for.
    pub action: String,
    /// Whether it decides.
    pub wins: bool,
    /// Why, or why not.
    pub because: String,
}

/// A gateway, and how much of the traffic is its.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayShare {
    /// Its name.
    pub gateway: ObjectName,
    /// How its packets get there.
    pub way: WayKind,
    /// The address that the outside sees, where a node translates.
    pub egress: Option<IpAddr>,
    /// The node that translates.
    pub node: Option<String>,
    /// Where packets are sent to: the on-link next hop, the address of the gateway's node, or the egress address.
    pub address: IpAddr,
    /// The index of the device that they leave by.
    pub ifindex: u32,
    /// The device.
    pub device: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Its share of the flows, from 0 to 1.
    pub share: f64,
}

/// How packets get to a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WayKind {
    /// To a next hop, which translates by itself.
    NextHop,
    /// Through the overlay to the node that translates.
    Overlay,
    /// Translated on this node.
    Local,
}

/// An explanation, and whether the kernel agrees with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What the resources say.
    pub explanation: Explanation,
    /// What the maps say, unless nobody asked them.
    pub kernel: Option<KernelVerdict>,
    /// Where the two differ: always empty, unless something is broken.
    pub disagreements: Vec<String>,
}

/// Explains from resources alone, for a node with these interfaces.
#[must_use]
pub fn offline(
    resolved: &Resolved,
    interfaces: &BTreeMap<u32, String>,
    pod: &ObjectName,
    destination: IpAddr,
) -> Answer {
    let mut explanation = explain(resolved, pod, destination);
    for gateway in &mut explanation.gateways {
        gateway.device = device(interfaces, gateway.ifindex);
    }
    Answer {
        explanation,
        kernel: None,
        disagreements: Vec::new(),
    }
}

/// Explains from what was resolved and from what the maps say, and compares.
#[must_use]
pub fn against_kernel(snapshot: &Snapshot, pod: &ObjectName, destination: IpAddr) -> Answer {
    let mut explanation = explain(&snapshot.resolved, pod, destination);
    for gateway in &mut explanation.gateways {
        gateway.device = device(&snapshot.interfaces, gateway.ifindex);
    }
    let key = snapshot
        .resolved
        .pods
        .get(pod)
        .zip(explanation.source)
        .map(|(pod, source)| PodKey {
            ifindex: pod.ifindex,
            addr: Addr::from(source),
        });
    let kernel = key.map(|key| kernel_verdict(&snapshot.kernel, key, destination));
    let disagreements = kernel.as_ref().map_or_else(Vec::new, |kernel| {
        disagreements(&explanation, kernel, &snapshot.names)
    });
    Answer {
        explanation,
        kernel,
        disagreements,
    }
}

/// What the resources say about packets from `pod` to `destination`.
#[must_use]
pub fn explain(resolved: &Resolved, pod: &ObjectName, destination: IpAddr) -> Explanation {
    let mut it = Explanation {
        pod: pod.clone(),
        destination,
        verdict: Outcome::NotSteered,
        because: String::new(),
        policy: None,
        interface: None,
        source: None,
        cluster_prefix: longest(&resolved.cluster_prefixes, destination),
        rules: Vec::new(),
        gateways: Vec::new(),
        network_policies: Vec::new(),
    };
    let Some(source) = resolved.pods.get(pod) else {
        it.because = not_steered(resolved.pod_states.get(pod).copied());
        return it;
    };
    it.policy = Some(source.policy.clone());
    it.interface = Some(source.interface.clone());
    it.network_policies.clone_from(&source.network_policies);
    it.source = source
        .addresses
        .iter()
        .copied()
        .find(|a| a.is_ipv4() == destination.is_ipv4());
    match &source.fate {
        Fate::Drop(reason) => {
            it.verdict = Outcome::Drop(reason.name().to_owned());
            it.because = format!(
                "Every packet of this pod is dropped, also inside the cluster. {}",
                reason.describe()
            );
        }
        Fate::Rules(rules) => decide(&mut it, source, rules),
    }
    it
}

/// Reads `NAMESPACE/NAME`.
///
/// # Errors
/// When it is anything else.
pub fn parse_pod(text: &str) -> Result<ObjectName, String> {
    let part = |s: &str| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    match text.split_once('/') {
        Some((namespace, name)) if part(namespace) && part(name) => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err(format!("{text:?} is not a pod: write NAMESPACE/NAME")),
    }
}

/// Reads an address that can stand in a packet.
///
/// # Errors
/// When it is none, or IPv4 written as IPv6.
pub fn parse_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is not an IP address"))?;
    match address.to_canonical() {
        canonical if canonical == address => Ok(address),
        canonical => Err(format!(
            "{text:?} is IPv4 written as IPv6, which no packet carries: write {canonical}"
        )),
    }
}

/// The name of a device, or its number where the name is not known.
#[must_use]
pub fn device(interfaces: &BTreeMap<u32, String>, ifindex: u32) -> String {
    interfaces
        .get(&ifindex)
        .cloned()
        .unwrap_or_else(|| format!("#{ifindex}"))
}

fn not_steered(state: Option<PodState>) -> String {
    let why = match state {
        None => "no annotated pod of this name is known on this node",
        Some(
            PodState::Steered
            | PodState::PolicyMissing
            | PodState::PolicyEnforcement
            | PodState::PolicyBypass,
        ) => "it is about to be steered",
        Some(PodState::NoInterface) => "its host-side interface is not known (yet)",
        Some(PodState::NoOwnInterface) => {
            "its interface serves others too; name its own with the annotation egress.fastpath/interface"
        }
        Some(PodState::HostNetwork) => "it shares the node's network",
        Some(PodState::Finished) => "it has finished",
        Some(PodState::NoAddress) => "it has no address yet",
        Some(PodState::Gateway) => "it is a gateway itself",
    };
    format!("The pod is not steered: {why}.")
}

/// Longest match among the rules and the cluster's prefixes; a tie is the rule's.
fn decide(it: &mut Explanation, source: &SourcePod, rules: &[EffectiveRule]) {
    let destination = it.destination;
    let winner = rules
        .iter()
        .filter_map(|rule| Some((match_length(rule, destination)?, rule)))
        .max_by_key(|(length, rule)| (*length, rule.destination.is_some()));
    let cluster = it
        .cluster_prefix
        .filter(|net| winner.is_none_or(|(length, _)| net.prefix_len() > length));

    it.rules = rules
        .iter()
        .map(|rule| {
            let wins = cluster.is_none() && winner.is_some_and(|(_, w)| std::ptr::eq(w, rule));
            RuleLine {
                rule: rule.label.clone(),
                action: describe(&rule.action),
                wins,
                because: match (match_length(rule, destination), cluster, winner) {
                    _ if wins => "longest prefix that contains the destination".to_owned(),
                    (None, _, _) => mismatch(rule, destination),
                    (Some(_), Some(net), _) => {
                        format!("cluster prefix {net} is longer than {}", rule.label)
                    }
                    (Some(_), None, Some((_, winner))) => {
                        format!("shorter prefix than {}", winner.label)
                    }
                    // A rule that matches makes a winner.
                    (Some(_), None, None) => String::new(),
                },
            }
        })
        .collect();
    it.rules.sort_by_key(|line| !line.wins);

    (it.verdict, it.because) = match (cluster, winner) {
        (Some(net), _) => (
            Outcome::Local,
            format!(
                "The destination is in the cluster's prefix {net}, and no rule is as specific."
            ),
        ),
        (None, None) => (
            Outcome::Unmatched,
            format!(
                "No rule of policy {} contains the destination.",
                source.policy
            ),
        ),
        (None, Some((_, rule))) => match &rule.action {
            Action::Local => (
                Outcome::Local,
                format!("Rule {} has no gateway.", rule.label),
            ),
            Action::Drop(reason) => (
                Outcome::Drop(reason.name().to_owned()),
                format!(
                    "Rule {} has gateways, but what goes there would go past {}: exclude the pod there, or accept that \
                     with --accept-networkpolicy-bypass.",
                    rule.label,
                    source.network_policies.join(", ")
                ),
            ),
            Action::Gateways(gateways) => {
                it.gateways = shares(gateways, destination);
                if it.gateways.is_empty() {
                    (
                        Outcome::Drop(DropReason::NoGateway.name().to_owned()),
                        no_gateway(rule, gateways, destination),
                    )
                } else {
                    let mut because = format!("Rule {} is the longest match.", rule.label);
                    if !source.network_policies.is_empty() {
                        // Which ones is told in a line of its own.
                        because += " Network policies that judge what the pod sends do not see these packets, as \
                                    --accept-networkpolicy-bypass has it.";
                    }
                    (Outcome::Gateway, because)
                }
            }
        },
    };
}

/// How many bits of the destination a rule names, if it matches.
fn match_length(rule: &EffectiveRule, destination: IpAddr) -> Option<u8> {
    match rule.destination {
        None => Some(0),
        Some(net) => net.contains(&destination).then(|| net.prefix_len()),
    }
}

fn mismatch(rule: &EffectiveRule, destination: IpAddr) -> String {
    match rule.destination {
        Some(net) if net.addr().is_ipv4() != destination.is_ipv4() => "other family".to_owned(),
        _ => format!("does not contain {destination}"),
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::Local => "local".to_owned(),
        Action::Drop(reason) => format!("dropped ({})", reason.name()),
        Action::Gateways(gateways) if gateways.is_empty() => "no usable gateway".to_owned(),
        Action::Gateways(gateways) => {
            let names: Vec<String> = gateways.iter().map(|g| g.name.to_string()).collect();
            format!("gateway {}", names.join(", "))
        }
    }
}

fn no_gateway(rule: &EffectiveRule, gateways: &[UsableGateway], destination: IpAddr) -> String {
    let family = if destination.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    if gateways.is_empty() {
        format!(
            "Rule {} wins, but its selector matches no usable gateway: see `egress status` for each one's reason.",
            rule.label
        )
    } else {
        format!(
            "Rule {} wins, but none of its gateways has a usable {family} next hop or egress address.",
            rule.label
        )
    }
}

/// The gateways that have a way of the destination's family, and their shares.
fn shares(gateways: &[UsableGateway], destination: IpAddr) -> Vec<GatewayShare> {
    let family = match destination {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    };
    let usable: Vec<(&UsableGateway, &Way)> = gateways
        .iter()
        .filter_map(|gateway| {
            let way = gateway.ways.iter().find(|way| way.family() == family)?;
            Some((gateway, way))
        })
        .collect();
    // Who is drained takes new flows only where everybody is.
    let serves = |gateway: &UsableGateway| gateway.standing != Standing::Draining;
    let all = !usable.iter().any(|(gateway, _)| serves(gateway));
    let weight = |gateway: &UsableGateway| {
        if all || serves(gateway) {
            f64::from(gateway.weight.get())
        } else {
            0.0
        }
    };
    let total: f64 = usable.iter().map(|(gateway, _)| weight(gateway)).sum();
    usable
        .into_iter()
        .map(|(gateway, way)| {
            let (kind, egress, node, address) = match way {
                Way::NextHop { next_hop, .. } => (WayKind::NextHop, None, None, *next_hop),
                Way::Overlay {
                    egress,
                    node,
                    address,
                    ..
                } => (WayKind::Overlay, Some(*egress), Some(node), *address),
                Way::Here { egress, node, .. } => {
                    (WayKind::Local, Some(*egress), Some(node), *egress)
                }
            };
            GatewayShare {
                gateway: gateway.name.clone(),
                way: kind,
                egress,
                node: node.cloned(),
                address,
                ifindex: way.ifindex(),
                device: format!("#{}", way.ifindex()),
                mtu: way.mtu(),
                share: weight(gateway) / total,
            }
        })
        .collect()
}

fn longest<'a>(nets: impl IntoIterator<Item = &'a IpNet>, address: IpAddr) -> Option<IpNet> {
    nets.into_iter()
        .filter(|net| net.contains(&address))
        .max_by_key(|net| net.prefix_len())
        .copied()
}

#[cfg(test)]
pub(crate) mod tests;
