//! What is kept of a steered pod beside its policy: where it is, what it takes, and what the datapath learned.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Context;
use aya::maps::{Array, HashMap, MapData};
use egress_common::{
    Addr,
    keys::PodKey,
    maps::{INTERFACES, POD_FACTS, POD_INDEX, POD_NOTES, POD_PLACES},
    pod::{PodFacts, PodNote, PodPlace},
    verdict::PodState,
};

use super::{
    fault,
    maps::{absent_is_fine, not_running, open},
    paths::Paths,
    pod_index::PodIndex,
};

/// The maps beside `PODS`.
pub(super) struct PodMaps {
    index: PodIndex,
    places: HashMap<MapData, Addr, PodPlace>,
    notes: Array<MapData, PodNote>,
    facts: Array<MapData, PodFacts>,
    interfaces: HashMap<MapData, u32, u32>,
    /// `PODS` by address: while a pod moves, its address is on two interfaces.
    known: BTreeMap<(Addr, u32), u32>,
    /// `POD_FACTS` as far as it was read or written.
    written: BTreeMap<u32, PodFacts>,
}

impl PodMaps {
    pub(super) fn open(paths: &Paths) -> anyhow::Result<Self> {
        let index = paths.map(POD_INDEX);
        let index = MapData::from_pin(&index).with_context(|| not_running(&index))?;
        Ok(Self {
            index: PodIndex::map(&index)?,
            places: open(paths, POD_PLACES)?.try_into()?,
            notes: open(paths, POD_NOTES)?.try_into()?,
            facts: open(paths, POD_FACTS)?.try_into()?,
            interfaces: open(paths, INTERFACES)?.try_into()?,
            known: BTreeMap::new(),
            written: BTreeMap::new(),
        })
    }

    /// Makes index and places say what `PODS` says: a crash between two writes leaves them apart.
    pub(super) fn repair(&mut self, pods: &[(PodKey, u32, PodState)]) -> anyhow::Result<()> {
        self.index.repair(pods);
        self.known = pods
            .iter()
            .map(|(key, slot, _)| ((key.addr, key.ifindex), *slot))
            .collect();
        let read: Result<BTreeMap<Addr, PodPlace>, _> = self.places.iter().collect();
        let places = read.with_context(|| format!("cannot read {POD_PLACES}"))?;
        for (addr, place) in &places {
            // Of a pod that is on two interfaces the place that is written is as good as the other.
            if self.known.get(&(*addr, place.ifindex)) != Some(&place.slot) {
                self.place_again(*addr)?;
            }
        }
        let missing: Vec<Addr> = self
            .known
            .keys()
            .map(|(addr, _)| *addr)
            .filter(|addr| !places.contains_key(addr))
            .collect();
        missing
            .into_iter()
            .try_for_each(|addr| self.place_again(addr))?;
        self.repair_interfaces()
    }

    fn repair_interfaces(&mut self) -> anyhow::Result<()> {
        let read: Result<BTreeMap<u32, u32>, _> = self.interfaces.iter().collect();
        let there = read.with_context(|| format!("cannot read {INTERFACES}"))?;
        let mut wanted: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for ((_, ifindex), slot) in &self.known {
            wanted.entry(*ifindex).or_default().push(*slot);
        }
        for ifindex in there.keys().filter(|ifindex| !wanted.contains_key(ifindex)) {
            self.forget_interface(*ifindex)?;
        }
        for (ifindex, slots) in &wanted {
            let fits = there.get(ifindex).is_some_and(|slot| slots.contains(slot));
            if let (false, Some(slot)) = (fits, slots.first()) {
                self.know_interface(*ifindex, *slot)?;
            }
        }
        Ok(())
    }

    /// Prepares a slot for a pod that nobody can find yet.
    pub(super) fn clear_notes(&mut self, slot: u32) -> anyhow::Result<()> {
        self.notes
            .set(slot, PodNote::default(), 0)
            .with_context(|| format!("cannot write {POD_NOTES}[{slot}]"))
    }

