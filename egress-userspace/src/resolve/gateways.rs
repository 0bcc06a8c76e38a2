//! Which gateways there are, which of them the selectors in use match, and which can be used from this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    ops::Range,
};

use egress_common::{gateway::GatewayId, verdict::Replies};

use super::{
    GatewayStatus, PodGateways, Settings, UsableGateway, Way,
    egress::{Held, Owned, Request},
    pods::steering,
};
use crate::{
    gateway_id::gateway_id,
    model::{
        Exit, Gateway, GatewaySelector, Labels, Model, ObjectName, Phase, Pod, Steering, Target,
    },
    node::{self, NoWay, NodeIndex},
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
        owned: &mut Owned<'_>,
        warnings: &mut BTreeSet<String>,
    ) -> Self {
        let candidates = candidates(model, warnings);
        let ranges = namespaces(&candidates);
        let groups: BTreeMap<_, _> = selectors_in_use(model, settings)
            .into_iter()
            .map(|key| (key, members(model, &candidates, &ranges, key)))
            .collect();
        let matched: BTreeSet<usize> = groups.values().flatten().copied().collect();
        let mut finder = Finder {
            index,
            settings,
            owned,
            warnings,
            ids: BTreeMap::new(),
            claims: BTreeMap::new(),
        };
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

/// Finds out which gateways can be used, asked for one after the other in order of name.
struct Finder<'f, 'a, 'o> {
    index: &'f NodeIndex<'f>,
    settings: &'f Settings,
    owned: &'f mut Owned<'o>,
    warnings: &'f mut BTreeSet<String>,
    /// Who has which number.
    ids: BTreeMap<GatewayId, &'a ObjectName>,
    /// Whose each egress address is.
    claims: BTreeMap<IpAddr, &'a ObjectName>,
}

/// A gateway, as far as its ways do not matter.
struct Known<'a> {
    name: &'a ObjectName,
    id: GatewayId,
    weight: NonZeroU32,
    /// Whether it runs on this node.
    local: bool,
}

impl Known<'_> {
    fn down(&self, reason: impl Into<String>) -> State {
        State {
            status: GatewayStatus::Down(reason.into()),
            usable: None,
            local: self.local,
        }
    }
}

impl<'a> Finder<'_, 'a, '_> {
    fn state(&mut self, candidate: &Candidate<'a>) -> State {
        let name = candidate.name;
        let mut known = Known {
            name,
            id: gateway_id(name),
            weight: NonZeroU32::MIN,
            local: false,
        };
        let first = *self.ids.entry(known.id).or_insert(name);
        if first != name {
            return known.down(format!(
                "its name amounts to the same number as that of {first}, and nodes could not tell the two apart: \
                 rename either"
            ));
        }
        match candidate.kind {
            Kind::Object(gateway) => {
                known.weight = gateway.weight;
                self.object(known, gateway)
            }
            Kind::Pod(pod) => self.pod(known, pod),
        }
    }

    fn object(&mut self, mut known: Known<'a>, gateway: &Gateway) -> State {
        let interface = gateway.interface.as_deref();
        match &gateway.exit {
            Exit::NextHops { addresses, replies } => {
                let index = self.index;
                let ways = addresses.iter().map(|&next_hop| {
                    let way = index.way_to(next_hop, interface)?;
                    Ok::<_, NoWay>(by_next_hop(way, *replies))
                });
                self.state_of(&known, ways, "")
            }
            Exit::Node(egress) => {
                known.local = egress.node == self.settings.node_name;
                let request = Request {
                    name: known.name,
                    id: known.id,
                    node: &egress.node,
                    interface,
                    held: Held::ByNode {
                        assign: egress.assign,
                        allow_local_services: egress.allow_local_services,
                        ports: egress.ports,
                    },
                };
                self.egress(&known, &request, &egress.addresses)
            }
        }
    }

