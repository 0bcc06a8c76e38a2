//! Network policies of others: whether they judge what pods send, and which pods; what their rules say is not read.
//!
//! What cannot be read in one selects everything that it might: it may be what keeps packets in.

use std::collections::BTreeSet;

use super::{
    report::{Consequence, Fields, Report},
    yaml::Value,
};
use crate::{
    model::{NetworkPolicy, Scope},
    selector::Selector,
};

/// `networking.k8s.io/v1`: without types a policy judges what pods send if it has rules for that
/// (`SetDefaults_NetworkPolicy` of Kubernetes' API server).
pub(super) fn kubernetes(
    report: &Report<'_>,
    object: &Fields<'_>,
    namespace: Option<&str>,
) -> Option<NetworkPolicy> {
    let mut policy = everything(namespace);
    let Some(spec) = spec(report, object) else {
        return Some(policy);
    };
    if !types(report, &spec, "policyTypes").unwrap_or_else(|| has_rules(report, &spec)) {
        return None;
    }
    policy.pods = label_selector(report, &spec, "podSelector");
    Some(policy)
}

/// Calico's: what passes through its API gets types by the rules that it has. What was put among the stored objects
/// without types judges both directions (`ExtractPolicyMetadata` in Felix).
pub(super) fn calico(
    report: &Report<'_>,
    object: &Fields<'_>,
    namespace: Option<&str>,
    stored: bool,
) -> Option<NetworkPolicy> {
    let mut policy = everything(namespace);
    let Some(spec) = spec(report, object) else {
        return Some(policy);
    };
    if !types(report, &spec, "types").unwrap_or_else(|| stored || has_rules(report, &spec)) {
        return None;
    }
    if namespace.is_none() {
        // Of these a host's own interfaces have an eye on, never a pod's.
        let is_set = |field: &'static str| {
            let value = spec.get(field);
            value.is_some_and(|value| report.boolean(value, field).unwrap_or(false))
        };
        if is_set("doNotTrack") || is_set("preDNAT") {
            return None;
        }
        if let Some(selector) = selector(report, &spec, "namespaceSelector") {
            policy.scope = Scope::Selected(selector);
        }
    }
    if let Some(selector) = selector(report, &spec, "selector") {
        policy.pods = selector;
    }
    policy.service_accounts = selector(report, &spec, "serviceAccountSelector");
    Some(policy)
}

/// `policy.networking.k8s.io`: no rules, no effect.
pub(super) fn admin(report: &Report<'_>, object: &Fields<'_>) -> Option<NetworkPolicy> {
    let mut policy = everything(None);
    let Some(spec) = spec(report, object) else {
        return Some(policy);
    };
    if !has_rules(report, &spec) {
        return None;
    }
    if let Some(subject) = report
        .required(&spec, "subject")
        .and_then(|subject| report.fields(subject, "subject"))
    {
        report.only(&subject, &["namespaces", "pods"]);
        if subject.get("namespaces").is_some() {
            policy.scope = Scope::Selected(label_selector(report, &subject, "namespaces"));
        } else if let Some(pods) = report
            .required(&subject, "pods")
            .and_then(|pods| report.fields(pods, "pods"))
        {
            report.only(&pods, &["namespaceSelector", "podSelector"]);
            policy.scope = Scope::Selected(label_selector(report, &pods, "namespaceSelector"));
            policy.pods = label_selector(report, &pods, "podSelector");
        }
    }
    Some(policy)
}

fn spec<'v>(report: &Report<'_>, object: &Fields<'v>) -> Option<Fields<'v>> {
    report.fields(report.required(object, "spec")?, "spec")
}

/// All pods of a namespace, or of all of them.
fn everything(namespace: Option<&str>) -> NetworkPolicy {
    NetworkPolicy {
        scope: match namespace {
            Some(namespace) => Scope::Own(namespace.to_owned()),
            None => Scope::Selected(Selector::all()),
        },
        pods: Selector::all(),
        service_accounts: None,
    }
}

