//! Changes of many prefixes at once.

use std::collections::BTreeMap;

use egress_common::trie::{self, Key};

use super::{
    Memory, Prefix, Random, Trie,
    changes::{Pair, check, fresh},
    naive,
};

/// Prefixes that come together, or go together: the answers afterwards, and between any two words.
fn together(rounds: u32, changes: u32) {
    let mut random = Random::new();
    for _ in 0..rounds {
        let mut pair = Pair::default();
        let mut trie = Trie::new(Memory::default());
        for number in 0..changes {
            let count = 1 + random.below(60) as usize;
            let before = pair.prefixes.clone();
            let comes = random.below(120) as usize > before.len();
            let (inserted, removed) = if comes {
                (drawn(&mut random, &pair, count), Vec::new())
            } else {
                (Vec::new(), some(&mut random, &before, count))
            };
            for (prefix, class) in &inserted {
                pair.prefixes.insert(*prefix, *class);
            }
            pair.prefixes.retain(|prefix, _| !removed.contains(prefix));
            let about: Vec<Prefix> = inserted
                .iter()
                .map(|(prefix, _)| *prefix)
                .chain(removed.iter().copied())
                .collect();
            let all: BTreeMap<Prefix, u32> = before
                .iter()
                .chain(&pair.prefixes)
                .map(|(prefix, class)| (*prefix, *class))
                .collect();
            let asked: Vec<(Key, Vec<Option<u32>>)> = about
                .iter()
                .map(|prefix| random.address_near(prefix))
                .map(|address| {
                    let mut right = vec![naive(&before, &address), naive(&pair.prefixes, &address)];
                    let lengths = right.clone();
                    let place = |class: &Option<u32>| {
                        class.map(|class| {
                            before
                                .iter()
                                .chain(&pair.prefixes)
                                .find(|(_, other)| **other == class)
                                .unwrap()
                                .0
                                .length()
                        })
                    };
                    // Of those that contain each other, any may be there already, or still.
                    let (first, last) = (place(&lengths[0]), place(&lengths[1]));
                    let around = all.iter().filter(|(prefix, _)| {
                        prefix.contains(&address)
                            && (first.min(last)..=first.max(last)).contains(&Some(prefix.length()))
                    });
                    right.extend(around.map(|(_, class)| Some(*class)));
                    (Key::new(address.family(), &address.address()), right)
                })
                .collect();
            trie.store_mut().watch = Some(Box::new(move |words| {
                for (key, right) in &asked {
                    let class = trie::find(words, *key).checked_sub(1);
                    assert!(right.contains(&class), "{key:?}: {class:?}, {right:?}");
                }
            }));
            trie.insert_all(&inserted).unwrap();
            trie.remove_all(&removed).unwrap();
            trie.store_mut().watch = None;
            for prefix in &about {
                check(&trie, &pair, &mut random, prefix, 4);
            }
            trie.settle().unwrap();
            if number % 4 == 0 {
                assert_eq!(trie.units(), fresh(&pair).units(), "{:?}", pair.prefixes);
            }
        }
    }
}

/// New ones with classes of their own, and some that are there with other classes.
fn drawn(random: &mut Random, pair: &Pair, count: usize) -> Vec<(Prefix, u32)> {
    let first = pair.prefixes.values().max().map_or(0, |class| class + 1);
    let mut prefixes: Vec<Prefix> = (0..count).map(|_| random.prefix()).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    // In no order, and neither are the classes.
    prefixes.sort_by_cached_key(|_| random.next());
    (first..)
        .zip(prefixes)
        .map(|(class, prefix)| (prefix, class))
        .collect()
}

fn some(random: &mut Random, known: &BTreeMap<Prefix, u32>, count: usize) -> Vec<Prefix> {
    let mut prefixes: Vec<Prefix> = known.keys().copied().collect();
    prefixes.sort_by_cached_key(|_| random.next());
    prefixes.truncate(count);
    prefixes.push(random.prefix());
    prefixes.retain(|prefix| known.contains_key(prefix));
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

#[test]
fn prefixes_come_and_go_together() {
    together(6, 40);
}

#[test]
#[ignore = "soak: millions of cases"]
fn prefixes_come_and_go_together_for_long() {
    together(200, 200);
}

/// Many more than are changed at once, in a store that all but holds them.
#[test]
fn what_does_not_fit_together_is_entered_in_parts() {
    let mut random = Random::new();
    let mut prefixes: BTreeMap<Prefix, u32> = BTreeMap::new();
    for class in 0..40_000 {
        let bits = u128::from(random.next()) << 64;
        let prefix = Prefix::new(egress_common::Family::V6, bits, 40 + random.below(24));
        prefixes.entry(prefix).or_insert(class);
    }
    let all: Vec<(Prefix, u32)> = prefixes
        .iter()
        .map(|(prefix, class)| (*prefix, *class))
        .collect();
    let mut wide = Trie::new(Memory::default());
    wide.insert_all(&all).unwrap();
    let needed = wide.store().words.segments;
    for most in 1..=needed {
        let mut trie = Trie::new(Memory {
            most_segments: Some(most),
            ..Memory::default()
        });
        let entered = trie.insert_all(&all);
        assert!(entered.is_ok() || most < needed);
        let mut pair = Pair {
            prefixes: trie.prefixes().collect(),
        };
        assert_eq!(pair.prefixes.len() == all.len(), entered.is_ok());
        for (prefix, _) in all.iter().step_by(100) {
            check(&trie, &pair, &mut random, prefix, 2);
        }
        // What is full can be emptied.
        while !pair.prefixes.is_empty() {
            let there: Vec<Prefix> = pair.prefixes.keys().copied().collect();
            drop(trie.remove_all(&there));
            trie.settle().unwrap();
            pair.prefixes = trie.prefixes().collect();
            assert!(pair.prefixes.len() < there.len(), "nothing goes any more");
        }
        assert_eq!(trie.units(), 0);
    }
}
