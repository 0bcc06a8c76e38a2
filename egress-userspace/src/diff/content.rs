//! What live ids mean, so that a wanted thing is recognised by its content and left alone.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use egress_common::{
    cells::RowPlace,
    verdict::{Decision, Member, Verdict},
};

use super::universe::Universe;
use crate::{
    rows::{Cells, Row, Sparse},
    state::KernelState,
};

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
    /// Hash of a row over the universe → where such rows are.
    rows: Option<BTreeMap<u64, Vec<RowPlace>>>,
    /// What verdicts mean, once it was asked for.
    verdicts: Option<VerdictIndex>,
    members: Option<MemberIndex>,
}

/// Blocks and groups by what they mean.
#[derive(Debug, Default)]
pub(super) struct VerdictIndex {
    /// Block → base.
    pub(super) blocks: BTreeMap<BlockMeaning, u32>,
    /// Members in order → (slot table, id of the first).
    pub(super) groups: BTreeMap<(Vec<Member>, TableId), (u32, u32)>,
    /// Slot table → first line.
    pub(super) tables: BTreeMap<TableId, u32>,
}

/// Ways out by content.
#[derive(Debug, Default)]
pub(super) struct MemberIndex {
    /// Counter and id of each, sorted: equal ways have equal counters.
    live: Vec<(u32, u32)>,
    /// Those that were written since.
    written: BTreeMap<Member, u32>,
}

impl MemberIndex {
    fn new(live: &KernelState) -> Self {
        let live = live
            .members
            .iter()
            .map(|(id, member)| (member.counter, *id));
        let mut live: Vec<_> = live.collect();
        live.sort_unstable();
        Self {
            live,
            written: BTreeMap::new(),
        }
    }

    /// The id of a member.
    pub(super) fn find(&self, live: &KernelState, member: &Member) -> Option<u32> {
        let from = self
            .live
            .partition_point(|(counter, _)| *counter < member.counter);
        self.live[from..]
            .iter()
            .take_while(|(counter, _)| *counter == member.counter)
            .map(|(_, id)| *id)
            .find(|id| live.members.get(id) == Some(member))
            .or_else(|| self.written.get(member).copied())
    }

    /// Notes a member that was written.
    pub(super) fn add(&mut self, member: Member, id: u32) {
        self.written.entry(member).or_insert(id);
    }
}

impl Index {
    /// Of everything live, nothing of which was looked at yet.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The members.
    pub(super) fn members(&mut self, live: &KernelState) -> &mut MemberIndex {
        self.members.get_or_insert_with(|| MemberIndex::new(live))
    }

    /// The blocks and groups.
    pub(super) fn verdicts(
        &mut self,
        live: &KernelState,
        interner: &mut Interner,
    ) -> &mut VerdictIndex {
        self.verdicts
            .get_or_insert_with(|| VerdictIndex::new(live, interner))
    }

    /// The live block that means what a wanted one means. With `few` to be found those of its policy are looked at; with more,
    /// it is worked out what all mean.
    pub(super) fn find_block(
        &mut self,
        live: &KernelState,
        interner: &mut Interner,
        wanted: &BlockMeaning,
        few: bool,
    ) -> Option<u32> {
        if !few || self.verdicts.is_some() {
            let verdicts = self.verdicts(live, interner);
            return verdicts.blocks.get(wanted).copied();
        }
        let first = wanted.first().map(|(policy, _)| *policy);
        let of_policy = live.blocks.iter().filter(|(_, block)| {
            block.len() == wanted.len() && block.first().map(|verdict| verdict.policy) == first
        });
        of_policy
            .filter(|(_, block)| {
                let mut meant = block.iter().zip(wanted);
                meant.all(|(verdict, wanted)| {
                    verdict.policy == wanted.0 && meaning(verdict, live, interner) == wanted.1
                })
            })
            .map(|(base, _)| *base)
            .next()
    }

    /// Notes a block that was written.
    pub(super) fn add_block(&mut self, block: BlockMeaning, base: u32) {
        // What is looked at later sees it live.
        if let Some(verdicts) = &mut self.verdicts {
            verdicts.blocks.insert(block, base);
        }
    }

    /// The rows by hash.
    fn rows(
        &mut self,
        live: &KernelState,
        universe: &Universe,
    ) -> &mut BTreeMap<u64, Vec<RowPlace>> {
        self.rows.get_or_insert_with(|| {
            let mut rows: BTreeMap<u64, Vec<RowPlace>> = BTreeMap::new();
            for (place, row) in &live.rows {
                let hash = match &*row.cells {
                    Cells::Dense(cells) => hash(universe.of_live(cells)),
                    Cells::Sparse(sparse) => {
                        hash_sparse(sparse.common(), own_entries(sparse, universe))
                    }
                };
                rows.entry(hash).or_default().push(*place);
            }
            rows
        })
    }

