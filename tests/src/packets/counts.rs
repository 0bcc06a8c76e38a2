//! Every counter there is, by name.

use std::collections::BTreeMap;

use egress_common::{
    DropReason,
    counter::{Answer, Count, NO_POLICY, PassKind},
};
use egress_userspace::{kernel::CounterMaps, state::Names};

/// What a counter counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// What went out: policy, rule and gateway.
    Member(String, String, String),
    /// What was dropped: policy ("" is none) and reason.
    Drop(String, DropReason),
    /// What was left to the kernel: policy and kind.
    Pass(String, PassKind),
    /// What senders were told: answers of this kind, without bytes.
    Answer(Answer),
    /// A counter that nobody has a name for.
    Nameless(&'static str, u32),
}

/// The counters that are not zero, or their differences.
pub type Counts = BTreeMap<Slot, (u64, u64)>;

/// Reads every counter below the maps' capacities.
pub(super) fn read(maps: &CounterMaps, names: &Names, members: u32, policies: u32) -> Counts {
    let member: BTreeMap<u32, Slot> = names
        .members
        .iter()
        .map(|(label, id)| {
            let slot = Slot::Member(
                label.policy.clone(),
                label.rule.clone(),
                label.gateway.clone(),
            );
            (*id, slot)
        })
        .collect();
    let policy: BTreeMap<u32, &str> = names
        .policies
        .iter()
        .map(|(name, id)| (*id, name.as_str()))
        .chain([(NO_POLICY, "")])
        .collect();
    let mut counts = Counts::new();
    let mut note = |slot: Slot, count: Count| {
        if count != Count::default() {
            // A label may have several counters.
            let (packets, bytes) = counts.entry(slot).or_default();
            *packets += count.packets;
            *bytes += count.bytes;
        }
    };
    for id in 0..members {
        let slot = member.get(&id).cloned();
        note(
            slot.unwrap_or(Slot::Nameless("member", id)),
            maps.member(id).unwrap(),
        );
    }
    for id in 0..policies {
        let name = policy.get(&id).map(|name| (*name).to_owned());
        for reason in DropReason::ALL {
            let slot = name.clone().map(|name| Slot::Drop(name, *reason));
            note(
                slot.unwrap_or(Slot::Nameless("drop", id)),
                maps.dropped(id, *reason).unwrap(),
            );
        }
        for kind in PassKind::ALL.iter().copied() {
            let slot = name.clone().map(|name| Slot::Pass(name, kind));
            note(
                slot.unwrap_or(Slot::Nameless("pass", id)),
                maps.passed(id, kind).unwrap(),
            );
        }
    }
    counts
}

/// What was added between two readings.
pub(crate) fn added(before: &Counts, after: &Counts) -> Counts {
    let mut added = Counts::new();
    for (slot, (packets, bytes)) in after {
        let (p, b) = before.get(slot).copied().unwrap_or_default();
        if (p, b) != (*packets, *bytes) {
            added.insert(
                slot.clone(),
                (packets.wrapping_sub(p), bytes.wrapping_sub(b)),
            );
        }
    }
    added
}
