//! The maps as plain collections, and what the datapath would do with them: for tests and for `--dry-run`.

use std::{collections::BTreeMap, convert::Infallible, net::IpAddr};

use egress_common::{
    DropReason,
    cells::{CELLS_PER_LINE, Line, RowPlace, SLOTS, SparseLine, sparse_line},
    keys::PodKey,
    verdict::{Decision, Member, NUMBER_UNMATCHED, PodState, Verdict},
};
use ipnet::IpNet;

use super::{Change, trace::MapReader};

/// The content of every map that a plan writes, live or stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawMaps {
    /// `PODS`.
    pub pods: BTreeMap<PodKey, u32>,
    /// `POD_STATE`, where it was ever written.
    pub slots: BTreeMap<u32, PodState>,
    /// `PREFIXES4` and `PREFIXES6`.
    pub prefixes: BTreeMap<IpNet, u32>,
    /// `LINES`, where they were ever written.
    pub lines: BTreeMap<u32, Line>,
    /// `VERDICTS`, where they were ever written.
    pub verdicts: BTreeMap<u32, Verdict>,
    /// `MEMBERS`, where they were ever written.
    pub members: BTreeMap<u32, Member>,
}

/// What the datapath decides for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// No pod has this interface and address.
    UnknownSource,
    /// To the kernel's routing: no rule matched.
    Unmatched {
        /// The policy that is counted.
        policy: u32,
    },
    /// To the kernel's routing: a rule or the cluster says so.
    Local {
        /// The policy that is counted.
        policy: u32,
    },
    /// Out through this member.
    Out {
        /// The policy that is counted.
        policy: u32,
        /// The way.
        member: Member,
    },
    /// Not at all.
    Drop {
        /// The policy that is counted.
        policy: u32,
        /// Why.
        reason: DropReason,
    },
    /// Something that an entry names is not there.
    StateMissing,
}

impl RawMaps {
    /// Carries out one change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::WriteLines { first_line, lines } => {
                self.lines
                    .extend((*first_line..).zip(lines.iter().copied()));
            }
            Change::WriteMember { id, member } => {
                self.members.insert(*id, *member);
            }
            Change::WriteVerdicts { base, verdicts } => {
                self.verdicts
                    .extend((*base..).zip(verdicts.iter().copied()));
            }
            Change::InsertPrefix { prefix, class } => {
                self.prefixes.insert(*prefix, *class);
            }
            Change::TurnPod { slot, state } => {
                self.slots.insert(*slot, *state);
            }
            Change::InsertPod { key, slot } => {
                self.pods.insert(*key, *slot);
            }
            Change::RemovePod { key } => {
                self.pods.remove(key);
            }
            Change::RemovePrefix { prefix } => {
                self.prefixes.remove(prefix);
            }
            Change::Grace => {}
        }
    }

    /// What the datapath decides for a packet of this pod and flow.
    #[must_use]
    pub fn lookup(&self, pod: PodKey, destination: IpAddr, flow_hash: u32) -> Outcome {
        match self.state_of(pod) {
            Some(state) => self.outcome(state, self.class_of(destination), flow_hash),
            None => Outcome::UnknownSource,
        }
    }

    /// The datapath's first step: the pod's row and rule base.
    #[must_use]
    pub fn state_of(&self, pod: PodKey) -> Option<PodState> {
        let slot = self.pods.get(&pod)?;
        Some(self.slots.get(slot).copied().unwrap_or_default())
    }

    /// Its second: the class of the longest prefix that contains the destination.
    #[must_use]
    pub fn class_of(&self, destination: IpAddr) -> Option<u32> {
        self.prefixes
            .iter()
            .filter(|(net, _)| net.contains(&destination))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, class)| *class)
    }

    /// The rest: number, verdict, member.
    #[must_use]
    pub fn outcome(&self, state: PodState, class: Option<u32>, flow_hash: u32) -> Outcome {
        let number = class.map_or(NUMBER_UNMATCHED, |class| self.number(state.row(), class));
        let Some(verdict) = self.verdicts.get(&(state.rule_base() + u32::from(number))) else {
            return Outcome::StateMissing;
        };
        let policy = verdict.policy;
        let member = match verdict.decode() {
            None => return Outcome::StateMissing,
            Some(Decision::Unmatched) => return Outcome::Unmatched { policy },
            Some(Decision::Local) => return Outcome::Local { policy },
            Some(Decision::Drop(reason)) => return Outcome::Drop { policy, reason },
            Some(Decision::Member(id)) => id,
            Some(Decision::Group {
                lines,
                first_member,
                members: _,
            }) => first_member + u32::from(self.cell(lines, flow_hash % SLOTS)),
        };
        match self.members.get(&member) {
            Some(member) => Outcome::Out {
                policy,
                member: *member,
            },
            None => Outcome::StateMissing,
        }
    }

    fn number(&self, row: RowPlace, class: u32) -> u16 {
        let Some(shift) = row.shift() else {
            return self.cell(row.first_line(), class);
        };
        let line = row.first_line() + sparse_line(class, shift);
        let line = self.lines.get(&line).unwrap_or(&Line::ZERO);
        SparseLine::from_line(line).number(class)
    }

    fn cell(&self, first_line: u32, index: u32) -> u16 {
        self.lines
            .get(&(first_line + index / CELLS_PER_LINE))
            .map_or(0, |line| line.0[(index % CELLS_PER_LINE) as usize])
    }
}

impl MapReader for RawMaps {
    type Error = Infallible;

    fn pods(&self) -> Result<Vec<(PodKey, u32)>, Infallible> {
        Ok(self.pods.iter().map(|(key, slot)| (*key, *slot)).collect())
    }

    fn slot(&self, slot: u32) -> Result<PodState, Infallible> {
        Ok(self.slots.get(&slot).copied().unwrap_or_default())
    }

    fn prefixes(&self) -> Result<Vec<(IpNet, u32)>, Infallible> {
        Ok(self.prefixes.iter().map(|(net, c)| (*net, *c)).collect())
    }

    fn lines(&self, first: u32, count: u32) -> Result<Vec<Line>, Infallible> {
        Ok((first..first.saturating_add(count))
            .map(|line| self.lines.get(&line).copied().unwrap_or(Line::ZERO))
            .collect())
    }

    fn verdict(&self, index: u32) -> Result<Verdict, Infallible> {
        Ok(self.verdicts.get(&index).copied().unwrap_or_default())
    }

    fn member(&self, id: u32) -> Result<Member, Infallible> {
        Ok(self.members.get(&id).copied().unwrap_or_default())
    }
}
