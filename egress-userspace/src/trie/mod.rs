//! The prefix trie's writer: inserts, changes and removes prefixes under packets that read it, pure over a [`Store`].
//!
//! What the trie looks like follows from its prefixes alone. A prefix of more than 12 bits *belongs* to the node at
//! the largest multiple of four bits that is less than its length: it has a power of two of that node's entries, all of
//! those that no longer prefix of the node has. A node is there exactly where prefixes branch: where several things
//! belong to it or are below. What is alone below an entry is a record, or two where that takes more than 56 bits.
//!
//! Each change is one word after another, and a packet sees of each its old answer or its new one:
//!
//! - Of an entry the class is changed: the new class is the answer of just the addresses whose answer changes.
//! - A new node, and the records around it, are written where nothing leads; one word, the entry above, then leads
//!   there instead of to what they stand for. What nothing leads to any more stays as it is until packets in flight have
//!   ended, and is then free ([`Trie::settle`]).
//!
//! A packet that is slow may read of two changes the later one and not the earlier one.
//!
//! The list of prefixes by class is the truth: it has a prefix before the trie has, and until after the trie has it no
//! more. So whatever broke off is completed by entering all of the list again, which changes nothing where all is well.

mod mend;
mod prefix;
mod room;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use egress_common::{
    Addr, Family,
    trie::{
        self, Child, Entry, Key, NODE_ENTRIES, NODE_UNITS, Path, RECORD_BITS, ROOT_BITS, STRIDE,
    },
};

pub use self::{
    prefix::Prefix,
    store::{Place, Store},
};
use self::{
    room::Room,
    store::{NewNode, Seen},
};

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

/// A class was to have a second prefix.
#[derive(Debug, thiserror::Error)]
#[error("the class {0} is that of another prefix")]
pub struct ClassTaken(pub u32);

/// What an entry leads to, whatever records are between.
enum Below {
    Nothing,
    /// A prefix alone, whose class the last record has.
    Leaf(Prefix, u32),
    /// A node, and the bits that lead to it.
    Node(Prefix, u32),
}

