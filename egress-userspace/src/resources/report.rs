//! Reading values of an object, with a diagnostic for each that is not what it should be.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, Ipv4Addr},
    ops::Range,
};

use ipnet::IpNet;

use super::yaml::{Data, Key, Value, place_within};
use crate::{
    diagnostic::{Diagnostic, Severity, Source},
    selector::Selector,
};

/// Faults of one object that are told: who mends these sees the rest.
const MAX_FAULTS: usize = 50;

/// What an error does to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    /// The object is refused; its last good version stays.
    Refused,
    /// The object is taken, with the meaning that is safe.
    Accepted,
}

/// The diagnostics of one object.
pub(super) struct Report<'s> {
    source: &'s Source,
    object: String,
    diagnostics: RefCell<Vec<Diagnostic>>,
    refused: Cell<bool>,
}

impl<'s> Report<'s> {
    pub(super) const fn new(source: &'s Source, object: String) -> Self {
        Self {
            source,
            object,
            diagnostics: RefCell::new(Vec::new()),
            refused: Cell::new(false),
        }
    }

    pub(super) const fn source(&self) -> &'s Source {
        self.source
    }

    pub(super) const fn refused(&self) -> bool {
        self.refused.get()
    }

    pub(super) fn into_diagnostics(self) -> Vec<Diagnostic> {
        self.diagnostics.into_inner()
    }

    /// Refuses the object.
    pub(super) fn error(&self, span: &Range<usize>, message: impl Into<String>, help: &str) {
        self.problem(Consequence::Refused, span, message, help);
    }

    pub(super) fn warning(&self, span: &Range<usize>, message: impl Into<String>, help: &str) {
        self.push(Severity::Warning, span, message.into(), help);
    }

    pub(super) fn problem(
        &self,
        consequence: Consequence,
        span: &Range<usize>,
        message: impl Into<String>,
        help: &str,
    ) {
        if consequence == Consequence::Refused {
            self.refused.set(true);
        }
        self.push(Severity::Error, span, message.into(), help);
    }

    /// Whether nothing more of this object is told.
    pub(super) fn is_full(&self) -> bool {
        self.diagnostics.borrow().len() >= MAX_FAULTS
    }

    fn push(&self, severity: Severity, span: &Range<usize>, message: String, help: &str) {
        if self.is_full() {
            return;
        }
        let diagnostic = Diagnostic::at(self.source, span.clone(), message)
            .with_severity(severity)
            .with_object(&self.object)
            .with_help(help);
        self.diagnostics.borrow_mut().push(diagnostic);
    }

    /// The fields of a map.
    pub(super) fn fields<'v>(&self, value: &'v Value, name: &'v str) -> Option<Fields<'v>> {
        if let Data::Map(entries) = &value.data {
            return Some(Fields {
                name,
                entries,
                span: entries.first().map_or(&value.span, |(key, _)| &key.span),
            });
        }
        self.mismatch(value, name, "a map", "write `key: value` pairs below it");
        None
    }

    /// The items of a list.
    pub(super) fn list<'v>(&self, value: &'v Value, name: &str) -> Option<&'v [Value]> {
        if let Data::List(items) = &value.data {
            return Some(items);
        }
        self.mismatch(value, name, "a list", "write each item after a `-`");
        None
    }

    /// A string.
    pub(super) fn text<'v>(&self, value: &'v Value, name: &str) -> Option<&'v str> {
        match &value.data {
            Data::Text(text) => Some(text),
            Data::Bool(_) | Data::Integer(_) | Data::Float(_) => {
                let written = self.written(value);
                let help = format!("quote it: \"{written}\"");
                self.mismatch(value, name, "a string", &help);
                None
            }
            Data::Null | Data::List(_) | Data::Map(_) | Data::Skipped => {
                self.mismatch(value, name, "a string", "write one string");
                None
            }
        }
    }

    /// The text of a time; for a number, the help is its unit, not quotes.
    pub(super) fn time<'v>(&self, value: &'v Value, name: &str) -> Option<&'v str> {
        if let Data::Integer(_) | Data::Float(_) = value.data {
            let help = format!("add its unit, such as {}s", self.written(value));
            self.mismatch(value, name, "a time", &help);
            return None;
        }
        self.text(value, name)
    }

    pub(super) fn boolean(&self, value: &Value, name: &str) -> Option<bool> {
        if let Data::Bool(boolean) = value.data {
            return Some(boolean);
        }
        self.mismatch(
            value,
            name,
            "`true` or `false`",
            "write `true` or `false`, without quotes",
        );
        None
    }

    /// A whole number within a range.
    pub(super) fn number(&self, value: &Value, name: &str, range: &Range<u32>) -> Option<u32> {
        let in_range = |number: i128| {
            u32::try_from(number)
                .ok()
                .filter(|number| range.contains(number))
        };
        let help = if range.end == u32::MAX {
            format!("write a whole number, {} or more", range.start)
        } else {
            format!(
                "write a whole number from {} to {}",
                range.start,
                range.end - 1
            )
        };
        let Data::Integer(number) = value.data else {
            self.mismatch(value, name, "a whole number", &help);
            return None;
        };
        let found = in_range(number);
        if found.is_none() {
            let fault = if number < 0 {
                "is negative"
            } else {
                "is out of range"
            };
            self.error(&value.span, format!("`{name}` {fault}: {number}"), &help);
        }
        found
    }

    /// A selector; the place of an error is inside the string.
    pub(super) fn selector(
        &self,
        value: &Value,
        text: &str,
        name: &str,
        consequence: Consequence,
    ) -> Option<Selector> {
        match Selector::parse(text) {
            Ok(selector) => Some(selector),
            Err(error) => {
                let span = self.place_within(value, text, &error.span);
                let (message, help) = match (text.trim().is_empty(), name) {
                    (true, "namespaceSelector") => (
                        format!("`{name}` is an empty selector"),
                        "leave it out to mean the pod's own namespace, or write `all()`".to_owned(),
                    ),
                    (true, _) => (format!("`{name}` is an empty selector"), error.help),
                    (false, _) => (format!("`{name}`: {}", error.message), error.help),
                };
                self.problem(consequence, &span, message, &help);
                None
            }
        }
    }

    /// Where a part of a string stands in the file.
    pub(super) fn place_within(
        &self,
        value: &Value,
        text: &str,
        part: &Range<usize>,
    ) -> Range<usize> {
        let whole = &value.span;
        self.source
            .text()
            .get(whole.clone())
            .and_then(|raw| place_within(raw, text, part))
            .map_or_else(
                || whole.clone(),
                |found| whole.start + found.start..whole.start + found.end,
            )
    }

    /// A prefix, host bits masked.
    pub(super) fn prefix(&self, value: &Value, name: &str) -> Option<IpNet> {
        let text = self.text(value, name)?;
        let net = match parse_prefix(text) {
            Ok(net) => net,
            Err(help) => {
                self.error(
                    &value.span,
                    format!("`{name}`: {text:?} is not a CIDR"),
                    &help,
                );
                return None;
            }
        };
        let masked = net.trunc();
        if masked != net {
            let message =
                format!("`{name}`: {net} has bits set beyond its prefix; taken as {masked}");
            self.warning(&value.span, message, &format!("write {masked}"));
        }
        Some(masked)
    }

    /// An address, written as `text`.
    pub(super) fn address(&self, value: &Value, text: &str, name: &str) -> Option<IpAddr> {
        let (message, help) = match text.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => (
                format!("`{name}`: {text} is an IPv4-mapped IPv6 address"),
                "write the IPv4 address: packets of that form never cross a wire",
            ),
            Ok(address) => return Some(address),
            Err(_) => (
                format!("`{name}`: {text:?} is not an IP address"),
                "write an address such as 192.0.2.1 or 2001:db8::1",
            ),
        };
        self.error(&value.span, message, help);
        None
    }

    /// A required field.
    pub(super) fn required<'v>(&self, fields: &Fields<'v>, field: &str) -> Option<&'v Value> {
        let value = fields.get(field);
        if value.is_none() {
            let message = format!("{} has no `{field}`", fields.title());
            self.error(fields.span, message, &format!("add `{field}`"));
        }
        value
    }

    /// Refuses every field but these.
    pub(super) fn only(&self, fields: &Fields<'_>, known: &[&str]) {
        for (key, _) in fields.entries {
            if known.contains(&key.text.as_str()) {
                continue;
            }
            if self.is_full() {
                self.refused.set(true);
                return;
            }
            let help = nearest(&key.text, known).map_or_else(
                || format!("the fields of `{}` are: {}", fields.name, known.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            let message = format!("unknown field `{}` in `{}`", key.text, fields.name);
            self.error(&key.span, message, &help);
        }
    }

    /// Refuses keys that a map has twice, at any depth.
    pub(super) fn no_duplicate_keys(&self, value: &Value) {
        match &value.data {
            Data::Map(entries) => {
                let mut seen = std::collections::BTreeMap::new();
                for (key, value) in entries {
                    if let Some(first) = seen.get(&key.text) {
                        let first = self.source.place(Range::clone(first)).position;
                        let message = format!(
                            "duplicate key `{}`: it is on line {} too",
                            key.text, first.line
                        );
                        self.error(&key.span, message, "remove one of the two");
                    } else {
                        seen.insert(&key.text, key.span.clone());
                    }
                    self.no_duplicate_keys(value);
                }
            }
            Data::List(items) => items.iter().for_each(|item| self.no_duplicate_keys(item)),
            Data::Null
            | Data::Bool(_)
            | Data::Integer(_)
            | Data::Float(_)
            | Data::Text(_)
            | Data::Skipped => {}
        }
    }

    fn mismatch(&self, value: &Value, name: &str, expected: &str, help: &str) {
        let found = match &value.data {
            Data::Null => "nothing".to_owned(),
            Data::Bool(_) => format!("the boolean {}", self.written(value)),
            Data::Integer(_) | Data::Float(_) => format!("the number {}", self.written(value)),
            Data::Text(text) => format!("the string {text:?}"),
            Data::List(_) => "a list".to_owned(),
            Data::Map(_) => "a map".to_owned(),
            Data::Skipped => "something else".to_owned(),
        };
        self.error(
            &value.span,
            format!("`{name}` is not {expected} but {found}"),
            help,
        );
    }

    fn written(&self, value: &Value) -> &'s str {
        self.source.text().get(value.span.clone()).unwrap_or("")
    }
}

