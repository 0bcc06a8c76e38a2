//! Which gateways there are, which of them the selectors in use match, and which can be used from this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    ops::Range,
};

use super::{GatewayStatus, Settings, UsableGateway, pods::steering};
use crate::{
    model::{
        Gateway, GatewaySelector, Labels, Model, ObjectName, Phase, Pod, Replies, Steering, Target,
    },
    node::{NoWay, NodeIndex, Way},
    selector::Selector,
};

/// Every gateway of the model, matched with every selector in use.
pub(super) struct Gateways<'a> {
    /// In order of name.
    candidates: Vec<Candidate<'a>>,
    /// The candidates that the selectors in use match.
    groups: BTreeMap<GroupKey<'a>, Vec<usize>>,
    /// What is known of the candidates that matter: every `EgressGateway` and every matched pod.
    states: BTreeMap<usize, State>,
}

/// What decides which gateways a selector matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupKey<'a> {
    scope: Scope<'a>,
    selector: &'a Selector,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope<'a> {
    /// This namespace.
    Own(&'a str),
    /// The namespaces that this matches.
    Selected(&'a Selector),
}

impl<'a> GroupKey<'a> {
    /// The key of a selector that a pod in `namespace` uses.
    pub(super) fn new(selector: &'a GatewaySelector, namespace: &'a str) -> Self {
        Self {
            scope: selector
                .namespaces
                .as_ref()
                .map_or(Scope::Own(namespace), Scope::Selected),
            selector: &selector.gateways,
        }
    }
}

struct Candidate<'a> {
    name: &'a ObjectName,
    labels: &'a Labels,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Object(&'a Gateway),
    Pod(&'a Pod),
}

struct State {
    status: GatewayStatus,
    usable: Option<UsableGateway>,
    /// Whether it runs on this node.
    local: bool,
}

impl<'a> Gateways<'a> {
    pub(super) fn new(
        model: &'a Model,
        index: &NodeIndex<'_>,
        settings: &Settings,
        warnings: &mut BTreeSet<String>,
    ) -> Self {
        let candidates = candidates(model, warnings);
        let ranges = namespaces(&candidates);
        let groups: BTreeMap<_, _> = selectors_in_use(model, settings)
            .into_iter()
            .map(|key| (key, members(model, &candidates, &ranges, key)))
            .collect();
        let matched: BTreeSet<usize> = groups.values().flatten().copied().collect();
        let states = candidates
            .iter()
            .enumerate()
            .filter_map(|(position, candidate)| {
                let state = match candidate.kind {
                    Kind::Object(gateway) => object_state(candidate.name, gateway, index, warnings),
                    Kind::Pod(pod) if matched.contains(&position) => {
                        pod_state(candidate.name, pod, index, settings, warnings)
                    }
                    Kind::Pod(_) => return None,
                };
                Some((position, state))
            })
            .collect();
        Self {
            candidates,
            groups,
            states,
        }
    }

    /// The gateways that a selector matches, usable or not.
    pub(super) fn matched(&self, key: &GroupKey<'a>) -> &[usize] {
        self.groups.get(key).map_or(&[], Vec::as_slice)
    }

    /// A gateway that [`Self::matched`] names, if it can be used.
    pub(super) fn usable(&self, gateway: usize) -> Option<&UsableGateway> {
        self.states.get(&gateway)?.usable.as_ref()
    }

    /// Whether a gateway runs on this node.
    pub(super) fn is_local(&self, gateway: usize) -> bool {
        self.states.get(&gateway).is_some_and(|state| state.local)
    }

    /// A gateway's name.
    pub(super) fn name(&self, gateway: usize) -> &'a ObjectName {
        self.candidates[gateway].name
    }

    /// Whether the pod of this name is a gateway to somebody.
    pub(super) fn is_gateway_pod(&self, name: &ObjectName) -> bool {
        self.candidates
            .binary_search_by(|candidate| candidate.name.cmp(name))
            .is_ok_and(|position| {
                matches!(self.candidates[position].kind, Kind::Pod(_))
                    && self.states.contains_key(&position)
            })
    }

    /// The state of every gateway that matters.
    pub(super) fn statuses(self) -> BTreeMap<ObjectName, GatewayStatus> {
        self.states
            .into_iter()
            .map(|(position, state)| (self.candidates[position].name.clone(), state.status))
            .collect()
    }
}

