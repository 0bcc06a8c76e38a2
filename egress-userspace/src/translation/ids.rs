//! Numbers that names keep: of gateways' counters, and of nodes.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::{Addr, gateway::Egress};

use super::{Limits, State, plan::PlanError};
use crate::{
    model::ObjectName,
    state::{Names, Translation},
};

/// The counters of gateways: kept while a gateway is wanted, never given to another at once.
pub(super) struct Counters<'a> {
    pub(super) ids: BTreeMap<&'a ObjectName, u32>,
    pub(super) retired: Vec<(ObjectName, u32)>,
}

impl<'a> Counters<'a> {
    pub(super) fn new(
        state: &State,
        names: &Names,
        wanted: &'a Translation,
        limits: &Limits,
    ) -> Result<Self, PlanError> {
        let gateways: BTreeSet<&ObjectName> =
            wanted.addresses.values().map(|a| &a.gateway).collect();
        let counted = live_egress(state).map(|egress| egress.counter);
        let mut used: BTreeSet<u32> = names.gateways.values().copied().chain(counted).collect();
        let mut ids = BTreeMap::new();
        let mut retired = Vec::new();
        let mut taken = BTreeSet::new();
        for (name, id) in &names.gateways {
            match gateways.get(name) {
                // A list that was damaged may name one id twice.
                Some(name) if *id < limits.egress && taken.insert(*id) => {
                    ids.insert(*name, *id);
                }
                Some(_) => {}
                None => retired.push((name.clone(), *id)),
            }
        }
        for name in gateways {
            if !ids.contains_key(name) {
                let id = (0..limits.egress)
                    .find(|id| !used.contains(id))
                    .ok_or(PlanError {
                        what: "gateways",
                        room: limits.egress,
                    })?;
                used.insert(id);
                ids.insert(name, id);
            }
        }
        Ok(Self { ids, retired })
    }
}

/// The elements that a key names.
pub(super) fn live_egress(state: &State) -> impl Iterator<Item = &Egress> {
    state
        .gateways
        .values()
        .chain(state.addresses.values())
        .filter_map(|index| state.egress.get(index))
}

/// The index of each wanted node.
///
/// A node keeps the index that its name had; where the names are lost it is known by its addresses.
pub(super) fn nodes<'a>(
    state: &State,
    names: &Names,
    wanted: &'a Translation,
    limits: &Limits,
) -> Result<BTreeMap<&'a str, u32>, PlanError> {
    let valid = |index: u32| (1..limits.nodes).contains(&index);
    let mut indexes: BTreeMap<&str, u32> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for name in wanted.nodes.keys() {
        if let Some(index) = names.nodes.get(name).copied()
            && valid(index)
            && taken.insert(index)
        {
            indexes.insert(name, index);
        }
    }
    for (name, node) in &wanted.nodes {
        if indexes.contains_key(name.as_str()) {
            continue;
        }
        let known = node
            .addresses
            .iter()
            .filter_map(|address| state.nodes.get(&Addr::from(*address)).copied())
            .find(|index| valid(*index) && !taken.contains(index));
        if let Some(index) = known {
            taken.insert(index);
            indexes.insert(name, index);
        }
    }
    // What a packet in flight, or a name, may still mean.
    taken.extend(state.nodes.values());
    taken.extend(names.nodes.values());
    for name in wanted.nodes.keys() {
        if indexes.contains_key(name.as_str()) {
            continue;
        }
        // A connection may outlive its node, and would go to whoever has the index next.
        let fresh = (1..limits.nodes)
            .find(|index| !taken.contains(index) && !state.node_state.contains_key(index))
            .or_else(|| (1..limits.nodes).find(|index| !taken.contains(index)))
            .ok_or(PlanError {
                what: "nodes",
                room: limits.nodes,
            })?;
        taken.insert(fresh);
        indexes.insert(name, fresh);
    }
    Ok(indexes)
}
