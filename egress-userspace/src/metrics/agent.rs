//! Metrics of the agent itself: what it reads, applies and holds.

use std::{
    collections::BTreeSet,
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::MetricType,
    registry::Unit,
};

use super::{
    Scrape,
    encode::{counter, gauge, gauges, write_counter},
};

impl Scrape {
    /// Only where something is to be held: zeroes would say that nothing got through where nothing is kept.
    pub(super) fn hold(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
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

    pub(super) fn agent(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
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

fn unix_seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |d| d.as_secs_f64())
}
