//! The metrics of `/metrics`, read from the kernel at the moment of the scrape; `docs/metrics.md` explains each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fmt::Write as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use egress_common::counter::{Count, PassKind};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    counters::{Counters, MapUse, Series},
    health::{Board, Subject},
    model::ObjectName,
    nat::Statistics,
    resolve::{GatewayStatus, PodState},
    snapshot::Snapshot,
    sources::files::Faults,
};

/// Upper bounds of the apply histogram: an apply is promised within 100 ms.
const APPLY_BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// How the metrics are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Text,
}

impl Format {
    /// The format that an `Accept` header asks for: `OpenMetrics` only for those who name it.
    #[must_use]
    pub fn negotiate(accept: Option<&str>) -> Self {
        let named = accept.unwrap_or_default().split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let refused = parts.any(|p| {
                p.strip_prefix("q=")
                    .and_then(|q| q.parse::<f32>().ok())
                    .is_some_and(|q| q <= 0.0)
            });
            media.eq_ignore_ascii_case("application/openmetrics-text") && !refused
        });
        if named { Self::OpenMetrics } else { Self::Text }
    }

    /// The `Content-Type` of this format.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All that is measured.
#[derive(Debug)]
pub struct Metrics {
    snapshot: Arc<ArcSwap<Snapshot>>,
    counters: Arc<Counters>,
    connections: Arc<ArcSwap<Statistics>>,
    probes: OnceLock<Arc<Board>>,
    held: Option<ReadHeld>,
    applies: Histogram,
    scrape_errors: AtomicU64,
    state_faults: Faults,
}

/// Whoever reads what interfaces that are closed have held back.
struct ReadHeld(Box<dyn Fn() -> anyhow::Result<Count> + Send + Sync>);

impl fmt::Debug for ReadHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadHeld")
    }
}

impl Metrics {
    /// The metrics of an agent that publishes `snapshot` and whose kernel counts in `counters`.
    #[must_use]
    pub fn new(snapshot: Arc<ArcSwap<Snapshot>>, counters: Arc<Counters>) -> Self {
        Self {
            snapshot,
            counters,
            connections: Arc::default(),
            probes: OnceLock::new(),
            held: None,
            applies: Histogram::new(APPLY_BUCKETS),
            scrape_errors: AtomicU64::new(0),
            state_faults: Faults::default(),
        }
    }

    /// With what the sweeper publishes of translated connections.
    #[must_use]
    pub fn with_connections(self, connections: Arc<ArcSwap<Statistics>>) -> Self {
        Self {
            connections,
            ..self
        }
    }

    /// Shows what is known of probed gateways from now on.
    pub fn show_probes(&self, board: Arc<Board>) {
        // The first one stays: there is one agent.
        let _kept = self.probes.set(board);
    }

    /// With what is held back at closed interfaces.
    #[must_use]
    pub fn with_held(
        self,
        read: impl Fn() -> anyhow::Result<Count> + Send + Sync + 'static,
    ) -> Self {
        Self {
            held: Some(ReadHeld(Box::new(read))),
            ..self
        }
    }

    /// With what is wrong in the state directory.
    #[must_use]
    pub fn with_state_faults(self, state_faults: Faults) -> Self {
        Self {
            state_faults,
            ..self
        }
    }

    /// Records how long an apply took, whether it worked or not.
    pub fn observe_apply(&self, duration: Duration) {
        self.applies.observe(duration.as_secs_f64());
    }

    /// Reads the kernel and writes everything down.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read: a scrape shows all of them or fails.
    pub fn render(&self, format: Format) -> anyhow::Result<String> {
        let failed = |_: &anyhow::Error| {
            self.scrape_errors.fetch_add(1, Ordering::Relaxed);
        };
        let (series, maps) = self.counters.read().inspect_err(failed)?;
        let read_held = self.held.as_ref().map(|ReadHeld(read)| read());
        let held = read_held.transpose().inspect_err(failed)?;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape {
            snapshot: self.snapshot.load_full(),
            series,
            maps,
            connections: self.connections.load_full(),
            round_trips: self
                .probes
                .get()
                .map(|board| board.round_trips())
                .unwrap_or_default(),
            held,
            applies: self.applies.clone(),
            scrape_errors: self.scrape_errors.load(Ordering::Relaxed),
            state_errors: self.state_faults.all().len() as u64,
        }));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(match format {
            Format::OpenMetrics => out,
            Format::Text => to_text(&out),
        })
    }
}

/// All that one scrape shows.
#[derive(Debug)]
struct Scrape {
    snapshot: Arc<Snapshot>,
    series: Series,
    maps: Vec<MapUse>,
    connections: Arc<Statistics>,
    round_trips: BTreeMap<Subject, Duration>,
    held: Option<Count>,
    applies: Histogram,
    scrape_errors: u64,
    state_errors: u64,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        self.traffic(e)?;
        self.translation(e)?;
        self.node(e)?;
        self.hold(e)?;
        self.agent(e)
    }
}

