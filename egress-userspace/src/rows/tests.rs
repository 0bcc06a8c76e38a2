//! Rows of both forms beside plain lists of numbers.

use std::collections::BTreeMap;

use egress_common::cells::{Line, RowPlace};
use proptest::prelude::*;

use super::*;

/// Small rows may be sparse too.
const SOON: Limits = Limits {
    matrix_memory: 1 << 30,
    sparse_from: 0,
    pods: 0,
    prefixes: 0,
    verdicts: 0,
    members: 0,
    policies: 0,
};

fn row(numbers: &[u16]) -> Row {
    let places = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
    Row::new(places, (0..).zip(numbers.iter().copied()), &SOON)
}

proptest! {
    #[test]
    fn a_row_is_its_numbers(numbers in prop::collection::vec(0_u16..4, 0..300)) {
        let row = row(&numbers);
        prop_assert_eq!(row.cells().collect::<Vec<_>>(), numbers.clone());
        for (place, number) in (0..).zip(&numbers) {
            prop_assert_eq!(row.number(place), *number);
        }
        prop_assert_eq!(row.number(u32::try_from(numbers.len())?), 0);
        prop_assert_eq!(row.highest(), numbers.iter().copied().max().unwrap_or(0));
        let count = |n| numbers.iter().filter(|number| **number == n).count();
        prop_assert!((0..4).all(|n| count(n) <= count(row.common())));
        let others: Vec<_> = (0..).zip(numbers.iter().copied()).filter(|(_, n)| *n != row.common()).collect();
        prop_assert_eq!(row.others().collect::<Vec<_>>(), others);
    }

    #[test]
    fn a_sparse_row_says_what_was_entered(
        steps in prop::collection::vec((0_u32..200, 0_u16..9, any::<bool>()), 0..200),
        shift in 0_u32..6,
        common in 0_u16..3,
    ) {
        let Some(mut sparse) = Sparse::new(shift, common, []) else { unreachable!("it is empty") };
        let mut said: BTreeMap<u32, u16> = BTreeMap::new();
        for (class, number, enter) in steps {
            let before = places(&sparse);
            if enter {
                if sparse.set(class, number, |class| said.contains_key(&class)).is_some() {
                    said.insert(class, number);
                }
            } else {
                // Its prefix is gone; its entry stays, until it is in somebody's way.
                said.remove(&class);
            }
            let after = places(&sparse);
            for class in said.keys().filter(|other| **other != class) {
                prop_assert_eq!(before.get(class), after.get(class), "{} moved", class);
            }
        }
        for (class, number) in &said {
            prop_assert_eq!(sparse.number(*class), *number);
        }
        let mut forgotten = sparse.clone();
        for class in 0..200 {
            forgotten.forget(class);
            prop_assert_eq!(forgotten.number(class), common);
        }
        let lines = Cells::Sparse(sparse.clone()).lines();
        prop_assert_eq!(lines.len(), 1 << shift);
        prop_assert_eq!(Cells::from_lines(RowPlace::sparse(9, shift), &lines), Cells::Sparse(sparse));
        prop_assert_eq!(Cells::Sparse(forgotten).highest(&[true; 200]), common);
    }
}

/// Line and entry of each class.
fn places(sparse: &Sparse) -> BTreeMap<u32, (usize, usize)> {
    let lines = Cells::Sparse(sparse.clone()).lines();
    let lines = lines.iter().map(SparseLine::from_line).enumerate();
    lines
        .flat_map(|(at, line)| {
            let entries = line.classes.into_iter().enumerate();
            entries.filter_map(move |(entry, class)| Some((class.checked_sub(1)?, (at, entry))))
        })
        .collect()
}

#[test]
fn rows_are_sparse_where_that_takes_half_the_room() {
    let cases: [(&str, usize, usize, bool); 6] = [
        ("nothing at all", 0, 0, true),
        ("few classes, one of its own", 100, 1, true),
        ("few classes, all of their own", 100, 99, false),
        ("many classes, few of its own", 100_000, 400, true),
        ("many classes, half of its own", 100_000, 50_000, false),
        (
            "many classes, those of two lines each of its own",
            8192,
            640,
            true,
        ),
    ];
    for (what, all, own, sparse) in cases {
        let numbers: Vec<u16> = (0..all)
            .map(|place| u16::try_from(if place < own { place + 1 } else { 0 }).unwrap_or(u16::MAX))
            .collect();
        let row = row(&numbers);
        assert_eq!(row.is_sparse(), sparse, "{what}: {} lines", row.lines());
        let dense = Extent::lines_given(u32::try_from(all).unwrap_or(u32::MAX));
        if sparse {
            assert!(row.lines() <= dense / 2, "{what}: {}", row.lines());
        } else {
            assert_eq!(row.lines(), dense, "{what}");
        }
    }
}

#[test]
fn a_row_without_lines_of_its_own_is_one_line() {
    let empty = Sparse::new(0, 3, []);
    assert_eq!(empty.map(|row| row.number(77)), Some(3));
    let zero = Cells::from_lines(RowPlace::sparse(0, 0), &[Line::ZERO]);
    assert_eq!(zero.number(0), Some(0));
}
