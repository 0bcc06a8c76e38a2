//! What the maps say, a row for each thing, by its name where it has one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use egress_common::{
    cells::RowPlace,
    counter::{Count, Direction},
    keys::PodKey,
    verdict::{Decision, Replies},
};
use ipnet::IpNet;

use super::{CounterRow, CounterRows, Maps, MemberRow, PodRow, PrefixRow, VerdictRow};
use crate::{explain::device, rows::Cells, state::MemberLabel};

impl Maps<'_> {
    pub(super) fn pods(&self) -> Vec<PodRow> {
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
                row: state.map(|s| s.row().first_line()),
                row_is_sparse: state.map(|s| s.row().is_sparse()),
                rule_base: state.map(|s| s.rule_base()),
            }
        };
        self.kernel.pods.iter().map(row).collect()
    }

    pub(super) fn prefixes(&self) -> Vec<PrefixRow> {
        let row = |(prefix, class): (&IpNet, &u32)| PrefixRow {
            prefix: *prefix,
            class: *class,
        };
        self.kernel.prefixes.iter().map(row).collect()
    }

    pub(super) fn policies(&self) -> Vec<VerdictRow> {
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
        let rows: BTreeSet<RowPlace> = self
            .kernel
            .slots
            .values()
            .filter(|state| state.rule_base() == base)
            .map(|state| state.row())
            .collect();
        let rows: Vec<&Cells> = rows
            .iter()
            .filter_map(|row| Some(&*self.kernel.rows.get(row)?.cells))
            .collect();
        let mut prefixes: Vec<IpNet> = self
            .kernel
            .prefixes
            .iter()
            .filter(|(_, class)| {
                let mut said = rows.iter().filter_map(|row| row.number(**class));
                said.any(|said| usize::from(said) == number)
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

    pub(super) fn gateways(&self) -> Vec<MemberRow> {
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

    pub(super) fn counters(&self) -> CounterRows {
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
        let translated = self
            .reading
            .translated
            .iter()
            .map(|(id, direction, count)| {
                let direction = match direction {
                    Direction::Out => "out",
                    Direction::Back => "back",
                };
                let what = format!("translated {direction} {}", self.own_gateway(*id));
                row(what, None, None, *count)
            });
        let refused = self.reading.gateway_drops.iter();
        let refused = refused.map(|(id, reason, count)| {
            let what = format!("drop {} by {}", reason.name(), self.own_gateway(*id));
            row(what, None, None, *count)
        });
        CounterRows {
            counters: members
                .chain(drops)
                .chain(passes)
                .chain(translated)
                .chain(refused)
                .collect(),
            maps: self.map_use.to_vec(),
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

    fn own_gateway(&self, counter: u32) -> String {
        let found = self.names.gateways.iter().find(|(_, id)| **id == counter);
        found.map_or_else(
            || format!("gateway counter {counter}"),
            |(name, _)| name.to_string(),
        )
    }

    fn label(&self, counter: u32) -> Option<&MemberLabel> {
        let of_counter = |(_, id): &&(Arc<MemberLabel>, u32)| *id == counter;
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
