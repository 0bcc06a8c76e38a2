//! Which gateways can be used from this node, by which ways, and why others cannot.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    time::Duration,
};

use egress_common::{gateway::GatewayId, verdict::Replies};

use super::{
    GatewayStatus, PodGateways, Settings, Standing, UsableGateway, Way,
    egress::{HeldBy, Owned, Request},
    gateways::{Candidate, Kind},
};
use crate::{
    gateway_id::gateway_id,
    health::{Faults, MAX_TARGETS, Probed, Source, Subject},
    model::{Exit, Gateway, Leaving, ObjectName, Pod, Probes},
    node::{self, NoWay, NodeIndex},
};

/// What is known of a gateway.
pub(super) struct State {
    pub(super) status: GatewayStatus,
    pub(super) usable: Option<UsableGateway>,
    /// Whether it runs on this node.
    pub(super) local: bool,
}

/// Finds out which gateways can be used, asked for one after the other in order of name.
pub(super) struct Finder<'f, 'a, 'o> {
    index: &'f NodeIndex<'f>,
    settings: &'f Settings,
    faults: &'f Faults,
    owned: &'f mut Owned<'o>,
    warnings: &'f mut BTreeSet<String>,
    /// Who is to be asked whether it is in order, and the gateways that need it.
    pub(super) subjects: BTreeMap<Subject, BTreeSet<ObjectName>>,
    /// Who takes no new connections, and for how long those that are there may stay.
    pub(super) draining: BTreeMap<ObjectName, Option<Duration>>,
    /// Which gateways of this node ask the outside whether they are in order.
    pub(super) probed: BTreeMap<ObjectName, Probed>,
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
    standing: Standing,
    /// What this node asks of the outside, if the addresses are its own.
    probes: Option<&'a Probes>,
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

impl<'f, 'a, 'o> Finder<'f, 'a, 'o> {
    pub(super) fn new(
        index: &'f NodeIndex<'f>,
        settings: &'f Settings,
        faults: &'f Faults,
        owned: &'f mut Owned<'o>,
        warnings: &'f mut BTreeSet<String>,
    ) -> Self {
        Self {
            index,
            settings,
            faults,
            owned,
            warnings,
            subjects: BTreeMap::new(),
            draining: BTreeMap::new(),
            probed: BTreeMap::new(),
            ids: BTreeMap::new(),
            claims: BTreeMap::new(),
        }
    }

    /// The next gateway by name.
    pub(super) fn state(&mut self, candidate: &Candidate<'a>) -> State {
        let name = candidate.name;
        let mut known = Known {
            name,
            id: gateway_id(name),
            weight: NonZeroU32::MIN,
            standing: Standing::Serving,
            probes: None,
            local: false,
        };
        let first = *self.ids.entry(known.id).or_insert(name);
        if first != name {
            return known.down(format!(
                "its name amounts to the same number as that of {first}, and nodes could not tell the two apart: \
                 rename either"
            ));
        }
        let (leaving, drain_timeout) = match candidate.kind {
            Kind::Object(gateway) => (gateway.leaving, gateway.drain_timeout),
            Kind::Pod(pod) => (pod.leaving, None),
        };
        if leaving != Leaving::No {
            known.standing = Standing::Draining;
            self.draining.insert(name.clone(), drain_timeout);
            let why = match leaving {
                Leaving::Terminating => "it is being deleted",
                Leaving::Asked | Leaving::No => "egress.fastpath/drain asks for it",
            };
            self.warnings.insert(format!(
                "gateway {name} takes no new connections where its group has another member: {why}"
            ));
            let over = self.faults.get(&Subject::Drained { name: name.clone() });
            if let Some(reason) = over {
                return known.down(reason.clone());
            }
        }
        match candidate.kind {
            Kind::Object(gateway) => {
                known.weight = gateway.weight;
                self.object(known, gateway)
            }
            Kind::Pod(pod) => self.pod(known, pod),
        }
    }