/// `EgressGateway` objects and pods that have not finished, in order of name.
fn candidates<'a>(model: &'a Model, warnings: &mut BTreeSet<String>) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<_> = model
        .gateways
        .iter()
        .map(|(name, gateway)| Candidate {
            name,
            labels: &gateway.labels,
            kind: Kind::Object(gateway),
        })
        .collect();
    for (name, pod) in &model.pods {
        if pod.phase == Phase::Finished {
            continue;
        }
        if model.gateways.contains_key(name) {
            warnings.insert(format!(
                "an EgressGateway and a pod are both called {name} and would be counted as one gateway, so the pod \
                 cannot be one: rename either"
            ));
            continue;
        }
        candidates.push(Candidate {
            name,
            labels: &pod.labels,
            kind: Kind::Pod(pod),
        });
    }
    candidates.sort_unstable_by_key(|candidate| candidate.name);
    candidates
}

/// Where the candidates of each namespace are.
fn namespaces<'a>(candidates: &[Candidate<'a>]) -> Vec<(&'a str, Range<usize>)> {
    let mut ranges: Vec<(&str, Range<usize>)> = Vec::new();
    for (position, candidate) in candidates.iter().enumerate() {
        let namespace = candidate.name.namespace.as_str();
        match ranges.last_mut() {
            Some((last, range)) if *last == namespace => range.end = position + 1,
            Some(_) | None => ranges.push((namespace, position..position + 1)),
        }
    }
    ranges
}

/// Every selector by which some pod of the cluster is steered, on whichever node.
///
/// A gateway pod is one on every node, also where nobody uses it.
fn selectors_in_use<'a>(model: &'a Model, settings: &Settings) -> BTreeSet<GroupKey<'a>> {
    let mut keys = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (name, pod) in &model.pods {
        if pod.phase == Phase::Finished || pod.host_network {
            continue;
        }
        match steering(model, settings, name, pod) {
            Some(Steering::Policy(policy)) => {
                if !seen.insert((policy, &name.namespace)) {
                    continue;
                }
                let rules = model
                    .policies
                    .get(policy)
                    .into_iter()
                    .flat_map(|p| &p.rules);
                keys.extend(rules.filter_map(|rule| match &rule.target {
                    Target::Gateways(selector) => Some(GroupKey::new(selector, &name.namespace)),
                    Target::Local => None,
                }));
            }
            Some(Steering::Gateways(selector)) => {
                keys.insert(GroupKey::new(selector, &name.namespace));
            }
            Some(Steering::Invalid) | None => {}
        }
    }
    keys
}

