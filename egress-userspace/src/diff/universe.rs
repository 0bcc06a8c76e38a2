//! The prefixes of a change: those that are published and those that are wanted, on one walk.

use std::collections::BTreeMap;

use egress_common::{cells::RowPlace, verdict::NUMBER_FIRST_RULE};
use ipnet::IpNet;

use super::space::Space;
use crate::{
    rows::{Row, shift_for},
    state::Extent,
};

/// Cells of a row that are compared before all are, or one or two more.
const SAMPLES: usize = 32;

/// No prefix contains this one.
pub(super) const NONE: u32 = u32::MAX;

/// Published and wanted prefixes together: a row's meaning is its cell for each of them.
///
/// Two rows that agree on all of them say the same about every address, before, during and after the
/// change of prefixes.
#[derive(Debug)]
pub(super) struct Universe {
    /// The class of each prefix, in the order of the prefixes.
    pub(super) classes: Vec<u32>,
    /// For each prefix the wanted one that decides it: itself or the nearest around it.
    pub(super) wanted: Vec<u32>,
    /// The class of each wanted prefix, in order.
    pub(super) of_place: Vec<u32>,
    /// For each class up to the highest, whether a prefix has it.
    pub(super) has: Vec<bool>,
    /// Prefixes to publish.
    pub(super) fresh: Vec<Fresh>,
    /// Prefixes to withdraw.
    pub(super) gone: Vec<IpNet>,
    /// Their classes, and the wanted prefixes that decide them.
    of_gone: Vec<(u32, u32)>,
    /// One more than the highest class.
    pub(super) bound: u32,
}

/// A prefix to publish.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) net: IpNet,
    pub(super) class: u32,
    /// The class of the nearest published prefix around it, or [`NONE`].
    pub(super) inherits: u32,
}

impl Universe {
    /// Of published prefixes and of wanted ones, which are sorted; none if there are no classes left.
    pub(super) fn new(published: &BTreeMap<IpNet, u32>, wanted: &[IpNet]) -> Option<Self> {
        let mut ids = Space::new(0, NONE, published.values().map(|class| (*class, 1)));
        let mut all = Self {
            classes: Vec::with_capacity(published.len().max(wanted.len())),
            wanted: Vec::with_capacity(published.len().max(wanted.len())),
            of_place: Vec::with_capacity(wanted.len()),
            has: Vec::new(),
            fresh: Vec::new(),
            gone: Vec::new(),
            of_gone: Vec::new(),
            bound: 0,
        };
        let mut around: Vec<Around> = Vec::new();
        let mut old = published.iter().peekable();
        let mut new = (0..).zip(wanted).peekable();
        loop {
            let next = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some((net, _)), None) => **net,
                (None, Some((_, net))) => **net,
                (Some((a, _)), Some((_, b))) => **a.min(b),
            };
            while around.last().is_some_and(|a| !a.net.contains(&next)) {
                around.pop();
            }
            let outer = around.last().map_or((NONE, NONE), |a| (a.class, a.wanted));
            let class = old.next_if(|(net, _)| **net == next).map(|(_, c)| *c);
            let place = new.next_if(|(_, net)| **net == next).map(|(p, _)| p);
            let own_class = match class {
                Some(class) => class,
                None => {
                    let class = ids.take(1)?;
                    all.fresh.push(Fresh {
                        net: next,
                        class,
                        inherits: outer.0,
                    });
                    class
                }
            };
            if place.is_some() {
                all.of_place.push(own_class);
            } else {
                all.gone.push(next);
                all.of_gone.push((own_class, outer.1));
            }
            all.classes.push(own_class);
            all.wanted.push(place.unwrap_or(outer.1));
            all.bound = all.bound.max(own_class + 1);
            around.push(Around {
                net: next,
                class: class.unwrap_or(outer.0),
                wanted: place.unwrap_or(outer.1),
            });
        }
        all.has = vec![false; all.bound as usize];
        for class in &all.classes {
            all.has[*class as usize] = true;
        }
        Some(all)
    }

    /// Whether the published prefixes are the wanted ones.
    pub(super) fn is_settled(&self) -> bool {
        self.fresh.is_empty() && self.gone.is_empty()
    }

    /// Some of these cells, which are in the order of the prefixes, with their classes: of rules, if there are any.
    pub(super) fn samples(&self, cells: &[u16]) -> Vec<(u32, u16)> {
        let cells = || self.classes.iter().copied().zip(cells.iter().copied());
        let of_rules: Vec<_> = cells().filter(|(_, n)| *n >= NUMBER_FIRST_RULE).collect();
        let all = if of_rules.is_empty() {
            cells().collect()
        } else {
            of_rules
        };
        let step = (all.len() / SAMPLES).max(1);
        all.into_iter().step_by(step).collect()
    }

    /// A live row's cells, if it is dense, in the order of the prefixes.
    pub(super) fn of_live<'a>(&'a self, cells: &'a [u16]) -> impl Iterator<Item = u16> + 'a {
        self.classes.iter().map(|class| cell(cells, *class))
    }

    /// Whether a prefix has the class.
    pub(super) fn has(&self, class: u32) -> bool {
        self.has.get(class as usize).copied().unwrap_or(false)
    }

    /// The classes that have another number in a wanted row than its commonest, and which.
    pub(super) fn others<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = (u32, u16)> + 'a {
        let gone = self.of_gone.iter();
        let gone = gone.map(|(class, place)| (*class, row.number(*place)));
        let there = row.others();
        there
            .map(|(place, number)| (self.of_place[place as usize], number))
            .chain(gone.filter(|(_, number)| *number != row.common()))
    }

    /// Lines of a sparse row that says what a wanted one says, as a power of two; none if a dense one takes no more.
    pub(super) fn shift(&self, row: &Row) -> Option<u32> {
        let classes = || self.others(row).map(|(class, _)| class);
        let count = u32::try_from(classes().count()).ok()?;
        let places = u32::try_from(self.of_place.len()).ok()?;
        shift_for(classes, count, Extent::lines_given(places))
    }

    /// Whether a live row that says what a wanted one says may stay: one that takes more than twice the room that it needs is
    /// written anew, and a dense one that could well be sparse.
    ///
    /// Only while prefixes change: what a plan has written for prefixes that it withdraws is more than the next one would write.
    pub(super) fn suits(&self, live: RowPlace, row: &Row) -> bool {
        if self.is_settled() {
            return true;
        }
        let Some(shift) = live.shift() else {
            return !row.is_sparse() || self.shift(row).is_none();
        };
        let lines = 1_u32 << shift;
        if !row.is_sparse() {
            let places = u32::try_from(self.of_place.len()).unwrap_or(u32::MAX);
            return lines <= Extent::lines_given(places);
        }
        lines <= row.lines().saturating_mul(2)
            || self.shift(row).is_some_and(|needed| shift <= needed + 1)
    }

    /// The numbers of a wanted row in the order of the prefixes.
    pub(super) fn of_wanted(&self, row: &Row) -> Vec<u16> {
        let cells: Vec<u16> = row.cells().collect();
        let wanted = self.wanted.iter();
        wanted.map(|place| cell(&cells, *place)).collect()
    }
}

/// A cell, or 0 where there is none: no prefix, or a class beyond those in use when the row was read.
pub(super) fn cell(cells: &[u16], index: u32) -> u16 {
    cells.get(index as usize).copied().unwrap_or(0)
}

/// A prefix that contains those that follow.
struct Around {
    net: IpNet,
    /// The class of the nearest published prefix.
    class: u32,
    /// The place of the nearest wanted prefix.
    wanted: u32,
}
