//! What annotations ask for.
//!
//! An annotation that is empty counts as absent: templates leave empty values behind, and Calico reads
//! them so. One that cannot be understood steers into a drop, never past the gateways.

use std::{collections::BTreeSet, num::NonZeroU32};

use egress_common::pod::UdpPorts;

use super::{
    gateway::interface_fault,
    kind::Kind,
    report::{Consequence, Fields, Report, nearest},
    yaml::Value,
};
use crate::{
    diagnostic::Place,
    model::{GatewaySelector, OnFailure, Preference, Steering},
};

/// The annotations that select gateways together, and what becomes of an object where one of them is wrong.
struct Names {
    selector: &'static str,
    namespaces: &'static str,
    max_next_hops: &'static str,
    consequence: Consequence,
}

const STEERING: Names = Names {
    selector: SELECTOR,
    namespaces: NAMESPACE_SELECTOR,
    max_next_hops: MAX_NEXT_HOPS,
    consequence: Consequence::Accepted,
};
const FALLBACK: Names = Names {
    selector: FALLBACK_SELECTOR,
    namespaces: FALLBACK_NAMESPACE_SELECTOR,
    max_next_hops: FALLBACK_MAX_NEXT_HOPS,
    consequence: Consequence::Refused,
};

const POLICY: &str = "egress.projectcalico.org/egressGatewayPolicy";
const SELECTOR: &str = "egress.projectcalico.org/selector";
const NAMESPACE_SELECTOR: &str = "egress.projectcalico.org/namespaceSelector";
const MAX_NEXT_HOPS: &str = "egress.projectcalico.org/maxNextHops";
const INTERFACE: &str = "egress.fastpath/interface";
const ON_FAILURE: &str = "egress.fastpath/on-failure";
const FALLBACK_SELECTOR: &str = "egress.fastpath/fallback-selector";
const FALLBACK_NAMESPACE_SELECTOR: &str = "egress.fastpath/fallback-namespace-selector";
const FALLBACK_MAX_NEXT_HOPS: &str = "egress.fastpath/fallback-max-next-hops";
const DRAIN: &str = "egress.fastpath/drain";
const INBOUND_UDP: &str = "egress.fastpath/inbound-udp";

/// What begins the names of annotations that are meant for an egress gateway.
const PREFIXES: [&str; 2] = ["egress.projectcalico.org/", "egress.fastpath/"];
/// The names that mean something on objects of a kind.
const fn known(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Namespace => &[POLICY, SELECTOR, NAMESPACE_SELECTOR, MAX_NEXT_HOPS],
        Kind::Pod => &[
            POLICY,
            SELECTOR,
            NAMESPACE_SELECTOR,
            MAX_NEXT_HOPS,
            INTERFACE,
            INBOUND_UDP,
            DRAIN,
        ],
        Kind::EgressGateway => &[DRAIN],
        Kind::EgressGatewayPolicy => &[
            ON_FAILURE,
            FALLBACK_SELECTOR,
            FALLBACK_NAMESPACE_SELECTOR,
            FALLBACK_MAX_NEXT_HOPS,
        ],
        Kind::Node
        | Kind::Service
        | Kind::ServiceAccount
        | Kind::IPPool
        | Kind::ServiceCIDR
        | Kind::NetworkPolicy
        | Kind::CalicoNetworkPolicy
        | Kind::GlobalNetworkPolicy
        | Kind::AdminNetworkPolicy
        | Kind::BaselineAdminNetworkPolicy
        | Kind::ClusterNetworkPolicy => &[],
    }
}

/// Warns of annotations that look like ours and mean nothing: a pod whose policy has a misspelt name beside it is not
/// steered at all.
pub(super) fn warn_of_unknown(report: &Report<'_>, annotations: &Fields<'_>, kind: Kind) {
    let known = known(kind);
    for (key, _) in annotations.entries {
        let name = key.text.as_str();
        let own = own_part(name);
        let is_meant = PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || own.eq_ignore_ascii_case("egressGatewayPolicy");
        if !is_meant || known.contains(&name) || report.is_full() {
            continue;
        }
        // What all names have in common says nothing of which is meant.
        let owns: Vec<&str> = known.iter().copied().map(own_part).collect();
        let near =
            nearest(own, &owns).and_then(|near| known.iter().find(|known| own_part(known) == near));
        let help = near.map_or_else(
            || format!("here these mean something: {}", known.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        let message = format!("the annotation `{name}` means nothing on this kind of object");
        report.warning(&key.span, message, &help);
    }
}

/// A name without its prefix.
fn own_part(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, own)| own)
}

