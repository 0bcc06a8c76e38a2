//! `spec.probes` of an `EgressGateway`: whom its node asks, from its egress addresses.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use hyper::Uri;

use super::{
    gateway::read_time,
    report::{Fields, Report, egress_address_fault},
    yaml::Value,
};
use crate::model::{Asked, Probe, Probes, Url};

/// Many enough to know whether it is them or the way that is down.
const MAX_TARGETS: usize = 8;
/// Probing more often costs more than it tells; less often tells nothing.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1200));
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);
/// Longer ones are no health checks.
const MAX_URL: usize = 2048;
const HTTP_PORT: u16 = 80;

/// What the two kinds of probes differ in. The defaults are those of Calico's `egressGatewayFailureDetection`.
struct Kind {
    name: &'static str,
    targets: &'static str,
    example: &'static str,
    interval: Duration,
    timeout: Duration,
}

const ICMP: Kind = Kind {
    name: "icmp",
    targets: "addresses",
    example: "write the address of a host that answers pings, such as 192.0.2.1",
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(15),
};
const HTTP: Kind = Kind {
    name: "http",
    targets: "urls",
    example: "write a URL such as http://192.0.2.1:8080/healthz",
    interval: Duration::from_secs(10),
    timeout: Duration::from_secs(30),
};

/// Reads the probes of a gateway with these egress addresses; none is valid if it has none that are.
pub(super) fn read(report: &Report<'_>, value: &Value, egress: &[IpAddr]) -> Option<Probes> {
    let fields = report.fields(value, "probes")?;
    report.only(&fields, &[ICMP.name, HTTP.name]);
    let (icmp, http) = (fields.get(ICMP.name), fields.get(HTTP.name));
    if icmp.is_none() && http.is_none() {
        report.error(
            fields.span,
            "`probes` has neither `icmp` nor `http`",
            "add one of them, or remove `probes`",
        );
    }
    Some(Probes {
        icmp: icmp.and_then(|value| read_kind(report, value, &ICMP, egress, read_address)),
        http: http.and_then(|value| read_kind(report, value, &HTTP, egress, read_url)),
    })
}

