//! The planner: keeps the state that its changes lead to, and allocates only where that state has nothing.

mod columns;
mod written;

use std::{collections::BTreeMap, sync::Arc};

use egress_common::{
    cells::{CELLS_PER_LINE, RowPlace},
    keys::PodKey,
    verdict::PodState,
};
use ipnet::IpNet;

use self::{
    columns::{Added, News},
    written::take,
};
use super::{
    Change, PlanError,
    content::{Index, Interner, TableId},
    memo::Memo,
    names::Assigned,
    space::Room,
    trace::{live_classes, retain_reachable, retain_turned},
    universe::{NONE, Universe, cell},
};
use crate::{
    compile::slots::{Candidate, Tables},
    rows::Cells,
    state::{DesiredState, Extent, KernelState, Limits},
};

/// Makes a list of changes, and knows at each of them what is live.
pub(super) struct Planner<'a> {
    desired: &'a DesiredState,
    assigned: &'a Assigned<'a>,
    limits: &'a Limits,
    universe: Arc<Universe>,
    /// What the maps say after the changes so far; what is in here is never written over.
    now: KernelState,
    changes: Vec<Change>,
    /// What is turned once everything that is new is written, with the interfaces of its pods.
    turns: Vec<(u32, Change)>,
    /// Whether a packet may hold something that `now` no longer says.
    unsettled: bool,
    index: Index,
    interner: Interner,
    room: Room,
    tables: Tables<'a>,
    /// The slot table of each wanted group.
    groups: BTreeMap<Vec<Candidate<'a>>, TableId>,
    /// Where each wanted row is, once it is live.
    placed: Vec<Option<RowPlace>>,
    /// Where an earlier plan has put things, until they are given up.
    memo: Option<&'a Memo>,
    /// The same, given up or not.
    before: &'a Memo,
    /// Whether all but a few profiles are where it has put them.
    few: bool,
    remembered: Memo,
}

/// Profiles that are looked for one by one; for more, it is worked out where everything is.
const FEW: usize = 16;

impl<'a> Planner<'a> {
    pub(super) fn new(
        kernel: &KernelState,
        desired: &'a DesiredState,
        assigned: &'a Assigned<'a>,
        limits: &'a Limits,
        memo: &'a Memo,
    ) -> Result<Self, PlanError> {
        let universe = match memo.universe(&desired.prefixes) {
            Some(universe) => universe,
            None => {
                let universe = Universe::new(&kernel.prefixes, &desired.prefixes);
                Arc::new(universe.ok_or(PlanError {
                    what: "prefixes",
                    room: NONE,
                })?)
            }
        };
        let mut planner = Self {
            desired,
            assigned,
            limits,
            universe,
            now: kernel.clone(),
            changes: Vec::new(),
            turns: Vec::new(),
            unsettled: false,
            index: Index::default(),
            interner: Interner::default(),
            room: Room::new(kernel, limits),
            tables: Tables::default(),
            groups: BTreeMap::new(),
            placed: vec![None; desired.rows.len()],
            memo: Some(memo),
            before: memo,
            few: false,
            remembered: Memo::default(),
        };
        if !memo.of_a_plan {
            retain_reachable(&mut planner.now, None);
        }
        let profiles = desired.profiles.iter();
        let unknown = profiles.filter(|profile| memo.block(profile).is_none());
        planner.few = unknown.take(FEW + 1).count() <= FEW;
        Ok(planner)
    }

    pub(super) fn run(mut self) -> Result<(Vec<Change>, KernelState, Memo), PlanError> {
        self.publish()?;
        if !self.universe.fresh.is_empty() {
            retain_reachable(&mut self.now, None);
        }
        if !(self.before.of_a_plan && self.universe.fresh.is_empty()) {
            self.refresh();
        }
        self.turn()?;
        self.clean();
        if self.universe.is_settled() {
            let wanted = &self.desired.prefixes;
            self.remembered.remember_prefixes(wanted, &self.universe);
        }
        self.remembered.of_a_plan = true;
        Ok((self.changes, self.now, self.remembered))
    }

