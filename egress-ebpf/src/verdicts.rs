//! What the pod's policy says: row, class and rule base → verdict.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use egress_common::{
    gateway::GatewayId,
    maps::capacity,
    verdict::{Member, NUMBER_CLUSTER, NUMBER_UNMATCHED, PodState, VerdictLine},
};

use crate::lines;

/// `BPF_F_MMAPABLE`: the elements start where a page does, so that each is one cache line.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
static VERDICTS: Array<VerdictLine, { capacity::VERDICTS as usize }, MMAPABLE> = Array::new();

#[btf_map]
static MEMBERS: Array<Member, { capacity::MEMBERS as usize }> = Array::new();

/// The number of a class in a pod's row; nothing where the maps contradict each other.
#[inline(always)]
pub(crate) fn number(pod: PodState, class: Option<u32>) -> Option<u16> {
    match class {
        Some(class) => lines::cell(pod.row(), class),
        None => Some(NUMBER_UNMATCHED),
    }
}

/// The verdict for a number of a pod's row; nothing where the maps contradict each other.
#[inline(always)]
pub(crate) fn verdict(pod: PodState, number: u16) -> Option<&'static VerdictLine> {
    VERDICTS.get(pod.rule_base().wrapping_add(u32::from(number)))
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