fn members(
    model: &Model,
    candidates: &[Candidate<'_>],
    namespaces: &[(&str, Range<usize>)],
    key: GroupKey<'_>,
) -> Vec<usize> {
    namespaces
        .iter()
        .filter(|(namespace, _)| match key.scope {
            Scope::Own(own) => own == *namespace,
            Scope::Selected(selector) => match model.namespaces.get(*namespace) {
                Some(known) => selector.matches(&known.labels),
                None => selector.matches(&implied_labels(namespace)),
            },
        })
        .flat_map(|(_, range)| range.clone())
        .filter(|&position| key.selector.matches(candidates[position].labels))
        .collect()
}

/// The labels of a namespace that objects are in and no source tells of.
fn implied_labels(namespace: &str) -> Labels {
    ["projectcalico.org/name", "kubernetes.io/metadata.name"]
        .map(|label| (label.to_owned(), namespace.to_owned()))
        .into()
}

fn object_state(
    name: &ObjectName,
    gateway: &Gateway,
    index: &NodeIndex<'_>,
    warnings: &mut BTreeSet<String>,
) -> State {
    let ways = gateway
        .next_hops
        .iter()
        .map(|&next_hop| index.way_to(next_hop, gateway.interface.as_deref()));
    state(
        name,
        gateway.weight,
        gateway.replies,
        false,
        ways,
        "",
        warnings,
    )
}

fn pod_state(
    name: &ObjectName,
    pod: &Pod,
    index: &NodeIndex<'_>,
    settings: &Settings,
    warnings: &mut BTreeSet<String>,
) -> State {
    let local = match &pod.node {
        Some(node) => *node == settings.node_name,
        None => {
            !pod.addresses.is_empty()
                && index
                    .pod_interface(&pod.addresses, pod.interface.as_deref())
                    .is_ok()
        }
    };
    let down = |reason: &str| State {
        status: GatewayStatus::Down(reason.to_owned()),
        usable: None,
        local,
    };
    if pod.host_network {
        return down(
            "the pod shares the node's network and has no address of its own: use a pod with its own network, or an \
             EgressGateway",
        );
    }
    if pod.addresses.is_empty() {
        return down("the pod has no address yet");
    }
    if !pod.ready {
        return down("the pod is not ready");
    }
    let ways = pod
        .addresses
        .iter()
        .map(|&address| way_to_pod(address, pod, local, index));
    let remote = if local {
        ""
    } else {
        "the pod runs on another node, from where it is a gateway only to nodes of its own network: "
    };
    state(
        name,
        NonZeroU32::MIN,
        Replies::Recorded,
        local,
        ways,
        remote,
        warnings,
    )
}

/// The route says how a pod is reached, also over a bridge, whose ports resolve no neighbours. Where it says
/// nothing, the annotation does.
fn way_to_pod(
    address: IpAddr,
    pod: &Pod,
    local: bool,
    index: &NodeIndex<'_>,
) -> Result<Way, NoWay> {
    index
        .way_to(address, None)
        .or_else(|problem| match &pod.interface {
            Some(interface) if local && problem != NoWay::OwnAddress(address) => {
                index.way_over(address, interface)
            }
            Some(_) | None => Err(problem),
        })
}

/// A gateway is usable if one of its ways is; a family without one is worth a warning.
fn state(
    name: &ObjectName,
    weight: NonZeroU32,
    replies: Replies,
    local: bool,
    ways: impl Iterator<Item = Result<Way, NoWay>>,
    context: &str,
    warnings: &mut BTreeSet<String>,
) -> State {
    let mut usable: Vec<Way> = Vec::new();
    let mut problems = Vec::new();
    for way in ways {
        match way {
            Ok(way)
                if usable
                    .iter()
                    .any(|w| w.next_hop.is_ipv4() == way.next_hop.is_ipv4()) =>
            {
                warnings.insert(format!(
                    "gateway {name} has several next hops of one family: {} is not used",
                    way.next_hop
                ));
            }
            Ok(way) => usable.push(way),
            Err(problem) => problems.push(problem.to_string()),
        }
    }
    usable.sort_unstable();
    if usable.is_empty() {
        let reason = if problems.is_empty() {
            "it has no next hop: add one to spec.nextHops".to_owned()
        } else {
            format!("{context}{}", problems.join("; "))
        };
        return State {
            status: GatewayStatus::Down(reason),
            usable: None,
            local,
        };
    }
    for problem in problems {
        warnings.insert(format!(
            "gateway {name} is usable for one family only: {problem}"
        ));
    }
    State {
        status: GatewayStatus::Up(usable.clone()),
        usable: Some(UsableGateway {
            name: name.clone(),
            weight,
            replies,
            ways: usable,
        }),
        local,
    }
}