/// The fields of a map, and what the map is called.
#[derive(Clone, Copy)]
pub(super) struct Fields<'v> {
    pub(super) name: &'v str,
    pub(super) entries: &'v [(Key, Value)],
    /// Where the map begins.
    pub(super) span: &'v Range<usize>,
}

impl<'v> Fields<'v> {
    fn title(&self) -> String {
        if self.name.contains(' ') {
            return self.name.to_owned();
        }
        format!("`{}`", self.name)
    }

    /// Whether a field is written, but with nothing after it.
    pub(super) fn is_null(&self, field: &str) -> Option<&'v Key> {
        self.entries
            .iter()
            .find(|(key, value)| key.text == field && value.data == Data::Null)
            .map(|(key, _)| key)
    }

    /// The value of a field; null is as good as absent.
    pub(super) fn get(&self, field: &str) -> Option<&'v Value> {
        self.entries
            .iter()
            .find(|(key, _)| key.text == field)
            .map(|(_, value)| value)
            .filter(|value| value.data != Data::Null)
    }
}

/// A CIDR, or what to write instead.
fn parse_prefix(text: &str) -> Result<IpNet, String> {
    const FORM: &str =
        "write an address, a slash and a length, such as 192.0.2.0/24 or 2001:db8::/32";
    let Some((address, length)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => format!("for the one address write {address}/32"),
            Ok(IpAddr::V6(address)) => format!("for the one address write {address}/128"),
            Err(_) => FORM.to_owned(),
        });
    };
    let address: IpAddr = address.parse().map_err(|_| FORM.to_owned())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let well_formed = length.bytes().all(|byte| byte.is_ascii_digit())
        && (length == "0" || !length.starts_with('0'));
    let net = length
        .parse()
        .ok()
        .filter(|_| well_formed)
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or_else(|| format!("the length is a number from 0 to {longest}"))?;
    let mapped = IpNet::new(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), 96);
    if mapped.is_ok_and(|mapped| mapped.contains(&net)) {
        return Err("this is an IPv4-mapped IPv6 prefix; write the IPv4 prefix".to_owned());
    }
    Ok(net)
}

/// The known name that differs by a slip of the finger.
pub(super) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|candidate| {
            let distance = edits(&name.to_lowercase(), &candidate.to_lowercase());
            (distance, *candidate)
        })
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(4).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, c) in one.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, d) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(c != *d);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// Whether an address can be a next hop, and if not, why.
pub(super) fn next_hop_fault(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("is the unspecified address");
    }
    if address.is_loopback() {
        return Some("is a loopback address");
    }
    let multicast_or_broadcast =
        address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST);
    multicast_or_broadcast.then_some("is a multicast or broadcast address")
}

/// Whether an address can be an egress address, and if not, why.
pub(super) fn egress_address_fault(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    // What must not be a next hop cannot be an egress address either.
    next_hop_fault(address).or(link_local.then_some("is a link-local address"))
}
