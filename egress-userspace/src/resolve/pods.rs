//! Where this node's pods are, and what becomes of those that are annotated.

use std::{collections::BTreeMap, net::IpAddr};

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
                    let (policy, fate) = planner.fate(name, wanted);
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
                            addresses,
                            policy,
                            fate,
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
        let of: BTreeMap<_, _> = model
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
                let addresses = one_per_family(&pod.addresses);
                let place = index
                    .pod_interface(&addresses, pod.interface.as_deref())
                    .or_else(|problem| {
                        let ifindex = kept_interface(&problem, &addresses, index, held);
                        let ifindex = ifindex.ok_or_else(|| problem.clone())?;
                        kept.push(format!(
                            "pod {name} stays steered on {}, where it was: {problem}",
                            index.name(ifindex)
                        ));
                        Ok(ifindex)
                    });
                (name, place)
            })
            .collect();
        let mut users: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for (&name, place) in &of {
            if let Ok(ifindex) = place {
                users.entry(*ifindex).or_default().push(name);
            }
        }
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
        let addresses = self
            .model
            .pods
            .get(name)
            .into_iter()
            .flat_map(|pod| &pod.addresses);
        addresses
            .into_iter()
            .any(|address| self.held.get(address) == Some(&ifindex))
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
        if others.is_empty()
            || (self.holds(name, ifindex) && !others.iter().any(|o| self.holds(o, ifindex)))
        {
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

/// The interface that a pod had and still has, where nothing tells another.
fn kept_interface(
    problem: &InterfaceProblem,
    addresses: &[IpAddr],
    index: &NodeIndex<'_>,
    held: &Held,
) -> Option<u32> {
    // An address that is the node's own by now is not the pod's any more.
    if matches!(problem, InterfaceProblem::OwnAddress { .. }) {
        return None;
    }
    let ifindex = addresses.iter().find_map(|address| held.get(address))?;
    index.exists(*ifindex).then_some(*ifindex)
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
