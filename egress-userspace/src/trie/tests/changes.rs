//! Changes one after another: the answers after each, what takes memory, what does not fit, what broke off.

use std::collections::BTreeMap;

use super::{Memory, Prefix, Random, Trie, answer, memory::Full, naive, net};

/// A trie, and the prefixes that it should have.
#[derive(Default)]
pub(super) struct Pair {
    pub(super) prefixes: BTreeMap<Prefix, u32>,
}

/// A change of a random prefix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Insert(Prefix, u32),
    Remove(Prefix),
}

impl Pair {
    /// One that makes it neither too full nor too empty.
    pub(super) fn step(&self, random: &mut Random, most: usize) -> Step {
        let is_there =
            !self.prefixes.is_empty() && random.below(most as u32) < self.prefixes.len() as u32;
        let known = |random: &mut Random| {
            let place = random.below(self.prefixes.len() as u32) as usize;
            *self.prefixes.keys().nth(place).unwrap()
        };
        if is_there {
            let prefix = known(random);
            return match random.below(8) {
                0 => Step::Insert(prefix, self.free_class(random)),
                1 => Step::Insert(prefix, self.prefixes[&prefix]),
                _ => Step::Remove(prefix),
            };
        }
        let prefix = random.prefix();
        match self.prefixes.get(&prefix) {
            Some(class) => Step::Insert(prefix, *class),
            None => Step::Insert(prefix, self.free_class(random)),
        }
    }

    fn free_class(&self, random: &mut Random) -> u32 {
        let taken: std::collections::BTreeSet<u32> = self.prefixes.values().copied().collect();
        let first = random.below(2 * self.prefixes.len() as u32 + 4);
        (first..).find(|class| !taken.contains(class)).unwrap()
    }

    pub(super) fn apply(&mut self, step: Step) {
        match step {
            Step::Insert(prefix, class) => drop(self.prefixes.insert(prefix, class)),
            Step::Remove(prefix) => drop(self.prefixes.remove(&prefix)),
        }
    }
}

pub(super) fn carry_out(trie: &mut Trie<Memory>, step: Step) -> Result<(), Full> {
    match step {
        Step::Insert(prefix, class) => trie.insert(prefix, class),
        Step::Remove(prefix) => trie.remove(&prefix),
    }
}

/// Answers for addresses in and near prefixes that are there, were there, or never were.
pub(super) fn check(
    trie: &Trie<Memory>,
    pair: &Pair,
    random: &mut Random,
    near: &Prefix,
    times: u32,
) {
    for number in 0..times {
        let prefix = if number % 2 == 0 {
            *near
        } else {
            random.prefix()
        };
        let address = random.address_near(&prefix);
        assert_eq!(
            answer(trie, &address),
            naive(&pair.prefixes, &address),
            "{address:?} among {:?}",
            pair.prefixes
        );
    }
}

/// A trie that got its prefixes in order, and nothing else.
pub(super) fn fresh(pair: &Pair) -> Trie<Memory> {
    let mut trie = Trie::new(Memory::default());
    for (prefix, class) in &pair.prefixes {
        trie.insert(*prefix, *class).unwrap();
    }
    trie.settle().unwrap();
    trie
}

const fn about(step: Step) -> Prefix {
    match step {
        Step::Insert(prefix, _) | Step::Remove(prefix) => prefix,
    }
}

fn random_changes(rounds: u32, changes: u32, asked: u32) {
    let mut random = Random::new();
    for _ in 0..rounds {
        let most = [4, 12, 40, 200][random.below(4) as usize];
        let mut pair = Pair::default();
        let mut trie = Trie::new(Memory::default());
        for number in 0..changes {
            let step = pair.step(&mut random, most);
            carry_out(&mut trie, step).unwrap();
            pair.apply(step);
            check(&trie, &pair, &mut random, &about(step), asked);
            if random.once_in(3) {
                trie.settle().unwrap();
            }
            if number % 16 == 0 {
                trie.settle().unwrap();
                let fresh = fresh(&pair);
                assert_eq!(trie.units(), fresh.units(), "{:?}", pair.prefixes);
            }
        }
        for prefix in pair.prefixes.keys() {
            trie.remove(prefix).unwrap();
        }
        trie.settle().unwrap();
        assert_eq!((trie.units(), trie.store().words.segments), (0, 1));
        assert_eq!(trie.prefixes().count(), 0);
    }
}

#[test]
fn answers_are_those_of_a_longest_match() {
    random_changes(8, 200, 10);
}

