//! What the pod's policy says: row, class and rule base → verdict.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use egress_common::{
    gateway::GatewayId,
    maps::capacity,
    verdict::{Member, NUMBER_CLUSTER, NUMBER_UNMATCHED, PodState, Shortcuts, Verdict},
};

use crate::lines;

/// `BPF_F_MMAPABLE`: userspace writes them without a call for each.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
static VERDICTS: Array<Verdict, { capacity::VERDICTS as usize }, MMAPABLE> = Array::new();

/// Four bytes a verdict: where many policies have many rules, a packet's is in no near cache.
#[btf_map]
static SHORTCUTS: Array<Shortcuts, { capacity::VERDICTS as usize / 2 }, MMAPABLE> = Array::new();

#[btf_map]
static MEMBERS: Array<Member, { (capacity::MEMBERS + capacity::WAYS) as usize }> = Array::new();

/// Where ways begin among the members, told by the loader.
#[unsafe(no_mangle)]
static WAYS_FROM: u32 = capacity::MEMBERS;

/// The number of a class in a pod's row; nothing where the maps contradict each other.
#[inline(always)]
pub(crate) fn number(pod: PodState, class: Option<u32>) -> Option<u16> {
    match class {
        Some(class) => lines::number(pod.row(), class),
        None => Some(NUMBER_UNMATCHED),
    }
}

/// Where the verdict for a number of a pod's row is.
#[inline(always)]
pub(crate) fn index(pod: PodState, number: u16) -> u32 {
    pod.rule_base().wrapping_add(u32::from(number))
}

/// A verdict; nothing where the maps contradict each other.
#[inline(always)]
pub(crate) fn verdict(index: u32) -> Option<&'static Verdict> {
    VERDICTS.get(index)
}

/// The member that stands for the way of a verdict's shortcut, and what counts it; nothing where the verdict has to tell.
#[inline(always)]
pub(crate) fn shortcut(index: u32) -> Option<(u32, u32)> {
    // SAFETY: an aligned word that userspace writes with one store; it must be read with one load.
    let shortcut = unsafe {
        let Shortcuts(both) = SHORTCUTS.get(index / 2)?;
        core::ptr::read_volatile(&raw const both[(index % 2) as usize])
    };
    // SAFETY: a static of the read-only section, read as the loader left it.
    let from = unsafe { core::ptr::read_volatile(&raw const WAYS_FROM) };
    let way = shortcut.way()?;
    Some((from.wrapping_add(way), shortcut.counter()))
}

/// Whether a class is the cluster's own for a pod, and no rule's.
#[inline(always)]
pub(crate) fn is_cluster(pod: PodState, class: Option<u32>) -> bool {
    number(pod, class) == Some(NUMBER_CLUSTER)
}

/// The member with this id; nothing where none was ever written.
#[inline(always)]
pub(crate) fn member(id: u32) -> Option<&'static Member> {
    MEMBERS.get(id).filter(|member| member.is_set())
}

/// The gateway of the member with this id, which must have been written.
#[inline(always)]
pub(crate) fn gateway(id: u32) -> Option<GatewayId> {
    MEMBERS.get(id).map(|member| member.gateway)
}
