#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use proptest::prelude::*;

use super::*;

/// Names of a small world, in which numbers change hands.
fn names() -> impl Strategy<Value = Arc<Names>> {
    let few = |what: &'static str| {
        prop::collection::btree_map(0_u8..4, 1_u32..6, 0..3).prop_map(
            move |pairs| -> Vec<(String, u32)> {
                pairs
                    .into_iter()
                    .map(|(n, id)| (format!("{what}{n}"), id))
                    .collect()
            },
        )
    };
    let members = prop::collection::btree_map(0_u32..12, 0_u8..12, 0..8);
    (few("p"), members, few("g"), few("n")).prop_map(|(policies, members, gateways, nodes)| {
        Arc::new(Names {
            policies: policies.into_iter().collect(),
            members: members
                .into_iter()
                .map(|(id, label)| (Arc::new(label_of(label)), id))
                .collect(),
            gateways: gateways
                .into_iter()
                .map(|(name, id)| (ObjectName::new("default", &name), id))
                .collect(),
            nodes: nodes.into_iter().collect(),
        })
    })
}

fn label_of(number: u8) -> MemberLabel {
    MemberLabel {
        namespace: "default".to_owned(),
        gateway: format!("gateway\n{number}"),
        policy: "p".to_owned(),
        rule: "default".to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A file that breaks off at any byte says what was kept before that byte was written.
    #[test]
    fn at_every_byte_the_last_names_are_known_that_were_kept(
        steps in prop::collection::vec(names(), 1..6),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("names");
        let mut journal: Option<Journal> = None;
        let mut kept: Vec<(usize, Arc<Names>)> = Vec::new();
        for names in &steps {
            match &mut journal {
                Some(journal) => journal.keep(names).unwrap(),
                None => journal = Some(Journal::begin(&path, names).unwrap()),
            }
            let bytes = fs::read(&path).unwrap();
            prop_assert_eq!(&read(&path).unwrap(), &**names);
            kept.push((bytes.len(), Arc::clone(names)));
        }
        let bytes = fs::read(&path).unwrap();
        for length in kept[0].0..=bytes.len() {
            let expected = kept.iter().rev().find(|(end, _)| *end <= length).unwrap();
            prop_assert_eq!(&understand(&bytes[..length]).unwrap(), &*expected.1);
        }
    }

    /// Whatever is in a file, it is understood as it was written or not at all.
    #[test]
    fn what_is_damaged_is_refused_or_as_if_it_were_not_there(
        first in names(),
        second in names(),
        third in names(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("names");
        let mut journal = Journal::begin(&path, &first).unwrap();
        journal.keep(&second).unwrap();
        journal.keep(&third).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        if let Ok(names) = understand(&bytes) {
            // A last line without its end is one that was not written in full.
            prop_assert!(names == *third || names == *second || names == *first);
        }
    }
}

fn one(number: u8) -> Arc<Names> {
    Arc::new(Names {
        members: vec![(Arc::new(label_of(number)), number.into())],
        ..Names::default()
    })
}

#[test]
fn what_an_earlier_version_wrote_is_read() {
    let names = one(3);
    let bytes = serde_json::to_vec(&*names).unwrap();
    assert_eq!(understand(&bytes).unwrap(), *names);
    // And it understands nothing of what is written now: better than to take it for something else.
    let (line, _) = line(Checksum::default(), &*names).unwrap();
    assert!(serde_json::from_slice::<Names>(&line).is_err());
}

#[test]
fn lines_are_only_good_together() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("names");
    let mut journal = Journal::begin(&path, &one(1)).unwrap();
    journal.keep(&one(2)).unwrap();
    journal.keep(&one(3)).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for (what, text) in [
        ("without the first", lines[1..].concat()),
        ("without the second", [lines[0], lines[2]].concat()),
        ("in another order", [lines[0], lines[2], lines[1]].concat()),
        ("twice the same", [lines[0], lines[1], lines[1]].concat()),
        ("empty", String::new()),
    ] {
        assert!(understand(text.as_bytes()).is_err(), "{what}");
    }
}

#[test]
fn names_of_another_boot_are_none() {
    let first = First {
        boot: "another",
        names: &*one(1),
    };
    let (line, _) = line(Checksum::default(), &first).unwrap();
    assert_eq!(understand(&line).unwrap(), Names::default());
}

#[test]
fn what_grows_is_written_anew_and_what_is_removed_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("names");
    let mut journal = Journal::begin(&path, &one(1)).unwrap();
    let mut kept = 0_u64;
    while !journal.is_long() {
        journal.keep(&one(u8::try_from(kept % 2).unwrap())).unwrap();
        kept += 1;
        assert!(kept < 10_000, "it never is long");
    }
    assert!(fs::metadata(&path).unwrap().len() > FEW);
    assert!(journal.takes(&one(1)));
    fs::remove_file(&path).unwrap();
    assert!(!journal.takes(&one(1)), "nobody would read it");
}
