//! Which roots have lines, and how many.

use egress_common::{
    Family,
    trie::{Meaning, Word, lines::Lines},
};

use super::{
    Memory, Prefix, Random, Trie,
    changes::{Pair, check},
};
use crate::trie::Place;

/// Lines of the root of 192.0.0.0/13: how many bits choose one.
fn bits(trie: &Trie<Memory>) -> Option<u32> {
    let word = Word(trie.store().words.get(Place::Root(0x1800)));
    if let Meaning::Lines(Lines { bits, .. }) = word.meaning() {
        Some(bits)
    } else {
        None
    }
}

/// The `number`th prefix of that length from 192.0.0.0 on.
fn numbered(number: u32, length: u32) -> Prefix {
    let bits = (0xc000_0000 | number << (32 - length)).into();
    let bits: u128 = bits;
    Prefix::new(Family::V4, bits << 96, length)
}

#[test]
fn there_are_as_few_lines_as_hold_all() {
    // Every prefix of so many bits that is a multiple of something: how many, and what comes of it in bits and units.
    for (length, step, count, expected, units) in [
        (24, 1, 1, None, 0),
        (24, 1, 2, Some(0), 8),
        (32, 1, 8, Some(0), 8),
        // The ninth is in a line behind the first of two.
        (24, 1, 9, Some(1), 32),
        (24, 128, 16, Some(1), 16),
        (24, 1, 15, Some(1), 32),
        // All in one half: a quarter would have sixteen, so there are eighths.
        (24, 32, 31, Some(3), 64),
        (18, 1, 32, Some(2), 32),
        (24, 1, 2048, Some(8), 2048),
        (24, 1, 1792, Some(8), 2048),
    ] {
        let mut trie = Trie::new(Memory::default());
        let all: Vec<(Prefix, u32)> = (0..count)
            .map(|class| (numbered(class * step, length), class))
            .collect();
        trie.insert_all(&all).unwrap();
        trie.settle().unwrap();
        let what = format!("{count} times /{length}, one in {step}");
        assert_eq!((bits(&trie), trie.units()), (expected, units), "{what}");
    }
}

#[test]
fn what_is_too_crowded_or_too_much_has_nodes() {
    for (length, most, step, one_more) in [(24, 15, 1, 15), (25, 2048, 2, 1)] {
        let mut trie = Trie::new(Memory::default());
        let mut pair = Pair::default();
        let mut random = Random::new();
        for class in 0..most {
            pair.prefixes.insert(numbered(class * step, length), class);
        }
        let all: Vec<(Prefix, u32)> = pair.prefixes.clone().into_iter().collect();
        trie.insert_all(&all).unwrap();
        trie.settle().unwrap();
        let before = (bits(&trie), trie.units());
        assert!(before.0.is_some(), "/{length}");
        let one_more = numbered(one_more, length);
        for _ in 0..3 {
            trie.insert(one_more, most).unwrap();
            pair.prefixes.insert(one_more, most);
            trie.settle().unwrap();
            assert_eq!(bits(&trie), None, "/{length}");
            check(&trie, &pair, &mut random, &one_more, 200);
            trie.remove(&one_more).unwrap();
            pair.prefixes.remove(&one_more);
            trie.settle().unwrap();
            assert_eq!((bits(&trie), trie.units()), before, "/{length}");
            check(&trie, &pair, &mut random, &one_more, 200);
        }
    }
}
