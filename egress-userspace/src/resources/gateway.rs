//! `EgressGateway`: a gateway that is not a pod.

use std::{net::IpAddr, num::NonZeroU32};

use super::report::{Fields, Report, next_hop_fault};
use crate::model::{Gateway, Labels, Replies};

/// Longest name that the kernel gives an interface.
const MAX_INTERFACE_NAME: usize = 15;

/// Reads `spec`.
pub(super) fn read(report: &Report<'_>, object: &Fields<'_>, labels: Labels) -> Option<Gateway> {
    let spec = report.fields(report.required(object, "spec")?, "spec")?;
    report.only(&spec, &["nextHops", "interface", "weight", "replies"]);
    let next_hops = read_next_hops(report, &spec);
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
    Some(Gateway {
        labels,
        next_hops,
        interface,
        weight,
        replies: read_replies(report, &spec),
    })
}

fn read_next_hops(report: &Report<'_>, spec: &Fields<'_>) -> Vec<IpAddr> {
    let mut next_hops: Vec<IpAddr> = Vec::new();
    let Some(list) = report.required(spec, "nextHops") else {
        return next_hops;
    };
    let Some(items) = report.list(list, "nextHops") else {
        return next_hops;
    };
    if items.is_empty() {
        report.error(
            &list.span,
            "`nextHops` is empty",
            "add the address of the gateway",
        );
    }
    for item in items {
        let text = report.text(item, "nextHops");
        let Some(address) = text.and_then(|text| report.address(item, text, "nextHops")) else {
            continue;
        };
        if let Some(fault) = next_hop_fault(address) {
            let message = format!("`nextHops`: {address} {fault}");
            report.error(
                &item.span,
                message,
                "write the gateway's own unicast address",
            );
        } else if let Some(first) = next_hops
            .iter()
            .find(|first| first.is_ipv4() == address.is_ipv4())
        {
            let message = format!("`nextHops`: {address} is of the same family as {first}");
            let help = "a gateway has one next hop of each family; make another EgressGateway for this one";
            report.error(&item.span, message, help);
        } else {
            next_hops.push(address);
        }
    }
    next_hops
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
pub(super) fn interface_fault(name: &str) -> Option<String> {
    if name.len() > MAX_INTERFACE_NAME {
        return Some(format!("is longer than {MAX_INTERFACE_NAME} bytes"));
    }
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    (name.is_empty() || matches!(name, "." | "..") || name.contains(forbidden))
        .then(|| "cannot be the name of an interface".to_owned())
}
