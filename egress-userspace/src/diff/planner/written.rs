//! Content of the maps: found where it is live, or else written into room that nothing live has.

use std::sync::Arc;

use egress_common::{
    cells::{CELLS_PER_LINE, Line, SLOT_LINES},
    verdict::{Decision, Member, PodState, Verdict},
};

use super::Planner;
use crate::{
    compile::{candidates, only},
    diff::{
        Change, PlanError,
        content::{BlockMeaning, Meaning},
        space::{MAX_LINES, Space},
    },
    state::{Extent, MemberSpec, VerdictSpec},
};

impl<'a> Planner<'a> {
    /// Where a profile's row and block are, after writing what of them is not there.
    pub(super) fn profile(&mut self, profile: usize) -> Result<PodState, PlanError> {
        let profile = &self.desired.profiles[profile];
        let row = self.row(profile.row)?;
        let before = self.memo.and_then(|memo| memo.block(profile));
        if let Some(base) = before.filter(|base| self.now.blocks.contains_key(base)) {
            return Ok(PodState::new(row, base));
        }
        let block = profile
            .verdicts
            .iter()
            .map(|verdict| {
                let policy = self.assigned.policies[profile.policy.as_str()];
                (policy, self.wanted(verdict))
            })
            .collect();
        let base = self.block(block)?;
        Ok(PodState::new(row, base))
    }

    fn row(&mut self, row: usize) -> Result<u32, PlanError> {
        if let Some(first) = self.placed[row] {
            return Ok(first);
        }
        let wanted = &self.desired.rows[row];
        // Rows learn columns and move while prefixes are new.
        let memo = self.memo.filter(|_| self.universe.is_settled());
        let before = memo.and_then(|memo| memo.row(wanted));
        let found = before
            .filter(|first| self.now.rows.contains_key(first))
            .or_else(|| {
                let few = self.few && memo.is_some();
                self.index.find_row(&self.now, &self.universe, wanted, few)
            });
        let first = match found {
            Some(first) => first,
            None => {
                let lines = Extent::lines_needed(self.universe.bound);
                let mut cells = vec![0; (lines * CELLS_PER_LINE) as usize];
                for (class, value) in self
                    .universe
                    .classes
                    .iter()
                    .zip(self.universe.of_wanted(wanted))
                {
                    cells[*class as usize] = value;
                }
                let first = self.write_row(Arc::new(cells))?;
                self.index.add_row(&self.universe, first, wanted);
                first
            }
        };
        self.placed[row] = Some(first);
        Ok(first)
    }

    pub(super) fn write_row(&mut self, cells: Arc<Vec<u16>>) -> Result<u32, PlanError> {
        let given = Extent::lines_given(self.universe.bound);
        let first_line = take(&mut self.room.lines, given, "lines", MAX_LINES)?;
        self.changes.push(Change::WriteLines {
            first_line,
            lines: lines(&cells),
        });
        let row = Extent {
            lines: given,
            cells,
        };
        self.now.rows.insert(first_line, row);
        Ok(first_line)
    }

    /// A verdict by name, as live ones are compared.
    fn wanted(&mut self, verdict: &'a VerdictSpec) -> Meaning {
        match verdict {
            VerdictSpec::Unmatched => Meaning::Plain(Decision::Unmatched),
            VerdictSpec::Local => Meaning::Plain(Decision::Local),
            VerdictSpec::Drop(reason) => Meaning::Plain(Decision::Drop(*reason)),
            VerdictSpec::Gateways(specs) => {
                if let Some(only) = only(specs) {
                    return Meaning::One(self.member_value(only));
                }
                let members: Vec<Member> =
                    specs.iter().map(|spec| self.member_value(spec)).collect();
                let group = candidates(specs);
                let table = match self.groups.get(&group) {
                    Some(table) => *table,
                    None => {
                        let cells = Arc::new(self.tables.table(&group));
                        let table = self.interner.intern(&cells);
                        self.groups.insert(group, table);
                        table
                    }
                };
                // A gateway of so little weight that no slot is left for it still is a member: flows that began
                // on it stay there.
                Meaning::Many(members, table)
            }
        }
    }

