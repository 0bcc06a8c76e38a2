#![expect(clippy::unwrap_used, reason = "a panic fails the test where it is")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::UNIX_EPOCH,
};

use egress_common::{
    Addr, DropReason, WireU16,
    counter::{Answer, Direction},
    gateway::GatewayId,
};

use super::*;
use crate::{
    counters::{
        CounterSource,
        tests::{Fake, Kernel, label},
    },
    gateway_id::gateway_id,
    model::ObjectName,
    nat::{Load, Remote},
    resolve::Resolved,
    snapshot::{Apply, AttachedProgram, Degraded, OwnedAddress},
    state::Names,
};

/// The metrics of a small node, and its kernel.
pub(crate) fn node() -> (Arc<Metrics>, Arc<Fake>) {
    let names = Names {
        policies: BTreeMap::from([("to-partners".to_owned(), 1)]),
        members: vec![(Arc::new(label("red")), 0), (Arc::new(label("blue")), 1)],
        gateways: BTreeMap::from([(red(), 5)]),
        ..Names::default()
    };
    let fake = Arc::new(Fake::default());
    *fake.kernel.lock().unwrap() = Kernel {
        members: BTreeMap::from([(0, count(12, 3400))]),
        drops: BTreeMap::from([
            ((0, DropReason::SpoofedSource), count(3, 180)),
            ((1, DropReason::TooBig), count(1, 9000)),
        ]),
        passes: BTreeMap::from([
            ((1, PassKind::Unmatched), count(2, 96)),
            ((1, PassKind::Inbound), count(1, 52)),
        ]),
        translated: BTreeMap::from([
            ((5, Direction::Out), count(6, 600)),
            ((5, Direction::Back), count(4, 4000)),
        ]),
        gateway_drops: BTreeMap::from([
            ((5, DropReason::NatExhausted), count(8, 480)),
            ((5, DropReason::OverlayForged), count(1, 60)),
        ]),
        answers: BTreeMap::from([(Answer::TooBig, 2), (Answer::TimeExceeded, 0)]),
        maps: vec![MapUse {
            name: "PODS".to_owned(),
            entries: 2,
            capacity: 4096,
            counted: None,
        }],
        broken: false,
    };
    let counters = Counters::taking_over(Arc::clone(&fake) as Arc<dyn CounterSource>, &names);
    let metrics = Metrics::new(
        Arc::new(ArcSwap::from_pointee(snapshot(names))),
        Arc::new(counters),
    )
    .with_connections(Arc::new(ArcSwap::from_pointee(connections())));
    metrics.observe_apply(Duration::from_millis(4));
    metrics.observe_apply(Duration::from_millis(300));
    (Arc::new(metrics), fake)
}

fn red() -> ObjectName {
    ObjectName::new("edge", "red")
}

fn connections() -> Statistics {
    let load = |egress: [u8; 4], available| Load {
        remote: Remote {
            egress: Addr::v4(egress),
            remote: Addr::v4([192, 0, 2, 80]),
            port: WireU16::new(443),
            protocol: 6,
        },
        used: 300,
        available,
    };
    Statistics {
        connections: BTreeMap::from([
            ((gateway_id(&red()), 6), 300),
            ((gateway_id(&red()), 58), 1),
            ((GatewayId(0xabc), 17), 2),
        ]),
        fullest: vec![
            load([203, 0, 113, 1], Some(400)),
            load([203, 0, 113, 9], None),
        ],
        capacity: 4096,
        out_entries: 303,
        back_entries: 304,
    }
}

fn count(packets: u64, bytes: u64) -> Count {
    Count { packets, bytes }
}

pub(crate) fn snapshot(names: Names) -> Snapshot {
    let resolved = Resolved {
        gateways: BTreeMap::from([
            (red(), GatewayStatus::Up(vec![])),
            (
                ObjectName::new("edge", "blue"),
                GatewayStatus::Down("no route to 192.0.2.9".to_owned()),
            ),
        ]),
        pod_states: BTreeMap::from([
            (ObjectName::new("shop", "web"), PodState::Steered),
            (ObjectName::new("shop", "job"), PodState::Finished),
        ]),
        ..Resolved::default()
    };
    Snapshot {
        node: "node-a".to_owned(),
        generation: 2,
        synced: true,
        resolved: Arc::new(resolved),
        names: Arc::new(names),
        resource_errors: BTreeMap::from([(PathBuf::from("/etc/egress/a \"b\"\\c\n.yaml"), 1)]),
        skipped: BTreeMap::from([("Deployment".to_owned(), 4)]),
        degraded: [Degraded {
            kind: "EgressGatewayPolicy".to_owned(),
            namespace: String::new(),
            name: "to-partners".to_owned(),
            last_good: true,
            error: "two rules with one destination".to_owned(),
        }]
        .into(),
        last_apply: Some(Apply {
            finished: UNIX_EPOCH + Duration::from_millis(1_700_000_000_500),
            duration: Duration::from_millis(4),
            changes: 7,
            error: None,
        }),
        last_success: Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_500)),
        programs: vec![AttachedProgram {
            interface: "veth0".to_owned(),
            program: "egress_from_pod".to_owned(),
            attached: true,
            mode: "tcx".to_owned(),
        }],
        egress: vec![OwnedAddress {
            address: [203, 0, 113, 1].into(),
            namespace: "edge".to_owned(),
            gateway: "red".to_owned(),
            interface: "eth0".to_owned(),
            ports: (1024, 65535),
            holder: "agent".to_owned(),
            in_place: true,
        }],
        addresses_restored: 1,
        ..Snapshot::default()
    }
}

