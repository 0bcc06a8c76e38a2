//! What live ids mean, so that a wanted thing is recognised by its content and left alone.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use egress_common::verdict::{Decision, Member, Verdict};

use super::universe::Universe;
use crate::state::KernelState;

/// A verdict without ids other than those of counters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Meaning {
    /// It names something that is not there; nothing wanted is ever equal to it.
    Broken,
    /// Unmatched, local or dropped.
    Plain(Decision),
    /// One way out.
    One(Member),
    /// Several, and the slot table that chooses.
    Many(Vec<Member>, TableId),
}

/// A block without ids: for each number the policy that is counted, and the meaning.
pub(super) type BlockMeaning = Vec<(u32, Meaning)>;

/// A slot table among those met so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TableId(usize);

/// Slot tables by content.
#[derive(Debug, Default)]
pub(super) struct Interner {
    ids: BTreeMap<Arc<Vec<u16>>, TableId>,
    tables: Vec<Arc<Vec<u16>>>,
}

impl Interner {
    /// The table with these cells.
    pub(super) fn intern(&mut self, cells: &Arc<Vec<u16>>) -> TableId {
        if let Some(id) = self.ids.get(cells) {
            return *id;
        }
        let id = TableId(self.tables.len());
        self.ids.insert(Arc::clone(cells), id);
        self.tables.push(Arc::clone(cells));
        id
    }

    /// The cells of a table.
    pub(super) fn cells(&self, id: TableId) -> &Arc<Vec<u16>> {
        &self.tables[id.0]
    }
}

/// Where live content is; of equal things the one with the lowest id.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Hash of a row over the universe → first lines.
    rows: BTreeMap<u64, Vec<u32>>,
    /// Block → base.
    pub(super) blocks: BTreeMap<BlockMeaning, u32>,
    /// Way out → id.
    pub(super) members: BTreeMap<Member, u32>,
    /// Members in order → (slot table, id of the first).
    pub(super) groups: BTreeMap<(Vec<Member>, TableId), (u32, u32)>,
    /// Slot table → first line.
    pub(super) tables: BTreeMap<TableId, u32>,
}

impl Index {
    /// Of everything live.
    pub(super) fn new(live: &KernelState, universe: &Universe, interner: &mut Interner) -> Self {
        let mut index = Self::default();
        for (first, row) in &live.rows {
            index.add_row(*first, hash(universe.of_live(&row.cells)));
        }
        for (first, cells) in &live.slot_tables {
            let id = interner.intern(cells);
            index.tables.entry(id).or_insert(*first);
        }
        for (id, member) in &live.members {
            index.members.entry(*member).or_insert(*id);
        }
        for (base, block) in &live.blocks {
            let meaning: BlockMeaning = block
                .iter()
                .map(|verdict| {
                    let meaning = meaning(verdict, live, interner);
                    if let (
                        Meaning::Many(members, table),
                        Some(Decision::Group {
                            lines,
                            first_member,
                            members: _,
                        }),
                    ) = (&meaning, verdict.decode())
                    {
                        index
                            .groups
                            .entry((members.clone(), *table))
                            .or_insert((lines, first_member));
                    }
                    (verdict.policy, meaning)
                })
                .collect();
            index.blocks.entry(meaning).or_insert(*base);
        }
        index
    }

    pub(super) fn add_row(&mut self, first: u32, hash: u64) {
        self.rows.entry(hash).or_default().push(first);
    }

    /// The live row that says what a wanted row says.
    pub(super) fn find_row(
        &self,
        live: &KernelState,
        universe: &Universe,
        wanted: &[u16],
        hash: u64,
    ) -> Option<u32> {
        self.rows.get(&hash)?.iter().copied().find(|first| {
            live.rows
                .get(first)
                .is_some_and(|row| universe.of_live(&row.cells).eq(universe.of_wanted(wanted)))
        })
    }
}

fn meaning(verdict: &Verdict, live: &KernelState, interner: &mut Interner) -> Meaning {
    match verdict.decode() {
        None => Meaning::Broken,
        Some(decision @ (Decision::Unmatched | Decision::Local | Decision::Drop(_))) => {
            Meaning::Plain(decision)
        }
        Some(Decision::Member(id)) => live
            .members
            .get(&id)
            .map_or(Meaning::Broken, |member| Meaning::One(*member)),
        Some(Decision::Group {
            lines,
            first_member,
            members,
        }) => {
            let Some(cells) = live.slot_tables.get(&lines) else {
                return Meaning::Broken;
            };
            let count = usize::from(members);
            let members = group_members(first_member, members, cells);
            if members.len() > count {
                // The table names a member that the group does not have.
                return Meaning::Broken;
            }
            let members: Option<Vec<Member>> =
                members.map(|id| live.members.get(&id).copied()).collect();
            members.map_or(Meaning::Broken, |members| {
                Meaning::Many(members, interner.intern(cells))
            })
        }
    }
}

/// The members of a group, by id: so many, and more if its slot table names more.
pub(super) fn group_members(first: u32, members: u16, cells: &[u16]) -> Range<u32> {
    let highest = cells.iter().copied().max().unwrap_or(0);
    let count = u32::from(members).max(u32::from(highest) + 1);
    first..first.saturating_add(count)
}

/// A hash of cells in order, for finding candidates that are then compared.
pub(super) fn hash(cells: impl Iterator<Item = u16>) -> u64 {
    cells.fold(0, |hash, cell| {
        (hash.rotate_left(5) ^ u64::from(cell)).wrapping_mul(0x517c_c1b7_2722_0a95)
    })
}
