//! The datapath's lookup, walked over the enumerated maps.

use std::{collections::BTreeMap, net::IpAddr};

use egress_common::{
    DropReason,
    cells::SLOTS,
    flow::Flow,
    keys::PodKey,
    verdict::{Decision, NUMBER_UNMATCHED, Verdict, Way},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::WayKind;
use crate::state::KernelState;

/// What the maps say about packets from a pod to an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelVerdict {
    /// The longest prefix of any policy that contains the destination.
    pub prefix: Option<IpNet>,
    /// Its class.
    pub class: Option<u32>,
    /// The number in the pod's row.
    pub number: Option<u16>,
    /// The policy that is counted.
    pub policy: Option<u32>,
    /// What happens.
    pub decision: KernelDecision,
    /// What is missing from the maps, where they are broken.
    pub broken: Option<String>,
}

/// What the datapath does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelDecision {
    /// The kernel routes: no rule matched.
    Unmatched,
    /// The kernel routes.
    Local,
    /// Out through one of these.
    Members(Vec<KernelMember>),
    /// Dropped, for the reason of this name.
    Drop(String),
}

/// A way out, as the maps have it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelMember {
    /// Index of the member.
    pub member: u32,
    /// Index of its counter.
    pub counter: u32,
    /// How packets get to the gateway.
    pub way: WayKind,
    /// The next hop, the address of the gateway's node, or the egress address.
    pub address: IpAddr,
    /// The device's index; zero where this node translates.
    pub ifindex: u32,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Its share of the slots, from 0 to 1.
    pub share: f64,
}

/// What the datapath does with packets from a pod to `destination`.
#[must_use]
pub fn kernel_verdict(state: &KernelState, pod: PodKey, destination: IpAddr) -> KernelVerdict {
    let mut it = KernelVerdict {
        prefix: None,
        class: None,
        number: None,
        policy: None,
        decision: KernelDecision::Drop(DropReason::StateMissing.name().to_owned()),
        broken: None,
    };
    let Some(slot) = state.pods.get(&pod) else {
        it.decision = KernelDecision::Drop(DropReason::SpoofedSource.name().to_owned());
        return it;
    };
    if let Err(missing) = walk(state, *slot, destination, &mut it) {
        it.broken = Some(missing);
    }
    it
}

/// The member that a flow takes, where the verdict is a gateway.
#[must_use]
pub fn choose(state: &KernelState, pod: PodKey, flow: &Flow) -> Option<u32> {
    let mut it = kernel_verdict(state, pod, flow.destination.into());
    match verdict(
        state,
        *state.pods.get(&pod)?,
        flow.destination.into(),
        &mut it,
    )
    .ok()?
    {
        Decision::Member(member) => Some(member),
        Decision::Group {
            lines,
            first_member,
            members: _,
        } => {
            let slot = usize::try_from(flow.hash() % SLOTS).ok()?;
            let number = state.slot_tables.get(&lines)?.get(slot)?;
            Some(first_member + u32::from(*number))
        }
        Decision::Unmatched | Decision::Local | Decision::Drop(_) => None,
    }
}

fn walk(
    state: &KernelState,
    slot: u32,
    destination: IpAddr,
    it: &mut KernelVerdict,
) -> Result<(), String> {
    it.decision = match verdict(state, slot, destination, it)? {
        Decision::Unmatched => KernelDecision::Unmatched,
        Decision::Local => KernelDecision::Local,
        Decision::Drop(reason) => KernelDecision::Drop(reason.name().to_owned()),
        Decision::Member(member) => KernelDecision::Members(vec![way(state, member, 1.0)?]),
        Decision::Group {
            lines,
            first_member,
            members: _,
        } => KernelDecision::Members(group(state, lines, first_member)?),
    };
    Ok(())
}

/// Pod → row and rule base; destination → class; row and class → number; rule base and number → verdict.
fn verdict(
    state: &KernelState,
    slot: u32,
    destination: IpAddr,
    it: &mut KernelVerdict,
) -> Result<Decision, String> {
    let pod = state
        .slots
        .get(&slot)
        .ok_or_else(|| format!("POD_STATE has nothing at slot {slot}"))?;
    let matched = state
        .prefixes
        .iter()
        .filter(|(net, _)| net.contains(&destination))
        .max_by_key(|(net, _)| net.prefix_len());
    let number = match matched {
        None => NUMBER_UNMATCHED,
        Some((net, class)) => {
            it.prefix = Some(*net);
            it.class = Some(*class);
            let line = pod.row().first_line();
            let row = state
                .rows
                .get(&pod.row())
                .ok_or_else(|| format!("LINES has no row at line {line}"))?;
            row.cells
                .number(*class)
                .ok_or_else(|| format!("the row at line {line} ends before class {class}"))?
        }
    };
    it.number = Some(number);
    let base = pod.rule_base();
    let verdict: &Verdict = state
        .blocks
        .get(&base)
        .and_then(|block| block.get(usize::from(number)))
        .ok_or_else(|| format!("VERDICTS has nothing for number {number} at base {base}"))?;
    it.policy = Some(verdict.policy);
    verdict
        .decode()
        .ok_or_else(|| format!("the verdict for number {number} at base {base} was never written"))
}

fn group(state: &KernelState, lines: u32, first: u32) -> Result<Vec<KernelMember>, String> {
    let table = state
        .slot_tables
        .get(&lines)
        .ok_or_else(|| format!("LINES has no slot table at line {lines}"))?;
    let mut slots: BTreeMap<u16, u32> = BTreeMap::new();
    for number in table.iter() {
        *slots.entry(*number).or_default() += 1;
    }
    let all: u32 = slots.values().sum();
    slots
        .into_iter()
        .map(|(number, n)| {
            let share = f64::from(n) / f64::from(all);
            way(state, first + u32::from(number), share)
        })
        .collect()
}

fn way(state: &KernelState, id: u32, share: f64) -> Result<KernelMember, String> {
    let (member, way) = state
        .members
        .get(&id)
        .and_then(|member| Some((member, member.way()?)))
        .ok_or_else(|| format!("MEMBERS has nothing at {id}"))?;
    Ok(KernelMember {
        member: id,
        counter: member.counter,
        way: match way {
            Way::NextHop => WayKind::NextHop,
            Way::Overlay => WayKind::Overlay,
            Way::Here => WayKind::Local,
        },
        address: member.address.into(),
        ifindex: member.ifindex,
        mtu: member.mtu,
        share,
    })
}
