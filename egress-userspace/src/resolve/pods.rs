//! Where this node's pods are, and what becomes of those that are annotated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egress_common::DropReason;

use super::{
    Fate, Held, PodState, Resolved, Settings, SourcePod, gateways::Gateways, plan::Planner,
};
use crate::{
    model::{Model, ObjectName, Phase, Pod, Steering},
    node::{InterfaceProblem, NodeIndex},
};

/// What a pod asks for itself, or else its namespace for it.
pub(super) fn steering<'a>(
    model: &'a Model,
    settings: &Settings,
    name: &ObjectName,
    pod: &'a Pod,
) -> Option<&'a Steering> {
    pod.steering
        .as_ref()
        .filter(|_| settings.per_pod_policies)
        .or_else(|| model.namespaces.get(&name.namespace)?.steering.as_ref())
}

/// Fills in the pods, their states, and what there is to say about them.
pub(super) fn resolve<'a>(
    places: Places<'a>,
    gateways: &Gateways<'a>,
    planner: &mut Planner<'a, '_>,
    resolved: &mut Resolved,
) {
    let Places {
        model,
        settings,
        index,
        ..
    } = places;
    resolved.warnings.extend(places.kept.iter().cloned());
    for (name, pod) in &model.pods {
        if !places.may_be_here(pod, name) {
            continue;
        }
        let Some(wanted) = steering(model, settings, name, pod) else {
            continue;
        };
        let state = if pod.host_network {
            warn(
                resolved,
                name,
                "it shares the node's network: an annotation cannot tell its packets from the node's",
            );
            PodState::HostNetwork
        } else if pod.phase == Phase::Finished {
            warn(resolved, name, "it has finished");
            PodState::Finished
        } else if pod.addresses.is_empty() {
            warn(resolved, name, "it has no address yet");
            PodState::NoAddress
        } else if gateways.is_gateway_pod(name) {
            // A namespace's annotation is not meant for the gateways in it; a pod's own is.
            if settings.per_pod_policies && pod.steering.is_some() {
                warn(
                    resolved,
                    name,
                    "a selector in use makes it a gateway, and a gateway's own traffic is never redirected",
                );
            }
            PodState::Gateway
        } else {
            match places.of(name) {
                Ok(ifindex) => {
                    let (policy, mut fate) = planner.fate(name, wanted);
                    let rivals = places.rivals(name, ifindex);
                    if !rivals.is_empty() {
                        // One packet, two pods that it may be of. Whichever policy is taken may be the wrong
                        // one, and to steer neither would let the packet go: so nothing passes.
                        fate = Fate::Drop(DropReason::PolicyMissing);
                        resolved.warnings.insert(format!(
                            "everything that pod {name} sends is dropped: {} is steered already, as its interface \
                             and that of {} alike; remove the pod that is not there, or give each its own address",
                            index.name(ifindex),
                            list(&rivals)
                        ));
                    }
                    let addresses = one_per_family(&pod.addresses);
                    if addresses.len() < pod.addresses.len() {
                        resolved.warnings.insert(format!(
                            "pod {name} has several addresses of one family: packets from others than {} are dropped \
                             as spoofed",
                            list(&addresses)
                        ));
                    }
                    let state = match fate {
                        Fate::Drop(_) => PodState::PolicyMissing,
                        Fate::Rules(_) => PodState::Steered,
                    };
                    resolved.pods.insert(
                        name.clone(),
                        SourcePod {
                            ifindex,
                            interface: index.name(ifindex),
                            mtu: index.mtu(ifindex),
                            addresses,
                            policy,
                            fate,
                            udp_ports: pod.inbound_udp.clone(),
                        },
                    );
                    state
                }
                Err(problem) => {
                    warn(resolved, name, &problem.to_string());
                    resolved.to_solicit.extend(problem.to_solicit());
                    problem.state()
                }
            }
        };
        resolved.pod_states.insert(name.clone(), state);
    }
    resolved.unsteered = places.unsteered(&resolved.pod_states);
    warn_of_letting_go(&places, resolved);
}

/// Says which interfaces are let go although they exist, because their pods have finished or lost their addresses.
fn warn_of_letting_go(places: &Places<'_>, resolved: &mut Resolved) {
    let Places {
        model, index, held, ..
    } = places;
    let steered: BTreeSet<_> = resolved.pods.values().map(|pod| pod.ifindex).collect();
    let mut let_go: BTreeMap<_, _> = held
        .iter()
        .filter(|&(_, ifindex)| index.exists(*ifindex) && !steered.contains(ifindex))
        .collect();
    if let_go.is_empty() {
        return;
    }
    let in_state = |wanted| {
        let states = resolved.pod_states.iter();
        let names = states.filter_map(move |(name, state)| (*state == wanted).then_some(name));
        names.collect::<Vec<_>>()
    };
    let mut said = Vec::new();
    for name in in_state(PodState::Finished) {
        for address in model.pods.get(name).into_iter().flat_map(|p| &p.addresses) {
            if let Some(&ifindex) = let_go.get(address) {
                said.push(format!(
                    "letting go of {}, which {address} was steered on: the pod {name} has finished, but its \
                     interface still exists",
                    index.name(*ifindex)
                ));
            }
        }
    }
    // Only addresses are known of what was steered: a pod without any may have had each that nobody has now.
    for address in model.pods.values().flat_map(|pod| &pod.addresses) {
        let_go.remove(address);
    }
    let without = in_state(PodState::NoAddress);
    if !without.is_empty() {
        said.extend(let_go.iter().map(|(address, ifindex)| {
            format!(
                "letting go of {}, which {address} was steered on: no pod has that address any more, and {} \
                 without any",
                index.name(**ifindex),
                match without.len() {
                    1 => format!("the pod {} is", without[0]),
                    2..=3 => format!("the pods {} are", list(&without)),
                    many => format!("{many} pods are"),
                }
            )
        }));
    }
    resolved.warnings.extend(said);
}

