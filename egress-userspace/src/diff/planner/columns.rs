//! New prefixes in live rows: with the meaning that they have had so far, before a packet can come to have their classes.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
};

use egress_common::{
    cells::{CELLS_PER_LINE, Line},
    verdict::NUMBER_UNMATCHED,
};

use crate::{
    diff::universe::{NONE, Universe, cell},
    rows::{Cells, Sparse, shift_for},
    state::Extent,
};

/// The prefixes that are about to be published, as rows are asked about them.
pub(super) struct News {
    /// Class of a published prefix → the classes of new ones that are told what it is told.
    heirs: HashMap<u32, Vec<u32>>,
    /// Classes of new prefixes that are within none.
    orphans: Vec<u32>,
    /// For each class, whether it is one of these.
    fresh: Vec<bool>,
}

impl News {
    pub(super) fn new(universe: &Universe) -> Self {
        let mut news = Self {
            heirs: HashMap::new(),
            orphans: Vec::new(),
            fresh: vec![false; universe.bound as usize],
        };
        for fresh in &universe.fresh {
            news.fresh[fresh.class as usize] = true;
            if fresh.inherits == NONE {
                news.orphans.push(fresh.class);
            } else {
                let heirs = news.heirs.entry(fresh.inherits).or_default();
                heirs.push(fresh.class);
            }
        }
        news
    }

    fn is_fresh(&self, class: u32) -> bool {
        self.fresh.get(class as usize).copied().unwrap_or(false)
    }
}

/// A row that says something of new prefixes too.
pub(super) enum Added {
    /// It stays where it is: what it says now, and the lines that change, each run with the number of its first within the row.
    InPlace(Arc<Cells>, Vec<(u32, Vec<Line>)>),
    /// It has no room, and is to be written elsewhere.
    Moves(Cells),
}

/// A live row with what it says of new prefixes.
pub(super) fn added(row: &Extent, universe: &Universe, news: &News, sparse_from: u32) -> Added {
    match &*row.cells {
        Cells::Dense(_) => to_dense(row, universe, sparse_from),
        Cells::Sparse(sparse) => to_sparse(&row.cells, sparse, universe, news),
    }
}

fn to_dense(row: &Extent, universe: &Universe, sparse_from: u32) -> Added {
    let needed = Extent::lines_needed(universe.bound);
    let mut changed = Arc::clone(&row.cells);
    let Cells::Dense(cells) = Arc::make_mut(&mut changed) else {
        return Added::InPlace(changed, Vec::new());
    };
    cells.resize((needed * CELLS_PER_LINE) as usize, 0);
    for fresh in &universe.fresh {
        cells[fresh.class as usize] = cell(cells, fresh.inherits);
    }
    if row.lines < needed {
        if let Some(sparse) = sparsely(cells, universe, sparse_from) {
            return Added::Moves(Cells::Sparse(sparse));
        }
        return Added::Moves(Cells::Dense(std::mem::take(cells)));
    }
    let touched = universe
        .fresh
        .iter()
        .map(|fresh| fresh.class / CELLS_PER_LINE);
    let (lines, _) = cells.as_chunks();
    let written = runs(touched.collect()).into_iter().map(|run| {
        let lines = &lines[run.start as usize..run.end as usize];
        (run.start, lines.iter().map(|line| Line(*line)).collect())
    });
    let written = written.collect();
    Added::InPlace(changed, written)
}

/// A dense row that moves as a sparse one, where that takes half the room.
fn sparsely(cells: &[u16], universe: &Universe, sparse_from: u32) -> Option<Sparse> {
    let dense = Extent::lines_given(universe.bound);
    if dense < sparse_from {
        return None;
    }
    let mut counts: HashMap<u16, u32> = HashMap::new();
    for number in universe.of_live(cells) {
        *counts.entry(number).or_default() += 1;
    }
    let common = counts
        .into_iter()
        .max_by_key(|(number, count)| (*count, u16::MAX - number))
        .map_or(NUMBER_UNMATCHED, |(number, _)| number);
    let own = universe.classes.iter().copied();
    let own: Vec<(u32, u16)> = own
        .zip(universe.of_live(cells))
        .filter(|(_, number)| *number != common)
        .collect();
    of_entries(common, &own, dense / 2)
}

fn to_sparse(held: &Arc<Cells>, sparse: &Sparse, universe: &Universe, news: &News) -> Added {
    let common = sparse.common();
    let mut stale: BTreeSet<u32> = BTreeSet::new();
    let mut wanted: Vec<(u32, u16)> = Vec::new();
    for (class, number) in sparse.entries() {
        if news.is_fresh(class) {
            stale.insert(class);
        } else if number != common
            && let Some(heirs) = news.heirs.get(&class)
        {
            wanted.extend(heirs.iter().map(|heir| (*heir, number)));
        }
    }
    if common != NUMBER_UNMATCHED {
        let orphans = news.orphans.iter();
        wanted.extend(orphans.map(|class| (*class, NUMBER_UNMATCHED)));
    }
    for (class, _) in &wanted {
        stale.remove(class);
    }
    if stale.is_empty() && wanted.is_empty() {
        return Added::InPlace(Arc::clone(held), Vec::new());
    }
    // What is dead may be written over: the withdrawal of its prefix was waited for.
    let mut changed = sparse.clone();
    let mut touched: BTreeSet<u32> = stale
        .into_iter()
        .filter_map(|class| changed.forget(class))
        .collect();
    for (class, number) in &wanted {
        match changed.set(*class, *number, |class| universe.has(class)) {
            Some(line) => touched.insert(line),
            None => return Added::Moves(grown(sparse, wanted, universe, news)),
        };
    }
    let written = runs(touched).into_iter();
    let written = written.map(|run| (run.start, changed.some_lines(run)));
    let written = written.collect();
    Added::InPlace(Arc::new(Cells::Sparse(changed)), written)
}

/// A sparse row with what does not fit into its lines: in more of them, or dense where these would be no fewer.
fn grown(sparse: &Sparse, wanted: Vec<(u32, u16)>, universe: &Universe, news: &News) -> Cells {
    let common = sparse.common();
    let mut own = wanted;
    own.extend(sparse.entries().filter(|(class, number)| {
        *number != common && universe.has(*class) && !news.is_fresh(*class)
    }));
    let lines = Extent::lines_needed(universe.bound);
    if let Some(grown) = of_entries(common, &own, Extent::lines_given(universe.bound)) {
        return Cells::Sparse(grown);
    }
    let mut cells = vec![0; (lines * CELLS_PER_LINE) as usize];
    for class in &universe.classes {
        cells[*class as usize] = common;
    }
    for (class, number) in own {
        cells[class as usize] = number;
    }
    Cells::Dense(cells)
}

fn of_entries(common: u16, own: &[(u32, u16)], most: u32) -> Option<Sparse> {
    let classes = || own.iter().map(|(class, _)| *class);
    let shift = shift_for(classes, u32::try_from(own.len()).ok()?, most)?;
    Sparse::new(shift, common, own.iter().copied())
}

/// Sorted numbers as ranges of consecutive ones.
fn runs(sorted: BTreeSet<u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}