    fn member_value(&self, spec: &MemberSpec) -> Member {
        spec.value(self.assigned.member(&spec.label))
    }

    fn block(&mut self, block: BlockMeaning) -> Result<u32, PlanError> {
        let few = self.few && self.memo.is_some();
        let found = self
            .index
            .find_block(&self.now, &mut self.interner, &block, few);
        if let Some(base) = found {
            return Ok(base);
        }
        let verdicts = block
            .iter()
            .map(|(policy, meaning)| Ok(Verdict::new(*policy, self.decision(meaning)?)))
            .collect::<Result<Vec<_>, PlanError>>()?;
        let length = u32::try_from(verdicts.len()).unwrap_or(u32::MAX);
        let room = self.limits.verdicts;
        let base = take(&mut self.room.verdicts, length, "verdicts", room)?;
        self.now.blocks.insert(base, verdicts.clone());
        self.changes.push(Change::WriteVerdicts { base, verdicts });
        self.index.add_block(block, base);
        Ok(base)
    }

    fn decision(&mut self, meaning: &Meaning) -> Result<Decision, PlanError> {
        Ok(match meaning {
            Meaning::Plain(decision) => *decision,
            Meaning::One(member) => {
                let known = self.index.members(&self.now).find(&self.now, member);
                Decision::Member(match known {
                    Some(id) => id,
                    None => self.write_members(&[*member])?,
                })
            }
            Meaning::Many(members, table) => {
                let group = (members.clone(), *table);
                let index = self.index.verdicts(&self.now, &mut self.interner);
                let known = index.groups.get(&group).copied();
                let (lines, first_member) = match known {
                    Some(found) => found,
                    None => {
                        let known = index.tables.get(table).copied();
                        let lines = match known {
                            Some(lines) => lines,
                            None => {
                                let cells = Arc::clone(self.interner.cells(*table));
                                let lines = self.write_table(cells)?;
                                let index = self.index.verdicts(&self.now, &mut self.interner);
                                index.tables.insert(*table, lines);
                                lines
                            }
                        };
                        let placed = (lines, self.write_members(members)?);
                        let index = self.index.verdicts(&self.now, &mut self.interner);
                        index.groups.insert(group, placed);
                        placed
                    }
                };
                Decision::Group {
                    lines,
                    first_member,
                    // A cell could not tell more of them apart.
                    members: u16::try_from(members.len()).unwrap_or(u16::MAX),
                }
            }
            // Nothing wanted is broken; a verdict that decodes to nothing drops.
            Meaning::Broken => Decision::Drop(egress_common::DropReason::StateMissing),
        })
    }

    fn write_table(&mut self, cells: Arc<Vec<u16>>) -> Result<u32, PlanError> {
        let first_line = take(&mut self.room.lines, SLOT_LINES, "lines", MAX_LINES)?;
        self.changes.push(Change::WriteLines {
            first_line,
            lines: lines(&cells),
        });
        self.now.slot_tables.insert(first_line, cells);
        Ok(first_line)
    }

    fn write_members(&mut self, members: &[Member]) -> Result<u32, PlanError> {
        let length = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let room = self.limits.members;
        let first = take(&mut self.room.members, length, "group members", room)?;
        for (id, member) in (first..).zip(members) {
            // What is looked up later sees it live.
            self.index.members(&self.now).add(*member, id);
            self.now.members.insert(id, *member);
            self.changes.push(Change::WriteMember {
                id,
                member: *member,
            });
        }
        Ok(first)
    }
}

pub(super) fn take(
    space: &mut Space,
    length: u32,
    what: &'static str,
    room: u32,
) -> Result<u32, PlanError> {
    space.take(length).ok_or(PlanError { what, room })
}

/// Whole lines of cells.
pub(super) fn lines(cells: &[u16]) -> Vec<Line> {
    let (lines, _) = cells.as_chunks();
    lines.iter().map(|line| Line(*line)).collect()
}
