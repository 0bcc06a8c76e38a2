//! What the trie is kept in.

use egress_common::trie::{Entry, NODE_ENTRIES, Path};

use super::{ClassTaken, Prefix};

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the table of roots.
    Root(u32),
    /// In a unit: of a node the first or the second, of a record the second.
    Unit(u32, u32),
}

impl Place {
    /// An entry of the node that starts at a unit.
    pub(super) const fn in_node(node: u32, number: u32) -> Self {
        Self::Unit(node + number / 2, number % 2)
    }

    /// The entry of a record.
    pub(super) const fn of_record(unit: u32) -> Self {
        Self::Unit(unit, 1)
    }
}

/// The words of the trie, which packets read at any time, and the list of its prefixes, which they do not.
///
/// What was never written reads as zeroes, and as no prefix. Only growing can fail.
pub trait Store {
    /// Why it could not grow.
    type Error: From<ClassTaken>;

    /// A word.
    fn word(&self, place: Place) -> u64;
    /// Writes a word at once, after everything that was written before.
    fn set_word(&mut self, place: Place, word: u64);
    /// How many segments there are.
    fn segments(&self) -> u32;
    /// Adds a segment.
    ///
    /// # Errors
    /// There is no memory, or no room for one more.
    fn add_segment(&mut self) -> Result<(), Self::Error>;
    /// Gives the last segment back, which nothing leads to.
    ///
    /// # Errors
    /// The segment is still there then.
    fn remove_segment(&mut self) -> Result<(), Self::Error>;
    /// One more than the highest class that may have a prefix.
    fn classes(&self) -> u32;
    /// The prefix of a class.
    fn class(&self, class: u32) -> Option<Prefix>;
    /// Gives a class its prefix.
    ///
    /// # Errors
    /// There is no memory, or no room for the class.
    fn set_class(&mut self, class: u32, prefix: Prefix) -> Result<(), Self::Error>;
    /// Takes its prefix from a class.
    ///
    /// # Errors
    /// What it took could not be given back; the class has none.
    fn clear_class(&mut self, class: u32) -> Result<(), Self::Error>;
}

/// Reads as packets do.
pub(super) struct Seen<'a, S>(pub(super) &'a S);

impl<S: Store> egress_common::trie::Reader for Seen<'_, S> {
    fn root(&self, number: u32) -> Option<Entry> {
        Some(Entry(self.0.word(Place::Root(number))))
    }

    fn entry(&self, unit: u32, half: u32) -> Option<Entry> {
        Some(Entry(self.0.word(Place::Unit(unit, half))))
    }

    fn record(&self, unit: u32) -> Option<(Path, Entry)> {
        let path = Path(self.0.word(Place::Unit(unit, 0)));
        Some((path, Entry(self.0.word(Place::of_record(unit)))))
    }
}

/// A node that is not in the trie yet.
#[derive(Default)]
pub(super) struct NewNode(pub(super) [Entry; NODE_ENTRIES as usize]);
