//! `EgressGateway`: a gateway that is not a pod.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use super::{
    cluster::Metadata,
    probes,
    report::{Fields, Report, egress_address_fault, next_hop_fault},
    yaml::{Data, Value},
};
use crate::{
    model::{EgressAddresses, Exit, Gateway, Replies},
    settings::Milliseconds,
};

/// Longest name that the kernel gives an interface.
const MAX_INTERFACE_NAME: usize = 15;

const FIELDS: &[&str] = &[
    "nextHops",
    "node",
    "egressIPs",
    "interface",
    "weight",
    "replies",
    "assign",
    "allowLocalServices",
    "portRange",
    "drainTimeout",
    "probes",
];
const OF_NEXT_HOPS: &[&str] = &["replies"];
const OF_EGRESS_IPS: &[&str] = &["assign", "allowLocalServices", "portRange", "probes"];

/// Reads `spec`.
pub(super) fn read(
    report: &Report<'_>,
    object: &Fields<'_>,
    metadata: Metadata<'_>,
) -> Option<Gateway> {
    let leaving = metadata.leaving(report);
    let spec = report.fields(report.required(object, "spec")?, "spec")?;
    report.only(&spec, FIELDS);
    let exit = read_exit(report, &spec);
    let interface = spec.get("interface").and_then(|value| {
        let name = report.text(value, "interface")?;
        if let Some(fault) = interface_fault(name) {
            let message = format!("`interface`: {name:?} {fault}");
            report.error(
                &value.span,
                message,
                "write the name of an interface, such as eth1",
            );
        }
        Some(name.to_owned())
    });
    let weight = spec
        .get("weight")
        .and_then(|value| report.number(value, "weight", &(1..1001)))
        .and_then(NonZeroU32::new)
        .unwrap_or(NonZeroU32::MIN);
    let drain_timeout = spec
        .get("drainTimeout")
        .and_then(|value| read_time(report, value, "drainTimeout"));
    Some(Gateway {
        labels: metadata.labels,
        interface,
        weight,
        exit: exit?,
        leaving,
        drain_timeout,
    })
}

/// A time such as `90s`.
pub(super) fn read_time(report: &Report<'_>, value: &Value, name: &str) -> Option<Duration> {
    let text = report.time(value, name)?;
    match text.parse() {
        Ok(Milliseconds(time)) => Some(time),
        Err(fault) => {
            let message = format!("`{name}`: {fault}");
            report.error(&value.span, message, "write a time such as 90s, 10m or 1h");
            None
        }
    }
}

/// Who translates: hosts at `nextHops`, or `node`, to `egressIPs`.
fn read_exit(report: &Report<'_>, spec: &Fields<'_>) -> Option<Exit> {
    let of_node = ["egressIPs", "node"]
        .into_iter()
        .find_map(|name| Some((name, spec.get(name)?)));
    match (spec.get("nextHops"), of_node) {
        (Some(_), Some((name, value))) => {
            report.error(
                &value.span,
                format!("`spec` has both `nextHops` and `{name}`"),
                "keep `nextHops` for hosts that translate by themselves, or `node` and `egressIPs` for addresses that \
                 a node of the cluster translates to",
            );
            None
        }
        (None, None) => {
            report.error(
                spec.span,
                "`spec` has neither `nextHops` nor `egressIPs`",
                "add `nextHops`, or `node` and `egressIPs`",
            );
            None
        }
        (Some(list), None) => {
            belong_to(report, spec, OF_EGRESS_IPS, "egressIPs");
            Some(Exit::NextHops {
                addresses: read_next_hops(report, list),
                replies: read_replies(report, spec),
            })
        }
        (None, Some(_)) => {
            belong_to(report, spec, OF_NEXT_HOPS, "nextHops");
            let addresses = report
                .required(spec, "egressIPs")
                .map(|list| read_egress_ips(report, list))
                .unwrap_or_default();
            let flag = |name, default| {
                let value = spec.get(name);
                value.map_or(default, |value| {
                    report.boolean(value, name).unwrap_or(default)
                })
            };
            let probes = spec
                .get("probes")
                .and_then(|value| probes::read(report, value, &addresses));
            Some(Exit::Node(EgressAddresses {
                node: read_node(report, spec)?,
                addresses,
                probes,
                assign: flag("assign", true),
                allow_local_services: flag("allowLocalServices", false),
                ports: spec
                    .get("portRange")
                    .and_then(|value| read_port_range(report, value)),
            }))
        }
    }
}

/// Refuses fields that mean something only beside another.
fn belong_to(report: &Report<'_>, spec: &Fields<'_>, fields: &[&str], to: &str) {
    for (key, _) in spec.entries {
        if fields.contains(&key.text.as_str()) {
            let message = format!("`{}` means nothing without `{to}`", key.text);
            report.error(&key.span, message, "remove it");
        }
    }
}

