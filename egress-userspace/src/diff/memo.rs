//! Where a plan has put what, for the next one: most of it is wanted again.
//!
//! Content is known by its address in memory, which it keeps as long as it is remembered.

use std::{collections::HashMap, sync::Arc};

use egress_common::{cells::RowPlace, verdict::PodState};

use crate::{
    rows::Row,
    state::{DesiredState, Profile, VerdictSpec},
};

/// What is remembered of the plan whose result the maps say; it changes how long planning takes, and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Memo {
    /// Where each row is.
    rows: HashMap<usize, (Arc<Row>, RowPlace)>,
    /// Policy and rule base of each block.
    blocks: HashMap<usize, (Arc<[VerdictSpec]>, String, u32)>,
}

impl Memo {
    /// Remembers where the row and the block of a profile are.
    pub(super) fn remember(&mut self, desired: &DesiredState, profile: usize, state: PodState) {
        let profile = &desired.profiles[profile];
        let (row, verdicts) = (&desired.rows[profile.row], &profile.verdicts);
        let row = (Arc::clone(row), state.row());
        self.rows.insert(Arc::as_ptr(&row.0).addr(), row);
        let block = (
            Arc::clone(verdicts),
            profile.policy.clone(),
            state.rule_base(),
        );
        self.blocks.insert(verdicts.as_ptr().addr(), block);
    }

    /// Where a row is, if it was wanted before.
    pub(super) fn row(&self, row: &Arc<Row>) -> Option<RowPlace> {
        let (known, place) = self.rows.get(&Arc::as_ptr(row).addr())?;
        Arc::ptr_eq(known, row).then_some(*place)
    }

    /// The rule base of a profile's block, if it was wanted before.
    pub(super) fn block(&self, profile: &Profile) -> Option<u32> {
        let (known, policy, base) = self.blocks.get(&profile.verdicts.as_ptr().addr())?;
        (Arc::ptr_eq(known, &profile.verdicts) && *policy == profile.policy).then_some(*base)
    }
}