fn warn(resolved: &mut Resolved, name: &ObjectName, why: &str) {
    resolved
        .warnings
        .insert(format!("pod {name} is annotated but not steered: {why}"));
}

/// The host-side interfaces of this node's pods, annotated or not.
pub(super) struct Places<'a> {
    model: &'a Model,
    settings: &'a Settings,
    index: &'a NodeIndex<'a>,
    held: &'a Held,
    /// What to say of pods that keep an interface which nothing else tells.
    kept: Vec<String>,
    of: BTreeMap<&'a ObjectName, Result<u32, InterfaceProblem>>,
    /// Who is behind each interface.
    users: BTreeMap<u32, Vec<&'a ObjectName>>,
}

/// Why a pod has no place.
#[derive(Debug, thiserror::Error)]
enum NoPlace {
    #[error("{0} (it is looked for until it is found)")]
    NotYet(InterfaceProblem),
    #[error(
        "{0}; give the pod an interface of its own, or name the one that it has in its annotation \
         egress.fastpath/interface"
    )]
    NotItsOwn(InterfaceProblem),
    #[error(
        "it shares the interface {interface} with {others}, and an interface that serves several pods cannot tell \
         them apart; give each pod an interface of its own"
    )]
    Shared { interface: String, others: String },
}

impl NoPlace {
    const fn state(&self) -> PodState {
        match self {
            Self::NotYet(_) => PodState::NoInterface,
            Self::NotItsOwn(_) | Self::Shared { .. } => PodState::NoOwnInterface,
        }
    }

    const fn to_solicit(&self) -> Option<(u32, IpAddr)> {
        match self {
            Self::NotYet(problem) => problem.to_solicit(),
            Self::NotItsOwn(_) | Self::Shared { .. } => None,
        }
    }
}

impl<'a> Places<'a> {
    pub(super) fn new(
        model: &'a Model,
        index: &'a NodeIndex<'a>,
        settings: &'a Settings,
        held: &'a Held,
    ) -> Self {
        let mut kept = Vec::new();
        let mut of: BTreeMap<_, _> = model
            .pods
            .iter()
            .filter(|(_, pod)| {
                pod.node
                    .as_ref()
                    .is_none_or(|node| *node == settings.node_name)
                    && pod.phase == Phase::Alive
                    && !pod.host_network
                    && !pod.addresses.is_empty()
            })
            .map(|(name, pod)| {
                let (place, why) = place(pod, index, held);
                if let (Ok(ifindex), Some(why)) = (&place, why) {
                    kept.push(stays(name, &index.name(*ifindex), &why));
                }
                (name, place)
            })
            .collect();
        let users = turn_back(&mut of, model, index, held, &mut kept);
        Self {
            model,
            settings,
            index,
            held,
            kept,
            of,
            users,
        }
    }

    /// Whether the pod is this node's, as far as anybody knows.
    ///
    /// One that is not scheduled is where its interface is, or might be: on a bridge that has yet to learn of it.
    fn may_be_here(&self, pod: &Pod, name: &ObjectName) -> bool {
        match &pod.node {
            Some(node) => *node == self.settings.node_name,
            None => self.of.get(name).is_some_and(|place| match place {
                Ok(_) => true,
                Err(problem) => problem.to_solicit().is_some(),
            }),
        }
    }

    /// Whether the kernel steers one of the pod's addresses on this interface by now.
    fn holds(&self, name: &ObjectName, ifindex: u32) -> bool {
        holds(self.model, self.held, name, ifindex)
    }

