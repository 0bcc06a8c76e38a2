//! The ordered changes.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::{
    Addr, Family,
    gateway::{EGRESS_ALLOW_LOCAL, EGRESS_DOWN, EGRESS_SHARED, Egress, GatewayKey, Settings},
    overlay::NodeState,
};
use ipnet::IpNet;

use super::{Change, Limits, State, ids};
use crate::{
    model::ObjectName,
    state::{EgressAddress, Holder, Names, OtherNode, Translation},
};

/// How to get from what the maps say to what they should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to do before policies change: nothing of it takes anything away.
    pub additions: Vec<Change>,
    /// What to do after: nothing leads to what goes any more.
    pub removals: Vec<Change>,
    /// What the maps say afterwards.
    pub after: State,
    /// What gateways' counters are called from now on; to be kept before the first change is made.
    pub gateways: BTreeMap<ObjectName, u32>,
    /// The same for nodes.
    pub nodes: BTreeMap<String, u32>,
    /// Counters that nothing adds to once the changes are made.
    pub retired_gateways: Vec<(ObjectName, u32)>,
}

impl Plan {
    /// How many changes there are.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.additions.len() + self.removals.len()
    }
}

/// A map has no room for what is new beside what is still in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no room for the new {what} beside those in use: the maps hold {room}, and during a change the old \
     and the new are both there; let fewer change at once, or share them among more nodes"
)]
pub struct PlanError {
    /// What there is no room for.
    pub what: &'static str,
    /// How many fit.
    pub room: u32,
}

/// Plans the way from what the maps say to what they should say.
///
/// What is already there with the same content stays where it is, so planning twice changes nothing.
///
/// # Errors
/// If old and new do not fit side by side; no change is made then.
pub fn plan(
    state: &State,
    names: &Names,
    wanted: &Translation,
    settings: &Settings,
    limits: &Limits,
) -> Result<Plan, PlanError> {
    let counters = ids::Counters::new(state, names, wanted, limits)?;
    let nodes = ids::nodes(state, names, wanted, limits)?;
    let mut planner = Planner {
        now: state.clone(),
        changes: Vec::new(),
        limits,
    };
    // Before the settings may have packets marked.
    planner.add_locals(wanted)?;
    if state.settings != *settings {
        planner.step(Change::WriteSettings(Box::new(*settings)));
    }
    let node_keys = planner.add_nodes(wanted, &nodes)?;
    let egress_keys = planner.add_egress(wanted, &counters)?;
    let additions = std::mem::take(&mut planner.changes);
    planner.remove(&node_keys, &egress_keys);
    planner.remove_locals(wanted);
    // An index that a key was turned away from is as free as one whose key is gone.
    let (before, now) = (used(state), used(&planner.now));
    if !before.0.is_subset(&now.0) || !before.1.is_subset(&now.1) {
        planner.step(Change::Grace);
    }
    Ok(Plan {
        additions,
        removals: planner.changes,
        after: planner.now,
        gateways: counters
            .ids
            .into_iter()
            .map(|(name, id)| (name.clone(), id))
            .collect(),
        nodes: nodes
            .into_iter()
            .map(|(name, index)| (name.to_owned(), index))
            .collect(),
        retired_gateways: counters.retired,
    })
}

/// Indexes that a key names: of egress addresses, and of nodes.
fn used(state: &State) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let egress = state.gateways.values().chain(state.addresses.values());
    (
        egress.copied().collect(),
        state.nodes.values().copied().collect(),
    )
}

struct Planner<'a> {
    now: State,
    changes: Vec<Change>,
    limits: &'a Limits,
}

/// The keys that lead to egress addresses.
#[derive(Default)]
struct EgressKeys {
    gateways: BTreeSet<GatewayKey>,
    addresses: BTreeSet<Addr>,
}

