//! The cluster's own objects: namespaces, pods, nodes, services and pools, of which few fields matter here.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    annotations::{read_drain, read_inbound_udp, read_interface, read_steering},
    report::{Fields, Report},
    yaml::Value,
};
use crate::{
    diagnostic::Place,
    model::{Labels, Leaving, Namespace, Node, Phase, Pod, Steering},
};

/// The `metadata` that every object has.
pub(super) struct Metadata<'v> {
    pub(super) labels: Labels,
    pub(super) annotations: Annotations<'v>,
    /// Whether the object is being deleted.
    pub(super) terminating: bool,
    pub(super) namespace: &'v str,
    pub(super) name: &'v str,
}

/// The annotations, as far as they can be read.
#[derive(Clone, Copy)]
pub(super) enum Annotations<'v> {
    None,
    Some(Fields<'v>),
    /// Not a map: nobody knows what was asked for.
    Unreadable,
}

impl Metadata<'_> {
    /// Whether the object is about to go.
    pub(super) fn leaving(&self, report: &Report<'_>) -> Leaving {
        match self.annotations {
            _ if self.terminating => Leaving::Terminating,
            Annotations::Some(annotations) if read_drain(report, &annotations) => Leaving::Asked,
            Annotations::Some(_) | Annotations::None | Annotations::Unreadable => Leaving::No,
        }
    }
}

/// A namespace, and where its annotation is.
pub(super) fn namespace(report: &Report<'_>, metadata: Metadata<'_>) -> (Namespace, Option<Place>) {
    let mut labels = metadata.labels;
    for key in ["projectcalico.org/name", "kubernetes.io/metadata.name"] {
        labels.insert(key.to_owned(), metadata.name.to_owned());
    }
    let (steering, place) = steering(report, metadata.annotations);
    (Namespace { labels, steering }, place)
}

/// A pod, and where its annotation is.
pub(super) fn pod(
    report: &Report<'_>,
    object: &Fields<'_>,
    metadata: Metadata<'_>,
) -> (Pod, Option<Place>) {
    let leaving = metadata.leaving(report);
    let spec = section(report, object, "spec");
    let status = section(report, object, "status");
    let text = |fields: Option<Fields<'_>>, field: &'static str| {
        let value = fields?.get(field)?;
        report.text(value, field).map(str::to_owned)
    };
    let mut labels = metadata.labels;
    let mut label = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
    label("projectcalico.org/namespace", metadata.namespace);
    label("projectcalico.org/orchestrator", "k8s");
    if let Some(account) = text(spec, "serviceAccountName").filter(|name| !name.is_empty()) {
        label("projectcalico.org/serviceaccount", &account);
    }
    let (steering, place) = steering(report, metadata.annotations);
    let phase = match text(status, "phase").as_deref() {
        Some("Succeeded" | "Failed") => Phase::Finished,
        Some(_) | None => Phase::Alive,
    };
    let pod = Pod {
        labels,
        steering,
        interface: match metadata.annotations {
            Annotations::Some(annotations) => read_interface(report, &annotations),
            Annotations::None | Annotations::Unreadable => None,
        },
        inbound_udp: match metadata.annotations {
            Annotations::Some(annotations) => read_inbound_udp(report, &annotations),
            Annotations::None | Annotations::Unreadable => Vec::new(),
        },
        node: text(spec, "nodeName").filter(|name| !name.is_empty()),
        addresses: status
            .map(|status| pod_addresses(report, &status))
            .unwrap_or_default(),
        host_network: spec
            .and_then(|spec| spec.get("hostNetwork"))
            .and_then(|value| report.boolean(value, "hostNetwork"))
            .unwrap_or(false),
        phase,
        ready: status.is_some_and(|status| is_ready(report, &status)),
        leaving,
    };
    (pod, place)
}

/// The first address of each family.
fn pod_addresses(report: &Report<'_>, status: &Fields<'_>) -> Vec<IpAddr> {
    let listed = items(report, status, "podIPs").iter().filter_map(|item| {
        let value = report.fields(item, "podIPs")?.get("ip")?;
        assigned_address(report, value, "ip")
    });
    let mut found: Vec<IpAddr> = Vec::new();
    for address in listed {
        if !found
            .iter()
            .any(|first| first.is_ipv4() == address.is_ipv4())
        {
            found.push(address);
        }
    }
    if let (true, Some(value)) = (found.is_empty(), status.get("podIP")) {
        found.extend(assigned_address(report, value, "podIP"));
    }
    found
}

/// An address, where the empty string and "None" mean that there is none (yet).
fn assigned_address(report: &Report<'_>, value: &Value, name: &str) -> Option<IpAddr> {
    let text = report.text(value, name)?;
    if matches!(text, "" | "None") {
        return None;
    }
    report.address(value, text, name)
}

