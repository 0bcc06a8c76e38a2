#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::path::Path;

use super::*;

#[test]
fn patterns_name_interfaces() {
    for (pattern, named, not_named) in [
        (
            "cali*",
            &["cali", "cali0", "cali-web0"][..],
            &["cal", "vxlan.calico", "lo"][..],
        ),
        ("eth1", &["eth1"], &["eth10", "eth"]),
        ("lxc_*", &["lxc_a"], &["lxc", "lxca"]),
    ] {
        let pattern = Pattern::new(pattern).unwrap();
        for name in named {
            assert!(pattern.matches(name), "{pattern} {name}");
        }
        for name in not_named {
            assert!(!pattern.matches(name), "{pattern} {name}");
        }
    }
}

#[test]
fn patterns_of_everything_or_of_nothing_are_refused() {
    for (text, part) in [
        ("*", "every interface"),
        ("", "every interface"),
        ("ca*li*", "beginning"),
        ("a/b*", "beginning"),
        ("a b", "beginning"),
        ("..", "beginning"),
        ("sixteen-letters-*", "15 bytes"),
    ] {
        let refusal = Pattern::new(text).unwrap_err();
        assert!(refusal.contains(part), "{text}: {refusal}");
    }
}

#[test]
fn every_agent_of_a_kernel_has_a_table_of_its_own() {
    for (pin_dir, name) in [
        ("/sys/fs/bpf/egress", "egress"),
        ("/sys/fs/bpf/egress-2/a", "egress-2-a"),
        ("/mnt/bpf/x y", "egress-mnt-bpf-x-y"),
    ] {
        assert_eq!(HoldTable::of(Path::new(pin_dir)).name(), name);
    }
}

#[test]
fn comments_are_read_as_they_were_written() {
    let table = HoldTable::of(Path::new(&format!("/sys/fs/bpf/{}", "x".repeat(300))));
    assert!(table.comment.len() <= MAX_COMMENT);
    assert_eq!(
        comment(&commented(&table.comment)).as_ref(),
        Some(&table.comment)
    );
    assert_eq!(comment(&[]), None);
    assert_eq!(comment(&[1, 1, 0]), None);
}

#[test]
fn many_interfaces_are_told_in_parts() {
    let table = HoldTable::of(Path::new("/sys/fs/bpf/egress"));
    for (interfaces, parts) in [(0, 0), (1, 1), (1024, 1), (1025, 2), (70_000, 69)] {
        assert_eq!(table.elements(&(0..interfaces).collect()).len(), parts);
    }
}

#[test]
fn the_last_rule_drops_whatever_came_so_far() {
    for family in FAMILIES {
        let patterns = [
            Pattern::new("cali*").unwrap(),
            Pattern::new("eth1").unwrap(),
        ];
        let rules = rules(family, &patterns);
        let hooked = rules.iter().filter(|(chain, _)| *chain == HOOKED).count();
        assert_eq!(hooked, patterns.len());
        let (chain, last) = rules.last().unwrap();
        let names: Vec<_> = parse(last.as_bytes())
            .filter_map(|(_, one)| attribute(one, 1))
            .collect();
        assert_eq!(*chain, CLOSED);
        assert_eq!(names, [b"objref\0".as_slice(), b"immediate\0"]);
    }
}
