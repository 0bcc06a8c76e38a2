//! What becomes of a packet that a pod sends: parse → identify → classify → decide → act.

use egress_common::{
    DropReason,
    counter::{Answer, NO_POLICY, PassKind},
    verdict::Decision,
};

use crate::{
    choose, classify,
    counters::Shape,
    forward,
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
    let mut ip = Ip::unread();
    match parse::frame(packet, &mut ip) {
        Ok(Frame::Ip) => handle_ip(packet, &ip),
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
    let pod = match pods::identify(packet, ip) {
        Source::Pod(pod) => pod,
        Source::Neighbourly => return Departure::NotOurs,
        Source::Unknown => return nobody(DropReason::SpoofedSource),
        Source::Broken => return nobody(DropReason::StateMissing),
    };
    let class = classify::class(ip.family, &ip.destination);
    let Some(verdict) = verdicts::verdict(pod, class) else {
        return nobody(DropReason::StateMissing);
    };
    let policy = verdict.policy;
    let Some(decision) = verdict.decode() else {
        return nobody(DropReason::StateMissing);
    };
    let member = match decision {
        Decision::Unmatched => {
            return Departure::Passed {
                policy,
                kind: PassKind::Unmatched,
                shape,
            };
        }
        Decision::Local => {
            return Departure::Passed {
                policy,
                kind: PassKind::Local,
                shape,
            };
        }
        Decision::Drop(reason) => {
            return Departure::Dropped {
                policy,
                reason,
                shape,
            };
        }
        Decision::Member(member) => Ok(member),
        Decision::Group {
            lines,
            first_member,
            members: _,
        } => choose::member(packet, ip, lines).map(|number| first_member.wrapping_add(number)),
    };
    // Sent from one place, since the verifier follows each call of what translates by itself.
    match member.and_then(|member| send(packet, ip, member, shape)) {
        Ok(counter) => Departure::Redirected { counter, shape },
        Err(reason) => Departure::Dropped {
            policy,
            reason,
            shape,
        },
    }
}

#[inline(always)]
fn send(packet: &Packet<'_>, ip: &Ip, member: u32, shape: Shape) -> Result<u32, DropReason> {
    let member = verdicts::member(member).ok_or(DropReason::StateMissing)?;
    forward::send(packet, ip, member, shape)?;
    Ok(member.counter)
}
