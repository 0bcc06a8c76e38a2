//! The metrics of `/metrics`, read from the kernel at the moment of the scrape; `docs/metrics.md` explains each.

mod agent;
mod encode;
mod format;
mod translation;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use egress_common::counter::{Count, PassKind};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    metrics::{MetricType, histogram::Histogram},
    registry::{Registry, Unit},
};

pub use self::format::Format;
use self::{
    encode::{counter, counts, gauges},
    format::to_text,
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
        )?;
        self.ages(e)
    }

    /// How old the number of entries is, of maps that are not counted at the scrape.
    fn ages(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = e.encode_descriptor(
            "egress_map_entries_age",
            "How long ago the entries of a table of flows were counted",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for map in &self.maps {
            if let Some(counted) = map.counted {
                let age = counted.elapsed().as_secs_f64();
                let labels = [("map", map.name.as_str())];
                metric.encode_family(&labels)?.encode_gauge(&age)?;
            }
        }
        Ok(())
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
}

#[cfg(test)]
pub(crate) mod tests;