#[test]
#[ignore = "soak: millions of cases"]
fn answers_are_those_of_a_longest_match_for_long() {
    random_changes(300, 600, 20);
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let mut random = Random::new();
    let memory = Memory {
        most_segments: Some(1),
        ..Memory::default()
    };
    let mut trie = Trie::new(memory);
    let mut pair = Pair::default();
    let mut refused = 0;
    for class in 0..60_000 {
        // Far apart, so that each takes much.
        let bits = u128::from(random.next()) << 64 | u128::from(random.next());
        let prefix = Prefix::new(egress_common::Family::V6, bits, 12 + random.below(117));
        if pair.prefixes.contains_key(&prefix) {
            continue;
        }
        let written = trie.store().written;
        match trie.insert(prefix, class) {
            Ok(()) => drop(pair.prefixes.insert(prefix, class)),
            Err(Full::Segments) => {
                refused += 1;
                assert_eq!(trie.store().written, written, "a word was written");
                if refused > 50 {
                    break;
                }
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(refused > 0, "all of it fits");
    let known: Vec<Prefix> = pair.prefixes.keys().copied().collect();
    for prefix in &known {
        check(&trie, &pair, &mut random, prefix, 1);
    }
    // What is full can be made emptier.
    for prefix in known.iter().step_by(2) {
        trie.remove(prefix).unwrap();
        pair.prefixes.remove(prefix);
        trie.settle().unwrap();
    }
    for prefix in &known {
        check(&trie, &pair, &mut random, prefix, 1);
    }
}

#[test]
fn a_class_has_one_prefix() {
    let mut trie = Trie::new(Memory::default());
    trie.insert(net("10.0.0.0/8"), 3).unwrap();
    assert_eq!(trie.insert(net("10.1.0.0/24"), 3), Err(Full::Taken(3)));
    trie.insert(net("10.0.0.0/8"), 3).unwrap();
    trie.remove(&net("10.1.0.0/24")).unwrap();
    assert_eq!(
        trie.prefixes().collect::<Vec<_>>(),
        [(net("10.0.0.0/8"), 3)]
    );
}

/// A run that dies after any of the words of a change: the next one says what the list says, and goes on from there.
fn deaths(rounds: u32, changes: u32) {
    let mut random = Random::new();
    for _ in 0..rounds {
        let most = [4, 12, 60][random.below(3) as usize];
        let mut pair = Pair::default();
        let mut trie = Trie::new(Memory::default());
        for _ in 0..changes {
            let step = pair.step(&mut random, most);
            if random.once_in(4) {
                let mut left = trie.store().left();
                left.dies_after = Some(random.below(24).into());
                let mut dying = Trie::new(left);
                carry_out(&mut dying, step).unwrap();
                let mut next = Trie::new(dying.store().left());
                next.mend().unwrap();
                let listed: BTreeMap<Prefix, u32> = next.prefixes().collect();
                let mut after = Pair {
                    prefixes: pair.prefixes.clone(),
                };
                after.apply(step);
                assert!(
                    listed == pair.prefixes || listed == after.prefixes,
                    "{step:?}: neither before nor after: {listed:?}"
                );
                pair.prefixes = listed;
                check(&next, &pair, &mut random, &about(step), 12);
                next.settle().unwrap();
                assert_eq!(next.units(), fresh(&pair).units(), "{:?}", pair.prefixes);
                trie = next;
                continue;
            }
            carry_out(&mut trie, step).unwrap();
            pair.apply(step);
            trie.settle().unwrap();
        }
    }
}

#[test]
fn what_broke_off_is_completed() {
    deaths(6, 80);
}

#[test]
#[ignore = "soak: millions of cases"]
fn what_broke_off_is_completed_for_long() {
    deaths(100, 400);
}

/// Whatever the words are: the next run says what the list of prefixes says.
#[test]
fn damage_is_mended() {
    let mut random = Random::new();
    for _ in 0..20 {
        let mut pair = Pair::default();
        let mut trie = Trie::new(Memory::default());
        for _ in 0..60 {
            let step = pair.step(&mut random, 60);
            carry_out(&mut trie, step).unwrap();
            pair.apply(step);
        }
        let mut left = trie.store().left();
        left.damage(&mut random);
        let mut next = Trie::new(left);
        next.mend().unwrap();
        for prefix in pair.prefixes.keys() {
            check(&next, &pair, &mut random, prefix, 6);
        }
        let prefixes: Vec<Prefix> = pair.prefixes.keys().copied().collect();
        for prefix in prefixes {
            next.remove(&prefix).unwrap();
            pair.prefixes.remove(&prefix);
            check(&next, &pair, &mut random, &prefix, 6);
        }
    }
}
