//! What the trie is kept in.

use egress_common::trie::lines::LINE_UNITS;

use super::{ClassTaken, Prefix};

/// Where a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the table of roots.
    Root(u32),
    /// In a segment.
    Unit(u32),
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
    type Line = [u64; LINE_UNITS as usize];

    fn root(&self, number: u32) -> Option<u64> {
        Some(self.0.word(Place::Root(number)))
    }

    fn line(&self, line: u32) -> Option<Self::Line> {
        let mut words = [0; LINE_UNITS as usize];
        for (unit, word) in (line * LINE_UNITS..).zip(&mut words) {
            *word = self.0.word(Place::Unit(unit));
        }
        Some(words)
    }

    fn word(line: &Self::Line, index: u32) -> u64 {
        line[(index % LINE_UNITS) as usize]
    }
}