    fn pod(&mut self, mut known: Known<'a>, pod: &Pod) -> State {
        let here = self.settings.node_name.as_str();
        let node = match &pod.node {
            Some(node) => Some(node.as_str()),
            None => {
                let found = !pod.addresses.is_empty()
                    && self
                        .index
                        .pod_interface(&pod.addresses, pod.interface.as_deref())
                        .is_ok();
                found.then_some(here)
            }
        };
        known.local = node == Some(here);
        if pod.host_network {
            return known.down(
                "the pod shares the node's network and has no address of its own: use a pod with its own network, or \
                 an EgressGateway",
            );
        }
        if pod.addresses.is_empty() {
            return known.down("the pod has no address yet");
        }
        if !pod.ready {
            return known.down("the pod is not ready");
        }
        match self.settings.pod_gateways {
            PodGateways::Forward => {
                let (index, local) = (self.index, known.local);
                let ways = pod.addresses.iter().map(|&address| {
                    let way = way_to_pod(address, pod, local, index)?;
                    Ok::<_, NoWay>(by_next_hop(way, Replies::Recorded))
                });
                let context = if local {
                    ""
                } else {
                    "the pod runs on another node, from where it is a gateway only to nodes of its own network: "
                };
                self.state_of(&known, ways, context)
            }
            PodGateways::Translate => {
                let Some(node) = node else {
                    return known.down(
                        "nobody knows which node the pod is on: it has no spec.nodeName yet",
                    );
                };
                let request = Request {
                    name: known.name,
                    id: known.id,
                    node,
                    interface: None,
                    held: Held::ByPod,
                };
                self.egress(&known, &request, &pod.addresses)
            }
        }
    }

    /// A gateway with egress addresses: each is one gateway's only, that of the first by name.
    fn egress(&mut self, known: &Known<'a>, request: &Request<'_>, addresses: &[IpAddr]) -> State {
        let taken = addresses
            .iter()
            .find_map(|address| Some((address, self.claims.get(address)?)));
        if let Some((address, other)) = taken {
            return known.down(format!(
                "the egress address {address} is that of the gateway {other} already: give each its own"
            ));
        }
        for address in addresses {
            self.claims.insert(*address, known.name);
        }
        let ways: Vec<_> = addresses
            .iter()
            .map(|&address| self.owned.way(request, address))
            .collect();
        self.state_of(known, ways.into_iter(), "")
    }

    /// A gateway is usable if one of its ways is; a family without one is worth a warning.
    fn state_of<E: ToString>(
        &mut self,
        known: &Known<'_>,
        ways: impl Iterator<Item = Result<Way, E>>,
        context: &str,
    ) -> State {
        let name = known.name;
        let mut usable: Vec<Way> = Vec::new();
        let mut problems = Vec::new();
        for way in ways {
            match way {
                // Sources refuse it, and pods have one address of each family; who else may ask is told.
                Ok(way) if usable.iter().any(|w| w.family() == way.family()) => {
                    self.warnings.insert(format!(
                        "gateway {name} has several ways of one family: one of them is not used"
                    ));
                }
                Ok(way) => usable.push(way),
                // Two addresses often have the same problem.
                Err(problem) => {
                    let problem = problem.to_string();
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                }
            }
        }
        usable.sort_unstable();
        if usable.is_empty() {
            return known.down(if problems.is_empty() {
                "it has no address: add one to spec.nextHops or spec.egressIPs".to_owned()
            } else {
                format!("{context}{}", problems.join("; "))
            });
        }
        for problem in problems {
            self.warnings.insert(format!(
                "gateway {name} is usable for one family only: {problem}"
            ));
        }
        State {
            status: GatewayStatus::Up(usable.clone()),
            usable: Some(UsableGateway {
                name: name.clone(),
                id: known.id,
                weight: known.weight,
                ways: usable,
            }),
            local: known.local,
        }
    }
}

const fn by_next_hop(way: node::Way, replies: Replies) -> Way {
    let node::Way {
        next_hop,
        ifindex,
        mtu,
    } = way;
    Way::NextHop {
        next_hop,
        ifindex,
        mtu,
        replies,
    }
}

/// The route says how a pod is reached, also over a bridge, whose ports resolve no neighbours. Where it says
/// nothing, the annotation does.
fn way_to_pod(
    address: IpAddr,
    pod: &Pod,
    local: bool,
    index: &NodeIndex<'_>,
) -> Result<node::Way, NoWay> {
    index
        .way_to(address, None)
        .or_else(|problem| match &pod.interface {
            Some(interface) if local && problem != NoWay::OwnAddress(address) => {
                index.way_over(address, interface)
            }
            Some(_) | None => Err(problem),
        })
}