    /// Says where a pod is that can be found now.
    pub(super) fn inserted(
        &mut self,
        key: PodKey,
        slot: u32,
        state: PodState,
    ) -> anyhow::Result<()> {
        self.index.insert(&key, slot, state);
        self.known.insert((key.addr, key.ifindex), slot);
        self.place(key.addr, key.ifindex, slot)?;
        self.know_interface(key.ifindex, slot)
    }

    /// Turns the pod of a slot where it is found first.
    pub(super) fn turn(&self, slot: u32, state: PodState) {
        self.index.turn(slot, state);
    }

    /// Has a pod be found in `PODS` alone.
    pub(super) fn leaves(&mut self, key: &PodKey) {
        self.index.remove(key);
    }

    /// Says that no packet is in flight any more that was before.
    pub(super) fn settled(&mut self) {
        self.index.settled();
    }

    /// Forgets where a pod is that cannot be found any more.
    pub(super) fn removed(&mut self, key: &PodKey) -> anyhow::Result<()> {
        self.known.remove(&(key.addr, key.ifindex));
        self.place_again(key.addr)?;
        // All slots of an interface are one pod's, and say the same.
        let left = self
            .known
            .iter()
            .find(|((_, ifindex), _)| *ifindex == key.ifindex)
            .map(|(_, slot)| *slot);
        match left {
            Some(slot) => self.know_interface(key.ifindex, slot),
            None => self.forget_interface(key.ifindex),
        }
    }

    fn know_interface(&mut self, ifindex: u32, slot: u32) -> anyhow::Result<()> {
        self.interfaces.insert(ifindex, slot, 0).with_context(|| {
            format!(
                "cannot insert {ifindex} into {INTERFACES}: raise --max-pods if the map is full"
            )
        })
    }

    fn forget_interface(&mut self, ifindex: u32) -> anyhow::Result<()> {
        absent_is_fine(self.interfaces.remove(&ifindex))
            .with_context(|| format!("cannot remove {ifindex} from {INTERFACES}"))
    }

    /// Writes the facts of a slot unless they are there.
    ///
    /// Those of a live pod change in place: a packet in between may see some of both.
    pub(super) fn set_facts(&mut self, slot: u32, wanted: PodFacts) -> anyhow::Result<bool> {
        let written = match self.written.get(&slot) {
            Some(facts) => *facts,
            None => self
                .facts
                .get(&slot, 0)
                .with_context(|| format!("cannot read {POD_FACTS}[{slot}]"))?,
        };
        if written != wanted {
            fault::step("write facts")?;
            self.facts
                .set(slot, wanted, 0)
                .with_context(|| format!("cannot write {POD_FACTS}[{slot}]"))?;
        }
        self.written.insert(slot, wanted);
        Ok(written != wanted)
    }

    /// Places an address where `PODS` still has it, or nowhere.
    fn place_again(&mut self, addr: Addr) -> anyhow::Result<()> {
        let last = self
            .known
            .range((addr, 0)..=(addr, u32::MAX))
            .next_back()
            .map(|((_, ifindex), slot)| (*ifindex, *slot));
        match last {
            Some((ifindex, slot)) => self.place(addr, ifindex, slot),
            None => absent_is_fine(self.places.remove(&addr))
                .with_context(|| format!("cannot remove {} from {POD_PLACES}", IpAddr::from(addr))),
        }
    }

    fn place(&mut self, addr: Addr, ifindex: u32, slot: u32) -> anyhow::Result<()> {
        self.places
            .insert(addr, PodPlace { ifindex, slot }, 0)
            .with_context(|| {
                format!(
                    "cannot insert {} into {POD_PLACES}: raise --max-pods if the map is full",
                    IpAddr::from(addr)
                )
            })
    }
}
