//! Packets that read while the trie changes: each sees an answer that was right at some time since it came.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use egress_common::trie::{
    self, Key, Meaning, Path, ROOT_BITS, ROOTS, Reader, Word,
    lines::{LINE_UNITS, Lines},
};

use super::{
    Memory, Prefix, Random, Trie,
    changes::{Pair, Step, carry_out},
    memory::Words,
    naive,
};
use crate::trie::Place;

impl Reader for Words {
    type Line = [u64; LINE_UNITS as usize];

    fn root(&self, number: u32) -> Option<u64> {
        Some(self.get(Place::Root(number)))
    }

    fn line(&self, line: u32) -> Option<Self::Line> {
        let first = line * LINE_UNITS;
        Some(std::array::from_fn(|index| {
            self.get(Place::Unit(first + index as u32))
        }))
    }

    fn word(line: &Self::Line, index: u32) -> u64 {
        line[index as usize]
    }
}

/// Before the next words are written, after the last ones, and between any two: old or new.
fn between_words(rounds: u32, changes: u32) {
    let mut random = Random::new();
    for _ in 0..rounds {
        let most = [4, 12, 40][random.below(3) as usize];
        let mut pair = Pair::default();
        let mut trie = Trie::new(Memory::default());
        for _ in 0..changes {
            let step = pair.step(&mut random, most);
            let before = pair.prefixes.clone();
            pair.apply(step);
            let (Step::Insert(prefix, _) | Step::Remove(prefix)) = step;
            let asked: Vec<(Key, [Option<u32>; 2])> = (0..12)
                .map(|_| random.address_near(&prefix))
                .map(|address| {
                    let key = Key::new(address.family(), &address.address());
                    (
                        key,
                        [naive(&before, &address), naive(&pair.prefixes, &address)],
                    )
                })
                .collect();
            let told = format!("{step:?} after {before:?}");
            trie.store_mut().watch = Some(Box::new(move |words| {
                for (key, answers) in &asked {
                    let class = trie::find(words, *key).checked_sub(1);
                    assert!(
                        answers.contains(&class),
                        "{key:?}: {class:?}, {answers:?}: {told}"
                    );
                }
            }));
            carry_out(&mut trie, step).unwrap();
            trie.store_mut().watch = None;
            if random.once_in(2) {
                trie.settle().unwrap();
            }
        }
    }
}

#[test]
fn between_words_the_answer_is_old_or_new() {
    between_words(8, 120);
}

#[test]
#[ignore = "soak: millions of cases"]
fn between_words_the_answer_is_old_or_new_for_long() {
    between_words(300, 400);
}

/// A packet on its way down that reads a word whenever the writer has written one.
struct Slow {
    address: Prefix,
    depth: u32,
    next: Next,
    /// The class of the longest prefix of the last node with one that contains the address.
    passed: Option<(u32, u32)>,
    found: Option<u32>,
    /// Every answer that was right since it came.
    right: Vec<Option<u32>>,
}

/// What a packet reads next.
#[derive(Clone, Copy)]
enum Next {
    Root,
    Unit(u32),
    Path(u32),
    /// A word of a line.
    InLine(u32),
    Passed,
    Nothing,
}

impl Slow {
    fn new(address: Prefix) -> Self {
        Self {
            address,
            depth: ROOT_BITS,
            next: Next::Root,
            passed: None,
            found: None,
            right: Vec::new(),
        }
    }

    /// Reads what is next; whether that was the last.
    fn read(&mut self, words: &Words) -> bool {
        let root = Key::new(self.address.family(), &self.address.address()).root;
        self.next = match self.next {
            Next::Root => self.after(Word(words.get(Place::Root(root)))),
            Next::Unit(unit) => self.after(Word(words.get(Place::Unit(unit)))),
            Next::Path(unit) => {
                let path = Path(words.get(Place::Unit(unit)));
                if self.goes_on(path.bits(), path.length()) {
                    self.depth += path.length();
                    Next::Unit(unit + 1)
                } else {
                    Next::Passed
                }
            }
            Next::InLine(unit) => match Word(words.get(Place::Unit(unit))) {
                Word::EMPTY => Next::Passed,
                word => match (self.after(word), word.meaning()) {
                    (Next::Passed, Meaning::Leaf(_)) if unit % LINE_UNITS != LINE_UNITS - 1 => {
                        Next::InLine(unit + 1)
                    }
                    (next, _) => next,
                },
            },
            Next::Passed => {
                let (place, half) = match self.passed {
                    Some((unit, number)) => (Place::Unit(unit + number / 2), number % 2),
                    None => (Place::Root(ROOTS + root / 2), root % 2),
                };
                let told = (words.get(place) >> (32 * half)) as u32;
                self.found = told.checked_sub(1);
                Next::Nothing
            }
            Next::Nothing => Next::Nothing,
        };
        matches!(self.next, Next::Nothing)
    }