fn is_ready(report: &Report<'_>, status: &Fields<'_>) -> bool {
    items(report, status, "conditions").iter().any(|item| {
        report.fields(item, "conditions").is_some_and(|condition| {
            let is = |field, wanted| {
                condition
                    .get(field)
                    .is_some_and(|value| report.text(value, field) == Some(wanted))
            };
            is("type", "Ready") && is("status", "True")
        })
    })
}

/// A node.
pub(super) fn node(report: &Report<'_>, object: &Fields<'_>) -> Node {
    let mut node = Node::default();
    if let Some(status) = section(report, object, "status") {
        for item in items(report, &status, "addresses") {
            let Some(address) = report.fields(item, "addresses") else {
                continue;
            };
            let kind = address
                .get("type")
                .and_then(|value| report.text(value, "type"));
            if let (Some("InternalIP" | "ExternalIP"), Some(value)) = (kind, address.get("address"))
            {
                node.addresses
                    .extend(assigned_address(report, value, "address"));
            }
        }
    }
    if let Some(spec) = section(report, object, "spec") {
        for item in items(report, &spec, "podCIDRs") {
            node.pod_cidrs.extend(report.prefix(item, "podCIDRs"));
        }
        if let (true, Some(value)) = (node.pod_cidrs.is_empty(), spec.get("podCIDR")) {
            node.pod_cidrs.extend(report.prefix(value, "podCIDR"));
        }
    }
    node
}

/// The addresses that the cluster itself answers for: not `externalIPs`, which are outside.
pub(super) fn service(report: &Report<'_>, object: &Fields<'_>) -> Vec<IpNet> {
    let mut addresses = Vec::new();
    let mut add = |value: &Value, name: &str| {
        addresses.extend(assigned_address(report, value, name));
    };
    if let Some(spec) = section(report, object, "spec") {
        if let Some(value) = spec.get("clusterIP") {
            add(value, "clusterIP");
        }
        for item in items(report, &spec, "clusterIPs") {
            add(item, "clusterIPs");
        }
    }
    if let Some(balancer) = section(report, object, "status")
        .and_then(|status| section(report, &status, "loadBalancer"))
    {
        for item in items(report, &balancer, "ingress") {
            if let Some(value) = report
                .fields(item, "ingress")
                .and_then(|entry| entry.get("ip"))
            {
                add(value, "ip");
            }
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into_iter().map(IpNet::from).collect()
}

/// The prefix of Calico's `IPPool`.
pub(super) fn ip_pool(report: &Report<'_>, object: &Fields<'_>) -> Vec<IpNet> {
    report
        .required(object, "spec")
        .and_then(|spec| report.fields(spec, "spec"))
        .and_then(|spec| report.required(&spec, "cidr"))
        .and_then(|cidr| report.prefix(cidr, "cidr"))
        .into_iter()
        .collect()
}

/// The prefixes of a `ServiceCIDR`.
pub(super) fn service_cidr(report: &Report<'_>, object: &Fields<'_>) -> Vec<IpNet> {
    let Some(spec) = report
        .required(object, "spec")
        .and_then(|spec| report.fields(spec, "spec"))
    else {
        return Vec::new();
    };
    report
        .required(&spec, "cidrs")
        .and_then(|list| report.list(list, "cidrs"))
        .unwrap_or_default()
        .iter()
        .filter_map(|item| report.prefix(item, "cidrs"))
        .collect()
}

/// Labels or the like: strings by name.
pub(super) fn labels(report: &Report<'_>, value: &Value) -> Labels {
    let Some(fields) = report.fields(value, "labels") else {
        return Labels::new();
    };
    let mut labels = Labels::new();
    for (key, value) in fields.entries {
        if let Some(text) = report.text(value, &key.text) {
            labels
                .entry(key.text.clone())
                .or_insert_with(|| text.to_owned());
        }
    }
    labels
}

fn steering(
    report: &Report<'_>,
    annotations: Annotations<'_>,
) -> (Option<Steering>, Option<Place>) {
    match annotations {
        Annotations::None => (None, None),
        Annotations::Some(annotations) => read_steering(report, &annotations).unzip(),
        Annotations::Unreadable => (Some(Steering::Invalid), None),
    }
}

fn section<'v>(report: &Report<'_>, fields: &Fields<'v>, name: &'v str) -> Option<Fields<'v>> {
    report.fields(fields.get(name)?, name)
}

fn items<'v>(report: &Report<'_>, fields: &Fields<'v>, name: &str) -> &'v [Value] {
    fields
        .get(name)
        .and_then(|list| report.list(list, name))
        .unwrap_or_default()
}
