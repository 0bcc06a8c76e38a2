//! The maps of egress addresses and other nodes.

use std::{collections::BTreeMap, fmt::Display};

use anyhow::Context;
use aya::{
    Pod,
    maps::{Array, HashMap, MapData},
};
use egress_common::{
    Addr,
    gateway::{Egress, GatewayKey, Settings},
    maps::{EGRESS, EGRESS_ADDRS, GATEWAYS, NODE_STATE, NODES, SETTINGS},
    overlay::NodeState,
};

use super::{
    maps::{absent_is_fine, open},
    paths::Paths,
};
use crate::translation::{Change, Limits, State};

/// The open maps.
pub(super) struct TranslationMaps {
    settings: Array<MapData, Settings>,
    gateways: HashMap<MapData, GatewayKey, u32>,
    addresses: HashMap<MapData, Addr, u32>,
    egress: Array<MapData, Egress>,
    nodes: HashMap<MapData, Addr, u32>,
    node_state: Array<MapData, NodeState>,
}

impl TranslationMaps {
    pub(super) fn open(paths: &Paths) -> anyhow::Result<Self> {
        Ok(Self {
            settings: open(paths, SETTINGS)?.try_into()?,
            gateways: open(paths, GATEWAYS)?.try_into()?,
            addresses: open(paths, EGRESS_ADDRS)?.try_into()?,
            egress: open(paths, EGRESS)?.try_into()?,
            nodes: open(paths, NODES)?.try_into()?,
            node_state: open(paths, NODE_STATE)?.try_into()?,
        })
    }

    /// Reads all that the maps say.
    pub(super) fn read(&self) -> anyhow::Result<State> {
        Ok(State {
            settings: element(&self.settings, 0, SETTINGS)?,
            gateways: all(&self.gateways, GATEWAYS)?,
            addresses: all(&self.addresses, EGRESS_ADDRS)?,
            egress: written(&self.egress, EGRESS)?,
            nodes: all(&self.nodes, NODES)?,
            node_state: written(&self.node_state, NODE_STATE)?,
        })
    }

    /// How much fits.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            egress: self.egress.len(),
            nodes: self.node_state.len(),
        }
    }

    /// Carries out one change of a plan, other than waiting.
    pub(super) fn carry_out(&mut self, change: &Change) -> anyhow::Result<()> {
        match change {
            Change::WriteSettings(settings) => set(&mut self.settings, 0, **settings, SETTINGS),
            Change::WriteNode { index, node } => {
                set(&mut self.node_state, *index, *node, NODE_STATE)
            }
            Change::InsertNode { address, index } => self
                .nodes
                .insert(address, index, 0)
                .with_context(|| full(NODES)),
            Change::RemoveNode { address } => {
                absent_is_fine(self.nodes.remove(address)).with_context(|| stuck(NODES))
            }
            Change::WriteEgress { index, egress } => set(&mut self.egress, *index, *egress, EGRESS),
            Change::InsertAddress { address, index } => self
                .addresses
                .insert(address, index, 0)
                .with_context(|| full(EGRESS_ADDRS)),
            Change::InsertGateway { key, index } => self
                .gateways
                .insert(key, index, 0)
                .with_context(|| full(GATEWAYS)),
            Change::RemoveGateway { key } => {
                absent_is_fine(self.gateways.remove(key)).with_context(|| stuck(GATEWAYS))
            }
            Change::RemoveAddress { address } => {
                absent_is_fine(self.addresses.remove(address)).with_context(|| stuck(EGRESS_ADDRS))
            }
            Change::Grace => Ok(()),
        }
    }
}

fn full(map: &str) -> String {
    format!("cannot insert into {map}")
}

fn stuck(map: &str) -> String {
    format!("cannot remove from {map}")
}

fn set<V: Pod>(
    map: &mut Array<MapData, V>,
    index: u32,
    value: V,
    name: impl Display,
) -> anyhow::Result<()> {
    map.set(index, value, 0)
        .with_context(|| format!("cannot write {name}[{index}]"))
}

fn element<V: Pod>(map: &Array<MapData, V>, index: u32, name: &str) -> anyhow::Result<V> {
    map.get(&index, 0)
        .with_context(|| format!("cannot read {name}[{index}]"))
}

/// All of a hash map.
fn all<K: Pod + Ord, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &str,
) -> anyhow::Result<BTreeMap<K, V>> {
    let entries: Result<_, _> = map.iter().collect();
    entries.with_context(|| format!("cannot read {name}"))
}

/// The elements of an array that were ever written: others are zero.
fn written<V: Pod + Default + PartialEq>(
    map: &Array<MapData, V>,
    name: &str,
) -> anyhow::Result<BTreeMap<u32, V>> {
    let mut elements = BTreeMap::new();
    for index in 0..map.len() {
        let value = element(map, index, name)?;
        if value != V::default() {
            elements.insert(index, value);
        }
    }
    Ok(elements)
}