/// What the annotations of a namespace or a pod ask for, and where.
pub(super) fn read_steering(
    report: &Report<'_>,
    annotations: &Fields<'_>,
) -> Option<(Steering, Place)> {
    let policy = read(report, annotations, POLICY);
    let selector = read(report, annotations, SELECTOR);
    if let (Some((_, _)), Some((value, _))) = (&policy, &selector) {
        let message = format!("`{SELECTOR}` has no effect beside `{POLICY}`");
        report.warning(&value.span, message, "remove one of the two");
    }
    if let Some((value, name)) = policy {
        let steering = name.map_or(Steering::Invalid, |name| Steering::Policy(name.to_owned()));
        return Some((steering, report.source().place(value.span.clone())));
    }
    let Some((value, text)) = selector else {
        for name in [NAMESPACE_SELECTOR, MAX_NEXT_HOPS] {
            if let Some((value, _)) = read(report, annotations, name) {
                let message = format!("`{name}` has no effect without `{SELECTOR}`");
                report.warning(
                    &value.span,
                    message,
                    &format!("add `{SELECTOR}`, or remove it"),
                );
            }
        }
        return None;
    };
    let place = report.source().place(value.span.clone());
    let gateways = text.and_then(|text| read_gateways(report, annotations, &STEERING, value, text));
    let steering = gateways.map_or(Steering::Invalid, Steering::Gateways);
    Some((steering, place))
}

/// The simple form: a selector and its companions.
fn read_gateways(
    report: &Report<'_>,
    annotations: &Fields<'_>,
    names: &Names,
    value: &Value,
    text: &str,
) -> Option<GatewaySelector> {
    let select = |value, text, name| report.selector(value, text, name, names.consequence);
    let gateways = select(value, text, names.selector);
    let namespaces = read(report, annotations, names.namespaces)
        .map(|(value, text)| select(value, text?, names.namespaces));
    let max_next_hops = read(report, annotations, names.max_next_hops)
        .map(|(value, text)| read_max_next_hops(report, names, value, text?));
    Some(GatewaySelector {
        gateways: gateways?,
        namespaces: match namespaces {
            Some(selector) => Some(selector?),
            None => None,
        },
        max_next_hops: match max_next_hops {
            Some(number) => NonZeroU32::new(number?),
            None => None,
        },
        preference: Preference::None,
    })
}

fn read_max_next_hops(
    report: &Report<'_>,
    names: &Names,
    value: &Value,
    text: &str,
) -> Option<u32> {
    let number = text.trim().parse().ok();
    if number.is_none() {
        let name = names.max_next_hops;
        let message = format!("`{name}`: {text:?} is not a whole number, 0 or more");
        let help = "write a number such as \"2\"; \"0\" means all gateways";
        report.problem(names.consequence, &value.span, message, help);
    }
    number
}