    fn object(&mut self, mut known: Known<'a>, gateway: &'a Gateway) -> State {
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
                known.probes = egress.probes.as_ref();
                let request = Request {
                    name: known.name,
                    id: known.id,
                    node: &egress.node,
                    interface,
                    held_by: HeldBy::Node {
                        assign: egress.assign,
                        allow_local_services: egress.allow_local_services,
                        ports: egress.ports,
                        probed: egress.probes.is_some(),
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
        // A pod that only holds an address need not do anything for it until it is gone.
        let holds_on = pod.leaving == Leaving::Terminating
            && self.settings.pod_gateways == PodGateways::Translate;
        if !pod.ready && !holds_on {
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
                    held_by: HeldBy::Pod,
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
        let refused = addresses
            .iter()
            .find_map(|address| self.owned.check_owner(request, *address).err());
        if let Some(reason) = refused {
            return known.down(reason);
        }
        for address in addresses {
            self.claims.insert(*address, known.name);
        }
        let ways: Vec<_> = addresses
            .iter()
            .map(|&address| self.owned.way(request, address))
            .collect();
        self.probe(known, &ways);
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
            let answered = way
                .map_err(|problem| problem.to_string())
                .and_then(|way| self.answered(known, way));
            match answered {
                // Sources refuse it, and pods have one address of each family; who else may ask is told.
                Ok(way) if usable.iter().any(|w| w.family() == way.family()) => {
                    self.warnings.insert(format!(
                        "gateway {name} has several ways of one family: one of them is not used"
                    ));
                }
                Ok(way) => usable.push(way),
                // Two addresses often have the same problem.
                Err(problem) => {
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
                standing: known.standing,
                ways: usable,
            }),
            local: known.local,
        }
    }
}

impl Finder<'_, '_, '_> {
    /// Has the outside asked by a gateway with probes, from those of its ways that begin on this node.
    fn probe<E>(&mut self, known: &Known<'_>, ways: &[Result<Way, E>]) {
        let from: Vec<Source> = ways
            .iter()
            .filter_map(|way| match way {
                Ok(Way::Here {
                    egress, ifindex, ..
                }) => Some(Source {
                    address: *egress,
                    interface: self.index.name(*ifindex),
                }),
                Ok(Way::Overlay { .. } | Way::NextHop { .. }) | Err(_) => None,
            })
            .collect();
        let Some(probes) = known.probes.filter(|_| !from.is_empty()) else {
            return;
        };
        let asked: usize = self.probed.values().map(|p| p.probes.targets()).sum();
        if asked + probes.targets() > MAX_TARGETS {
            self.warnings.insert(format!(
                "the probes of the gateway {} are not run, and it counts as usable: gateways of this node ask {asked} \
                 addresses and URLs already, and {MAX_TARGETS} are the most",
                known.name
            ));
            return;
        }
        for by in probes.kinds() {
            let subject = Subject::Outside {
                name: known.name.clone(),
                by,
            };
            let needed_by = self.subjects.entry(subject).or_default();
            needed_by.insert(known.name.clone());
        }
        let probed = Probed {
            id: known.id,
            probes: probes.clone(),
            from,
        };
        self.probed.insert(known.name.clone(), probed);
    }

    /// What the probes of a gateway of this node say against it.
    fn outside_fault(&self, name: &ObjectName) -> Option<String> {
        let kinds = self.probed.get(name)?.probes.kinds();
        let faults: Vec<&str> = kinds
            .filter_map(|by| {
                let name = name.clone();
                let fault = self.faults.get(&Subject::Outside { name, by })?;
                Some(fault.as_str())
            })
            .collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    /// A way, unless whoever is at its end does not answer.
    fn answered(&mut self, known: &Known<'_>, way: Way) -> Result<Way, String> {
        let subject = match &way {
            Way::Overlay { node, .. } => Subject::Gateway {
                name: known.name.clone(),
                id: known.id,
                node: node.clone(),
            },
            Way::NextHop {
                next_hop, ifindex, ..
            } => Subject::NextHop {
                address: *next_hop,
                ifindex: *ifindex,
            },
            Way::Here { egress, .. } => {
                return match self.outside_fault(known.name) {
                    Some(fault) => {
                        self.owned.mark_down(*egress);
                        Err(fault)
                    }
                    None => Ok(way),
                };
            }
        };
        let fault = self.faults.get(&subject).cloned();
        let needed_by = self.subjects.entry(subject).or_default();
        needed_by.insert(known.name.clone());
        fault.map_or(Ok(way), Err)
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
