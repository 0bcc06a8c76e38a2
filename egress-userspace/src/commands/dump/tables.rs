//! The parts of a dump as columns for people.

use super::{CounterRows, MemberRow, PodRow, PrefixRow, VerdictRow};
use crate::commands::columns;

pub(super) fn pods_table(rows: &[PodRow]) -> String {
    columns(
        ["INTERFACE", "ADDRESS", "POLICY", "SLOT", "ROW", "RULE BASE"],
        rows.iter().map(|r| {
            [
                r.interface.clone(),
                r.address.to_string(),
                text(r.policy.as_deref()),
                r.slot.to_string(),
                text(r.row),
                text(r.rule_base),
            ]
        }),
    )
}

pub(super) fn prefixes_table(rows: &[PrefixRow]) -> String {
    columns(
        ["PREFIX", "CLASS"],
        rows.iter()
            .map(|r| [r.prefix.to_string(), r.class.to_string()]),
    )
}

pub(super) fn policies_table(rows: &[VerdictRow]) -> String {
    columns(
        ["POLICY", "RULE BASE", "NUMBER", "PREFIXES", "VERDICT"],
        rows.iter().map(|r| {
            let shown: Vec<String> = r.prefixes.iter().take(3).map(ToString::to_string).collect();
            let more = match r.prefixes.len().saturating_sub(3) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            [
                text(r.policy.as_deref()),
                r.rule_base.to_string(),
                r.number.to_string(),
                shown.join(" ") + &more,
                r.verdict.clone(),
            ]
        }),
    )
}

pub(super) fn gateways_table(rows: &[MemberRow]) -> String {
    columns(
        [
            "MEMBER", "GATEWAY", "POLICY", "RULE", "NEXT HOP", "DEVICE", "MTU", "REPLIES",
            "PACKETS", "BYTES",
        ],
        rows.iter().map(|r| {
            let label = r.label.as_ref();
            [
                r.member.to_string(),
                text(label.map(|l| format!("{}/{}", l.namespace, l.gateway))),
                text(label.map(|l| &l.policy)),
                text(label.map(|l| &l.rule)),
                r.next_hop.to_string(),
                r.device.clone(),
                r.mtu.to_string(),
                r.replies.to_owned(),
                r.packets.to_string(),
                r.bytes.to_string(),
            ]
        }),
    )
}

pub(super) fn counters_table(rows: &CounterRows) -> String {
    let counters = columns(
        ["WHAT", "POLICY", "RULE", "PACKETS", "BYTES"],
        rows.counters.iter().map(|r| {
            [
                r.what.clone(),
                text(r.policy.as_deref()),
                text(r.rule.as_deref()),
                r.packets.to_string(),
                r.bytes.to_string(),
            ]
        }),
    );
    let maps = columns(
        ["MAP", "ENTRIES", "CAPACITY"],
        rows.maps.iter().map(|m| {
            [
                m.name.clone(),
                m.entries.to_string(),
                m.capacity.to_string(),
            ]
        }),
    );
    format!("{counters}\n{maps}")
}

pub(super) fn text(value: Option<impl ToString>) -> String {
    let text = value.map(|v| v.to_string()).unwrap_or_default();
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}