impl Scrape {
    fn traffic(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let members = || {
            self.series.members.iter().map(|(label, count)| {
                let labels = [
                    ("gateway", label.gateway.as_str()),
                    ("namespace", label.namespace.as_str()),
                    ("policy", label.policy.as_str()),
                    ("rule", label.rule.as_str()),
                ];
                (labels, count)
            })
        };
        let drops = || {
            self.series.drops.iter().map(|((policy, reason), count)| {
                (
                    [("reason", reason.name()), ("policy", policy.as_str())],
                    count,
                )
            })
        };
        let passes = |wanted: PassKind| {
            self.series
                .passes
                .iter()
                .filter(move |((_, kind), _)| *kind == wanted)
                .map(|((policy, _), count)| ([("policy", policy.as_str())], count))
        };
        counts(e, "egress_gateway", "sent to a gateway", members)?;
        counts(e, "egress_dropped", "dropped", drops)?;
        counts(
            e,
            "egress_local",
            "left to the kernel by a rule without gateway or by a prefix of the cluster",
            || passes(PassKind::Local),
        )?;
        counts(
            e,
            "egress_unmatched",
            "that no rule matched, left to the kernel",
            || passes(PassKind::Unmatched),
        )?;
        counts(
            e,
            "egress_inbound",
            "that answer a connection which came in to the pod, left to the kernel",
            || passes(PassKind::Inbound),
        )
    }

    fn node(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let resolved = &self.snapshot.resolved;
        gauges(
            e,
            "egress_gateway_up",
            "Whether a gateway can be used from this node",
            resolved.gateways.iter().map(|(name, status)| {
                let labels = [
                    ("gateway", name.name.as_str()),
                    ("namespace", name.namespace.as_str()),
                ];
                (labels, u64::from(matches!(status, GatewayStatus::Up(_))))
            }),
        )?;
        self.probes(e)?;
        gauges(
            e,
            "egress_pods",
            "Annotated pods of this node, by where they stand",
            PodState::ALL.iter().map(|state| {
                let pods = resolved.pod_states.values().filter(|s| *s == state);
                ([("state", state.name())], pods.count() as u64)
            }),
        )?;
        gauges(
            e,
            "egress_program_attached",
            "Whether a program is on the interface it belongs on",
            self.snapshot.programs.iter().map(|p| {
                let labels = [
                    ("interface", p.interface.as_str()),
                    ("program", p.program.as_str()),
                ];
                (labels, u64::from(p.attached))
            }),
        )?;
        counter(
            e,
            "egress_programs_reattached",
            "Programs put back after something else removed them",
            self.snapshot.reattached,
        )?;
        counter(
            e,
            "egress_pins_restored",
            "Pins of maps and links put back after something else removed them",
            self.snapshot.pins_restored,
        )?;
        let connections = self.connection_tables();
        let maps = || self.maps.iter().chain(&connections);
        gauges(
            e,
            "egress_map_entries",
            "Entries in use of a BPF map",
            maps().map(|m| ([("map", m.name.as_str())], m.entries)),
        )?;
        gauges(
            e,
            "egress_map_capacity",
            "Entries that a BPF map has room for",
            maps().map(|m| ([("map", m.name.as_str())], m.capacity)),
        )
    }