impl Planner<'_> {
    fn step(&mut self, change: Change) {
        self.now.apply(&change);
        self.changes.push(change);
    }

    fn add_locals(&mut self, wanted: &Translation) -> Result<(), PlanError> {
        for (prefix, why) in &wanted.locals {
            let (prefix, why) = (*prefix, why.value());
            if self.now.locals.get(&prefix) != Some(&why) {
                self.step(Change::InsertLocal { prefix, why });
            }
        }
        let v4 = |prefix: &&IpNet| matches!(prefix, IpNet::V4(_));
        let of_v4 = self.now.locals.keys().filter(v4).count();
        let most = of_v4.max(self.now.locals.len() - of_v4);
        self.room("prefixes of the cluster", most, self.limits.locals)
    }

    fn remove_locals(&mut self, wanted: &Translation) {
        let there: Vec<IpNet> = self.now.locals.keys().copied().collect();
        for prefix in there {
            if !wanted.locals.contains_key(&prefix) {
                self.step(Change::RemoveLocal { prefix });
            }
        }
    }

    fn add_nodes(
        &mut self,
        wanted: &Translation,
        indexes: &BTreeMap<&str, u32>,
    ) -> Result<BTreeSet<Addr>, PlanError> {
        let mut keys = BTreeSet::new();
        for (name, index) in indexes {
            let Some(node) = wanted.nodes.get(*name) else {
                continue;
            };
            let index = *index;
            let state = node_state(node);
            if self.now.node_state.get(&index) != Some(&state) {
                self.step(Change::WriteNode { index, node: state });
            }
            for address in node.addresses.iter().map(|address| Addr::from(*address)) {
                // An address that two nodes claim is the first one's.
                if keys.insert(address) && self.now.nodes.get(&address) != Some(&index) {
                    self.step(Change::InsertNode { address, index });
                }
            }
        }
        self.room(
            "addresses of nodes",
            self.now.nodes.len(),
            self.limits.nodes,
        )?;
        Ok(keys)
    }

    fn add_egress(
        &mut self,
        wanted: &Translation,
        counters: &ids::Counters<'_>,
    ) -> Result<EgressKeys, PlanError> {
        let mut free = Free::new(&self.now, self.limits.egress);
        let mut keys = EgressKeys::default();
        for (address, spec) in &wanted.addresses {
            let counter = counters.ids.get(&spec.gateway).copied().unwrap_or_default();
            let address = Addr::from(*address);
            let egress = element(address, spec, counter);
            let family = if address.is_v4() {
                Family::V4
            } else {
                Family::V6
            };
            let key = GatewayKey::new(spec.id, family);
            let there = [
                self.now.addresses.get(&address),
                self.now.gateways.get(&key),
            ]
            .into_iter()
            .flatten()
            .copied()
            .find(|index| self.now.egress.get(index) == Some(&egress));
            let index = match there {
                Some(index) => index,
                None => {
                    let index = free.take().ok_or(PlanError {
                        what: "egress addresses",
                        room: self.limits.egress,
                    })?;
                    self.step(Change::WriteEgress { index, egress });
                    index
                }
            };
            keys.addresses.insert(address);
            if self.now.addresses.get(&address) != Some(&index) {
                self.step(Change::InsertAddress { address, index });
            }
            // Of several addresses of one family, which the model does not allow, the first is used.
            if keys.gateways.insert(key) && self.now.gateways.get(&key) != Some(&index) {
                self.step(Change::InsertGateway { key, index });
            }
        }
        let entries = self.now.addresses.len().max(self.now.gateways.len());
        self.room("egress addresses", entries, self.limits.egress)?;
        Ok(keys)
    }

    fn room(&self, what: &'static str, entries: usize, room: u32) -> Result<(), PlanError> {
        if u32::try_from(entries).is_ok_and(|entries| entries <= room) {
            Ok(())
        } else {
            Err(PlanError { what, room })
        }
    }

    /// Gateways first: no connection is begun whose replies are nobody's.
    fn remove(&mut self, nodes: &BTreeSet<Addr>, egress: &EgressKeys) {
        let gateways = gone(&self.now.gateways, &egress.gateways);
        let addresses = gone(&self.now.addresses, &egress.addresses);
        let nodes = gone(&self.now.nodes, nodes);
        for key in gateways {
            self.step(Change::RemoveGateway { key });
        }
        for address in addresses {
            self.step(Change::RemoveAddress { address });
        }
        for address in nodes {
            self.step(Change::RemoveNode { address });
        }
    }
}

fn gone<K: Ord + Copy>(there: &BTreeMap<K, u32>, wanted: &BTreeSet<K>) -> Vec<K> {
    there
        .keys()
        .filter(|key| !wanted.contains(*key))
        .copied()
        .collect()
}

/// Indexes of `EGRESS` that no key names.
struct Free {
    used: BTreeSet<u32>,
    next: u32,
    limit: u32,
}

impl Free {
    fn new(state: &State, limit: u32) -> Self {
        let (used, _) = used(state);
        Self {
            used,
            next: 0,
            limit,
        }
    }

    fn take(&mut self) -> Option<u32> {
        let index = (self.next..self.limit).find(|index| !self.used.contains(index))?;
        self.next = index + 1;
        Some(index)
    }
}

fn node_state(node: &OtherNode) -> NodeState {
    NodeState {
        address: node.address.into(),
        mtu: node.mtu,
        send: node.send,
        accept: node.accept,
        pad: [0; 2],
    }
}

fn element(address: Addr, spec: &EgressAddress, counter: u32) -> Egress {
    let local = spec.allow_local_services || spec.holder == Holder::Pod;
    let shared = spec.holder == Holder::Node;
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    Egress {
        address,
        gateway: spec.id,
        ifindex: spec.ifindex,
        mtu: spec.mtu,
        counter,
        first_port: spec.ports.0,
        last_port: spec.ports.1,
        flags: flag(local, EGRESS_ALLOW_LOCAL)
            | flag(shared, EGRESS_SHARED)
            | flag(spec.is_down, EGRESS_DOWN),
    }
}
