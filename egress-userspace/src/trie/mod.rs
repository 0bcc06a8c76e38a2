//! The prefix trie's writer: inserts, changes and removes prefixes under packets that read it, pure over a [`Store`].
//!
//! What the trie looks like follows from its prefixes alone, apart from where its blocks are. A root of IPv4 has lines if its
//! prefixes are neither too few nor too crowded for that ([`lines`]). Elsewhere a node can be where four
//! bits have been taken any number of times behind those of the roots. It is there exactly where prefixes branch: where
//! several end in it or are below. What is alone below a place is a leaf, behind a record or two if it has more than 25
//! bits left; records lead to a node that is not right there, too.
//!
//! Each change is one word after another, and a packet sees of each its old answer or its new one:
//!
//! - Lines are written anew where nothing leads, all of a root at once, and its word then leads there.
//! - Where the same children and ends of a node are there as before, its word stays the same, and what they say is changed
//!   in place.
//! - Else a new block is written where nothing leads, and so are records; one word above then leads there, or is the leaf
//!   that is left. What nothing leads to any more stays as it is until packets in flight have ended, and is then free
//!   ([`Trie::settle`]).
//! - A prefix of up to 13 bits covers roots. Each has its class beside it, for addresses that are in nothing longer; and
//!   where nothing is below a root, it is a leaf that says so at once.
//!
//! A packet that is slow may read of two changes the later one and not the earlier one.
//!
//! The list of prefixes by class is the truth: it has a prefix before the trie has, and until after the trie has it no
//! more. So whatever broke off is completed by comparing all of the list, which changes nothing where all is well.

mod branch;
mod change;
mod lines;
mod mend;
mod prefix;
mod room;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use egress_common::{
    Addr, Family,
    trie::{self, Key, Leaf, Meaning, ROOT_BITS, ROOTS, Word},
};

use self::{
    branch::lower,
    change::Change,
    lines::Plan,
    room::{Need, Room},
    store::Seen,
};
pub use self::{
    prefix::Prefix,
    store::{Place, Store},
};

/// Prefixes that are changed at once: the room that they can take at most is there before the first word is written.
const MOST_AT_ONCE: usize = 1024;

/// The trie in a store.
#[derive(Debug)]
pub struct Trie<S> {
    store: S,
    /// The truth again, by prefix; none until something is to be changed.
    known: Option<Known>,
}

#[derive(Debug)]
struct Known {
    classes: BTreeMap<Prefix, u32>,
    room: Room,
}

/// What is to become of a root.
struct Planned<'a> {
    root: u32,
    changes: &'a [Change],
    /// All that it will have, if it has lines or is to have some.
    all: Vec<Change>,
    plan: Option<Plan>,
}

/// A class was to have a second prefix.
#[derive(Debug, thiserror::Error)]
#[error("the class {0} is that of another prefix")]
pub struct ClassTaken(pub u32);

impl<S: Store> Trie<S> {
    /// The trie that is in a store.
    pub const fn new(store: S) -> Self {
        Self { store, known: None }
    }

    /// The store.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// The store, for what is no change of the trie.
    pub const fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// The class of the longest prefix that contains an address.
    pub fn class(&self, family: Family, address: &Addr) -> Option<u32> {
        trie::find(&Seen(&self.store), Key::new(family, address)).checked_sub(1)
    }

    /// Every prefix and its class, in the order of the classes.
    pub fn prefixes(&self) -> impl Iterator<Item = (Prefix, u32)> {
        (0..self.store.classes())
            .filter_map(|class| self.store.class(class).map(|prefix| (prefix, class)))
    }

