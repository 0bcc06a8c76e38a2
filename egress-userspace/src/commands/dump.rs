//! `egress dump`: what the kernel's maps say, in words.

use std::{collections::BTreeMap, net::IpAddr};

use clap::ValueEnum;
use egress_common::{
    counter::Count,
    keys::PodKey,
    verdict::{Decision, Replies},
};
use ipnet::IpNet;
use serde::Serialize;

use super::{Output, columns};
use crate::{
    counters::{MapUse, Reading},
    explain::device,
    state::{KernelState, MemberLabel, Names},
};

/// Arguments of `egress dump`.
#[derive(Debug, clap::Args)]
pub struct DumpArgs {
    /// What to show; everything unless given
    #[arg(value_enum)]
    pub what: Option<What>,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// A part of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Source pods and their rows.
    Pods,
    /// Prefixes and their classes.
    Prefixes,
    /// Verdicts of each policy.
    Policies,
    /// Members: gateways as rules use them.
    Gateways,
    /// Counters, and how full the maps are.
    Counters,
}

/// All that the maps say, read at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a> {
    /// The maps.
    pub kernel: &'a KernelState,
    /// What the numbers mean.
    pub names: &'a Names,
    /// The counters.
    pub reading: &'a Reading,
    /// Names of the node's interfaces.
    pub interfaces: &'a BTreeMap<u32, String>,
}

/// Writes down the parts that the arguments ask for.
///
/// # Errors
/// When they cannot be written in the form asked for.
pub fn render(args: &DumpArgs, maps: &Maps<'_>) -> anyhow::Result<String> {
    let dump = Dump::of(args.what, maps);
    args.output.render(&dump, Dump::table)
}

/// Prints the parts that the arguments ask for.
///
/// # Errors
/// When they cannot be written in the form asked for, or not printed.
pub fn dump(args: &DumpArgs, maps: &Maps<'_>) -> anyhow::Result<std::process::ExitCode> {
    super::print(&render(args, maps)?)?;
    Ok(std::process::ExitCode::SUCCESS)
}

/// The parts that were asked for.
#[derive(Default, Serialize)]
struct Dump {
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<Vec<PodRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefixes: Option<Vec<PrefixRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<Vec<VerdictRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateways: Option<Vec<MemberRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<CounterRows>,
}

#[derive(Serialize)]
struct PodRow {
    interface: String,
    ifindex: u32,
    address: IpAddr,
    slot: u32,
    policy: Option<String>,
    row: Option<u32>,
    rule_base: Option<u32>,
}

#[derive(Serialize)]
struct PrefixRow {
    prefix: IpNet,
    class: u32,
}

#[derive(Serialize)]
struct VerdictRow {
    policy: Option<String>,
    rule_base: u32,
    number: usize,
    verdict: String,
    /// Prefixes with this number in any row of the block; the shortest is the rule's own.
    prefixes: Vec<IpNet>,
}

#[derive(Serialize)]
struct MemberRow {
    member: u32,
    #[serde(flatten)]
    label: Option<MemberLabel>,
    next_hop: IpAddr,
    device: String,
    mtu: u32,
    replies: &'static str,
    counter: u32,
    packets: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct CounterRows {
    counters: Vec<CounterRow>,
    maps: Vec<MapUse>,
}

#[derive(Serialize)]
struct CounterRow {
    what: String,
    policy: Option<String>,
    rule: Option<String>,
    packets: u64,
    bytes: u64,
}

impl Dump {
    fn of(what: Option<What>, maps: &Maps<'_>) -> Self {
        let wanted = |part| what.is_none_or(|what| what == part);
        Self {
            pods: wanted(What::Pods).then(|| maps.pods()),
            prefixes: wanted(What::Prefixes).then(|| maps.prefixes()),
            policies: wanted(What::Policies).then(|| maps.policies()),
            gateways: wanted(What::Gateways).then(|| maps.gateways()),
            counters: wanted(What::Counters).then(|| maps.counters()),
        }
    }