/// Writes the architecture out of the golden files.
fn neutral(text: &str) -> String {
    text.replace(std::env::consts::ARCH, "ARCH")
}

#[test]
fn open_metrics() {
    let (metrics, _) = node();
    insta::assert_snapshot!(neutral(&metrics.render(Format::OpenMetrics).unwrap()));
}

#[test]
fn prometheus_text() {
    let (metrics, _) = node();
    insta::assert_snapshot!(neutral(&metrics.render(Format::Text).unwrap()));
}

#[test]
fn both_formats_show_the_same_samples() {
    let (metrics, _) = node();
    let samples = |format| {
        let text = metrics.render(format).unwrap();
        parse(&text, format)
    };
    let open = samples(Format::OpenMetrics);
    assert_eq!(open, samples(Format::Text));
    assert_eq!(
        open[r#"egress_gateway_packets_total{gateway="red",namespace="edge",policy="to-partners",rule="192.0.2.0/24"}"#],
        12.0
    );
    assert_eq!(
        open[r#"egress_gateway_bytes_total{gateway="blue",namespace="edge",policy="to-partners",rule="192.0.2.0/24"}"#],
        0.0
    );
    assert_eq!(
        open[r#"egress_dropped_packets_total{reason="NoGateway",policy="to-partners"}"#],
        0.0
    );
    assert_eq!(
        open[r#"egress_local_packets_total{policy="to-partners"}"#],
        0.0
    );
}

#[test]
fn a_failing_kernel_fails_the_scrape_and_is_counted_in_the_next() {
    let (metrics, fake) = node();
    fake.kernel.lock().unwrap().broken = true;
    let error = metrics.render(Format::Text).unwrap_err();
    assert!(format!("{error:#}").contains("MEMBER_COUNTS"));
    fake.kernel.lock().unwrap().broken = false;
    let text = metrics.render(Format::Text).unwrap();
    assert_eq!(
        parse(&text, Format::Text)["egress_scrape_errors_total"],
        1.0
    );
}

#[test]
fn open_metrics_only_for_those_who_name_it() {
    let negotiate = |accept| Format::negotiate(Some(accept));
    assert_eq!(Format::negotiate(None), Format::Text);
    assert_eq!(negotiate("*/*"), Format::Text);
    assert_eq!(negotiate("text/plain;version=0.0.4"), Format::Text);
    assert_eq!(
        negotiate("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2"),
        Format::OpenMetrics
    );
    assert_eq!(negotiate("application/openmetrics-text;q=0"), Format::Text);
}

const DOCS: &str = include_str!("../../../docs/metrics.md");

/// The names of labels of a sample, but for a histogram's own.
fn label_names(sample: &str) -> BTreeSet<&str> {
    let (_, labels) = sample.split_once('{').unwrap_or_default();
    let names = labels.split("=\"").filter_map(|part| {
        let name = part.rsplit(['"', ',']).next()?;
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        (!name.is_empty() && name.chars().all(is_name) && name != "le").then_some(name)
    });
    names.collect()
}

#[test]
fn every_metric_is_documented_with_its_type_and_labels_and_nothing_else_is() {
    let text = holding(|| Ok(count(3, 180))).render(Format::Text).unwrap();
    let shown: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let cells = |line: &'static str| -> Vec<&'static str> {
        line.trim_matches('|').split(" | ").map(str::trim).collect()
    };
    let rows = DOCS.lines().filter(|line| line.starts_with("| `egress_"));
    let documented: BTreeMap<&str, Vec<&str>> = rows
        .map(|row| (cells(row)[0].trim_matches('`'), cells(row)))
        .collect();
    assert!(
        shown.keys().eq(documented.keys()),
        "{:?} and {:?}",
        shown.keys(),
        documented.keys()
    );
    let samples = parse(&text, Format::Text);
    for (name, kind) in &shown {
        // In this format what only informs is a gauge.
        let row = &documented[name];
        assert!(
            *kind == row[1] || row[1] == "info",
            "{name}: {kind}, {row:?}"
        );
        let labels: BTreeSet<&str> = row[2].split('`').skip(1).step_by(2).collect();
        for sample in samples.keys() {
            let of = sample.split('{').next().unwrap();
            let part = of.strip_prefix(name).unwrap_or(of);
            if ["", "_bucket"].contains(&part) {
                assert_eq!(label_names(sample), labels, "{sample}");
            }
        }
    }
}

#[test]
fn alerts_ask_for_metrics_and_reasons_that_there_are() {
    let text = holding(|| Ok(count(3, 180))).render(Format::Text).unwrap();
    let (_, alerts) = DOCS.split_once("## Alerts").unwrap();
    let expressions: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("expr: "))
        .collect();
    assert!(expressions.len() > 15);
    for expression in expressions {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("egress_")) {
            let is_there = text.contains(&format!("# TYPE {word} "));
            assert!(is_there, "{word} in {expression}");
        }
        for (label, ends) in [("reason", "\""), ("state", "\"")] {
            for given in expression.split(&format!("{label}=")).skip(1) {
                let values = given.trim_start_matches(['~', '"']).split(ends);
                for value in values.take(1).flat_map(|list| list.split('|')) {
                    assert!(DOCS.contains(&format!("| `{value}` |")), "{label} {value}");
                }
            }
        }
    }
}

#[test]
fn every_drop_reason_is_documented() {
    let docs = DOCS;
    let reasons: Vec<_> = DropReason::ALL
        .iter()
        .filter(|r| !docs.contains(&format!("| `{}` |", r.name())))
        .collect();
    assert_eq!(reasons, [&DropReason::TooBig; 0]);
}

/// The names in the first column of the tables below a heading.
fn first_column<'d>(docs: &'d str, heading: &str) -> Vec<&'d str> {
    let (_, rest) = docs.split_once(heading).unwrap();
    let section = rest.split("\n## ").next().unwrap_or(rest);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0))
        .collect()
}