/// The records that an entry leads to first: two at most.
type Records = [Option<u32>; 2];

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
        let mut known = self.known()?;
        let entered = self.enter(&mut known, prefix, class);
        self.known = Some(known);
        entered
    }

    fn enter(&mut self, known: &mut Known, prefix: Prefix, class: u32) -> Result<(), S::Error> {
        if self.store.class(class).is_some_and(|other| other != prefix) {
            return Err(ClassTaken(class).into());
        }
        self.reserve(&known.room)?;
        self.store.set_class(class, prefix)?;
        self.place(&mut known.room, prefix, class);
        match known.classes.insert(prefix, class) {
            Some(before) if before != class => self.store.clear_class(before),
            Some(_) | None => Ok(()),
        }
    }

    /// Removes a prefix; one that is not there is as good.
    ///
    /// Where there is no room to put what is left into less of it, that stays as it is.
    ///
    /// # Errors
    /// Memory could not be given back.
    pub fn remove(&mut self, prefix: &Prefix) -> Result<(), S::Error> {
        let mut known = self.known()?;
        let removed = self.leave(&mut known, prefix);
        self.known = Some(known);
        removed
    }

    fn leave(&mut self, known: &mut Known, prefix: &Prefix) -> Result<(), S::Error> {
        let Some(class) = known.classes.get(prefix).copied() else {
            return Ok(());
        };
        let folds = self.reserve(&known.room).is_ok();
        known.classes.remove(prefix);
        if let Some((at, path)) = self.displace(known, prefix, class)
            && folds
        {
            self.fold(&mut known.room, at, path);
        }
        self.store.clear_class(class)
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
        let wanted = known.room.segments_wanted();
        while self.store.segments() > wanted {
            self.store.remove_segment()?;
        }
        Ok(())
    }

    /// Has room for one change.
    fn reserve(&mut self, room: &Room) -> Result<(), S::Error> {
        while self.store.segments() < room.segments_wanted() {
            self.store.add_segment()?;
        }
        Ok(())
    }

    // ---- in ----

    /// Enters a prefix that the list has; what is entered already stays as it is.
    fn place(&mut self, room: &mut Room, prefix: Prefix, class: u32) {
        if prefix.length() <= ROOT_BITS {
            return self.cover_roots(&prefix, class);
        }
        let mut at = Place::Root(prefix.root());
        let mut depth = ROOT_BITS;
        loop {
            let entry = self.entry(at);
            let (below, records) = self.below(prefix.first(depth), entry.child());
            match below {
                Below::Nothing => {
                    let child = self.leaf(room, depth, prefix, class);
                    return self.publish(at, entry.with_child(child));
                }
                Below::Leaf(other, before) if other == prefix => {
                    if before != class
                        && let Some(last) = records.iter().flatten().next_back()
                    {
                        let told = Entry::new(Some(class), Child::None);
                        self.publish(Place::of_record(*last), told);
                    }
                    return;
                }
                Below::Node(path, node)
                    if home(&prefix) >= path.length() && path.contains(&prefix) =>
                {
                    depth = path.length();
                    if home(&prefix) == depth {
                        return self.cover_node(node, &prefix, class);
                    }
                    at = Place::in_node(node, number(&prefix, depth));
                    depth += STRIDE;
                }
                Below::Leaf(..) | Below::Node(..) => {
                    let child = self.branch(room, depth, &below, (prefix, class));
                    self.publish(at, entry.with_child(child));
                    retire_records(room, records);
                    return;
                }
            }
        }
    }

    /// A new node where a new prefix branches off what is there, with both below.
    fn branch(
        &mut self,
        room: &mut Room,
        depth: u32,
        below: &Below,
        (prefix, class): (Prefix, u32),
    ) -> Child {
        let (path, last) = match below {
            Below::Nothing => return self.leaf(room, depth, prefix, class),
            Below::Leaf(other, _) => (*other, home(other)),
            Below::Node(path, _) => (*path, path.length() - STRIDE),
        };
        let at = floor(prefix.common(&path)).min(last).min(home(&prefix));
        let mut node = NewNode::default();
        match *below {
            Below::Nothing => {}
            Below::Leaf(other, class) => self.put(room, &mut node, at, (other, class)),
            Below::Node(path, child) => {
                let entry = &mut node.0[number(&path, at) as usize];
                let child = self.path(room, at + STRIDE, &path, Child::Node(child));
                *entry = entry.with_child(child);
            }
        }
        self.put(room, &mut node, at, (prefix, class));
        let first = room.take_node();
        for (number, entry) in (0..).zip(node.0) {
            self.store.set_word(Place::in_node(first, number), entry.0);
        }
        self.path(room, depth, &prefix.first(at), Child::Node(first))
    }

    /// Puts a prefix into a new node, or below it.
    fn put(
        &mut self,
        room: &mut Room,
        node: &mut NewNode,
        depth: u32,
        (prefix, class): (Prefix, u32),
    ) {
        if home(&prefix) > depth {
            let entry = &mut node.0[number(&prefix, depth) as usize];
            *entry = entry.with_child(self.leaf(room, depth + STRIDE, prefix, class));
            return;
        }
        for number in numbers(&prefix, depth) {
            let entry = &mut node.0[number as usize];
            if self.yields(*entry, &prefix) {
                *entry = entry.with_class(Some(class));
            }
        }
    }

    /// What an entry at this depth leads to if one prefix is all there is below.
    fn leaf(&mut self, room: &mut Room, depth: u32, prefix: Prefix, class: u32) -> Child {
        let rest = prefix.length() - depth;
        let last = rest.min(RECORD_BITS);
        let told = Entry::new(Some(class), Child::None);
        if rest == last {
            return self.record(room, depth, &prefix, last, told);
        }
        let below = self.leaf(room, depth + last, prefix, class);
        self.record(room, depth, &prefix, last, Entry::new(None, below))
    }

    /// What an entry at this depth leads to if `child`, where `path` ends, is all there is below.
    fn path(&mut self, room: &mut Room, depth: u32, path: &Prefix, child: Child) -> Child {
        let rest = path.length() - depth;
        if rest == 0 {
            return child;
        }
        let length = rest.min(RECORD_BITS);
        let below = self.path(room, depth + length, path, child);
        self.record(room, depth, path, length, Entry::new(None, below))
    }

    fn record(
        &mut self,
        room: &mut Room,
        depth: u32,
        path: &Prefix,
        length: u32,
        entry: Entry,
    ) -> Child {
        let unit = room.take_record();
        let bits = path.slice(depth, length) << (64 - length);
        self.store
            .set_word(Place::Unit(unit, 0), Path::new(bits, length).0);
        self.store.set_word(Place::of_record(unit), entry.0);
        Child::Record(unit)
    }

    fn cover_roots(&mut self, prefix: &Prefix, class: u32) {
        for root in roots(prefix) {
            self.cover(Place::Root(root), prefix, class);
        }
    }

    fn cover_node(&mut self, node: u32, prefix: &Prefix, class: u32) {
        for number in numbers(prefix, home(prefix)) {
            self.cover(Place::in_node(node, number), prefix, class);
        }
    }

    fn cover(&mut self, at: Place, prefix: &Prefix, class: u32) {
        let entry = self.entry(at);
        if entry.class() != Some(class) && self.yields(entry, prefix) {
            self.publish(at, entry.with_class(Some(class)));
        }
    }

    /// Whether no longer prefix than this one has an entry that is one of its own.
    fn yields(&self, entry: Entry, prefix: &Prefix) -> bool {
        entry
            .class()
            .and_then(|class| self.store.class(class))
            .is_none_or(|other| other.length() <= prefix.length())
    }

    // ---- out ----

    /// Removes a prefix from the trie; `known` no longer has it. Gives the entry, and what leads to it, of the node that
    /// it belonged to or was below.
    fn displace(
        &mut self,
        known: &mut Known,
        prefix: &Prefix,
        class: u32,
    ) -> Option<(Place, Prefix)> {
        let shorter = |from: u32| {
            (from..prefix.length())
                .rev()
                .find_map(|length| known.classes.get(&prefix.first(length)).copied())
        };
        if prefix.length() <= ROOT_BITS {
            let next = shorter(0);
            for root in roots(prefix) {
                self.uncover(Place::Root(root), class, next);
            }
            return None;
        }
        let mut above = None;
        let mut at = Place::Root(prefix.root());
        let mut depth = ROOT_BITS;
        loop {
            let entry = self.entry(at);
            let (below, records) = self.below(prefix.first(depth), entry.child());
            match below {
                Below::Leaf(other, _) if other == *prefix => {
                    self.publish(at, entry.with_child(Child::None));
                    retire_records(&mut known.room, records);
                    return above;
                }
                Below::Node(path, node)
                    if home(prefix) >= path.length() && path.contains(prefix) =>
                {
                    let there = path.length();
                    if home(prefix) == there {
                        let next = shorter(there + 1);
                        for number in numbers(prefix, there) {
                            self.uncover(Place::in_node(node, number), class, next);
                        }
                        return Some((at, prefix.first(depth)));
                    }
                    above = Some((at, prefix.first(depth)));
                    at = Place::in_node(node, number(prefix, there));
                    depth = there + STRIDE;
                }
                Below::Nothing | Below::Leaf(..) | Below::Node(..) => return None,
            }
        }
    }

    fn uncover(&mut self, at: Place, class: u32, next: Option<u32>) {
        let entry = self.entry(at);
        if entry.class() == Some(class) {
            self.publish(at, entry.with_class(next));
        }
    }

    /// Puts what is left of a node in its place, if that is one thing alone.
    fn fold(&mut self, room: &mut Room, at: Place, path: Prefix) {
        let entry = self.entry(at);
        let (Below::Node(there, node), records) = self.below(path, entry.child()) else {
            return;
        };
        let mut class = None;
        let mut child = None;
        for number in 0..NODE_ENTRIES {
            let entry = self.entry(Place::in_node(node, number));
            if let Some(other) = entry.class() {
                if class.is_some_and(|class| class != other) {
                    return;
                }
                class = Some(other);
            }
            if entry.child() != Child::None && child.replace((number, entry.child())).is_some() {
                return;
            }
        }
        let depth = path.length();
        let mut below_records = Records::default();
        let child = match (class, child) {
            (Some(_), Some(_)) => return,
            (None, None) => Child::None,
            (Some(class), None) => match self.store.class(class) {
                Some(prefix) => self.leaf(room, depth, prefix, class),
                None => return,
            },
            (None, Some((number, child))) => {
                let (below, records) = self.below(there.and(number.into(), STRIDE), child);
                below_records = records;
                match below {
                    Below::Nothing => Child::None,
                    Below::Leaf(prefix, class) => self.leaf(room, depth, prefix, class),
                    Below::Node(path, node) => self.path(room, depth, &path, Child::Node(node)),
                }
            }
        };
        self.publish(at, entry.with_child(child));
        room.retire(node, NODE_UNITS);
        retire_records(room, records);
        retire_records(room, below_records);
    }

    // ---- words ----

    fn entry(&self, at: Place) -> Entry {
        Entry(self.store.word(at))
    }

    fn publish(&mut self, at: Place, entry: Entry) {
        self.store.set_word(at, entry.0);
    }

    /// What a child leads to, past its records; `path` leads to the child.
    fn below(&self, mut path: Prefix, mut child: Child) -> (Below, Records) {
        let mut records = Records::default();
        let mut class = None;
        for record in &mut records {
            let Child::Record(unit) = child else {
                break;
            };
            *record = Some(unit);
            let bits = Path(self.store.word(Place::Unit(unit, 0)));
            let entry = self.entry(Place::of_record(unit));
            path = path.and(bits.bits() >> (64 - bits.length()), bits.length());
            class = entry.class();
            child = entry.child();
        }
        let below = match (child, class) {
            (Child::Node(node), _) => Below::Node(path, node),
            (_, Some(class)) => Below::Leaf(path, class),
            (Child::None | Child::Record(_), None) => Below::Nothing,
        };
        (below, records)
    }
}

fn retire_records(room: &mut Room, records: Records) {
    for unit in records.into_iter().flatten() {
        room.retire(unit, 1);
    }
}

/// How many bits lead to the node that a prefix belongs to.
const fn home(prefix: &Prefix) -> u32 {
    floor(prefix.length() - 1)
}

const fn floor(bits: u32) -> u32 {
    bits / STRIDE * STRIDE
}

/// The number of the entry that leads on to a prefix, in the node that so many bits lead to.
fn number(prefix: &Prefix, depth: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "four bits")]
    let number = prefix.slice(depth, STRIDE) as u32;
    number
}

/// The entries of a prefix in the node that it belongs to, which so many bits lead to.
fn numbers(prefix: &Prefix, depth: u32) -> std::ops::Range<u32> {
    let first = number(prefix, depth);
    first..first + (1 << (depth + STRIDE - prefix.length()))
}

/// The roots of a prefix that belongs to their table.
fn roots(prefix: &Prefix) -> std::ops::Range<u32> {
    let first = prefix.root();
    first..first + (1 << (ROOT_BITS - prefix.length()))
}
