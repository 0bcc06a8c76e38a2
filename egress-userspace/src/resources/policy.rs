//! `EgressGatewayPolicy`: every field checked, since a rule that is misread sends packets the wrong way.

use std::{collections::BTreeMap, num::NonZeroU32, ops::Range};

use ipnet::IpNet;

use super::{
    annotations::read_on_failure,
    cluster::{Annotations, Metadata},
    report::{Consequence, Fields, Report},
    yaml::{Data, Value},
};
use crate::{
    diagnostic::Place,
    model::{GatewaySelector, OnFailure, Policy, Preference, Rule, Target},
};

/// Reads `spec`; the places are those of the rules.
pub(super) fn read(
    report: &Report<'_>,
    object: &Fields<'_>,
    metadata: &Metadata<'_>,
) -> Option<(Policy, Vec<Place>)> {
    let usual = match metadata.annotations {
        Annotations::Some(annotations) => read_on_failure(report, &annotations),
        Annotations::None | Annotations::Unreadable => OnFailure::Drop,
    };
    let spec = report.fields(report.required(object, "spec")?, "spec")?;
    report.only(&spec, &["rules"]);
    let list = report.required(&spec, "rules")?;
    let items = report.list(list, "rules")?;
    if items.is_empty() {
        let message = "the policy has no rules: pods that use it are routed as if they had none";
        report.warning(spec.span, message, "add a rule, or remove the policy");
    }
    let mut rules = Vec::new();
    let mut places = Vec::new();
    let mut destinations = Destinations::default();
    for item in items {
        if let Some((rule, span)) = read_rule(report, item, &usual) {
            destinations.add(report, &rule, &span);
            places.push(report.source().place(span));
            rules.push(rule);
        }
    }
    let rules = rules.into();
    Some((Policy { rules }, places))
}

/// A rule and the place that stands for it: its CIDR, or its beginning.
fn read_rule(report: &Report<'_>, item: &Value, usual: &OnFailure) -> Option<(Rule, Range<usize>)> {
    let fields = report.fields(item, "rule")?;
    report.only(
        &fields,
        &[
            "description",
            "destination",
            "gateway",
            "gatewayPreference",
            "onFailure",
        ],
    );
    let description = fields
        .get("description")
        .and_then(|value| report.text(value, "description"))
        .map(str::to_owned);
    let preference = read_preference(report, &fields);
    // What a template left empty must not turn a gateway's rule into a local one, or widen it.
    for field in ["gateway", "destination"] {
        if let Some(key) = fields.is_null(field) {
            let message = format!("`{field}` is empty");
            report.error(&key.span, message, "fill it in, or remove the line");
            return None;
        }
    }
    let gateway = fields.get("gateway");
    let destination = fields.get("destination");
    if gateway.is_none() && destination.is_none() {
        report.error(
            fields.span,
            "the rule has neither `gateway` nor `destination`",
            "add a `destination` for traffic that stays local, or a `gateway` for everything else",
        );
        return None;
    }
    let (destination, span) = match destination {
        None => (None, fields.span.clone()),
        Some(value) => {
            let (net, span) = read_destination(report, value)?;
            (Some(net), span)
        }
    };
    let target = match gateway {
        None => Target::Local,
        Some(value) => Target::Gateways(read_gateway(report, value, preference)?),
    };
    let on_failure = match fields.get("onFailure") {
        Some(value) => {
            if target == Target::Local {
                let message = "`onFailure` means nothing without `gateway`";
                report.error(&value.span, message, "remove it");
                return None;
            }
            read_own_on_failure(report, value)?
        }
        None if target == Target::Local => OnFailure::Drop,
        None => usual.clone(),
    };
    let rule = Rule {
        description,
        destination,
        target,
        on_failure,
    };
    Some((rule, span))
}