    /// Units in use, also those that packets in flight may still read; none until something was to be changed.
    pub fn units(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.room.units())
    }

    /// Enters a prefix, or gives it another class.
    ///
    /// # Errors
    /// It does not fit, or the class is taken: nothing has changed then.
    pub fn insert(&mut self, prefix: Prefix, class: u32) -> Result<(), S::Error> {
        self.insert_all(&[(prefix, class)])
    }

    /// Enters prefixes, each of them once, or gives them other classes. Where many are near each other that takes far less
    /// than one by one.
    ///
    /// # Errors
    /// One does not fit, or its class is taken: then nothing of it has changed, while some of the others may be entered.
    pub fn insert_all(&mut self, prefixes: &[(Prefix, u32)]) -> Result<(), S::Error> {
        self.with_known(|trie, known| {
            prefixes
                .chunks(MOST_AT_ONCE)
                .try_for_each(|some| trie.enter(known, some))
        })
    }

    /// Removes a prefix; one that is not there is as good.
    ///
    /// # Errors
    /// There was no room for what is left of its node, and nothing has changed: there will be once what was given back is
    /// free. Or memory could not be given back.
    pub fn remove(&mut self, prefix: &Prefix) -> Result<(), S::Error> {
        self.remove_all(&[*prefix])
    }

    /// Removes prefixes; those that are not there are as good.
    ///
    /// # Errors
    /// As of [`Trie::remove`]; some of the others may be removed.
    pub fn remove_all(&mut self, prefixes: &[Prefix]) -> Result<(), S::Error> {
        self.with_known(|trie, known| {
            prefixes
                .chunks(MOST_AT_ONCE)
                .try_for_each(|some| trie.leave(known, some))
        })
    }

    /// Packets that were in flight after the last change have ended: what was given back is free.
    ///
    /// # Errors
    /// Memory could not be given back; it is tried again the next time.
    pub fn settle(&mut self) -> Result<(), S::Error> {
        let Some(known) = &mut self.known else {
            return Ok(());
        };
        known.room.settle();
        let wanted = known.room.segments_wanted(Need::REMOVAL);
        while self.store.segments() > wanted {
            self.store.remove_segment()?;
        }
        Ok(())
    }

    fn with_known(
        &mut self,
        change: impl FnOnce(&mut Self, &mut Known) -> Result<(), S::Error>,
    ) -> Result<(), S::Error> {
        let mut known = self.known()?;
        let changed = change(self, &mut known);
        self.known = Some(known);
        changed
    }

    fn enter(&mut self, known: &mut Known, prefixes: &[(Prefix, u32)]) -> Result<(), S::Error> {
        let mut changes: Vec<Change> = prefixes
            .iter()
            .map(|(prefix, class)| (*prefix, Some(*class)))
            .collect();
        changes.sort_unstable();
        let before: Vec<Option<u32>> = prefixes
            .iter()
            .map(|(prefix, class)| known.classes.insert(*prefix, *class))
            .collect();
        let planned = self.planned(known, &changes);
        // What one removal takes is kept, so that something can be removed whatever is full.
        let reserved = self.reserve(&known.room, need(&planned, Need::REMOVAL));
        let is_full = reserved.is_err();
        if let Err(error) = reserved.and_then(|()| self.list(prefixes)) {
            for ((prefix, _), before) in prefixes.iter().zip(&before) {
                match before {
                    Some(class) => known.classes.insert(*prefix, *class),
                    None => known.classes.remove(prefix),
                };
            }
            let (first, rest) = prefixes.split_at(prefixes.len() / 2);
            if !is_full || first.is_empty() {
                return Err(error);
            }
            self.enter(known, first)?;
            return self.enter(known, rest);
        }
        self.place(known, &changes, planned);
        let other = before
            .into_iter()
            .zip(prefixes)
            .filter_map(|(before, (_, class))| before.filter(|before| before != class));
        for class in other {
            self.store.clear_class(class)?;
        }
        Ok(())
    }

    /// Has the list know prefixes, or none of them.
    fn list(&mut self, prefixes: &[(Prefix, u32)]) -> Result<(), S::Error> {
        let mut listed = Vec::new();
        for (prefix, class) in prefixes {
            let told = match self.store.class(*class) {
                Some(other) if other != *prefix => Err(ClassTaken(*class).into()),
                Some(_) => continue,
                None => self.store.set_class(*class, *prefix),
            };
            if told.is_err() {
                for class in listed {
                    self.store.clear_class(class)?;
                }
                return told;
            }
            listed.push(*class);
        }
        Ok(())
    }

    fn leave(&mut self, known: &mut Known, prefixes: &[Prefix]) -> Result<(), S::Error> {
        let left: Vec<(Prefix, u32)> = prefixes
            .iter()
            .filter_map(|prefix| known.classes.remove_entry(prefix))
            .collect();
        let mut changes: Vec<Change> = left.iter().map(|(prefix, _)| (*prefix, None)).collect();
        changes.sort_unstable();
        let planned = self.planned(known, &changes);
        let none = Need {
            changes: 0,
            in_runs: 0,
        };
        if let Err(error) = self.reserve(&known.room, need(&planned, none)) {
            known.classes.extend(left);
            let (first, rest) = prefixes.split_at(prefixes.len() / 2);
            if first.is_empty() {
                return Err(error);
            }
            self.leave(known, first)?;
            return self.leave(known, rest);
        }
        self.place(known, &changes, planned);
        left.iter()
            .try_for_each(|(_, class)| self.store.clear_class(*class))
    }

    /// Has room for so much.
    fn reserve(&mut self, room: &Room, need: Need) -> Result<(), S::Error> {
        while self.store.segments() < room.segments_wanted(need) {
            self.store.add_segment()?;
        }
        Ok(())
    }

    /// What the roots of longer prefixes are to lead to, once the list was changed by prefixes in order.
    fn planned<'a>(&self, known: &Known, changes: &'a [Change]) -> Vec<Planned<'a>> {
        changes
            .chunk_by(|(a, _), (b, _)| a.root() == b.root() && !covers(a) && !covers(b))
            .filter(|group| !covers(&group[0].0))
            .map(|group| {
                let root = group[0].0.root();
                let is_lines = matches!(self.below_root(root).meaning(), Meaning::Lines(_));
                let mut all = match group[0].0.family() {
                    Family::V4 => lines::of_root(&known.classes, &Prefix::of_root(root)),
                    Family::V6 => Vec::new(),
                };
                let plan = Plan::new(&all);
                if plan.is_none() && is_lines {
                    // It may have been cut off.
                    all = lines::all_of_root(&known.classes, &Prefix::of_root(root));
                } else if plan.is_none() {
                    all.clear();
                }
                Planned {
                    root,
                    changes: group,
                    all,
                    plan,
                }
            })
            .collect()
    }

    /// Changes the trie as the list was changed, by prefixes in order.
    fn place(&mut self, known: &mut Known, changes: &[Change], planned: Vec<Planned>) {
        for (prefix, class) in changes.iter().filter(|(prefix, _)| covers(prefix)) {
            match class {
                Some(class) => self.cover(prefix, *class),
                None => self.uncover(known, prefix),
            }
        }
        let room = &mut known.room;
        for root in planned {
            let below = self.below_root(root.root);
            let path = Prefix::of_root(root.root);
            let word = match &root.plan {
                Some(plan) => self.lined(room, below, &path, plan),
                None if matches!(below.meaning(), Meaning::Lines(_)) => {
                    self.retire(room, below, &path);
                    self.built(room, &path, &root.all)
                }
                None => self.changed(room, below, &path, root.changes),
            };
            self.set_root(root.root, word);
        }
    }

    /// The word of a place with nothing else below it than what a plan says.
    fn lined(&mut self, room: &mut Room, below: Word, path: &Prefix, plan: &Plan) -> Word {
        if let Meaning::Lines(there) = below.meaning()
            && plan.word(there.unit) == below
            && plan.words(there.unit) == lines::load(&self.store, &there)
        {
            return below;
        }
        self.retire(room, below, path);
        let unit = room.take(plan.units());
        lines::write(&mut self.store, unit, &plan.words(unit));
        plan.word(unit)
    }

    // ---- roots ----

    /// What a prefix that covers roots changes, now that the list has it.
    fn cover(&mut self, prefix: &Prefix, class: u32) {
        for root in roots(prefix) {
            let before = self
                .covered_by(root)
                .and_then(|class| self.store.class(class));
            if before.is_none_or(|other| other.length() <= prefix.length()) {
                self.set_cover(root, class + 1);
            }
        }
    }

    /// The same where it is no longer known.
    fn uncover(&mut self, known: &Known, prefix: &Prefix) {
        let next = (0..prefix.length())
            .rev()
            .find_map(|length| known.classes.get(&prefix.first(length)).copied());
        for root in roots(prefix) {
            let before = self
                .covered_by(root)
                .and_then(|class| self.store.class(class));
            if before == Some(*prefix) {
                self.set_cover(root, next.map_or(0, |class| class + 1));
            }
        }
    }

    fn covered_by(&self, root: u32) -> Option<u32> {
        self.cover_of(root).checked_sub(1)
    }

    /// The class and one of the longest prefix that covers a root, or 0.
    fn cover_of(&self, root: u32) -> u32 {
        let (place, half) = cover_place(root);
        lower(self.store.word(place) >> half)
    }

    fn set_cover(&mut self, root: u32, told: u32) {
        let (place, half) = cover_place(root);
        let pair = self.store.word(place);
        let changed = pair & !(0xffff_ffff << half) | u64::from(told) << half;
        if changed != pair {
            self.store.set_word(place, changed);
        }
        let below = self.below_root(root);
        self.set_root(root, below);
    }

    /// The word of what is below a root, without what covers it.
    fn below_root(&self, root: u32) -> Word {
        let word = Word(self.store.word(Place::Root(root)));
        if matches!(word.meaning(), Meaning::Leaf(Leaf { length: 0, .. })) {
            Word::EMPTY
        } else {
            word
        }
    }

    /// Has a root lead there; if there is nothing, it says what covers it.
    fn set_root(&mut self, root: u32, below: Word) {
        let cover = self.cover_of(root);
        let word = if below == Word::EMPTY && cover != 0 {
            Word::new(Meaning::Leaf(Leaf {
                bits: 0,
                length: 0,
                told: cover,
            }))
        } else {
            below
        };
        let place = Place::Root(root);
        if self.store.word(place) != word.0 {
            self.store.set_word(place, word.0);
        }
    }
}

/// What is to be taken at most, and something else.
fn need(planned: &[Planned], mut need: Need) -> Need {
    for root in planned {
        match &root.plan {
            Some(plan) => need.add_lines(plan.units()),
            None => need.add_changes(root.changes.len().max(root.all.len())),
        }
    }
    need
}

/// Whether a prefix covers roots.
const fn covers(prefix: &Prefix) -> bool {
    prefix.length() <= ROOT_BITS
}

/// The roots that a prefix covers.
fn roots(prefix: &Prefix) -> std::ops::Range<u32> {
    let first = prefix.root();
    first..first + (1 << (ROOT_BITS - prefix.length()))
}

/// Where the class is of the prefix that covers a root, and how far from the lowest bit.
const fn cover_place(root: u32) -> (Place, u32) {
    (Place::Root(ROOTS + root / 2), 32 * (root % 2))
}