#[test]
fn the_pages_name_only_metrics_reasons_and_states_that_there_are() {
    let docs = include_str!("../../../docs/metrics.md");
    let text = holding(|| Ok(count(3, 180))).render(Format::Text).unwrap();
    let types = text
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next());
    let mut known: BTreeSet<&str> = types.collect();
    // A label.
    known.insert("egress_address");
    known.extend(
        crate::kernel::Program::ALL
            .iter()
            .map(|program| program.name()),
    );
    for (page, text) in [
        ("metrics.md", docs),
        ("README.md", include_str!("../../../README.md")),
        ("SECURITY.md", include_str!("../../../SECURITY.md")),
    ] {
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        let unknown: BTreeSet<&str> = words
            .filter(|word| word.starts_with("egress_") && !known.contains(word))
            // The names of files and modules of tests.
            .filter(|word| !text.contains(&format!("{word}::")))
            .collect();
        assert_eq!(unknown, BTreeSet::new(), "{page}");
    }
    let reasons: BTreeSet<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    let told: BTreeSet<&str> = first_column(docs, "\n## Drop reasons")
        .into_iter()
        .collect();
    assert_eq!(told, reasons);
    let told: BTreeSet<&str> = first_column(docs, "\n## Pod states").into_iter().collect();
    let states: BTreeSet<&str> = PodState::ALL.iter().map(|state| state.name()).collect();
    assert_eq!(told, states);
}

/// The metrics of the same node, where interfaces are held.
fn holding(held: impl Fn() -> anyhow::Result<Count> + Send + Sync + 'static) -> Metrics {
    let (metrics, _) = node();
    Arc::into_inner(metrics).unwrap().with_held(held)
}

#[test]
fn what_is_held_is_shown_where_something_is_to_be_held() {
    let (metrics, _) = node();
    let text = metrics.render(Format::Text).unwrap();
    assert!(!text.contains("held"), "{text}");
    for format in [Format::Text, Format::OpenMetrics] {
        let text = holding(|| Ok(count(3, 180))).render(format).unwrap();
        let samples = parse(&text, format);
        assert_eq!(samples["egress_held_packets_total"], 3.0);
        assert_eq!(samples["egress_held_bytes_total"], 180.0);
        assert_eq!(samples["egress_interfaces_held"], 0.0);
        assert_eq!(samples["egress_hold_restored_total"], 0.0);
    }
    let broken = holding(|| anyhow::bail!("the table is gone"));
    assert!(broken.render(Format::Text).is_err());
}

/// Parses an exposition strictly, and gives its samples.
fn parse(text: &str, format: Format) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut family = ("", "");
    let mut families = BTreeSet::new();
    let mut ended = false;
    for line in text.lines() {
        assert!(!ended, "after the end: {line}");
        if line == "# EOF" {
            ended = true;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').unwrap();
            assert!(families.insert(family.0), "twice: {line}");
            let counter_named_total = family.1 == "counter" && family.0.ends_with("_total");
            let counter = family.1 == "counter";
            assert_eq!(
                counter_named_total,
                counter && format == Format::Text,
                "{line}"
            );
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').unwrap();
            assert_eq!(format, Format::OpenMetrics, "{line}");
            assert!(name.ends_with(&format!("_{unit}")), "{line}");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(family.0).unwrap();
            let allowed: &[&str] = match (family.1, format) {
                ("counter", Format::OpenMetrics) => &["_total"],
                ("info", _) => &["_info"],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(allowed.contains(&suffix), "{line} in {family:?}");
            let before = samples.insert(series.to_owned(), value.parse().unwrap());
            assert_eq!(before, None, "twice: {line}");
        }
    }
    assert_eq!(ended, format == Format::OpenMetrics);
    samples
}
