//! What the maps do say, found by walking from the pods: what no pod reaches is free.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use egress_common::{
    cells::{Line, RowPlace, SLOT_LINES},
    keys::PodKey,
    verdict::{Decision, Member, PodState, Verdict},
};
use ipnet::IpNet;

use super::content::group_members;
use crate::{
    rows::Cells,
    state::{Extent, KernelState},
};

/// Reads live maps. What was never written reads as zeroes.
pub trait MapReader {
    /// Why a map could not be read.
    type Error;

    /// Every source pod and its slot.
    ///
    /// # Errors
    /// If the map cannot be read.
    fn pods(&self) -> Result<Vec<(PodKey, u32)>, Self::Error>;
    /// A slot's row and rule base.
    ///
    /// # Errors
    /// If the map cannot be read.
    fn slot(&self, slot: u32) -> Result<PodState, Self::Error>;
    /// Every prefix of both families and its class.
    ///
    /// # Errors
    /// If a map cannot be read.
    fn prefixes(&self) -> Result<Vec<(IpNet, u32)>, Self::Error>;
    /// `count` lines of the line store from `first` on.
    ///
    /// # Errors
    /// If the map cannot be read.
    fn lines(&self, first: u32, count: u32) -> Result<Vec<Line>, Self::Error>;
    /// A verdict.
    ///
    /// # Errors
    /// If the map cannot be read.
    fn verdict(&self, index: u32) -> Result<Verdict, Self::Error>;
    /// A member.
    ///
    /// # Errors
    /// If the map cannot be read.
    fn member(&self, id: u32) -> Result<Member, Self::Error>;
}

/// Rebuilds what is live in the maps.
///
/// Whoever plans from it waits for a grace period first: what was freed just before is not known here.
/// Headroom that a row was given is not known either, and is free.
///
/// # Errors
/// If a map cannot be read.
pub fn trace<R: MapReader>(maps: &R) -> Result<KernelState, R::Error> {
    let mut live = KernelState {
        pods: maps.pods()?.into_iter().collect(),
        prefixes: maps
            .prefixes()?
            .into_iter()
            .map(|(net, class)| (net.trunc(), class))
            .collect(),
        ..KernelState::default()
    };
    for slot in live.pods.values() {
        live.slots.insert(*slot, maps.slot(*slot)?);
    }
    let classes = live_classes(&live.prefixes);
    let bound = u32::try_from(classes.len()).unwrap_or(u32::MAX);

    let mut highest: BTreeMap<u32, u16> = BTreeMap::new();
    for state in live.slots.values() {
        if let Entry::Vacant(row) = live.rows.entry(state.row()) {
            let place = state.row();
            let lines = match place.shift() {
                None => Extent::lines_needed(bound),
                Some(shift) => 1 << shift,
            };
            let read = maps.lines(place.first_line(), lines)?;
            let mut cells = Cells::from_lines(place, &read);
            if let Cells::Dense(cells) = &mut cells {
                for (class, cell) in cells.iter_mut().enumerate() {
                    if !classes.get(class).copied().unwrap_or(false) {
                        *cell = 0;
                    }
                }
            }
            let cells = Arc::new(cells);
            row.insert(Extent { lines, cells });
        }
    }
    let in_row: BTreeMap<RowPlace, u16> = live
        .rows
        .iter()
        .map(|(place, row)| (*place, row.cells.highest(&classes)))
        .collect();
    for state in live.slots.values() {
        let number = in_row.get(&state.row()).copied().unwrap_or(0);
        let of_block = highest.entry(state.rule_base()).or_default();
        *of_block = number.max(*of_block);
    }
    for (base, number) in highest {
        let block = (0..=u32::from(number))
            .map(|n| maps.verdict(base.saturating_add(n)))
            .collect::<Result<Vec<_>, _>>()?;
        live.blocks.insert(base, block);
    }

    let mut members = BTreeSet::new();
    for verdict in live.blocks.values().flatten() {
        match verdict.decode() {
            Some(Decision::Member(id)) => {
                members.insert(id);
            }
            Some(Decision::Group {
                lines,
                first_member,
                members: count,
            }) => {
                let cells = match live.slot_tables.entry(lines) {
                    Entry::Occupied(table) => table.into_mut(),
                    Entry::Vacant(table) => {
                        table.insert(Arc::new(cells_of(&maps.lines(lines, SLOT_LINES)?)))
                    }
                };
                members.extend(group_members(first_member, count, cells));
            }
            Some(Decision::Unmatched | Decision::Local | Decision::Drop(_)) | None => {}
        }
    }
    for id in members {
        live.members.insert(id, maps.member(id)?);
    }
    Ok(live)
}

