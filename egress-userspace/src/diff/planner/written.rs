//! Content of the maps: found where it is live, or else written into room that nothing live has.

use std::sync::Arc;

use egress_common::{
    cells::{CELLS_PER_LINE, Line, RowPlace, SLOT_LINES},
    verdict::{Decision, Member, PodState, Verdict},
};

use super::Planner;
use crate::{
    compile::{candidates, only},
    diff::{
        Change, PlanError,
        content::{BlockMeaning, Meaning, Wanted},
        space::{MAX_LINES, Space},
    },
    rows::{Cells, Row, Sparse},
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

    fn row(&mut self, row: usize) -> Result<RowPlace, PlanError> {
        if let Some(place) = self.placed[row] {
            return Ok(place);
        }
        let wanted = &self.desired.rows[row];
        // Rows learn columns and move while prefixes are new.
        let memo = self.memo.filter(|_| self.universe.is_settled());
        let before = memo.and_then(|memo| memo.row(wanted));
        let known = before.filter(|place| {
            self.now.rows.contains_key(place) && self.universe.suits(*place, wanted)
        });
        let place = match known {
            Some(place) => place,
            None => self.find_or_write(wanted, self.few && memo.is_some())?,
        };
        self.placed[row] = Some(place);
        Ok(place)
    }

    /// A row that is live already, in one form or the other, or a new one.
    fn find_or_write(&mut self, row: &Row, few: bool) -> Result<RowPlace, PlanError> {
        let shift = row.is_sparse().then(|| self.universe.shift(row)).flatten();
        let sparse = || Wanted::sparse(&self.universe, row);
        let dense = || Wanted::dense(&self.universe, row);
        let own = if shift.is_some() { sparse() } else { dense() };
        // It may have the other form from a time when other prefixes were there; while they change, none stays dense.
        let may_differ = shift.is_none() || self.universe.is_settled();
        let differs = |place: &RowPlace| place.is_sparse() != shift.is_some();
        let other = (may_differ && self.now.rows.keys().any(differs))
            .then(|| if shift.is_some() { dense() } else { sparse() });
        for wanted in [Some(&own), other.as_ref()].into_iter().flatten() {
            let suits = |place| self.universe.suits(place, row);
            let index = &mut self.index;
            if let Some(place) = index.find_row(&self.now, &self.universe, wanted, suits, few) {
                return Ok(place);
            }
        }
        let cells = match (&own, shift) {
            (Wanted::Sparse(common, others), Some(shift)) => {
                let others = others.iter().copied();
                Sparse::new(shift, *common, others).map(Cells::Sparse)
            }
            _ => None,
        };
        let cells = cells.unwrap_or_else(|| self.dense(self.universe.of_wanted(row)));
        let place = self.write_row(Arc::new(cells))?;
        self.index.add_row(place, &own);
        Ok(place)
    }

    /// A dense row of a number for each prefix.
    pub(super) fn dense(&self, numbers: impl IntoIterator<Item = u16>) -> Cells {
        let lines = Extent::lines_needed(self.universe.bound);
        let mut cells = vec![0; (lines * CELLS_PER_LINE) as usize];
        for (class, number) in self.universe.classes.iter().zip(numbers) {
            cells[*class as usize] = number;
        }
        Cells::Dense(cells)
    }

    pub(super) fn write_row(&mut self, cells: Arc<Cells>) -> Result<RowPlace, PlanError> {
        let given = match &*cells {
            Cells::Dense(_) => Extent::lines_given(self.universe.bound),
            Cells::Sparse(sparse) => 1 << sparse.shift(),
        };
        let first_line = take(&mut self.room.lines, given, "lines", MAX_LINES)?;
        self.changes.push(Change::WriteLines {
            first_line,
            lines: cells.lines(),
        });
        let place = match &*cells {
            Cells::Dense(_) => RowPlace::dense(first_line),
            Cells::Sparse(sparse) => RowPlace::sparse(first_line, sparse.shift()),
        };
        let row = Extent {
            lines: given,
            cells,
        };
        self.now.rows.insert(place, row);
        Ok(place)
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
            lines: cells.as_chunks().0.iter().copied().map(Line).collect(),
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
