//! What is in a store is looked through before the first change: a crash may have left a change half done.

use std::collections::BTreeMap;

use egress_common::trie::{
    Child, Entry, NODE_ENTRIES, NODE_UNITS, Path, RECORD_BITS, ROOT_BITS, ROOTS, SEGMENT_UNITS,
    STRIDE,
};

use super::{Known, Place, Prefix, Store, Trie, home, room::Room};

impl<S: Store> Trie<S> {
    /// Makes sure that the trie says what its list of prefixes says. Packets in flight may not be of a run before.
    ///
    /// # Errors
    /// The store could not grow: the trie says what it said.
    pub fn mend(&mut self) -> Result<(), S::Error> {
        self.known = Some(self.known()?);
        Ok(())
    }

    pub(super) fn known(&mut self) -> Result<Known, S::Error> {
        if let Some(known) = self.known.take() {
            return Ok(known);
        }
        let mut classes = BTreeMap::new();
        // Of a prefix that was on its way from one class to another, the other one.
        let mut second = Vec::new();
        for class in 0..self.store.classes() {
            if let Some(prefix) = self.store.class(class)
                && *classes.entry(prefix).or_insert(class) != class
            {
                second.push(class);
            }
        }
        let used = self.walk();
        let mut room = Room::new(used);
        for (prefix, class) in &classes {
            self.reserve(&room)?;
            self.place(&mut room, *prefix, *class);
        }
        for class in second {
            self.store.clear_class(class)?;
        }
        Ok(Known { classes, room })
    }

    /// Looks through all that the roots lead to, takes out what the list of prefixes does not know or what cannot be,
    /// and gives the units that are left: first ones, and how many.
    fn walk(&mut self) -> Vec<(u32, u32)> {
        let units = self.store.segments() * SEGMENT_UNITS;
        let mut seen = Seen {
            taken: vec![0; (units / NODE_UNITS) as usize],
            used: Vec::new(),
        };
        for root in 0..ROOTS {
            self.walk_entry(&mut seen, Place::Root(root), Prefix::of_root(root), true);
        }
        seen.used
    }

    /// One entry of a node or of the table of roots, and what it leads to.
    fn walk_entry(&mut self, seen: &mut Seen, at: Place, path: Prefix, of_roots: bool) {
        let before = Entry(self.store.word(at));
        if before == Entry::EMPTY {
            return;
        }
        let mut entry = before;
        let is_known = entry.class().is_none_or(|class| {
            self.store.class(class).is_some_and(|prefix| {
                let belongs = if of_roots {
                    prefix.length() <= ROOT_BITS
                } else {
                    prefix.length() > ROOT_BITS && home(&prefix) + STRIDE == path.length()
                };
                belongs && prefix.contains(&path)
            })
        });
        if !is_known {
            entry = entry.with_class(None);
        }
        if !self.walk_child(seen, path, entry.child()) {
            entry = entry.with_child(Child::None);
        }
        if entry != before {
            self.store.set_word(at, entry.0);
        }
    }

    /// Whether a child can stay.
    fn walk_child(&mut self, seen: &mut Seen, path: Prefix, child: Child) -> bool {
        let bits = match path.family() {
            egress_common::Family::V4 => 32,
            egress_common::Family::V6 => 128,
        };
        match child {
            Child::None => true,
            Child::Node(unit) => {
                if path.length() + STRIDE > bits || !seen.take(unit, NODE_UNITS) {
                    return false;
                }
                for number in 0..NODE_ENTRIES {
                    let path = path.and(number.into(), STRIDE);
                    self.walk_entry(seen, Place::in_node(unit, number), path, false);
                }
                true
            }
            Child::Record(unit) => {
                if !seen.take(unit, 1) {
                    return false;
                }
                let stands_for = Path(self.store.word(Place::Unit(unit, 0)));
                let length = stands_for.length();
                let entry = Entry(self.store.word(Place::of_record(unit)));
                let fits = (1..=RECORD_BITS).contains(&length) && path.length() + length <= bits;
                let stays = fits && {
                    let path = path.and(stands_for.bits() >> (64 - length), length);
                    match (entry.class(), entry.child()) {
                        (Some(class), Child::None) => self.store.class(class) == Some(path),
                        (None, child @ (Child::Node(_) | Child::Record(_))) => {
                            length.is_multiple_of(STRIDE) && self.walk_child(seen, path, child)
                        }
                        (_, _) => false,
                    }
                };
                if !stays {
                    seen.give_back(unit);
                }
                stays
            }
        }
    }
}

/// What the walk has come by.
struct Seen {
    /// For each block, a bit for each unit.
    taken: Vec<u8>,
    used: Vec<(u32, u32)>,
}

impl Seen {
    /// Whether nothing else leads there, and it is there.
    fn take(&mut self, unit: u32, units: u32) -> bool {
        let (block, place) = ((unit / NODE_UNITS) as usize, unit % NODE_UNITS);
        let mask = if units == NODE_UNITS {
            u8::MAX
        } else {
            1 << place
        };
        let Some(taken) = self.taken.get_mut(block) else {
            return false;
        };
        if block == 0 || *taken & mask != 0 || (units == NODE_UNITS && place != 0) {
            return false;
        }
        *taken |= mask;
        self.used.push((unit, units));
        true
    }

    /// What is taken out again: the last record that was taken on this way.
    fn give_back(&mut self, unit: u32) {
        self.taken[(unit / NODE_UNITS) as usize] &= !(1 << (unit % NODE_UNITS));
        self.used.retain(|used| *used != (unit, 1));
    }
}