fn read_kind<T: Asked + PartialEq>(
    report: &Report<'_>,
    value: &Value,
    kind: &Kind,
    egress: &[IpAddr],
    read_target: fn(&Report<'_>, &Value) -> Option<T>,
) -> Option<Probe<T>> {
    let fields = report.fields(value, kind.name)?;
    report.only(&fields, &[kind.targets, "interval", "timeout"]);
    let interval = read_interval(report, &fields, kind);
    let timeout = read_timeout(report, &fields, kind, interval);
    let list = report.required(&fields, kind.targets)?;
    let items = report.list(list, kind.targets)?;
    if items.is_empty() {
        report.error(
            &list.span,
            format!("`{}` is empty", kind.targets),
            kind.example,
        );
    }
    if let Some(first_too_many) = items.get(MAX_TARGETS) {
        report.error(
            &first_too_many.span,
            format!("`{}` has more than {MAX_TARGETS}", kind.targets),
            "name those that tell most: one answer is enough",
        );
    }
    let mut targets: Vec<T> = Vec::new();
    for item in items {
        let Some(target) = read_target(report, item) else {
            continue;
        };
        if let Some((fault, help)) = fault(&target, egress) {
            report.error(
                &item.span,
                format!("`{}`: {target} {fault}", kind.targets),
                &help,
            );
        } else if targets.contains(&target) {
            let message = format!("`{}`: {target} is there twice", kind.targets);
            report.error(&item.span, message, "remove one of the two");
        } else {
            targets.push(target);
        }
    }
    Some(Probe {
        targets,
        interval,
        timeout,
    })
}

/// Why a target cannot be asked from these egress addresses, and what to do.
fn fault(target: &impl Asked, egress: &[IpAddr]) -> Option<(String, String)> {
    let address = target.address();
    if let Some(fault) = egress_address_fault(address) {
        let help = "name a host behind the gateway's uplink, by its unicast address";
        return Some((fault.to_owned(), help.to_owned()));
    }
    if egress.contains(&address) {
        return Some((
            "is an egress address of the gateway itself".to_owned(),
            "name a host behind the gateway's uplink: the node always answers itself".to_owned(),
        ));
    }
    let same_family = |other: &IpAddr| other.is_ipv4() == address.is_ipv4();
    if !egress.is_empty() && !egress.iter().any(same_family) {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        return Some((
            format!("is of {family}, and the gateway has no egress address of that family"),
            format!("name an address of the other family, or add one of {family} to `egressIPs`"),
        ));
    }
    None
}

fn read_interval(report: &Report<'_>, fields: &Fields<'_>, kind: &Kind) -> Duration {
    let Some(value) = fields.get("interval") else {
        return kind.interval;
    };
    let Some(interval) = read_time(report, value, "interval") else {
        return kind.interval;
    };
    let (shortest, longest) = INTERVALS;
    if interval < shortest || interval > longest {
        let message = format!("`interval`: {interval:?} is out of range");
        let help = format!("write a time from {shortest:?} to {longest:?}");
        report.error(&value.span, message, &help);
        return kind.interval;
    }
    interval
}

/// The timeout; where it is left out, at least as many intervals as the default has.
fn read_timeout(
    report: &Report<'_>,
    fields: &Fields<'_>,
    kind: &Kind,
    interval: Duration,
) -> Duration {
    let Some(value) = fields.get("timeout") else {
        return (interval * 3).max(kind.timeout);
    };
    let Some(timeout) = read_time(report, value, "timeout") else {
        return kind.timeout;
    };
    if timeout > LONGEST_TIMEOUT {
        let message = format!("`timeout`: {timeout:?} is out of range");
        let help = format!("write a time up to {LONGEST_TIMEOUT:?}");
        report.error(&value.span, message, &help);
    } else if timeout < interval * 2 {
        let message = format!(
            "`timeout`: {timeout:?} is less than twice the interval {interval:?}: one lost probe would count as a \
             gateway that is down"
        );
        let help = format!("write {:?} or more, or a shorter `interval`", interval * 2);
        report.error(&value.span, message, &help);
    }
    timeout
}

fn read_address(report: &Report<'_>, value: &Value) -> Option<IpAddr> {
    let text = report.text(value, ICMP.targets)?;
    report.address(value, text, ICMP.targets)
}

fn read_url(report: &Report<'_>, value: &Value) -> Option<Url> {
    let text = report.text(value, HTTP.targets)?;
    match parse_url(text) {
        Ok(url) => Some(url),
        Err(fault) => {
            let span = report.place_within(value, text, &fault.part);
            report.error(&span, format!("`urls`: {}", fault.message), fault.help);
            None
        }
    }
}

/// What is wrong with a URL, and with which part of it.
#[derive(Debug)]
struct UrlFault {
    part: Range<usize>,
    message: String,
    help: &'static str,
}

fn parse_url(text: &str) -> Result<Url, UrlFault> {
    let fault = |part: Range<usize>, message: String, help| UrlFault {
        part,
        message,
        help,
    };
    let whole = 0..text.len();
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(fault(whole, format!("{text:?} is no URL"), HTTP.example));
    };
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(fault(
            0..scheme.len(),
            format!("the scheme {scheme:?} is not supported, only http is"),
            "name a URL of plain HTTP: a probe asks whether the way is open, not who is there",
        ));
    }
    if text.len() > MAX_URL {
        let message = format!("a URL of more than {MAX_URL} bytes");
        return Err(fault(whole, message, HTTP.example));
    }
    let length = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = &rest[..length];
    let place = text.len() - rest.len()..text.len() - rest.len() + length;
    let server = if let Ok(server) = authority.parse::<SocketAddr>() {
        server
    } else if let Some(address) = bare_address(authority) {
        SocketAddr::new(address, HTTP_PORT)
    } else {
        return Err(fault(
            place,
            format!("{authority:?} is no IP address with or without a port"),
            "write the server's address, an IPv6 address in brackets: a name would have to be looked up, and a name \
             server that fails would count as a gateway that is down",
        ));
    };
    if server.port() == 0 {
        return Err(fault(place, "0 is no port".to_owned(), HTTP.example));
    }
    if let IpAddr::V6(address) = server.ip()
        && address.to_ipv4_mapped().is_some()
    {
        return Err(fault(
            place,
            format!("{address} is an IPv4-mapped IPv6 address"),
            "write the IPv4 address: packets of that form never cross a wire",
        ));
    }
    let uri: Uri = text
        .parse()
        .map_err(|error| fault(whole, format!("{text:?} is no URL: {error}"), HTTP.example))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok(Url {
        text: text.to_owned(),
        server,
        host: authority.to_owned(),
        // A query may follow the server at once (RFC 9112, 3.2.1).
        path: if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        },
    })
}

/// An address as a URL has it, without a port.
fn bare_address(authority: &str) -> Option<IpAddr> {
    match authority
        .strip_prefix('[')
        .and_then(|a| a.strip_suffix(']'))
    {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => authority.parse().ok().map(IpAddr::V4),
    }
}
