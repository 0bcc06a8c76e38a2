//! Metrics without much around them: counters and gauges, with labels or none.

use std::fmt;

use egress_common::counter::Count;
use prometheus_client::{
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

/// Two counters, of packets and of bytes.
pub(super) fn counts<'a, const N: usize, I>(
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

pub(super) fn counter(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    write_counter(
        &mut e.encode_descriptor(name, help, None, MetricType::Counter)?,
        value,
    )
}

pub(super) fn write_counter(metric: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

pub(super) fn gauges<'a, const N: usize>(
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

pub(super) fn gauge(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    e.encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}
