//! From what the maps do say to what they should say: an ordered list of changes, pure.
//!
//! A packet reads its pod's state, then the class of its destination, then everything that those two name.
//! The order of the changes makes each packet see wholly the old or wholly the new policy of its pod,
//! wherever between two changes it reads, and however slow it is between two graces:
//!
//! 1. Every live row learns the columns of new prefixes, with the meaning that they have had so far: that
//!    of the nearest published prefix around. A row without room moves first, and packets that still hold
//!    its old place are waited for, since they would read beyond it.
//! 2. New prefixes are published. No packet can tell.
//! 3. What new policies need is written where nothing live is, and then their pods are turned to it, each
//!    with one store. A new pod's state is written before the pod can be found.
//! 4. Pods that are gone are removed. Packets that still hold an old state are waited for, and then
//!    prefixes that nothing names are withdrawn: an old row would answer for the prefix around.
//! 5. A last grace makes everything free that nothing reaches any more.
//!
//! Each change can be carried out twice, and a list that was broken off anywhere leaves maps that a new
//! plan, made from [`trace`], completes.

mod content;
mod memo;
mod model;
mod names;
mod planner;
mod space;
#[cfg(test)]
mod tests;
mod trace;
mod universe;

use std::sync::Arc;

use egress_common::{
    cells::Line,
    keys::PodKey,
    verdict::{Member, PodState, Verdict},
};
use ipnet::IpNet;

pub use self::{
    memo::Memo,
    model::{Outcome, RawMaps},
    trace::{MapReader, trace},
};
use self::{names::Assigned, planner::Planner};
use crate::state::{DesiredState, KernelState, Limits, MemberLabel, Names};

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes consecutive lines of the line store, making segments as needed.
    WriteLines {
        /// The first of them.
        first_line: u32,
        /// Their content.
        lines: Vec<Line>,
    },
    /// Writes a member.
    WriteMember {
        /// Its id.
        id: u32,
        /// Its content.
        member: Member,
    },
    /// Writes a block of verdicts.
    WriteVerdicts {
        /// The index of the first.
        base: u32,
        /// The verdicts.
        verdicts: Vec<Verdict>,
    },
    /// Publishes a prefix.
    InsertPrefix {
        /// The prefix.
        prefix: IpNet,
        /// Its class.
        class: u32,
    },
    /// Points a slot to a row and a block, with one 64-bit store.
    TurnPod {
        /// The slot.
        slot: u32,
        /// Row and rule base.
        state: PodState,
    },
    /// Makes a source pod known.
    InsertPod {
        /// Interface and address.
        key: PodKey,
        /// Its slot, which has been turned.
        slot: u32,
    },
    /// Forgets a source pod.
    RemovePod {
        /// Interface and address.
        key: PodKey,
    },
    /// Withdraws a prefix.
    RemovePrefix {
        /// The prefix.
        prefix: IpNet,
    },
    /// Waits until no packet in flight holds anything that it read before.
    Grace,
}

/// Changes that are carried out together at most.
const MOST_TOGETHER: usize = 1024;

impl Change {
    /// What kind of change it is, in a few words.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::WriteLines { .. } => "write lines",
            Self::WriteMember { .. } => "write a member",
            Self::WriteVerdicts { .. } => "write verdicts",
            Self::InsertPrefix { .. } => "publish a prefix",
            Self::TurnPod { .. } => "turn a pod",
            Self::InsertPod { .. } => "add a pod",
            Self::RemovePod { .. } => "remove a pod",
            Self::RemovePrefix { .. } => "withdraw a prefix",
            Self::Grace => "wait for packets in flight",
        }
    }

    /// Changes in their order, those together that take far less together than one by one: prefixes that come, or go.
    pub fn runs(changes: &[Self]) -> impl Iterator<Item = &[Self]> {
        let together = |a: &Self, b: &Self| {
            matches!(
                (a, b),
                (Self::InsertPrefix { .. }, Self::InsertPrefix { .. })
                    | (Self::RemovePrefix { .. }, Self::RemovePrefix { .. })
            )
        };
        changes
            .chunk_by(together)
            .flat_map(|run| run.chunks(MOST_TOGETHER))
    }
}

/// How to get from one state of the maps to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in this order.
    pub changes: Vec<Change>,
    /// What the maps say afterwards.
    pub after: KernelState,
    /// What the counters are called from now on; to be kept before the first change is made.
    pub names: Names,
    /// Member counters that nothing adds to once the changes are made: to be folded and set to zero then.
    pub retired_members: Vec<(Arc<MemberLabel>, u32)>,
    /// The same for policies' counters.
    pub retired_policies: Vec<(String, u32)>,
}

/// A map has no room for what is new beside what is still in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no room for the new {what} beside those in use: the maps hold {room}, and during a change the old \
     and the new are both there; raise that capacity"
)]
pub struct PlanError {
    /// What there is no room for.
    pub what: &'static str,
    /// How many fit.
    pub room: u32,
}

/// Plans the way from what the maps say to what they should say.
///
/// What is already there with the same content stays where it is, so planning twice changes nothing.
///
/// # Errors
/// If old and new do not fit side by side; no change is made then.
pub fn plan(
    kernel: &KernelState,
    names: &Names,
    desired: &DesiredState,
    limits: &Limits,
) -> Result<Plan, PlanError> {
    let (plan, _) = plan_again(kernel, names, desired, limits, &Memo::default())?;
    Ok(plan)
}

/// The same from what an earlier plan has led to, as that one remembers it, which makes it quicker; and what is to be remembered
/// of this one.
///
/// # Errors
/// As [`plan`].
pub fn plan_again(
    kernel: &KernelState,
    names: &Names,
    desired: &DesiredState,
    limits: &Limits,
    memo: &Memo,
) -> Result<(Plan, Memo), PlanError> {
    let assigned = Assigned::new(kernel, names, desired, limits)?;
    let planner = Planner::new(kernel, desired, &assigned, limits, memo)?;
    let (changes, after, memo) = planner.run()?;
    let plan = Plan {
        changes,
        after,
        names: assigned.names(),
        retired_members: assigned.retired_members,
        retired_policies: assigned.retired_policies,
    };
    Ok((plan, memo))
}
