//! What becomes of a packet that a pod sends: parse → identify → classify → decide → act.

use egress_common::{
    DropReason,
    counter::{Answer, NO_POLICY, PassKind},
    verdict::{Decision, Member, NUMBER_CLUSTER},
};

use crate::{
    answer::{self, Speaker},
    choose::{self, Group},
    classify,
    counters::{self, Shape},
    forward, inbound,
    locals::{self, Marking},
    packet::Packet,
    parse::{self, Frame, Ip},
    pods::{self, Source},
    verdicts,
};

/// What becomes of it.
pub(crate) enum Departure {
    /// ARP, address configuration, neighbour discovery.
    NotOurs,
    /// The kernel routes it.
    Passed {
        policy: u32,
        kind: PassKind,
        shape: Shape,
    },
    /// It leaves through a member.
    Redirected { counter: u32, shape: Shape },
    /// It ends here, and the pod is told.
    Answered {
        policy: u32,
        reason: DropReason,
        answer: Answer,
        shape: Shape,
    },
    /// It ends here.
    Dropped {
        policy: u32,
        reason: DropReason,
        shape: Shape,
    },
}

/// Decides over a packet from a pod, and sends it on its way.
#[inline(always)]
pub(crate) fn handle(packet: &Packet<'_>) -> Departure {
    let Some(ip) = parse::place() else {
        return Departure::Dropped {
            policy: NO_POLICY,
            reason: DropReason::StateMissing,
            shape: Shape::of_frame(packet),
        };
    };
    match parse::frame_within(packet, ip) {
        Ok(Frame::Ip) => handle_ip(packet, ip),
        Ok(Frame::Arp) => Departure::NotOurs,
        Err(reason) => Departure::Dropped {
            policy: NO_POLICY,
            reason,
            shape: Shape::of_frame(packet),
        },
    }
}

#[inline(always)]
fn handle_ip(packet: &Packet<'_>, ip: &Ip) -> Departure {
    let shape = Shape::of(packet, ip);
    let nobody = |reason| Departure::Dropped {
        policy: NO_POLICY,
        reason,
        shape,
    };
    let (pod, slot) = match pods::identify(packet, ip) {
        Source::Pod { state, slot } => (state, slot),
        Source::Neighbourly => return Departure::NotOurs,
        Source::Unknown => return nobody(DropReason::SpoofedSource),
        Source::Broken => return nobody(DropReason::StateMissing),
    };
    let class = classify::class(ip.family, &ip.destination);
    let Some(number) = verdicts::number(pod, class) else {
        return nobody(DropReason::StateMissing);
    };
    let index = verdicts::index(pod, number);
    let (decision, counter) = match verdicts::shortcut(index) {
        Some((way, counter)) => {
            counters::expect(counter);
            (Decision::Member(way), Some(counter))
        }
        None => {
            let Some(verdict) = verdicts::verdict(index) else {
                return nobody(DropReason::StateMissing);
            };
            if number == NUMBER_CLUSTER {
                let marking = locals::marking();
                if marking.bit != 0 && verdict.is_local() {
                    return to_cluster(packet, ip, slot, verdict.policy, &marking, shape);
                }
            }
            let Some(decision) = verdict.decode() else {
                return nobody(DropReason::StateMissing);
            };
            (decision, None)
        }
    };
    // Who was told in short is counted for the policy only if it does not leave.
    let policy = || verdicts::verdict(index).map_or(NO_POLICY, |verdict| verdict.policy);
    if may_be_reply(decision) && inbound::is_reply(packet, ip, slot) {
        return Departure::Passed {
            policy: policy(),
            kind: PassKind::Inbound,
            shape,
        };
    }
    let member = match decision {
        Decision::Unmatched => {
            return Departure::Passed {
                policy: policy(),
                kind: PassKind::Unmatched,
                shape,
            };
        }
        Decision::Local => {
            return Departure::Passed {
                policy: policy(),
                kind: PassKind::Local,
                shape,
            };
        }
        Decision::Drop(reason) => {
            return Departure::Dropped {
                policy: policy(),
                reason,
                shape,
            };
        }
        Decision::Member(member) => Ok(member),
        Decision::Group {
            lines,
            first_member,
            members,
        } => choose::member(
            packet,
            &Group {
                lines,
                first_member,
                members: members.into(),
            },
        ),
    };
    // Sent from one place, since the verifier follows each call of what translates by itself.
    let sent = member
        .and_then(|member| verdicts::member(member).ok_or(DropReason::StateMissing))
        .map_err(Refusal::from)
        .and_then(|member| send(packet, ip, member, slot, shape));
    match sent {
        Ok(of_member) => Departure::Redirected {
            counter: counter.unwrap_or(of_member),
            shape,
        },
        Err(refusal) => refused(packet, ip, policy(), refusal, shape),
    }
}

