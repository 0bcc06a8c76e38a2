//! A store in memory that can be watched, and that can stop.

use std::collections::HashMap;

use egress_common::trie::{Meaning, Node, ROOT_WORDS, SEGMENT_SHIFT, SEGMENT_UNITS, Word};

use crate::trie::{ClassTaken, Place, Prefix, Store};

/// What is asked after each word is written.
pub(super) type Watch = Box<dyn FnMut(&Words)>;

/// The words alone. Only those that were written take memory.
#[derive(Clone, Debug)]
pub(super) struct Words {
    roots: Vec<u64>,
    units: HashMap<u32, u64>,
    pub(super) segments: u32,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            roots: vec![0; ROOT_WORDS as usize],
            units: HashMap::new(),
            segments: 0,
        }
    }
}

impl Words {
    pub(super) fn get(&self, at: Place) -> u64 {
        match at {
            Place::Root(number) => self.roots[number as usize],
            Place::Unit(unit) => {
                assert!(
                    unit >> SEGMENT_SHIFT < self.segments,
                    "unit {unit} is in no segment"
                );
                self.units.get(&unit).copied().unwrap_or(0)
            }
        }
    }
}

/// The store.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) words: Words,
    pub(super) classes: Vec<Option<Prefix>>,
    pub(super) watch: Option<Watch>,
    /// After so many more writes nothing is written any more, as if the writer had died.
    pub(super) dies_after: Option<u64>,
    /// Segments that there may be.
    pub(super) most_segments: Option<u32>,
    pub(super) written: u64,
}

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    Segments,
    Taken(u32),
}

impl From<ClassTaken> for Full {
    fn from(taken: ClassTaken) -> Self {
        Self::Taken(taken.0)
    }
}

impl Memory {
    /// What is left of it for the next run.
    pub(super) fn left(&self) -> Self {
        Self {
            words: self.words.clone(),
            classes: self.classes.clone(),
            ..Self::default()
        }
    }

    fn lives(&mut self) -> bool {
        match &mut self.dies_after {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }
}

impl Store for Memory {
    type Error = Full;

    fn word(&self, at: Place) -> u64 {
        self.words.get(at)
    }

    fn set_word(&mut self, at: Place, word: u64) {
        if !self.lives() {
            return;
        }
        self.written += 1;
        match at {
            Place::Root(number) => self.words.roots[number as usize] = word,
            Place::Unit(unit) => {
                assert!(unit >> SEGMENT_SHIFT < self.words.segments, "unit {unit}");
                self.words.units.insert(unit, word);
            }
        }
        if let Some(mut watch) = self.watch.take() {
            watch(&self.words);
            self.watch = Some(watch);
        }
    }

    fn segments(&self) -> u32 {
        self.words.segments
    }

    fn add_segment(&mut self) -> Result<(), Full> {
        if self.most_segments == Some(self.words.segments) {
            return Err(Full::Segments);
        }
        self.words.segments += 1;
        Ok(())
    }

    fn remove_segment(&mut self) -> Result<(), Full> {
        self.words.segments -= 1;
        let end = self.words.segments * SEGMENT_UNITS;
        self.words.units.retain(|unit, _| *unit < end);
        Ok(())
    }

    fn classes(&self) -> u32 {
        self.classes.len() as u32
    }

    fn class(&self, class: u32) -> Option<Prefix> {
        self.classes.get(class as usize).copied().flatten()
    }

    fn set_class(&mut self, class: u32, prefix: Prefix) -> Result<(), Full> {
        if self.lives() {
            let length = self.classes.len().max(class as usize + 1);
            self.classes.resize(length, None);
            self.classes[class as usize] = Some(prefix);
        }
        Ok(())
    }

    fn clear_class(&mut self, class: u32) -> Result<(), Full> {
        if self.lives() {
            self.classes[class as usize] = None;
        }
        Ok(())
    }
}

impl Memory {
    /// Writes something else into some of its words.
    pub(super) fn damage(&mut self, random: &mut super::Random) {
        let words = self.words.units.values_mut();
        let roots = self.words.roots.iter_mut().filter(|word| **word != 0);
        for word in words.chain(roots) {
            if random.once_in(12) {
                *word = match random.below(4) {
                    0 => 0,
                    1 => *word ^ 1 << random.below(64),
                    2 => random.next(),
                    _ => {
                        let node = Node {
                            children: random.next() as u16,
                            ends: random.next() as u16 & !1,
                            unit: random.below(400),
                        };
                        Word::new(Meaning::Node(node)).0
                    }
                };
            }
        }
    }
}
