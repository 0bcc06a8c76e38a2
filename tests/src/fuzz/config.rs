//! What the operator writes beside resources: configuration, arguments, keys.

use clap::Parser as _;
use egress_common::overlay::Tag;
use egress_userspace::{
    cli::Cli,
    node::Pattern,
    overlay_keys::{KeyError, OverlayKeys},
    settings::{Flags, NatTimeout, PortRange, Settings},
};

use super::steered::in_file;

/// Most words of a command line.
const WORDS: usize = 24;

pub(super) fn run(data: &[u8]) {
    keys(data);
    match in_file(data, |path| Flags::default().settings(Some(path))) {
        Ok(settings) => check_settings(&settings),
        Err(error) => assert!(
            format!("{error:#}").len() > 20,
            "an error says nothing: {error:#}"
        ),
    }
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let words = text.split_whitespace().take(WORDS);
    // What is not understood is told, also when it is the help that was asked for.
    if let Err(error) = Cli::try_parse_from(["egress"].into_iter().chain(words)) {
        assert!(!error.to_string().is_empty(), "an error says nothing");
    }
    for line in text.lines().take(4) {
        small_values(line);
    }
}

fn check_settings(settings: &Settings) {
    assert!(!settings.resources.is_empty(), "no resources");
    let (first, last) = settings.nat.ports;
    assert!(0 < first && first <= last, "ports {first} to {last}");
    assert_eq!(settings.resolve.nat_ports, settings.nat.ports);
    assert!(
        0 < settings.nat.source_quota && settings.nat.source_quota <= settings.nat.connections,
        "{:?}",
        settings.nat
    );
    assert!(
        settings.nat.timeouts.iter().all(|seconds| *seconds > 0),
        "connections that end at once: {:?}",
        settings.nat
    );
    if let Some(overlay) = &settings.overlay {
        assert!(
            overlay.port > 0 && overlay.vni > 0 && overlay.vni < 1 << 24,
            "{overlay:?}"
        );
        assert!(overlay.device.len() < 16, "{overlay:?}");
    }
    assert_eq!(settings.limits.pods, settings.load.capacities.pods);
    assert_eq!(settings.limits.members, settings.load.capacities.members);
}

/// One key or two, or an error that tells none of them.
fn keys(data: &[u8]) {
    let lines = data.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let written: Vec<&[u8]> = lines
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .collect();
    let parsed = OverlayKeys::parse(data);
    let good = match written.as_slice() {
        [one] => one.len() >= 16,
        [one, other] => one.len() >= 16 && other.len() >= 16 && one != other,
        _ => false,
    };
    assert_eq!(parsed.is_ok(), good, "{parsed:?}");
    match parsed {
        Ok(keys) => {
            let tag = keys.tag(4097, "a", "b");
            let accepted = keys.accepted(4097, "a", "b");
            assert_ne!(tag, Tag::ZERO);
            assert_eq!(accepted[0], tag);
            assert_eq!(accepted[1] == Tag::ZERO, written.len() == 1);
            assert_ne!(tag, keys.tag(4097, "b", "a"), "both ways have one tag");
        }
        Err(error) => {
            let none = matches!(error, KeyError::None);
            assert_eq!(none, written.is_empty(), "{error}");
            let told = format!("{error} {error:?}");
            // What is shorter is in any sentence.
            let secret = written.iter().filter(|line| line.len() >= 8);
            for line in secret.filter_map(|line| str::from_utf8(line).ok()) {
                assert!(
                    !told.contains(line) || SENTENCES.iter().any(|known| known.contains(line)),
                    "an error tells the key: {told}"
                );
            }
        }
    }
}

/// Words of the errors themselves, which somebody may write into the file.
const SENTENCES: &[&str] = &[
    "there is no key: write one on a line of its own, at least 16 bytes long, the same on every node",
    "is the third key, and there can be two: take out the one that no node uses any more",
    "and at least 16 are needed: make a longer one at random",
    "is the first key once more: write another, or take it out",
    "TooShort { line: , bytes: }",
    "TooMany { line: }",
];

fn small_values(text: &str) {
    if let Ok(range) = text.parse::<PortRange>() {
        assert!(0 < range.first && range.first <= range.last, "{range:?}");
    }
    if let Ok(timeout) = text.parse::<NatTimeout>() {
        assert!(timeout.seconds > 0, "{timeout:?}");
        let printed = timeout.to_string();
        assert_eq!(printed.parse(), Ok(timeout), "{printed}");
    }
    if let Ok(pattern) = Pattern::new(text) {
        let stem = text.trim_end_matches('*');
        assert!(pattern.matches(stem), "{text:?} does not match {stem:?}");
        assert!(!pattern.matches(""), "{text:?} matches no name");
        assert_eq!(pattern.to_string(), text);
    }
}