    /// Notes a row that was written.
    pub(super) fn add_row(&mut self, place: RowPlace, wanted: &Wanted) {
        if let Some(rows) = &mut self.rows {
            rows.entry(wanted.hash()).or_default().push(place);
        }
    }

    /// The live row of the same form that says what a wanted row says, and is good for it.
    ///
    /// With `few` to be found all live rows are looked at: most differ where the wanted one has a rule. With more, their
    /// hashes are worked out.
    pub(super) fn find_row(
        &mut self,
        live: &KernelState,
        universe: &Universe,
        wanted: &Wanted,
        is_good: impl Fn(RowPlace) -> bool,
        few: bool,
    ) -> Option<RowPlace> {
        let says = |place: &RowPlace| {
            live.rows
                .get(place)
                .is_some_and(|row| wanted.is(&row.cells, universe))
                && is_good(*place)
        };
        if few && self.rows.is_none() {
            let samples = wanted.samples(universe);
            let alike = live.rows.iter().filter(|(_, row)| {
                let mut samples = samples.iter();
                samples.all(|(class, value)| row.cells.number(*class).unwrap_or(0) == *value)
            });
            return alike.map(|(place, _)| *place).find(says);
        }
        let hash = wanted.hash();
        self.rows(live, universe)
            .get(&hash)?
            .iter()
            .copied()
            .find(says)
    }
}

/// A wanted row as a live one of one form would say it.
pub(super) enum Wanted {
    /// Its cells, in the order of the universe.
    Dense(Vec<u16>),
    /// The commonest number, and the classes that have another.
    Sparse(u16, Vec<(u32, u16)>),
}

impl Wanted {
    /// As a dense row.
    pub(super) fn dense(universe: &Universe, row: &Row) -> Self {
        Self::Dense(universe.of_wanted(row))
    }

    /// As a sparse row.
    pub(super) fn sparse(universe: &Universe, row: &Row) -> Self {
        Self::Sparse(row.common(), universe.others(row).collect())
    }

    fn hash(&self) -> u64 {
        match self {
            Self::Dense(cells) => hash(cells.iter().copied()),
            Self::Sparse(common, others) => hash_sparse(*common, others.iter().copied()),
        }
    }

    fn is(&self, live: &Cells, universe: &Universe) -> bool {
        match (self, live) {
            (Self::Dense(wanted), Cells::Dense(cells)) => {
                universe.of_live(cells).eq(wanted.iter().copied())
            }
            (Self::Sparse(common, others), Cells::Sparse(sparse)) => {
                // As many entries that say something, and all that are wanted among them.
                sparse.common() == *common
                    && others.iter().all(|(class, n)| sparse.number(*class) == *n)
                    && own_entries(sparse, universe).count() == others.len()
            }
            (Self::Dense(_), Cells::Sparse(_)) | (Self::Sparse(..), Cells::Dense(_)) => false,
        }
    }

    /// Some numbers that a live row must have, with their classes: of rules, if it has any.
    fn samples(&self, universe: &Universe) -> Vec<(u32, u16)> {
        match self {
            Self::Dense(cells) => universe.samples(cells),
            Self::Sparse(_, others) => others.iter().take(1).copied().collect(),
        }
    }
}

/// The entries of a row that say something: of a class that a prefix has, and not what most have.
fn own_entries<'a>(
    sparse: &'a Sparse,
    universe: &'a Universe,
) -> impl Iterator<Item = (u32, u16)> + 'a {
    let common = sparse.common();
    sparse
        .entries()
        .filter(move |(class, number)| *number != common && universe.has(*class))
}

/// A hash of a sparse row, whatever the order of its entries.
fn hash_sparse(common: u16, entries: impl Iterator<Item = (u32, u16)>) -> u64 {
    let mix = |word: u64| {
        let word = (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (word ^ word >> 32).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    let entries = entries.map(|(class, number)| mix(u64::from(class) << 16 | u64::from(number)));
    entries.fold(mix(u64::MAX - u64::from(common)), u64::wrapping_add)
}

impl VerdictIndex {
    fn new(live: &KernelState, interner: &mut Interner) -> Self {
        let mut index = Self::default();
        for (first, cells) in &live.slot_tables {
            let id = interner.intern(cells);
            index.tables.entry(id).or_insert(*first);
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