    fn table(&self) -> String {
        let tables = [
            self.pods.as_deref().map(pods_table),
            self.prefixes.as_deref().map(prefixes_table),
            self.policies.as_deref().map(policies_table),
            self.gateways.as_deref().map(gateways_table),
            self.counters.as_ref().map(counters_table),
        ];
        let tables: Vec<String> = tables.into_iter().flatten().collect();
        tables.join("\n")
    }
}

impl Maps<'_> {
    fn pods(&self) -> Vec<PodRow> {
        let row = |(key, slot): (&PodKey, &u32)| {
            let state = self.kernel.slots.get(slot);
            let block = state.and_then(|s| self.kernel.blocks.get(&s.rule_base()));
            PodRow {
                interface: device(self.interfaces, key.ifindex),
                ifindex: key.ifindex,
                address: key.addr.into(),
                slot: *slot,
                policy: block
                    .and_then(|b| b.first())
                    .map(|verdict| self.policy(verdict.policy)),
                row: state.map(|s| s.row()),
                rule_base: state.map(|s| s.rule_base()),
            }
        };
        self.kernel.pods.iter().map(row).collect()
    }

    fn prefixes(&self) -> Vec<PrefixRow> {
        let row = |(prefix, class): (&IpNet, &u32)| PrefixRow {
            prefix: *prefix,
            class: *class,
        };
        self.kernel.prefixes.iter().map(row).collect()
    }

    fn policies(&self) -> Vec<VerdictRow> {
        let mut rows = Vec::new();
        for (base, block) in &self.kernel.blocks {
            for (number, verdict) in block.iter().enumerate() {
                rows.push(VerdictRow {
                    policy: Some(self.policy(verdict.policy)),
                    rule_base: *base,
                    number,
                    verdict: self.decision(verdict.decode()),
                    prefixes: self.prefixes_of(*base, number),
                });
            }
        }
        rows
    }

    /// The prefixes whose number is `number` in a row that goes with the block at `base`, the shortest first.
    fn prefixes_of(&self, base: u32, number: usize) -> Vec<IpNet> {
        let rows: std::collections::BTreeSet<u32> = self
            .kernel
            .slots
            .values()
            .filter(|state| state.rule_base() == base)
            .map(|state| state.row())
            .collect();
        let cells: Vec<&[u16]> = rows
            .iter()
            .filter_map(|row| Some(self.kernel.rows.get(row)?.cells.as_slice()))
            .collect();
        let mut prefixes: Vec<IpNet> = self
            .kernel
            .prefixes
            .iter()
            .filter(|(_, class)| {
                usize::try_from(**class).is_ok_and(|class| {
                    cells
                        .iter()
                        .any(|cells| cells.get(class).is_some_and(|n| usize::from(*n) == number))
                })
            })
            .map(|(prefix, _)| *prefix)
            .collect();
        prefixes.sort_by_key(|net| (net.prefix_len(), *net));
        prefixes
    }

    fn decision(&self, decision: Option<Decision>) -> String {
        match decision {
            None => "never written".to_owned(),
            Some(Decision::Unmatched) => "unmatched".to_owned(),
            Some(Decision::Local) => "local".to_owned(),
            Some(Decision::Drop(reason)) => format!("drop {}", reason.name()),
            Some(Decision::Member(id)) => format!("gateway {}", self.gateway(id)),
            Some(Decision::Group {
                lines,
                first_member,
                members: _,
            }) => {
                let mut slots: BTreeMap<u16, usize> = BTreeMap::new();
                let table = self.kernel.slot_tables.get(&lines);
                for number in table.into_iter().flat_map(|cells| cells.iter()) {
                    *slots.entry(*number).or_default() += 1;
                }
                let members: Vec<String> = slots
                    .iter()
                    .map(|(number, n)| {
                        let gateway = self.gateway(first_member + u32::from(*number));
                        format!("{gateway} ({n} slots)")
                    })
                    .collect();
                format!("one of {}", members.join(", "))
            }
        }
    }

    fn gateways(&self) -> Vec<MemberRow> {
        self.kernel
            .members
            .iter()
            .map(|(id, member)| {
                let count = self.count(member.counter);
                MemberRow {
                    member: *id,
                    label: self.label(member.counter).cloned(),
                    next_hop: member.address.into(),
                    device: device(self.interfaces, member.ifindex),
                    mtu: member.mtu,
                    replies: match member.replies() {
                        Replies::Kernel => "kernel",
                        Replies::Recorded => "recorded",
                    },
                    counter: member.counter,
                    packets: count.packets,
                    bytes: count.bytes,
                }
            })
            .collect()
    }