/// What a policy's rules do without usable gateways, those that do not say so themselves.
///
/// What is misread would let packets out by another way than was meant: the policy is refused then.
pub(super) fn read_on_failure(report: &Report<'_>, annotations: &Fields<'_>) -> OnFailure {
    const HELP: &str = "write \"Drop\", \"Local\" or \"Fallback\"";
    let on_failure = read(report, annotations, ON_FAILURE);
    if let Some((value, Some("Fallback"))) = on_failure {
        let Some((selector, text)) = read(report, annotations, FALLBACK_SELECTOR) else {
            let message = format!("`{ON_FAILURE}` is \"Fallback\" without `{FALLBACK_SELECTOR}`");
            let help = "say in it which gateways are used instead";
            report.error(&value.span, message, help);
            return OnFailure::Drop;
        };
        return text
            .and_then(|text| read_gateways(report, annotations, &FALLBACK, selector, text))
            .map_or(OnFailure::Drop, OnFailure::Fallback);
    }
    for name in [
        FALLBACK.selector,
        FALLBACK.namespaces,
        FALLBACK.max_next_hops,
    ] {
        if let Some((value, _)) = read(report, annotations, name) {
            let message = format!("`{name}` has no effect unless `{ON_FAILURE}` is \"Fallback\"");
            let help = format!("set `{ON_FAILURE}` to \"Fallback\", or remove it");
            report.warning(&value.span, message, &help);
        }
    }
    match on_failure {
        Some((_, Some("Local"))) => OnFailure::Local,
        None | Some((_, None | Some("Drop"))) => OnFailure::Drop,
        Some((value, Some(text))) => {
            report.error(&value.span, format!("`{ON_FAILURE}` is {text:?}"), HELP);
            OnFailure::Drop
        }
    }
}

/// The host-side interface that a pod names.
pub(super) fn read_interface(report: &Report<'_>, annotations: &Fields<'_>) -> Option<String> {
    let (value, text) = read(report, annotations, INTERFACE)?;
    let name = text?;
    let Some(fault) = interface_fault(name) else {
        return Some(name.to_owned());
    };
    let message = format!("`{INTERFACE}`: {name:?} {fault}");
    let help = "write the name of the pod's host-side interface, such as cali0123456789a";
    report.problem(Consequence::Accepted, &value.span, message, help);
    None
}

/// Whether a gateway is to take no new connections.
pub(super) fn read_drain(report: &Report<'_>, annotations: &Fields<'_>) -> bool {
    match read(report, annotations, DRAIN) {
        Some((_, Some("true"))) => true,
        None | Some((_, None | Some("false"))) => false,
        Some((value, Some(text))) => {
            let message = format!("`{DRAIN}`: {text:?} is neither \"true\" nor \"false\"");
            let help = "write \"true\" for a gateway that takes no new connections; until then it takes them";
            report.problem(Consequence::Accepted, &value.span, message, help);
            false
        }
    }
}

/// The UDP ports on which connections may come in to a pod, in order; none if one of them is wrong.
pub(super) fn read_inbound_udp(report: &Report<'_>, annotations: &Fields<'_>) -> Vec<u16> {
    let Some((value, Some(text))) = read(report, annotations, INBOUND_UDP) else {
        return Vec::new();
    };
    let mut ports = BTreeSet::new();
    let mut wrong = false;
    let mut start = 0;
    for part in text.split(',') {
        let trimmed = part.trim();
        let number = trimmed.bytes().all(|byte| byte.is_ascii_digit());
        match trimmed
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0 && number)
        {
            Some(port) => {
                ports.insert(port);
            }
            None => {
                wrong = true;
                let span = report.place_within(value, text, &(start..start + part.len()));
                let message = format!("`{INBOUND_UDP}`: {trimmed:?} is not a port");
                let help = "write ports from 1 to 65535 with commas between, such as \"53,5060\"; until then no \
                            port is open to connections from outside";
                report.problem(Consequence::Accepted, &span, message, help);
            }
        }
        start += part.len() + 1;
    }
    if ports.len() > UdpPorts::MAX {
        wrong = true;
        let message = format!(
            "`{INBOUND_UDP}` names {} ports, and a pod can have {}",
            ports.len(),
            UdpPorts::MAX
        );
        let help = "name fewer ports; until then no port is open to connections from outside";
        report.problem(Consequence::Accepted, &value.span, message, help);
    }
    if wrong {
        return Vec::new();
    }
    ports.into_iter().collect()
}

/// An annotation that is present and not empty; the text is none if it is not a string.
fn read<'v>(
    report: &Report<'_>,
    annotations: &Fields<'v>,
    name: &str,
) -> Option<(&'v Value, Option<&'v str>)> {
    let value = annotations.get(name)?;
    let text = report.text(value, name);
    if text == Some("") {
        report.warning(
            &value.span,
            format!("`{name}` is empty, which means the same as no annotation"),
            "remove it, or give it a value",
        );
        return None;
    }
    Some((value, text))
}