    fn after(&mut self, word: Word) -> Next {
        match word.meaning() {
            Meaning::Nothing => Next::Passed,
            Meaning::Record(unit) => Next::Path(unit),
            Meaning::Lines(Lines { bits, unit }) => {
                let number = self.address.slice(ROOT_BITS, bits) as u32;
                Next::InLine(unit + LINE_UNITS * number)
            }
            Meaning::Leaf(leaf) if self.goes_on(leaf.bits, leaf.length) => {
                self.found = leaf.told.checked_sub(1);
                Next::Nothing
            }
            Meaning::Leaf(_) => Next::Passed,
            Meaning::Node(node) => {
                let number = self.address.slice(self.depth, 4) as u32;
                let ends = (0..4).map(|length| 1 << length | number >> (4 - length));
                if let Some(longest) = ends.rev().find(|end| node.ends >> end & 1 != 0) {
                    let shorter = node.ends & ((1 << longest) - 1);
                    let first = node.unit + node.children.count_ones();
                    self.passed = Some((first, shorter.count_ones()));
                }
                if node.children >> number & 1 == 0 {
                    return Next::Passed;
                }
                self.depth += 4;
                let before = node.children & ((1 << number) - 1);
                Next::Unit(node.unit + before.count_ones())
            }
        }
    }

    fn goes_on(&self, bits: u64, length: u32) -> bool {
        self.depth + length <= 128
            && (length == 0 || self.address.slice(self.depth, length) == bits >> (64 - length))
    }
}

/// Packets that take as long as a change takes: with no other change meanwhile, what they see is old or new.
fn slowly(rounds: u32, changes: u32) {
    let mut random = Random::new();
    for _ in 0..rounds {
        let most = [4, 12, 40][random.below(3) as usize];
        let mut pair = Pair::default();
        let mut trie = Trie::new(Memory::default());
        for _ in 0..changes {
            let step = pair.step(&mut random, most);
            let before = pair.prefixes.clone();
            pair.apply(step);
            let (Step::Insert(prefix, _) | Step::Remove(prefix)) = step;
            let slow = Rc::new(RefCell::new(Vec::new()));
            for _ in 0..16 {
                let address = random.address_near(&prefix);
                let mut packet = Slow::new(address);
                packet.right = vec![naive(&before, &address), naive(&pair.prefixes, &address)];
                // Some are on their way already.
                for _ in 0..random.below(5) {
                    if packet.read(&trie.store().words) {
                        break;
                    }
                }
                slow.borrow_mut().push(packet);
            }
            let packets = Rc::clone(&slow);
            let mut pace = random.clone();
            trie.store_mut().watch = Some(Box::new(move |words| {
                for packet in &mut *packets.borrow_mut() {
                    if pace.once_in(2) {
                        packet.read(words);
                    }
                }
            }));
            carry_out(&mut trie, step).unwrap();
            trie.store_mut().watch = None;
            random.next();
            for packet in &mut *slow.borrow_mut() {
                while !packet.read(&trie.store().words) {}
                assert!(
                    packet.right.contains(&packet.found),
                    "{step:?} after {before:?}: {:?} is told {:?}, not {:?}",
                    packet.address,
                    packet.found,
                    packet.right
                );
            }
            trie.settle().unwrap();
        }
    }
}

#[test]
fn slow_packets_see_the_old_or_the_new_answer() {
    slowly(8, 120);
}

#[test]
#[ignore = "soak: millions of cases"]
fn slow_packets_see_the_old_or_the_new_answer_for_long() {
    slowly(300, 400);
}

/// Packets that take longer than many changes, without a grace period: all that they read is still there, and the
/// answer is a class that was right for the address or for what contains it.
#[test]
fn what_slow_packets_read_stays() {
    let mut random = Random::new();
    for _ in 0..8 {
        let mut pair = Pair::default();
        let mut trie = Trie::new(Memory::default());
        for _ in 0..40 {
            let mut seen: BTreeMap<u32, Vec<Prefix>> = BTreeMap::new();
            let mut slow: Vec<Slow> = (0..8)
                .map(|_| {
                    let prefix = random.prefix();
                    Slow::new(random.address_near(&prefix))
                })
                .collect();
            for (prefix, class) in &pair.prefixes {
                seen.entry(*class).or_default().push(*prefix);
            }
            for _ in 0..12 {
                let step = pair.step(&mut random, 24);
                carry_out(&mut trie, step).unwrap();
                pair.apply(step);
                if let Step::Insert(prefix, class) = step {
                    seen.entry(class).or_default().push(prefix);
                }
                for packet in &mut slow {
                    if random.once_in(4) {
                        packet.read(&trie.store().words);
                    }
                }
            }
            for mut packet in slow {
                while !packet.read(&trie.store().words) {}
                if let Some(found) = packet.found {
                    let prefixes = &seen[&found];
                    assert!(
                        prefixes
                            .iter()
                            .any(|prefix| prefix.contains(&packet.address)),
                        "{:?} is told {found}, which was {prefixes:?}",
                        packet.address
                    );
                }
            }
            trie.settle().unwrap();
        }
    }
}
