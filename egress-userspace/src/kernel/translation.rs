//! The maps of egress addresses and other nodes.

use std::{collections::BTreeMap, fmt::Display};

use anyhow::Context;
use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, MapData, MapInfo},
};
use egress_common::{
    Addr,
    gateway::{Egress, GatewayKey, Settings},
    maps::{EGRESS, EGRESS_ADDRS, GATEWAYS, LOCALS4, LOCALS6, NODE_STATE, NODES, SETTINGS},
    overlay::NodeState,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    maps::{absent_is_fine, key4, key6, open},
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
    locals4: LpmTrie<MapData, [u8; 4], u32>,
    locals6: LpmTrie<MapData, [u8; 16], u32>,
    /// Prefixes of one family that there is room for.
    room: u32,
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
            locals4: open(paths, LOCALS4)?.try_into()?,
            locals6: open(paths, LOCALS6)?.try_into()?,
            room: MapInfo::from_pin(paths.map(LOCALS4))?.max_entries(),
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
            locals: self.locals()?,
        })
    }

    fn locals(&self) -> anyhow::Result<BTreeMap<IpNet, u32>> {
        let mut locals = BTreeMap::new();
        for entry in self.locals4.iter() {
            let (key, why) = entry.with_context(|| format!("cannot read {LOCALS4}"))?;
            let net = Ipv4Net::new(key.data().into(), u8::try_from(key.prefix_len())?)?;
            locals.insert(IpNet::V4(net), why);
        }
        for entry in self.locals6.iter() {
            let (key, why) = entry.with_context(|| format!("cannot read {LOCALS6}"))?;
            let net = Ipv6Net::new(key.data().into(), u8::try_from(key.prefix_len())?)?;
            locals.insert(IpNet::V6(net), why);
        }
        Ok(locals)
    }

    /// How much fits.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            egress: self.egress.len(),
            nodes: self.node_state.len(),
            locals: self.room,
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
            Change::InsertLocal { prefix, why } => match prefix {
                IpNet::V4(net) => self.locals4.insert(&key4(net), why, 0),
                IpNet::V6(net) => self.locals6.insert(&key6(net), why, 0),
            }
            .with_context(|| {
                format!("cannot make {prefix} local: raise --max-prefixes if the map is full")
            }),
            Change::RemoveLocal { prefix } => absent_is_fine(match prefix {
                IpNet::V4(net) => self.locals4.remove(&key4(net)),
                IpNet::V6(net) => self.locals6.remove(&key6(net)),
            })
            .with_context(|| format!("cannot make {prefix} local no more")),
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
