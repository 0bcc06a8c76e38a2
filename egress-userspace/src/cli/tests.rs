//! What the pages say of the command line is what it is.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test may fail loudly")]

use std::collections::{BTreeMap, BTreeSet};

use clap::{Arg, FromArgMatches as _};

use super::*;
use crate::{
    diagnostic::Source,
    resources,
    settings::{Flags, Settings},
};

const README: &str = include_str!("../../../README.md");
const FLAGS: &str = include_str!("../../../docs/flags.md");
const METRICS: &str = include_str!("../../../docs/metrics.md");
const SECURITY: &str = include_str!("../../../SECURITY.md");
const CHANGELOG: &str = include_str!("../../../CHANGELOG.md");
const MANIFEST: &str = include_str!("../../../deploy/daemonset.yaml");
const UNIT: &str = include_str!("../../../deploy/egress.service");

/// What every command has.
const COMMON: [&str; 2] = ["help", "version"];

#[test]
fn the_arguments_are_consistent() {
    Cli::command().debug_assert();
}

/// Each command's flags: what the help says of the default, if it says anything.
fn flags() -> BTreeMap<(String, String), Option<String>> {
    let commands = Cli::command();
    let flags = commands.get_subcommands().flat_map(|command| {
        let arguments = command.get_arguments();
        arguments.filter_map(|argument| {
            let long = argument.get_long().filter(|long| !COMMON.contains(long))?;
            let key = (command.get_name().to_owned(), format!("--{long}"));
            Some((key, default(argument)))
        })
    });
    flags.collect()
}

fn default(argument: &Arg) -> Option<String> {
    let values = argument.get_default_values();
    if let Some(value) = values
        .first()
        .filter(|_| argument.get_action().takes_values())
    {
        return Some(value.to_string_lossy().into_owned());
    }
    let help = argument.get_help()?.to_string();
    let (_, rest) = help.split_once("[default: ")?;
    Some(rest.trim_end().trim_end_matches(']').to_owned())
}

/// The rows of `docs/flags.md`: command and flag, and the default that they tell.
fn documented() -> BTreeMap<(String, String), String> {
    let cells = |line: &str| -> Vec<String> {
        let cells = line.trim_matches('|').split(" | ");
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    };
    let rows = FLAGS
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(cells);
    let mut found = BTreeMap::new();
    for row in rows {
        let (command, flag, default) = if row[0].starts_with("--") {
            ("run", &row[0], &row[1])
        } else {
            (row[0].as_str(), &row[1], &row[2])
        };
        let key = (command.to_owned(), flag.clone());
        assert_eq!(
            found.insert(key.clone(), default.clone()),
            None,
            "twice: {key:?}"
        );
    }
    found
}

#[test]
fn every_flag_is_documented_and_no_other() {
    let flags: BTreeSet<_> = flags().into_keys().collect();
    let documented: BTreeSet<_> = documented().into_keys().collect();
    let missing: Vec<_> = flags.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&flags).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "missing {missing:?}, invented {invented:?}"
    );
}