    fn counters(&self) -> CounterRows {
        let members = self.reading.members.iter().map(|(id, count)| {
            let label = self.label(*id);
            let what = label.map_or_else(
                || format!("member counter {id}"),
                |l| format!("gateway {}/{}", l.namespace, l.gateway),
            );
            row(
                what,
                label.map(|l| l.policy.clone()),
                label.map(|l| l.rule.clone()),
                *count,
            )
        });
        let drops = self.reading.drops.iter().map(|(id, reason, count)| {
            let what = format!("drop {}", reason.name());
            row(what, Some(self.policy(*id)), None, *count)
        });
        let passes = self.reading.passes.iter().map(|(id, kind, count)| {
            row(kind.name().to_owned(), Some(self.policy(*id)), None, *count)
        });
        CounterRows {
            counters: members.chain(drops).chain(passes).collect(),
            maps: self.reading.maps.clone(),
        }
    }

    fn gateway(&self, member: u32) -> String {
        self.kernel
            .members
            .get(&member)
            .and_then(|m| self.label(m.counter))
            .map_or_else(
                || format!("member {member}"),
                |l| format!("{}/{}", l.namespace, l.gateway),
            )
    }

    fn label(&self, counter: u32) -> Option<&MemberLabel> {
        let of_counter = |(_, id): &&(MemberLabel, u32)| *id == counter;
        Some(&self.names.members.iter().find(of_counter)?.0)
    }

    fn count(&self, counter: u32) -> Count {
        let found = self.reading.members.iter().find(|(id, _)| *id == counter);
        found.map(|(_, count)| *count).unwrap_or_default()
    }

    fn policy(&self, id: u32) -> String {
        if id == egress_common::counter::NO_POLICY {
            return String::new();
        }
        let found = self.names.policies.iter().find(|(_, of)| **of == id);
        found.map_or_else(|| format!("#{id}"), |(name, _)| name.clone())
    }
}

fn row(what: String, policy: Option<String>, rule: Option<String>, count: Count) -> CounterRow {
    CounterRow {
        what,
        policy,
        rule,
        packets: count.packets,
        bytes: count.bytes,
    }
}

fn pods_table(rows: &[PodRow]) -> String {
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

fn prefixes_table(rows: &[PrefixRow]) -> String {
    columns(
        ["PREFIX", "CLASS"],
        rows.iter()
            .map(|r| [r.prefix.to_string(), r.class.to_string()]),
    )
}

fn policies_table(rows: &[VerdictRow]) -> String {
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

fn gateways_table(rows: &[MemberRow]) -> String {
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

fn counters_table(rows: &CounterRows) -> String {
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

fn text(value: Option<impl ToString>) -> String {
    let text = value.map(|v| v.to_string()).unwrap_or_default();
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use egress_common::DropReason;

    use super::*;
    use crate::explain;

    fn rendered(what: Option<What>, output: Output) -> anyhow::Result<String> {
        let count = |packets, bytes| Count { packets, bytes };
        let node = explain::tests::node();
        let reading = Reading {
            members: vec![(0, count(5, 700)), (9, count(1, 60))],
            drops: vec![
                (0, DropReason::SpoofedSource, count(3, 180)),
                (1, DropReason::NoGateway, count(2, 120)),
            ],
            passes: vec![(1, egress_common::counter::PassKind::Local, count(4, 240))],
            maps: vec![MapUse {
                name: "PODS".to_owned(),
                entries: 2,
                capacity: 4096,
            }],
        };
        let maps = Maps {
            kernel: &node.kernel,
            names: &node.names,
            reading: &reading,
            interfaces: &node.interfaces,
        };
        render(&DumpArgs { what, output }, &maps)
    }

    #[test]
    fn tables_for_people() -> anyhow::Result<()> {
        insta::assert_snapshot!(rendered(None, Output::Table)?);
        Ok(())
    }

    #[test]
    fn yaml_for_people_and_programs() -> anyhow::Result<()> {
        insta::assert_snapshot!(rendered(Some(What::Gateways), Output::Yaml)?);
        Ok(())
    }

    #[test]
    fn json_has_the_parts_asked_for() -> anyhow::Result<()> {
        let all: serde_json::Value = serde_json::from_str(&rendered(None, Output::Json)?)?;
        let keys: Vec<_> = all.as_object().into_iter().flat_map(|o| o.keys()).collect();
        assert_eq!(
            keys,
            ["counters", "gateways", "pods", "policies", "prefixes"]
        );
        let pods: serde_json::Value =
            serde_json::from_str(&rendered(Some(What::Pods), Output::Json)?)?;
        assert_eq!(pods.as_object().map(serde_json::Map::len), Some(1));
        assert_eq!(pods["pods"][0]["policy"], "to-partners");
        Ok(())
    }
}