/// Forgets everything that no pod reaches, nor `keep`.
pub(super) fn retain_reachable(live: &mut KernelState, keep: Option<PodState>) {
    drop(retain_states(live, keep));
    let mut reachable = retain_tables(live).into_iter().peekable();
    // Both are sorted.
    live.members.retain(|id, _| {
        while reachable.next_if(|reached| reached < id).is_some() {}
        reachable.peek() == Some(id)
    });
}

/// The same after pods were turned or removed, and all that is live was reached before or is reached now.
pub(super) fn retain_turned(live: &mut KernelState) {
    let gone = retain_states(live, None);
    if gone.is_empty() {
        return;
    }
    let mut members = Vec::new();
    for verdict in gone.iter().flatten() {
        match verdict.decode() {
            Some(Decision::Member(id)) => members.push(id),
            Some(Decision::Group {
                lines,
                first_member,
                members: count,
            }) => {
                if let Some(cells) = live.slot_tables.get(&lines) {
                    members.extend(group_members(first_member, count, cells));
                }
            }
            Some(Decision::Unmatched | Decision::Local | Decision::Drop(_)) | None => {}
        }
    }
    let reachable = retain_tables(live);
    for id in members {
        if reachable.binary_search(&id).is_err() {
            live.members.remove(&id);
        }
    }
}

/// Forgets slots, rows and blocks that no pod reaches, nor `keep`. Gives those blocks.
fn retain_states(live: &mut KernelState, keep: Option<PodState>) -> Vec<Vec<Verdict>> {
    let slots: BTreeSet<u32> = live.pods.values().copied().collect();
    live.slots.retain(|slot, _| slots.contains(slot));
    let states: BTreeSet<PodState> = live.slots.values().copied().chain(keep).collect();
    let rows: BTreeSet<RowPlace> = states.iter().map(|state| state.row()).collect();
    live.rows.retain(|place, _| rows.contains(place));
    let bases: BTreeSet<u32> = states.iter().map(|state| state.rule_base()).collect();
    let mut gone = Vec::new();
    live.blocks.retain(|base, block| {
        let stays = bases.contains(base);
        if !stays {
            gone.push(std::mem::take(block));
        }
        stays
    });
    gone
}

/// Forgets slot tables that no block names. Gives the members that are reached, in order.
fn retain_tables(live: &mut KernelState) -> Vec<u32> {
    let mut members = Vec::new();
    let mut tables: BTreeMap<u32, BTreeSet<(u32, u16)>> = BTreeMap::new();
    for verdict in live.blocks.values().flatten() {
        match verdict.decode() {
            Some(Decision::Member(id)) => {
                members.push(id);
            }
            Some(Decision::Group {
                lines,
                first_member,
                members: count,
            }) => {
                let group = (first_member, count);
                tables.entry(lines).or_default().insert(group);
            }
            Some(Decision::Unmatched | Decision::Local | Decision::Drop(_)) | None => {}
        }
    }
    live.slot_tables.retain(|first, cells| {
        let Some(groups) = tables.get(first) else {
            return false;
        };
        for (first, count) in groups {
            members.extend(group_members(*first, *count, cells));
        }
        true
    });
    members.sort_unstable();
    members
}

/// For each class up to the highest in use, whether a prefix has it.
pub(super) fn live_classes(prefixes: &BTreeMap<IpNet, u32>) -> Vec<bool> {
    let bound = prefixes.values().max().map_or(0, |highest| highest + 1);
    let mut live = vec![false; bound as usize];
    for class in prefixes.values() {
        live[*class as usize] = true;
    }
    live
}

/// The cells of consecutive lines.
fn cells_of(lines: &[Line]) -> Vec<u16> {
    lines.iter().flat_map(|line| line.0).collect()
}