    // ---- new prefixes, with the meaning that they have had so far ----

    fn publish(&mut self) -> Result<(), PlanError> {
        if self.universe.fresh.is_empty() {
            return Ok(());
        }
        let known = self.now.prefixes.keys().copied();
        let fresh = self.universe.fresh.iter().map(|fresh| fresh.net);
        let (v4, v6) = known.chain(fresh).fold((0, 0), |(v4, v6), net| match net {
            IpNet::V4(_) => (v4 + 1, v6),
            IpNet::V6(_) => (v4, v6 + 1),
        });
        for (count, what) in [(v4, "IPv4 prefixes"), (v6, "IPv6 prefixes")] {
            if count > self.limits.prefixes {
                let room = self.limits.prefixes;
                return Err(PlanError { what, room });
            }
        }
        let rows: Vec<RowPlace> = self.now.rows.keys().copied().collect();
        let news = News::new(&self.universe);
        for place in rows {
            self.add_columns(place, &news)?;
        }
        self.settle();
        for fresh in &self.universe.fresh {
            let (prefix, class) = (fresh.net, fresh.class);
            self.now.prefixes.insert(prefix, class);
            self.changes.push(Change::InsertPrefix { prefix, class });
        }
        Ok(())
    }

    /// Has a live row say of prefixes that are about to be published what it says of those around them.
    fn add_columns(&mut self, place: RowPlace, news: &News) -> Result<(), PlanError> {
        let Some(row) = self.now.rows.get(&place) else {
            return Ok(());
        };
        let added = columns::added(row, &self.universe, news, self.limits.sparse_from);
        let moves = match added {
            Added::InPlace(cells, lines) => {
                for (first, lines) in lines {
                    self.changes.push(Change::WriteLines {
                        first_line: place.first_line() + first,
                        lines,
                    });
                }
                if let Some(row) = self.now.rows.get_mut(&place) {
                    row.cells = cells;
                }
                return Ok(());
            }
            Added::Moves(cells) => Arc::new(cells),
        };
        let moved = match self.write_row(Arc::clone(&moves)) {
            Ok(moved) => moved,
            Err(_) => {
                self.make_room(None);
                self.write_row(moves)?
            }
        };
        let turned: Vec<(u32, PodState)> = self
            .now
            .slots
            .iter()
            .filter(|(_, state)| state.row() == place)
            .map(|(slot, state)| (*slot, PodState::new(moved, state.rule_base())))
            .collect();
        for (slot, state) in turned {
            self.turn_slot(slot, state);
        }
        Ok(())
    }

    // ---- new policies, and the pods that have them ----

    fn turn(&mut self) -> Result<(), PlanError> {
        let desired = self.desired;
        let mut pods: Vec<Vec<PodKey>> = vec![Vec::new(); desired.profiles.len()];
        for (key, profile) in &desired.pods {
            pods[*profile].push(*key);
        }
        for (profile, keys) in pods.iter().enumerate() {
            if keys.is_empty() {
                continue;
            }
            let state = match self.profile(profile) {
                Ok(state) => state,
                Err(_) => {
                    self.make_room(None);
                    self.profile(profile)?
                }
            };
            let (before, assigned) = (self.before, self.assigned);
            self.remembered
                .remember(desired, profile, state, before, assigned);
            for key in keys {
                if let Some(slot) = self.now.pods.get(key).copied() {
                    if self.now.slots.insert(slot, state) != Some(state) {
                        let turn = Change::TurnPod { slot, state };
                        self.turns.push((key.ifindex, turn));
                        self.unsettled = true;
                    }
                    continue;
                }
                let slot = match self.room.slots.take(1) {
                    Some(slot) => slot,
                    None => {
                        self.make_room(Some(state));
                        take(&mut self.room.slots, 1, "source pods", self.limits.pods)?
                    }
                };
                self.now.pods.insert(*key, slot);
                self.now.slots.insert(slot, state);
                let turn = Change::TurnPod { slot, state };
                self.turns.push((key.ifindex, turn));
                let insert = Change::InsertPod { key: *key, slot };
                self.turns.push((key.ifindex, insert));
            }
        }
        self.turn_all();
        Ok(())
    }

