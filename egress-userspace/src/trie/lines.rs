//! Lines: which roots have some, and what is in them.

use std::collections::BTreeMap;

use egress_common::{
    Family,
    trie::{
        Leaf, Meaning, ROOT_BITS, Word,
        lines::{LINE_UNITS, Lines, MOST_BITS, MOST_IN_LINE},
    },
};

use super::{Place, Prefix, Store, change::Change};

/// Prefixes for each line of a root, on average, at most.
const MOST_ON_AVERAGE: usize = 8;
/// Prefixes of a root that has lines, at most.
const MOST: usize = MOST_ON_AVERAGE << MOST_BITS;
/// Units that a root's lines can take at most.
pub(super) const MOST_UNITS: u32 = (2 * LINE_UNITS) << MOST_BITS;

/// The lines that a root is to have.
#[derive(Debug)]
pub(super) struct Plan {
    bits: u32,
    /// What is in each, the longest first.
    lines: Vec<Vec<Word>>,
}

impl Plan {
    /// For these prefixes of a root, in order; none where lines would be too many for them, or too full.
    pub(super) fn new(all: &[Change]) -> Option<Self> {
        let [(first, _), _, ..] = all else {
            return None;
        };
        if first.family() == Family::V6 || all.len() > MOST {
            return None;
        }
        let bits = all.len().div_ceil(MOST_ON_AVERAGE).next_power_of_two();
        let bits = bits.trailing_zeros();
        (bits..=MOST_BITS.min(bits + 1)).find_map(|bits| Self::of(bits, all))
    }

    fn of(bits: u32, all: &[Change]) -> Option<Self> {
        let mut lines = vec![Vec::new(); 1 << bits];
        for (prefix, class) in all {
            let told = class.map_or(0, |class| class + 1);
            let length = prefix.length() - ROOT_BITS;
            let first = number(prefix, bits);
            for line in &mut lines[first..first + (1 << bits.saturating_sub(length))] {
                line.push(Leaf {
                    bits: prefix.slice(ROOT_BITS, length) << (64 - length),
                    length,
                    told,
                });
                if line.len() > MOST_IN_LINE {
                    return None;
                }
            }
        }
        let words = lines.into_iter().map(|mut line| {
            line.sort_by_key(|leaf| std::cmp::Reverse(leaf.length));
            let words = line.into_iter().map(Meaning::Leaf).map(Word::new);
            words.collect()
        });
        Some(Self {
            bits,
            lines: words.collect(),
        })
    }

    /// Units that they take.
    pub(super) fn units(&self) -> u32 {
        let more = self.lines.iter().filter(|line| is_two(line)).count();
        LINE_UNITS * ((1 << self.bits) + u32::try_from(more).unwrap_or(u32::MAX))
    }

    /// The word that leads to them.
    pub(super) const fn word(&self, unit: u32) -> Word {
        let bits = self.bits;
        Word::new(Meaning::Lines(Lines { bits, unit }))
    }

    /// All words of them from that unit on: behind the lines that bits choose are those that these lead to.
    pub(super) fn words(&self, unit: u32) -> Vec<Word> {
        let line = LINE_UNITS as usize;
        let mut words = Vec::with_capacity(2 * line * self.lines.len());
        let mut behind = Vec::new();
        let mut next = unit + (LINE_UNITS << self.bits);
        for leaves in &self.lines {
            let (here, more) = if is_two(leaves) {
                leaves.split_at(line - 1)
            } else {
                (&leaves[..], &[][..])
            };
            words.extend(here);
            if !more.is_empty() {
                words.push(Word::new(Meaning::Lines(Lines {
                    bits: 0,
                    unit: next,
                })));
                next += LINE_UNITS;
                behind.extend(more);
                behind.resize(behind.len().next_multiple_of(line), Word::EMPTY);
            }
            words.resize(words.len().next_multiple_of(line), Word::EMPTY);
            if leaves.is_empty() {
                words.resize(words.len() + line, Word::EMPTY);
            }
        }
        words.extend(behind);
        words
    }
}

/// Whether there are more than one line has room for.
fn is_two(leaves: &[Word]) -> bool {
    leaves.len() > LINE_UNITS as usize
}

/// The number of the first line that a prefix is in.
fn number(prefix: &Prefix, bits: u32) -> usize {
    usize::try_from(prefix.slice(ROOT_BITS, bits)).unwrap_or(usize::MAX)
}

/// Units of lines that are there.
pub(super) fn units(store: &impl Store, lines: &Lines) -> u32 {
    let chosen = LINE_UNITS << lines.bits;
    let leads_on = |unit: &u32| {
        let word = Word(store.word(Place::Unit(*unit)));
        matches!(word.meaning(), Meaning::Lines(_))
    };
    let more = (lines.unit..lines.unit + chosen).filter(leads_on).count();
    chosen + LINE_UNITS * u32::try_from(more).unwrap_or(u32::MAX)
}

/// All words of lines that are there.
pub(super) fn load(store: &impl Store, lines: &Lines) -> Vec<Word> {
    (lines.unit..lines.unit + units(store, lines))
        .map(|unit| Word(store.word(Place::Unit(unit))))
        .collect()
}

/// Prefixes of a root, in order: those that lead to lines, and one more where they are too many for that.
pub(super) fn of_root(classes: &BTreeMap<Prefix, u32>, root: &Prefix) -> Vec<Change> {
    below(classes, root).take(MOST + 1).collect()
}

/// All prefixes of a root, in order.
pub(super) fn all_of_root(classes: &BTreeMap<Prefix, u32>, root: &Prefix) -> Vec<Change> {
    below(classes, root).collect()
}

fn below(classes: &BTreeMap<Prefix, u32>, root: &Prefix) -> impl Iterator<Item = Change> {
    classes
        .range(root..)
        .take_while(|(prefix, _)| root.contains(prefix))
        .filter(|(prefix, _)| prefix.length() > ROOT_BITS)
        .map(|(prefix, class)| (*prefix, Some(*class)))
}

/// Writes words where nothing leads yet.
pub(super) fn write(store: &mut impl Store, unit: u32, words: &[Word]) {
    for (unit, word) in (unit..).zip(words) {
        let place = Place::Unit(unit);
        if store.word(place) != word.0 {
            store.set_word(place, word.0);
        }
    }
}
