//! The prefixes of a change: those that are published and those that are wanted, on one walk.

use std::collections::BTreeMap;

use egress_common::verdict::NUMBER_FIRST_RULE;
use ipnet::IpNet;

use super::space::Space;

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
    /// Prefixes to publish.
    pub(super) fresh: Vec<Fresh>,
    /// Prefixes to withdraw.
    pub(super) gone: Vec<IpNet>,
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
            fresh: Vec::new(),
            gone: Vec::new(),
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
            if place.is_none() {
                all.gone.push(next);
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
        Some(all)
    }

    /// Whether the published prefixes are the wanted ones.
    pub(super) fn is_settled(&self) -> bool {
        self.fresh.is_empty() && self.gone.is_empty()
    }

    /// Some cells that a live row must have to say what a wanted one says, with their classes: of rules, if it has any.
    pub(super) fn samples(&self, wanted: &[u16]) -> Vec<(u32, u16)> {
        let cells = || self.classes.iter().copied().zip(self.of_wanted(wanted));
        let of_rules: Vec<_> = cells().filter(|(_, n)| *n >= NUMBER_FIRST_RULE).collect();
        let all = if of_rules.is_empty() {
            cells().collect()
        } else {
            of_rules
        };
        let step = (all.len() / SAMPLES).max(1);
        all.into_iter().step_by(step).collect()
    }

    /// A live row's cells in the order of the prefixes.
    pub(super) fn of_live<'a>(&'a self, cells: &'a [u16]) -> impl Iterator<Item = u16> + 'a {
        self.classes.iter().map(|class| cell(cells, *class))
    }

    /// A wanted row's cells in the order of the prefixes.
    pub(super) fn of_wanted<'a>(&'a self, row: &'a [u16]) -> impl Iterator<Item = u16> + 'a {
        self.wanted.iter().map(|place| cell(row, *place))
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