    /// How long the last reply of each gateway took; of one with two next hops, the longer.
    fn probes(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut longest: BTreeMap<(&ObjectName, &str), Duration> = BTreeMap::new();
        for (subject, gateways) in &self.snapshot.resolved.subjects {
            let Some(time) = self.round_trips.get(subject) else {
                continue;
            };
            for gateway in gateways {
                let place = longest.entry((gateway, subject.kind())).or_default();
                *place = (*place).max(*time);
            }
        }
        let mut metric = e.encode_descriptor(
            "egress_gateway_probe",
            "How long a gateway's last answer to a probe took",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for ((gateway, kind), time) in longest {
            let labels = [
                ("gateway", gateway.name.as_str()),
                ("namespace", gateway.namespace.as_str()),
                ("probe", kind),
            ];
            metric
                .encode_family(&labels)?
                .encode_gauge(&time.as_secs_f64())?;
        }
        Ok(())
    }

    /// Only where something is to be held: zeroes would say that nothing got through where nothing is kept.
    fn hold(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(held) = &self.held else {
            return Ok(());
        };
        let what =
            "dropped at interfaces that are closed until their pods' policies are in the kernel";
        counter(
            e,
            "egress_held_packets",
            &format!("IP packets {what}"),
            held.packets,
        )?;
        let help = format!("Bytes of IP packets {what}");
        let unit = Some(&Unit::Bytes);
        write_counter(
            &mut e.encode_descriptor("egress_held", &help, unit, MetricType::Counter)?,
            held.bytes,
        )?;
        gauge(
            e,
            "egress_interfaces_held",
            "Interfaces that are closed until their pods' policies are in the kernel",
            self.snapshot.held.as_ref().map_or(0, BTreeSet::len) as u64,
        )?;
        counter(
            e,
            "egress_hold_restored",
            "Times that something else changed the nftables table that closes interfaces, and it was put up again",
            self.snapshot.hold_restored,
        )
    }

    fn agent(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = &self.snapshot;
        let files: Vec<(String, u64)> = snapshot
            .resource_errors
            .iter()
            .map(|(file, errors)| (file.display().to_string(), *errors as u64))
            .collect();
        let invalid = snapshot.degraded.len() as u64 + files.iter().map(|(_, n)| n).sum::<u64>();
        gauges(
            e,
            "egress_resource_errors",
            "Errors in a resource file",
            files
                .iter()
                .map(|(file, n)| ([("file", file.as_str())], *n)),
        )?;
        gauge(
            e,
            "egress_resources_valid",
            "Whether the newest version of every object is in force",
            u64::from(invalid == 0),
        )?;
        gauges(
            e,
            "egress_resource_degraded",
            "Objects whose newest version is refused: 1 where the last good one stays in force, 0 where there is none",
            snapshot.degraded.iter().map(|d| {
                let labels = [
                    ("kind", d.kind.as_str()),
                    ("namespace", d.namespace.as_str()),
                    ("name", d.name.as_str()),
                ];
                (labels, u64::from(d.last_good))
            }),
        )?;
        gauges(
            e,
            "egress_resources_skipped",
            "Objects of kinds that mean nothing to the agent",
            snapshot
                .skipped
                .iter()
                .map(|(kind, n)| ([("kind", kind.as_str())], *n)),
        )?;
        gauge(
            e,
            "egress_resources_restored",
            "Objects in force as the last run kept them",
            snapshot.restored as u64,
        )?;
        gauge(
            e,
            "egress_state_errors",
            "Files of the state directory that are broken or cannot be written",
            self.state_errors,
        )?;
        self.applies.encode(e.encode_descriptor(
            "egress_apply_duration",
            "Time from reading the resources to the last write into the kernel",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?)?;
        let success = snapshot
            .last_apply
            .as_ref()
            .is_some_and(|a| a.error.is_none());
        gauge(
            e,
            "egress_last_apply_success",
            "Whether the last apply worked",
            u64::from(success),
        )?;
        e.encode_descriptor(
            "egress_last_apply_timestamp",
            "When an apply last worked, in Unix time; 0 before the first one",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?
        .encode_gauge(&unix_seconds(snapshot.last_success))?;
        gauge(
            e,
            "egress_ready",
            "Whether the resources are applied and every program is attached",
            u64::from(snapshot.is_ready()),
        )?;
        counter(
            e,
            "egress_scrape_errors",
            "Scrapes that failed because the kernel's counters could not be read",
            self.scrape_errors,
        )?;
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("arch", std::env::consts::ARCH),
        ];
        e.encode_descriptor("egress_build", "The running agent", None, MetricType::Info)?
            .encode_info(&build)
    }
}

/// Two counters, of packets and of bytes.
fn counts<'a, const N: usize, I>(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    what: &str,
    series: impl Fn() -> I,
) -> fmt::Result
where
    I: Iterator<Item = ([(&'a str, &'a str); N], &'a Count)>,
{
    let packets = format!("{name}_packets");
    let help = format!("IP packets {what}");
    let mut metric = e.encode_descriptor(&packets, &help, None, MetricType::Counter)?;
    for (labels, count) in series() {
        write_counter(&mut metric.encode_family(&labels)?, count.packets)?;
    }
    let help = format!("Bytes of IP packets {what}");
    let mut metric = e.encode_descriptor(name, &help, Some(&Unit::Bytes), MetricType::Counter)?;
    for (labels, count) in series() {
        write_counter(&mut metric.encode_family(&labels)?, count.bytes)?;
    }
    Ok(())
}

fn counter(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    write_counter(
        &mut e.encode_descriptor(name, help, None, MetricType::Counter)?,
        value,
    )
}

fn write_counter(metric: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn gauges<'a, const N: usize>(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = ([(&'a str, &'a str); N], u64)>,
) -> fmt::Result {
    let mut metric = e.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn gauge(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    e.encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}

fn unix_seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |d| d.as_secs_f64())
}

/// Rewrites `OpenMetrics` as Prometheus text 0.0.4: the same samples under other headings.
///
/// The older format knows no units, no end mark and no info type, and names a counter in its headings
/// as in its samples, with `_total`.
fn to_text(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            // Writing into a string cannot fail.
            let _ = writeln!(
                out,
                "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}"
            );
        } else if !line.starts_with("# ") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

mod translation;

#[cfg(test)]
pub(crate) mod tests;