#[test]
fn defaults_are_documented_as_the_help_has_them() {
    /// Where there is no value, and the help need not say so.
    const WITHOUT: [&str; 6] = ["none", "none; needed", "off", "false", "all", "as below"];
    let documented = documented();
    let mut wrong = Vec::new();
    for (key, default) in flags() {
        // Another test asks for those that are missing.
        let Some(told) = documented.get(&key) else {
            continue;
        };
        let agrees = match &default {
            Some(default) => default == told || told == "as below",
            None => WITHOUT.contains(&told.as_str()),
        };
        if !agrees {
            wrong.push(format!(
                "{key:?}: the help has {default:?}, the page {told:?}"
            ));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

fn settings(arguments: &[&str]) -> Settings {
    let command = <Flags as clap::Args>::augment_args(clap::Command::new("egress"));
    let words = ["egress", "--resources", "/r"].iter().chain(arguments);
    let matches = command.try_get_matches_from(words).unwrap();
    Flags::from_arg_matches(&matches)
        .unwrap()
        .settings(None)
        .unwrap()
}

#[test]
fn what_the_help_calls_the_default_changes_nothing() {
    let plain = format!("{:?}", settings(&[]));
    let mut count = 0;
    for ((command, flag), default) in flags() {
        let Some(default) = default.filter(|default| command == "run" && !default.contains(' '))
        else {
            continue;
        };
        let key = "/run/key";
        // Settings of the overlay are checked where there is one.
        let (expected, given) = if flag.starts_with("--overlay") {
            let with = ["--overlay-key-file", key];
            (
                format!("{:?}", settings(&with)),
                settings(&[with[0], with[1], &flag, &default]),
            )
        } else {
            (plain.clone(), settings(&[&flag, &default]))
        };
        assert_eq!(format!("{given:?}"), expected, "{flag} {default}");
        count += 1;
    }
    assert!(count > 20, "only {count} defaults are values");
}

#[test]
fn timeouts_are_documented() {
    for (_, name, seconds) in egress_common::nat::NatState::ALL {
        let words = format!("`{name}={seconds}`");
        assert!(FLAGS.contains(&words), "no word of {words}");
    }
}

#[test]
fn pages_name_only_flags_that_there_are() {
    let known: BTreeSet<String> = flags().into_keys().map(|(_, flag)| flag).collect();
    let mut unknown = BTreeSet::new();
    for (page, text) in [
        ("README.md", README),
        ("docs/flags.md", FLAGS),
        ("docs/metrics.md", METRICS),
        ("SECURITY.md", SECURITY),
        ("CHANGELOG.md", CHANGELOG),
        ("deploy/daemonset.yaml", MANIFEST),
    ] {
        // Tasks of the repository and other programs have flags of their own; what is between comments is written by one.
        let lines = text.lines().filter(|line| {
            !line.contains("xtask") && !line.contains("kubectl") && !line.starts_with("test --")
        });
        for line in lines {
            for (at, _) in line.match_indices("--") {
                let before = line[..at].chars().next_back();
                let length = line[at + 2..]
                    .find(|c: char| !(c.is_ascii_lowercase() || c == '-'))
                    .unwrap_or(line.len() - at - 2);
                let flag = &line[at..at + 2 + length];
                let is_flag = length > 1 && matches!(before, None | Some(' ' | '`' | '('));
                if is_flag && !known.contains(flag) {
                    unknown.insert(format!("{page}: {flag}"));
                }
            }
        }
    }
    assert_eq!(unknown, BTreeSet::new());
}

#[test]
fn every_command_is_in_the_readme() {
    let commands = Cli::command();
    for command in commands.get_subcommands() {
        let words = format!("| `egress {}", command.get_name());
        assert!(README.contains(&words), "no row {words:?}");
    }
}

/// The blocks of YAML of a page, as they stand there.
fn blocks(text: &str) -> Vec<&str> {
    let parts = text.split("```yaml\n").skip(1);
    parts
        .filter_map(|part| Some(part.split_once("```")?.0))
        .collect()
}

#[test]
fn the_readmes_resources_are_valid() {
    const GATEWAY: &str =
        "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {name: a}\n";
    const POLICY: &str = "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata: {name: a}\nspec:\n  \
                          rules:\n";
    let blocks = blocks(README);
    assert!(blocks.len() >= 5, "{blocks:?}");
    for block in blocks {
        let head = match block.split_whitespace().next() {
            Some("apiVersion:") => "",
            Some("spec:") => GATEWAY,
            Some("-") => POLICY,
            other => panic!("a block that begins with {other:?}"),
        };
        let file = resources::parse(&Source::new("README.md", format!("{head}{block}")));
        assert_eq!(file.diagnostics, [], "{block}");
        assert_eq!(file.entries.len(), 1, "{block}");
    }
}

#[test]
fn every_field_is_in_the_readme() {
    const GATEWAY: &str =
        "{apiVersion: egress.fastpath/v1alpha1, kind: EgressGateway, metadata: {name: a}, spec: ";
    const POLICY: &str =
        "{apiVersion: projectcalico.org/v3, kind: EgressGatewayPolicy, metadata: {name: a}, spec: ";
    for text in [
        format!("{GATEWAY} {{another: 1}}}}"),
        format!("{GATEWAY} {{node: a, egressIPs: [192.0.2.1], probes: {{another: 1}}}}}}"),
        format!("{POLICY} {{rules: [{{another: 1}}]}}}}"),
        format!("{POLICY} {{rules: [{{gateway: {{another: 1}}}}]}}}}"),
    ] {
        let found = resources::parse(&Source::new("a", text.clone())).diagnostics;
        let fields = found.iter().find_map(|diagnostic| {
            let (_, fields) = diagnostic.help.as_deref()?.split_once(" are: ")?;
            Some(fields.to_owned())
        });
        for field in fields
            .unwrap_or_else(|| panic!("{text}: {found:?}"))
            .split(", ")
        {
            assert!(README.contains(field), "no word of {field}");
        }
    }
}

#[test]
fn every_annotation_is_in_the_readme() {
    for kind in ["Namespace", "Pod"] {
        let text = format!(
            "{{apiVersion: v1, kind: {kind}, metadata: {{name: a, annotations: {{egress.fastpath/another: b}}}}}}"
        );
        let found = resources::parse(&Source::new("a", text)).diagnostics;
        let (_, names) = found[0].help.as_deref().unwrap().split_once(": ").unwrap();
        for name in names.split(", ") {
            assert!(README.contains(name), "no word of {name}");
        }
    }
}

#[test]
fn the_example_of_a_configuration_is_valid() {
    use std::io::Write as _;
    for text in blocks(FLAGS) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let settings = Flags::default().settings(Some(file.path())).unwrap();
        assert!(!settings.hold_interfaces.is_empty());
    }
}

#[test]
fn the_manifest_and_the_unit_start_the_agent() {
    let words: Vec<&str> = MANIFEST
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "- /egress")
        .map_while(|line| line.strip_prefix("- "))
        .collect();
    let unit = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .unwrap();
    for words in [words, unit.split(' ').collect()] {
        assert!(words.len() > 2, "{words:?}");
        Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
    }
}

/// What the README shows of an answer.
#[test]
fn explaining_from_files_names_no_numbers() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    for (destination, expected) in [
        ("192.0.2.80", "default/red via next hop 172.19.0.11 on eth1"),
        (
            "198.51.100.80",
            "default/blue via next hop 172.19.0.12 on the interface that leads there",
        ),
    ] {
        let words = [
            "egress",
            "explain",
            "--pod",
            "shop/web",
            "--dst",
            destination,
            "--resources",
            examples,
        ];
        let Command::Explain(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("{words:?} is another command");
        };
        let (resolved, interfaces) = offline(&args, &args.args.resources, None).unwrap();
        let answer = crate::explain::offline(&resolved, &interfaces, &args.args.pod, args.args.dst);
        let text = answer.to_string();
        for part in [expected, "source     10.65.0.10 on an interface of its own"] {
            assert!(text.contains(part), "no word of {part:?} in\n{text}");
        }
        let head = text.lines().next().unwrap();
        assert!(
            destination != "192.0.2.80" || README.contains(head),
            "{head}"
        );
    }
}