/// `Drop`, `Local`, or gateways that are used instead. What is misread would let packets out by another way than was
/// meant, so the rule is refused then.
fn read_own_on_failure(report: &Report<'_>, value: &Value) -> Option<OnFailure> {
    const HELP: &str = "write `Drop`, `Local`, or `Fallback: {selector: …}`";
    if let Data::Map(_) = value.data {
        let fields = report.fields(value, "onFailure")?;
        report.only(&fields, &["Fallback"]);
        let fallback = report.required(&fields, "Fallback")?;
        let selector = read_gateway(report, fallback, Preference::None)?;
        return Some(OnFailure::Fallback(selector));
    }
    match report.text(value, "onFailure")? {
        "Drop" => Some(OnFailure::Drop),
        "Local" => Some(OnFailure::Local),
        other => {
            let message = format!("`onFailure` is {other:?}");
            report.error(&value.span, message, HELP);
            None
        }
    }
}

fn read_destination(report: &Report<'_>, value: &Value) -> Option<(IpNet, Range<usize>)> {
    let fields = report.fields(value, "destination")?;
    report.only(&fields, &["cidr"]);
    let cidr = report.required(&fields, "cidr")?;
    Some((report.prefix(cidr, "cidr")?, cidr.span.clone()))
}

fn read_preference(report: &Report<'_>, rule: &Fields<'_>) -> Preference {
    let Some(value) = rule.get("gatewayPreference") else {
        return Preference::None;
    };
    match report.text(value, "gatewayPreference") {
        Some("PreferNodeLocal") => Preference::NodeLocal,
        Some("None") | None => Preference::None,
        Some(other) => {
            let message = format!("`gatewayPreference` is {other:?}");
            report.error(&value.span, message, "write `None` or `PreferNodeLocal`");
            Preference::None
        }
    }
}

fn read_gateway(
    report: &Report<'_>,
    value: &Value,
    preference: Preference,
) -> Option<GatewaySelector> {
    let fields = report.fields(value, "gateway")?;
    report.only(&fields, &["namespaceSelector", "selector", "maxNextHops"]);
    let max_next_hops = fields
        .get("maxNextHops")
        .and_then(|value| report.number(value, "maxNextHops", &(0..u32::MAX)))
        .and_then(NonZeroU32::new);
    let select = |field| {
        let value = fields.get(field)?;
        let text = report.text(value, field)?;
        report.selector(value, text, field, Consequence::Refused)
    };
    let namespaces = select("namespaceSelector");
    report.required(&fields, "selector")?;
    Some(GatewaySelector {
        namespaces,
        gateways: select("selector")?,
        max_next_hops,
        preference,
    })
}

/// The destinations so far, to find two rules that claim the same packets.
#[derive(Default)]
struct Destinations {
    seen: BTreeMap<Option<IpNet>, Range<usize>>,
}

impl Destinations {
    fn add(&mut self, report: &Report<'_>, rule: &Rule, span: &Range<usize>) {
        let Some((first, covers_both)) = self.clash(rule.destination) else {
            self.seen.insert(rule.destination, span.clone());
            return;
        };
        let line = report.source().place(first).position.line;
        let message = if covers_both {
            format!(
                "the rule has the same destination as the one on line {line}: no destination means 0.0.0.0/0 and ::/0"
            )
        } else {
            format!(
                "the rule has the same destination as the one on line {line}: {}",
                rule.label()
            )
        };
        report.error(span, message, "keep one rule for each destination");
    }

    /// The first rule with this destination, and whether one of the two gives none.
    fn clash(&self, destination: Option<IpNet>) -> Option<(Range<usize>, bool)> {
        if let Some(first) = self.seen.get(&destination) {
            return Some((first.clone(), destination.is_none()));
        }
        let is_default = |net: &IpNet| net.prefix_len() == 0;
        let other = match destination {
            None => self
                .seen
                .iter()
                .find(|(net, _)| net.as_ref().is_some_and(is_default))
                .map(|(_, span)| span),
            Some(net) if is_default(&net) => self.seen.get(&None),
            Some(_) => None,
        };
        other.map(|first| (first.clone(), true))
    }
}
