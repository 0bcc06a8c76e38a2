//! Where a plan has put what, for the next one: most of it is wanted again.
//!
//! Content is known by its address in memory, which it keeps as long as it is remembered.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use egress_common::{cells::RowPlace, verdict::PodState};
use ipnet::IpNet;

use super::{names::Assigned, universe::Universe};
use crate::{
    rows::Row,
    state::{DesiredState, Profile, VerdictSpec},
};

/// What is remembered of the plan whose result the maps say; it changes how long planning takes, and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Memo {
    /// Where each row is.
    rows: HashMap<usize, (Arc<Row>, RowPlace)>,
    /// What is known of each block.
    blocks: HashMap<usize, Block>,
    /// The prefixes, if they are just the wanted ones.
    universe: Option<(Arc<[IpNet]>, Arc<Universe>)>,
    /// Whether it is a plan's, which has left nothing that no pod reaches.
    pub(super) of_a_plan: bool,
}

#[derive(Clone, Debug)]
struct Block {
    verdicts: Arc<[VerdictSpec]>,
    policy: String,
    rule_base: u32,
    /// The ids that its members count under.
    members: Arc<[u32]>,
}

impl Memo {
    /// Remembers where the row and the block of a profile are; `before` may know the block.
    pub(super) fn remember(
        &mut self,
        desired: &DesiredState,
        profile: usize,
        state: PodState,
        before: &Self,
        assigned: &Assigned<'_>,
    ) {
        let profile = &desired.profiles[profile];
        let (row, verdicts) = (&desired.rows[profile.row], &profile.verdicts);
        let row = (Arc::clone(row), state.row());
        self.rows.insert(Arc::as_ptr(&row.0).addr(), row);
        let members = match before.of(profile) {
            Some(block) => Arc::clone(&block.members),
            None => {
                let members = verdicts.iter().flat_map(VerdictSpec::members);
                let ids = members.map(|member| assigned.member(&member.label));
                ids.collect::<BTreeSet<u32>>().into_iter().collect()
            }
        };
        let block = Block {
            verdicts: Arc::clone(verdicts),
            policy: profile.policy.clone(),
            rule_base: state.rule_base(),
            members,
        };
        self.blocks.insert(verdicts.as_ptr().addr(), block);
    }

    /// Remembers the prefixes after a plan that has neither new ones nor such as go.
    pub(super) fn remember_prefixes(&mut self, wanted: &Arc<[IpNet]>, universe: &Arc<Universe>) {
        self.universe = Some((Arc::clone(wanted), Arc::clone(universe)));
    }

    /// The prefixes, if exactly these were wanted before.
    pub(super) fn universe(&self, wanted: &Arc<[IpNet]>) -> Option<Arc<Universe>> {
        let (known, universe) = self.universe.as_ref()?;
        Arc::ptr_eq(known, wanted).then(|| Arc::clone(universe))
    }

    /// Where a row is, if it was wanted before.
    pub(super) fn row(&self, row: &Arc<Row>) -> Option<RowPlace> {
        let (known, place) = self.rows.get(&Arc::as_ptr(row).addr())?;
        Arc::ptr_eq(known, row).then_some(*place)
    }

    /// The rule base of a profile's block, if it was wanted before.
    pub(super) fn block(&self, profile: &Profile) -> Option<u32> {
        Some(self.of(profile)?.rule_base)
    }

    /// The ids that a profile's members count under, if it was wanted before.
    pub(super) fn members(&self, profile: &Profile) -> Option<&[u32]> {
        Some(&self.of(profile)?.members)
    }

    fn of(&self, profile: &Profile) -> Option<&Block> {
        let block = self.blocks.get(&profile.verdicts.as_ptr().addr())?;
        (Arc::ptr_eq(&block.verdicts, &profile.verdicts) && block.policy == profile.policy)
            .then_some(block)
    }
}