    /// Turns pods to what is written for them: all addresses of one after another, and nothing that could fail
    /// between those of a pod that is live.
    fn turn_all(&mut self) {
        let mut turns = std::mem::take(&mut self.turns);
        turns.sort_by_key(|(ifindex, _)| *ifindex);
        self.changes.extend(turns.into_iter().map(|(_, turn)| turn));
    }

    fn turn_slot(&mut self, slot: u32, state: PodState) {
        self.now.slots.insert(slot, state);
        self.changes.push(Change::TurnPod { slot, state });
        self.unsettled = true;
    }

    // ---- what is left over ----

    fn clean(&mut self) {
        self.remove_pods();
        if !self.universe.gone.is_empty() {
            self.settle();
            for prefix in &self.universe.gone {
                self.now.prefixes.remove(prefix);
                let prefix = *prefix;
                self.changes.push(Change::RemovePrefix { prefix });
            }
            self.unsettled = true;
        }
        self.settle();
        // Nothing was given up on the way.
        if self.before.of_a_plan && self.universe.is_settled() && self.memo.is_some() {
            retain_turned(&mut self.now);
            return;
        }
        retain_reachable(&mut self.now, None);
        self.forget_columns();
    }

    fn remove_pods(&mut self) {
        let gone: Vec<PodKey> = self
            .now
            .pods
            .keys()
            .filter(|key| !self.desired.pods.contains_key(*key))
            .copied()
            .collect();
        for key in gone {
            self.now.pods.remove(&key);
            self.changes.push(Change::RemovePod { key });
            self.unsettled = true;
        }
    }

    /// Cells of withdrawn prefixes mean nothing any more.
    fn forget_columns(&mut self) {
        let universe = &self.universe;
        let live = live_classes(&self.now.prefixes);
        let dead: Vec<u32> = universe
            .classes
            .iter()
            .copied()
            .filter(|class| !live.get(*class as usize).copied().unwrap_or(false))
            .collect();
        let bound = u32::try_from(live.len()).unwrap_or(u32::MAX);
        let length = (Extent::lines_needed(bound) * CELLS_PER_LINE) as usize;
        for row in self.now.rows.values_mut() {
            // The lines of a sparse row are known as they are: what is dead there makes room.
            let Cells::Dense(cells) = &*row.cells else {
                continue;
            };
            let is_as_it_was =
                cells.len() == length && dead.iter().all(|class| cell(cells, *class) == 0);
            if is_as_it_was {
                continue;
            }
            if let Cells::Dense(cells) = Arc::make_mut(&mut row.cells) {
                for class in &dead {
                    cells[*class as usize] = 0;
                }
                cells.resize(length, 0);
            }
        }
    }

    // ---- room ----

    /// Completes early what has been turned so far, so that its old content gives its room away.
    ///
    /// `keep` is a state that is written and not yet any pod's.
    fn make_room(&mut self, keep: Option<PodState>) {
        // What it has put somewhere may be given up now.
        self.memo = None;
        self.turn_all();
        self.remove_pods();
        self.settle();
        retain_reachable(&mut self.now, keep);
        self.refresh();
    }

    /// Waits for packets that hold what is no longer live.
    fn settle(&mut self) {
        if self.unsettled {
            self.changes.push(Change::Grace);
            self.unsettled = false;
        }
    }

    /// Looks again where content is and where room is.
    fn refresh(&mut self) {
        self.index = Index::new();
        self.room = Room::new(&self.now, self.limits);
        self.placed = vec![None; self.desired.rows.len()];
    }
}
