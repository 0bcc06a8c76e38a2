//! Metrics of gateways whose egress addresses this node owns, and of the connections that it translates.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use egress_common::{
    DropReason,
    counter::{Answer, Direction},
    gateway::GatewayId,
    maps::{NAT_BACK, NAT_OUT},
};
use prometheus_client::{encoding::DescriptorEncoder, metrics::MetricType};

use super::{
    Scrape,
    encode::{counts, gauge, gauges, write_counter},
};
use crate::{counters::MapUse, gateway_id::gateway_id, model::ObjectName, nat::protocol_name};

impl Scrape {
    /// How full the tables of connections are; nothing before they were walked first.
    pub(super) fn connection_tables(&self) -> Vec<MapUse> {
        let found = &self.connections;
        if found.capacity == 0 {
            return Vec::new();
        }
        [(NAT_OUT, found.out_entries), (NAT_BACK, found.back_entries)]
            .map(|(name, entries)| MapUse {
                name: name.to_owned(),
                entries,
                capacity: found.capacity,
                counted: None,
            })
            .into()
    }

    pub(super) fn translation(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.gateways(e)?;
        self.connections(e)?;
        self.addresses(e)?;
        let mut metric = e.encode_descriptor(
            "egress_answers_sent",
            "ICMP messages sent to those whose packets could not be sent on",
            None,
            MetricType::Counter,
        )?;
        for (answer, sent) in &self.series.answers {
            let kind = match answer {
                Answer::TooBig => "too_big",
                Answer::TimeExceeded => "time_exceeded",
            };
            write_counter(&mut metric.encode_family(&[("kind", kind)])?, *sent)?;
        }
        Ok(())
    }

    fn gateways(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let translated = || {
            self.series
                .translated
                .iter()
                .map(|((gateway, direction), count)| {
                    let direction = match direction {
                        Direction::Out => "out",
                        Direction::Back => "back",
                    };
                    let [name, namespace] = labels(gateway);
                    ([name, namespace, ("direction", direction)], count)
                })
        };
        let drops = || {
            self.series
                .gateway_drops
                .iter()
                .map(|((gateway, reason), count)| {
                    let [name, namespace] = labels(gateway);
                    ([name, namespace, ("reason", reason.name())], count)
                })
        };
        counts(
            e,
            "egress_gateway_translated",
            "translated on this node for one of its gateways",
            translated,
        )?;
        counts(
            e,
            "egress_gateway_dropped",
            "dropped on this node by one of its gateways",
            drops,
        )?;
        let mut metric = e.encode_descriptor(
            "egress_nat_exhausted",
            "IP packets dropped because no port was free for their remote, or the table of connections was full",
            None,
            MetricType::Counter,
        )?;
        for ((gateway, reason), count) in &self.series.gateway_drops {
            if *reason == DropReason::NatExhausted {
                write_counter(&mut metric.encode_family(&labels(gateway))?, count.packets)?;
            }
        }
        Ok(())
    }

    fn connections(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let found = &self.connections;
        let names = self.names_of_gateways();
        let rows: Vec<(ObjectName, String, u64)> = found
            .connections
            .iter()
            .map(|(&(id, protocol), count)| {
                let unknown = || ObjectName::new("", format!("#{:08x}", id.0));
                let name = names.get(&id).map_or_else(unknown, |name| (*name).clone());
                (name, protocol_name(protocol), *count)
            })
            .collect();
        gauges(
            e,
            "egress_nat_connections",
            "Connections that this node translates",
            rows.iter().map(|(gateway, protocol, count)| {
                let [name, namespace] = labels(gateway);
                ([name, namespace, ("protocol", protocol.as_str())], *count)
            }),
        )?;
        let draining: Vec<(&ObjectName, u64)> = self.draining().collect();
        gauges(
            e,
            "egress_gateway_draining_connections",
            "Connections that this node still translates for a gateway that takes no new ones",
            draining
                .iter()
                .map(|(gateway, count)| (labels(gateway), *count)),
        )?;
        gauge(
            e,
            "egress_nat_capacity",
            "Connections that there is room for; 0 before they were counted first",
            found.capacity,
        )?;
        let mut metric = e.encode_descriptor(
            "egress_nat_port_usage_ratio",
            "Ports in use of those that an egress address has for a remote, where they are scarcest",
            None,
            MetricType::Gauge,
        )?;
        for load in &found.fullest {
            if let Some(ratio) = load.ratio() {
                let (egress, remote) = (load.remote.egress().to_string(), load.remote.far_end());
                metric
                    .encode_family(&[
                        ("egress_address", egress.as_str()),
                        ("remote", remote.as_str()),
                    ])?
                    .encode_gauge(&ratio)?;
            }
        }
        Ok(())
    }

    fn addresses(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows: Vec<(String, &crate::snapshot::OwnedAddress)> = self
            .snapshot
            .egress
            .iter()
            .map(|owned| (owned.address.to_string(), owned))
            .collect();
        gauges(
            e,
            "egress_address_in_place",
            "Whether an egress address of this node is where it belongs",
            rows.iter().map(|(address, owned)| {
                let labels = [
                    ("address", address.as_str()),
                    ("interface", owned.interface.as_str()),
                    ("gateway", owned.gateway.as_str()),
                    ("namespace", owned.namespace.as_str()),
                ];
                (labels, u64::from(owned.in_place))
            }),
        )?;
        super::counter(
            e,
            "egress_addresses_restored",
            "Egress addresses put back after something else took them off their interfaces",
            self.snapshot.addresses_restored,
        )
    }

    /// The gateways of this node that are drained, and the connections that each has.
    fn draining(&self) -> impl Iterator<Item = (&ObjectName, u64)> {
        let resolved = &self.snapshot.resolved;
        let own: BTreeSet<&ObjectName> = resolved
            .translation
            .addresses
            .values()
            .map(|address| &address.gateway)
            .collect();
        own.into_iter()
            .filter(|gateway| resolved.draining.contains_key(gateway))
            .map(|gateway| {
                let id = gateway_id(gateway);
                let connections = self.connections.connections.iter();
                let counts = connections.filter(|((of, _), _)| *of == id);
                (gateway, counts.map(|(_, count)| count).sum())
            })
    }

    /// The gateways that can be told by their numbers: of this node and of others.
    fn names_of_gateways(&self) -> BTreeMap<GatewayId, &ObjectName> {
        let known = self.snapshot.resolved.gateways.keys();
        known
            .chain(self.snapshot.names.gateways.keys())
            .map(|name| (gateway_id(name), name))
            .collect()
    }
}

fn labels(gateway: &ObjectName) -> [(&'static str, &str); 2] {
    [
        ("gateway", &gateway.name),
        ("namespace", &gateway.namespace),
    ]
}