    /// Other pods that hold the interface as much as this one does.
    fn rivals(&self, name: &ObjectName, ifindex: u32) -> Vec<&'a ObjectName> {
        let users = self.users.get(&ifindex).into_iter().flatten().copied();
        users
            .filter(|&other| other != name && self.holds(other, ifindex))
            .collect()
    }

    /// Interfaces behind which there are only pods that nobody wants to be steered.
    ///
    /// Whether a pod is to be steered can be told only with its namespace, which may ask for it.
    fn unsteered(&self, states: &BTreeMap<ObjectName, PodState>) -> BTreeSet<u32> {
        let is_free =
            |name: &ObjectName| match states.get(name) {
                Some(state) => *state == PodState::Gateway,
                None => {
                    self.model.namespaces.contains_key(&name.namespace)
                        && self.model.pods.get(name).is_some_and(|pod| {
                            steering(self.model, self.settings, name, pod).is_none()
                        })
                }
            };
        let free = self
            .users
            .iter()
            .filter(|(_, names)| names.iter().all(|name| is_free(name)));
        free.map(|(ifindex, _)| *ifindex).collect()
    }

    fn of(&self, name: &ObjectName) -> Result<u32, NoPlace> {
        let ifindex = match self.of.get(name) {
            Some(Ok(ifindex)) => *ifindex,
            Some(Err(problem)) if problem.may_pass() => {
                return Err(NoPlace::NotYet(problem.clone()));
            }
            Some(Err(problem)) => return Err(NoPlace::NotItsOwn(problem.clone())),
            None => unreachable!("every live pod of this node with an address was looked for"),
        };
        let others: Vec<_> = self
            .users
            .get(&ifindex)
            .into_iter()
            .flatten()
            .filter(|&&other| other != name)
            .collect();
        // Who holds it keeps it, whoever else claims it. Where several hold it, `rivals` settles what they get.
        if others.is_empty() || self.holds(name, ifindex) {
            return Ok(ifindex);
        }
        Err(NoPlace::Shared {
            interface: self.index.name(ifindex),
            others: match others.len() {
                1..=3 => list(&others),
                many => format!("{} and {} more", list(&others[..2]), many - 2),
            },
        })
    }
}

/// The interface of a pod, and if it is the one that it had against what the node tells now, why.
fn place(
    pod: &Pod,
    index: &NodeIndex<'_>,
    held: &Held,
) -> (Result<u32, InterfaceProblem>, Option<String>) {
    let found = index.find_pod(&one_per_family(&pod.addresses), pod.interface.as_deref());
    let had = held_interface(pod, index, held);
    match (found, had) {
        // An address that is the node's own by now is not the pod's any more.
        (Err(problem @ InterfaceProblem::OwnAddress { .. }), _) => (Err(problem), None),
        (Err(problem), Some(had)) => (Ok(had), Some(problem.to_string())),
        // Who claims a pod's address on the bridge, itself from elsewhere or another, must not free it: a pod
        // does not change ports while its port exists. Routes and the annotation are not the pod's to forge.
        (Ok(new), Some(had)) if new.learned && new.ifindex != had => {
            let why = format!(
                "the bridge's tables now name {}, and pods can forge those; if the pod has moved, name its \
                 interface in its annotation egress.fastpath/interface",
                index.name(new.ifindex)
            );
            (Ok(had), Some(why))
        }
        (found, _) => (found.map(|new| new.ifindex), None),
    }
}

/// Turns pods back to what they hold if others are where they would go, and tells who is behind each interface.
///
/// Nobody is steered for going where somebody else is: a pod that is steered would be let go by that.
fn turn_back<'a>(
    of: &mut BTreeMap<&'a ObjectName, Result<u32, InterfaceProblem>>,
    model: &Model,
    index: &NodeIndex<'_>,
    held: &Held,
    kept: &mut Vec<String>,
) -> BTreeMap<u32, Vec<&'a ObjectName>> {
    loop {
        let mut users: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for (&name, place) in &*of {
            if let Ok(ifindex) = place {
                users.entry(*ifindex).or_default().push(name);
            }
        }
        let shared = users.iter().filter(|(_, names)| names.len() > 1);
        let back: Vec<_> = shared
            .flat_map(|(&ifindex, names)| names.iter().map(move |&name| (name, ifindex)))
            .filter(|&(name, ifindex)| !holds(model, held, name, ifindex))
            .filter_map(|(name, ifindex)| {
                let had = held_interface(model.pods.get(name)?, index, held)?;
                Some((name, ifindex, had))
            })
            .collect();
        // Who is back holds where it is, so that every round has fewer to turn.
        if back.is_empty() {
            return users;
        }
        for (name, ifindex, had) in back {
            let why = format!(
                "it is told to be on {} now, where other pods are",
                index.name(ifindex)
            );
            kept.push(stays(name, &index.name(had), &why));
            of.insert(name, Ok(had));
        }
    }
}

fn stays(name: &ObjectName, interface: &str, why: &str) -> String {
    format!("pod {name} stays steered on {interface}, where it was: {why}")
}

/// The interface that a pod is steered on by now, if that still exists.
fn held_interface(pod: &Pod, index: &NodeIndex<'_>, held: &Held) -> Option<u32> {
    let mut addresses = pod.addresses.iter();
    let ifindex = addresses.find_map(|address| held.get(address))?;
    index.exists(*ifindex).then_some(*ifindex)
}

fn holds(model: &Model, held: &Held, name: &ObjectName, ifindex: u32) -> bool {
    let mut addresses = model.pods.get(name).into_iter().flat_map(|p| &p.addresses);
    addresses.any(|address| held.get(address) == Some(&ifindex))
}

/// The first address of each family, IPv4 first.
fn one_per_family(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let first = |v4| addresses.iter().copied().find(|a| a.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().collect()
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}
