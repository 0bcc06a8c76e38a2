//! The example of ARCHITECTURE.md, word by word.

use super::{Memory, Trie, address, net};
use crate::trie::Place;

#[test]
fn the_example_of_the_architecture_is_right() {
    let mut trie = Trie::new(Memory::default());
    for (class, prefix) in (0..).zip([
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.96.0.0/12",
        "192.0.2.0/24",
        "192.0.2.128/25",
        "2001:db8:7::/48",
    ]) {
        trie.insert(net(prefix), class).unwrap();
    }
    let words = &trie.store().words;
    for (place, word) in EXAMPLE {
        assert_eq!(words.get(*place), *word, "{place:?}");
    }
    for (asked, class) in [
        ("8.8.8.8", Some(0)),
        ("10.1.2.3", Some(1)),
        ("10.97.0.1", Some(2)),
        ("192.0.2.80", Some(3)),
        ("192.0.2.200", Some(4)),
        ("192.0.3.1", Some(0)),
        ("2001:db8:7::1", Some(5)),
        ("2001:db8:8::1", None),
    ] {
        let (family, addr) = address(asked);
        assert_eq!(trie.class(family, &addr), class, "{asked}");
    }
}

/// Class and one in the upper half, child in the lower.
const EXAMPLE: &[(Place, u64)] = &[
    (Place::Root(0x080), 0x0000_0001_0000_0000),
    (Place::Root(0x0a0), 0x0000_0002_0000_0000),
    (Place::Root(0x0a6), 0x0000_0003_0000_0000),
    (Place::Root(0xc00), 0x0000_0001_8000_000a),
    (Place::Unit(10, 0), 0x0000_0000_0000_0008),
    (Place::Unit(10, 1), 0x0000_0000_0000_0010),
    (Place::Unit(17, 0), 0x0000_0004_8000_0009),
    (Place::Unit(17, 1), 0x0000_0000_0000_0000),
    (Place::Unit(9, 0), 0x8000_0000_0000_0001),
    (Place::Unit(9, 1), 0x0000_0005_0000_0000),
    (Place::Root(0x1200), 0x0000_0000_8000_000b),
    (Place::Unit(11, 0), 0x10db_8000_7000_0024),
    (Place::Unit(11, 1), 0x0000_0006_0000_0000),
];