/// Leaves a packet to the kernel because it is for the cluster, and marks it, since something may translate that. While
/// nobody would see it leave somewhere, it ends here.
///
/// A way of its own, which ends here: kept beside the others, the decision would have to be on the stack, half of it
/// written, and kernels before 6.3 refuse to read the other half.
#[inline(always)]
fn to_cluster(
    packet: &Packet<'_>,
    ip: &Ip,
    slot: u32,
    policy: u32,
    marking: &Marking,
    shape: Shape,
) -> Departure {
    // The node's own NAT hides those behind its addresses who come in by them: what answers them leaves again.
    let kind = if inbound::is_reply_by_node(packet, ip, slot) {
        PassKind::Inbound
    } else if marking.guarded {
        packet.set_mark(packet.mark() | marking.bit);
        PassKind::Local
    } else {
        return Departure::Dropped {
            policy,
            reason: DropReason::LocalUnguarded,
            shape,
        };
    };
    Departure::Passed {
        policy,
        kind,
        shape,
    }
}

/// Why a packet was not sent, and the MTU of the way that it might not have fitted.
struct Refusal {
    reason: DropReason,
    mtu: u32,
}

impl From<DropReason> for Refusal {
    /// Of a packet that never came to its way.
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self { reason, mtu: 0 }
    }
}

#[inline(always)]
fn send(
    packet: &Packet<'_>,
    ip: &Ip,
    member: &Member,
    slot: u32,
    shape: Shape,
) -> Result<u32, Refusal> {
    forward::send(packet, ip, member, slot, shape).map_err(|reason| Refusal {
        reason,
        mtu: member.mtu,
    })?;
    Ok(member.counter)
}

/// Drops the packet, and tells the pod if an answer is due.
#[inline(always)]
fn refused(packet: &Packet<'_>, ip: &Ip, policy: u32, refusal: Refusal, shape: Shape) -> Departure {
    let reason = refusal.reason;
    let answer = answer::write(packet, ip, reason, refusal.mtu, Speaker::Node)
        .ok()
        .filter(|_| packet.redirect(packet.ifindex()).is_ok());
    match answer {
        Some(answer) => Departure::Answered {
            policy,
            reason,
            answer,
            shape,
        },
        None => Departure::Dropped {
            policy,
            reason,
            shape,
        },
    }
}

/// Whether a packet of which the policy says so goes back the way its connection came in, if one did.
///
/// What the kernel routes anyway need not ask. Where a policy is missing or broken, nobody said that
/// anything of the pod's may pass. For the sake of a network policy only what would go past it is refused, and
/// answers do not: they are the kernel's.
#[inline(always)]
const fn may_be_reply(decision: Decision) -> bool {
    match decision {
        Decision::Member(_)
        | Decision::Group { .. }
        | Decision::Drop(DropReason::NoGateway | DropReason::PolicyEnforcement) => true,
        Decision::Unmatched | Decision::Local | Decision::Drop(_) => false,
    }
}