fn read_node(report: &Report<'_>, spec: &Fields<'_>) -> Option<String> {
    let value = report.required(spec, "node")?;
    let name = report.text(value, "node")?;
    if name.is_empty() {
        let help = "write the name of the node that owns the addresses, as its Node object has it";
        report.error(&value.span, "`node` is empty", help);
        return None;
    }
    Some(name.to_owned())
}

fn read_next_hops(report: &Report<'_>, list: &Value) -> Vec<IpAddr> {
    let names = Names {
        field: "nextHops",
        empty: "add the address of the gateway",
        fault: "write the gateway's own unicast address",
        twice: "a gateway has one next hop of each family; make another EgressGateway for this one",
    };
    read_addresses(report, list, &names, next_hop_fault)
}

fn read_egress_ips(report: &Report<'_>, list: &Value) -> Vec<IpAddr> {
    let names = Names {
        field: "egressIPs",
        empty: "add the address that the outside is to see",
        fault: "write a unicast address that is routed to the node",
        twice: "a gateway has one egress address of each family; make another EgressGateway for this one",
    };
    read_addresses(report, list, &names, egress_address_fault)
}

/// What a list of addresses is called, and what to do about its faults.
struct Names {
    field: &'static str,
    empty: &'static str,
    fault: &'static str,
    twice: &'static str,
}

/// At least one address, and at most one of each family.
fn read_addresses(
    report: &Report<'_>,
    list: &Value,
    names: &Names,
    fault: fn(IpAddr) -> Option<&'static str>,
) -> Vec<IpAddr> {
    let field = names.field;
    let mut addresses: Vec<IpAddr> = Vec::new();
    let Some(items) = report.list(list, field) else {
        return addresses;
    };
    if items.is_empty() {
        report.error(&list.span, format!("`{field}` is empty"), names.empty);
    }
    for item in items {
        let text = report.text(item, field);
        let Some(address) = text.and_then(|text| report.address(item, text, field)) else {
            continue;
        };
        if let Some(fault) = fault(address) {
            let message = format!("`{field}`: {address} {fault}");
            report.error(&item.span, message, names.fault);
        } else if let Some(first) = addresses
            .iter()
            .find(|first| first.is_ipv4() == address.is_ipv4())
        {
            let message = format!("`{field}`: {address} is of the same family as {first}");
            report.error(&item.span, message, names.twice);
        } else {
            addresses.push(address);
        }
    }
    addresses
}

/// The first and the last port, as `"40000-49999"` or as a map.
fn read_port_range(report: &Report<'_>, value: &Value) -> Option<(u16, u16)> {
    const HELP: &str = "write the first and the last port, such as \"40000-49999\"";
    let (first, last) = if let Data::Map(_) = value.data {
        let fields = report.fields(value, "portRange")?;
        report.only(&fields, &["first", "last"]);
        let port = |name| {
            let value = report.required(&fields, name)?;
            let port = report.number(value, name, &(1..65_536))?;
            u16::try_from(port).ok()
        };
        let (first, last) = (port("first"), port("last"));
        (first?, last?)
    } else {
        let text = report.text(value, "portRange")?;
        let Some(ports) = parse_ports(text) else {
            let message = format!("`portRange`: {text:?} is not a range of ports");
            report.error(&value.span, message, HELP);
            return None;
        };
        ports
    };
    if first == 0 || first > last {
        let message = if first == 0 {
            "`portRange` begins with 0, which is no port".to_owned()
        } else {
            format!("`portRange` ends before it begins: {first}-{last}")
        };
        report.error(&value.span, message, HELP);
        return None;
    }
    Some((first, last))
}

/// Two numbers of 16 bits with a `-` between.
fn parse_ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-')?;
    let port = |text: &str| {
        let text = text.trim();
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten()
    };
    Some((port(first)?, port(last)?))
}

fn read_replies(report: &Report<'_>, spec: &Fields<'_>) -> Replies {
    let Some(value) = spec.get("replies") else {
        return Replies::Recorded;
    };
    match report.text(value, "replies") {
        Some("kernel") => Replies::Kernel,
        Some("recorded") | None => Replies::Recorded,
        Some(other) => {
            let message = format!("`replies` is {other:?}");
            report.error(&value.span, message, "write `recorded` or `kernel`");
            Replies::Recorded
        }
    }
}

/// Why the kernel would not give an interface this name.
pub(crate) fn interface_fault(name: &str) -> Option<String> {
    if name.len() > MAX_INTERFACE_NAME {
        return Some(format!("is longer than {MAX_INTERFACE_NAME} bytes"));
    }
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    (name.is_empty() || matches!(name, "." | "..") || name.contains(forbidden))
        .then(|| "cannot be the name of an interface".to_owned())
}
