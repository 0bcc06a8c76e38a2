//! Which gateways there are, and which of them the selectors in use match.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{
    GatewayStatus, Resolved, Settings, UsableGateway,
    egress::Owned,
    memo::{Memo, selectors_of},
    pods::steering,
    usable::{Finder, State},
};
use crate::{
    health::Faults,
    model::{Gateway, GatewaySelector, Labels, Model, ObjectName, Phase, Pod, Steering},
    node::NodeIndex,
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

/// What may be a gateway.
pub(super) struct Candidate<'a> {
    pub(super) name: &'a ObjectName,
    labels: &'a Labels,
    pub(super) kind: Kind<'a>,
}

pub(super) enum Kind<'a> {
    Object(&'a Gateway),
    Pod(&'a Pod),
}

impl<'a> Gateways<'a> {
    pub(super) fn new(
        model: &'a Model,
        index: &NodeIndex<'_>,
        settings: &Settings,
        faults: &Faults,
        owned: &mut Owned<'_>,
        memo: &mut Memo,
        resolved: &mut Resolved,
    ) -> Self {
        let candidates = candidates(model, &mut resolved.warnings);
        let ranges = namespaces(&candidates);
        let groups: BTreeMap<_, _> = selectors_in_use(model, settings, memo)
            .into_iter()
            .map(|key| (key, members(model, &candidates, &ranges, key)))
            .collect();
        let matched: BTreeSet<usize> = groups.values().flatten().copied().collect();
        let mut finder = Finder::new(index, settings, faults, owned, &mut resolved.warnings);
        let states = candidates
            .iter()
            .enumerate()
            .filter_map(|(position, candidate)| {
                let matters = match candidate.kind {
                    Kind::Object(_) => true,
                    Kind::Pod(_) => matched.contains(&position),
                };
                matters.then(|| (position, finder.state(candidate)))
            })
            .collect();
        resolved.subjects = finder.subjects;
        resolved.draining = finder.draining;
        resolved.probed = finder.probed;
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
fn selectors_in_use<'a>(
    model: &'a Model,
    settings: &Settings,
    memo: &mut Memo,
) -> BTreeSet<GroupKey<'a>> {
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
                if let Some(policy) = model.policies.get(policy) {
                    let selectors = memo.selectors(&policy.rules);
                    for place in selectors.places() {
                        let selectors = selectors_of(&policy.rules[place]);
                        keys.extend(selectors.map(|s| GroupKey::new(s, &name.namespace)));
                    }
                }
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
