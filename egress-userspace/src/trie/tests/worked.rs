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
        "2001:db8:7:100::/56",
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
        ("2001:db8:7:180::1", Some(6)),
        ("2001:db8:7:200::1", Some(5)),
        ("2001:db8:8::1", None),
    ] {
        let (family, addr) = address(asked);
        assert_eq!(trie.class(family, &addr), class, "{asked}");
    }
}

/// As it stands there.
const EXAMPLE: &[(Place, u64)] = &[
    (Place::Root(0x1000), 0x0000_0000_0000_0006),
    (Place::Root(0x0140), 0x0000_0000_0000_000a),
    (Place::Root(0x014c), 0x0000_0000_0000_000e),
    (Place::Root(0x014d), 0x0000_0000_0000_000e),
    (Place::Root(0x1800), 0x1000_0000_0000_0000),
    (Place::Root(0x4c00), 0x0000_0001_0000_0001),
    (Place::Unit(0), 0x0050_0030_0000_0016),
    (Place::Unit(1), 0x0040_002c_0000_0012),
    (Place::Unit(2), 0x0000_0000_0000_0000),
    (Place::Unit(7), 0x0000_0000_0000_0000),
    (Place::Root(0x2400), 0x0000_0000_0000_0033),
    (Place::Unit(12), 0x21b7_0000_0000_0020),
    (Place::Unit(13), 0x4000_8000_0000_0029),
    (Place::Unit(10), 0x0200_001c_0000_001e),
    (Place::Unit(11), 0x0000_0000_0000_0006),
];