/// Whether the types have what pods send among them; none if there are no types.
fn types(report: &Report<'_>, spec: &Fields<'_>, field: &str) -> Option<bool> {
    let Some(items) = report.list(spec.get(field)?, field) else {
        return Some(true);
    };
    if items.is_empty() {
        return None;
    }
    let mut judges = false;
    for item in items {
        judges |= match report.text(item, field) {
            Some("Ingress") => false,
            Some("Egress") | None => true,
            Some(other) => {
                let message = format!("`{field}` has {other:?}");
                report.error(&item.span, message, "write `Ingress` or `Egress`");
                true
            }
        };
    }
    Some(judges)
}

/// Whether there are rules for what pods send.
fn has_rules(report: &Report<'_>, spec: &Fields<'_>) -> bool {
    spec.get("egress").is_some_and(|rules| {
        report
            .list(rules, "egress")
            .is_none_or(|rules| !rules.is_empty())
    })
}

/// A selector of Calico's language; an empty one is as good as none.
fn selector(report: &Report<'_>, fields: &Fields<'_>, field: &str) -> Option<Selector> {
    let value = fields.get(field)?;
    let text = report.text(value, field)?;
    if text.trim().is_empty() {
        return None;
    }
    report.selector(value, text, field, Consequence::Refused)
}

/// Kubernetes' own kind of selector, in Calico's terms; without one, everything is selected.
fn label_selector(report: &Report<'_>, fields: &Fields<'_>, field: &str) -> Selector {
    fields
        .get(field)
        .and_then(|value| read_label_selector(report, value, field))
        .unwrap_or_else(Selector::all)
}

fn read_label_selector(report: &Report<'_>, value: &Value, field: &str) -> Option<Selector> {
    let fields = report.fields(value, field)?;
    report.only(&fields, &["matchLabels", "matchExpressions"]);
    let mut parts = Vec::new();
    if let Some(labels) = fields.get("matchLabels") {
        for (key, value) in report.fields(labels, "matchLabels")?.entries {
            let text = report.text(value, &key.text)?;
            parts.push(Selector::equal(key.text.clone(), text.to_owned()));
        }
    }
    if let Some(expressions) = fields.get("matchExpressions") {
        for item in report.list(expressions, "matchExpressions")? {
            parts.push(expression(report, item)?);
        }
    }
    Some(Selector::every(parts))
}

fn expression(report: &Report<'_>, item: &Value) -> Option<Selector> {
    let fields = report.fields(item, "matchExpressions")?;
    report.only(&fields, &["key", "operator", "values"]);
    let key = report.text(report.required(&fields, "key")?, "key")?;
    let operator_value = report.required(&fields, "operator")?;
    let operator = report.text(operator_value, "operator")?;
    let mut values = BTreeSet::new();
    if let Some(list) = fields.get("values") {
        for value in report.list(list, "values")? {
            values.insert(report.text(value, "values")?.to_owned());
        }
    }
    let wants_values = matches!(operator, "In" | "NotIn");
    let is_known = wants_values || matches!(operator, "Exists" | "DoesNotExist");
    if is_known && wants_values == values.is_empty() {
        let (message, help) = if wants_values {
            ("has no `values`", "add the values to compare with")
        } else {
            ("has `values`, which mean nothing to it", "remove them")
        };
        let message = format!("the operator {operator} {message}");
        report.error(&operator_value.span, message, help);
        return None;
    }
    let key = key.to_owned();
    Some(match operator {
        "In" => Selector::one_of(key, values),
        "NotIn" => Selector::one_of(key, values).negated(),
        "Exists" => Selector::has(key),
        "DoesNotExist" => Selector::has(key).negated(),
        other => {
            let message = format!("`operator` is {other:?}");
            let help = "write `In`, `NotIn`, `Exists` or `DoesNotExist`";
            report.error(&operator_value.span, message, help);
            return None;
        }
    })
}
