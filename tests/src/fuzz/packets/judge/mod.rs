//! What may become of a frame, whichever it is.

mod case;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egress_common::{
    DropReason,
    counter::PassKind,
    gateway::{GatewayId, Settings},
    overlay::FrameKind,
};
use egress_userspace::{
    explain::{Outcome as Verdict, explain},
    kernel::Program,
};

use self::case::{Case, is_told};
use super::{
    bench::{Bench, Outcome, PORTS, translated},
    script::{DELIVERED, Last, Step},
    sight::Sight,
    world,
};
use crate::{
    fuzz::feedback,
    packets::{Action, Slot, build::hex, nat::Gateway},
};

/// A connection that this node translates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Translated {
    egress: IpAddr,
    pod: IpAddr,
    remote: IpAddr,
    /// Index of the pod's node; zero is this one.
    origin: u32,
}

/// What the outside sees of a connection that has ports: protocol, egress address and port, the remote's.
type Outside = (u8, IpAddr, u16, IpAddr, u16);
/// Whose it is: the pod and its port. A pod that moves to another node takes its connections along.
type Inside = (IpAddr, u16);

/// What has happened so far.
#[derive(Debug, Default)]
pub(super) struct Story {
    /// What the far end could answer to.
    pub(super) last: Last,
    connections: BTreeSet<Translated>,
    /// Connections by what the outside sees of them: none of them ends in the time that a script takes.
    taken: BTreeMap<Outside, Inside>,
    /// Pods and remotes of what went to next hops.
    forwarded: BTreeSet<(IpAddr, IpAddr)>,
    /// Pods and remotes of what came in to pods.
    came_in: BTreeSet<(IpAddr, IpAddr)>,
    /// MACs that pods have shown in what they sent, as what is delivered has them.
    shown: BTreeSet<[u8; 12]>,
}

impl Story {
    /// Panics if this cannot be what becomes of the frame.
    pub(super) fn judge(&mut self, bench: &Bench, step: &Step, outcome: &Outcome) {
        let read = if step.gso.0 == 0 {
            Sight::of
        } else {
            Sight::of_aggregate
        };
        let case = Case {
            bench,
            step,
            outcome,
            before: read(&step.frame),
            after: read(&outcome.seen.frame),
        };
        case.check_counters();
        let slots: Vec<_> = outcome
            .moved
            .keys()
            .chain(outcome.gateways.keys())
            .collect();
        let kind = case
            .before
            .as_ref()
            .map(|sight| (sight.protocol, sight.fragment, sight.later));
        feedback::happened(&(
            step.program.name(),
            format!("{:?} {slots:?}", outcome.seen.action),
            kind,
        ));
        match step.program {
            Program::FromPod => self.judge_from_pod(&case),
            Program::ToPod => self.judge_to_pod(&case),
            Program::FromGateway => self.judge_from_gateway(&case),
            Program::FromOverlay => self.judge_from_overlay(&case),
            Program::FromUplink => self.judge_from_uplink(&case),
            Program::ToUplink | Program::FromUnderlay => case.fail("no script runs it"),
        }
        if outcome.seen.action == Action::Redirect && case.answer().is_none() {
            self.last.frame.clone_from(&outcome.seen.frame);
        }
    }

    fn judge_from_pod(&mut self, case: &Case<'_>) {
        // Also of what is dropped in the end.
        self.shown.insert(reversed(&case.step.frame));
        match case.outcome.seen.action {
            Action::Pass => {
                case.ensure_untouched();
                case.ensure(
                    case.outcome.gateways.is_empty(),
                    "a gateway counts what passes",
                );
                match case.only_slot() {
                    None => case.ensure(case.is_neighbourly(), "it passes uncounted"),
                    Some(Slot::Pass(policy, kind)) => self.passed(case, policy, *kind),
                    Some(slot) => case.fail(&format!("it passes, and is counted as {slot:?}")),
                }
            }
            Action::Drop => {
                let reason = case.dropped();
                if reason != DropReason::RedirectFailed {
                    case.ensure_untouched();
                }
                case.pod_may_drop(reason);
            }
            Action::Redirect => match case.answer() {
                Some(answer) => {
                    let reason = case.dropped();
                    case.ensure(is_told(answer, reason), "an answer that is none to that");
                    let sight = case.pods_packet();
                    case.ensure(
                        case.outcome.seen.frame == case.answered(answer, &case.bench.settings()),
                        &format!("the answer to {sight:?} is another one"),
                    );
                }
                None => self.sent(case),
            },
            Action::Other(other) => case.fail(&format!("{other} is no verdict")),
        }
    }

    fn passed(&self, case: &Case<'_>, policy: &str, kind: PassKind) {
        let sight = case.pods_packet();
        let verdict = case.verdict(policy);
        match kind {
            PassKind::Local => case.ensure(verdict == Verdict::Local, "it is not local"),
            PassKind::Unmatched => {
                case.ensure(verdict == Verdict::Unmatched, "a rule matches it");
            }
            PassKind::Inbound => case.ensure(
                self.came_in.contains(&(sight.source, sight.destination)),
                "it answers nothing that came in",
            ),
        }
    }

    /// It left, through some gateway.
    fn sent(&mut self, case: &Case<'_>) {
        let Some(Slot::Member(policy, rule, gateway)) = case.only_slot() else {
            case.fail("it leaves, and no member counts it")
        };
        let sight = case.pods_packet();
        let pod = world::pod_at(case.world(), case.step.ifindex, sight.source);
        let explained = pod.map(|pod| explain(case.world(), pod, sight.destination));
        let Some(explained) = explained else {
            case.fail("it leaves, and no pod has its source")
        };
        case.ensure(
            explained.verdict == Verdict::Gateway,
            "no rule sends it out",
        );
        case.ensure(
            explained.policy.as_deref() == Some(policy),
            "of another policy",
        );
        let wins = explained
            .rules
            .iter()
            .any(|line| line.wins && line.rule == *rule);
        case.ensure(wins, "another rule decides");
        let is_its = explained
            .gateways
            .iter()
            .any(|of| of.gateway.name == *gateway);
        case.ensure(is_its, "through a gateway of another rule");
        if let Some(own) = world::own_gateway(gateway) {
            self.translated(case, &own, 0);
            return;
        }
        case.ensure(
            case.outcome.gateways.is_empty(),
            "a gateway of this node counts it",
        );
        case.ensure_forwarded(&sight);
        if gateway == world::FAR {
            let tag = world::TO_FAR.0;
            let kind = FrameKind::Out(world::far_id()).to_mac().0;
            case.ensure_macs(tag, kind);
            return;
        }
        case.ensure(
            case.outcome.seen.frame[..12] == case.step.frame[..12],
            "its MACs are others",
        );
        self.forwarded.insert((sight.source, sight.destination));
    }

    /// It left with an egress address of this node.
    fn translated(&mut self, case: &Case<'_>, gateway: &Gateway, origin: u32) {
        let slot = case.outcome.gateways.keys().next();
        case.ensure(
            slot == Some(&translated(gateway, "out")) && case.outcome.gateways.len() == 1,
            "the gateway does not count it once",
        );
        let (Some(before), Some(after)) = (&case.before, &case.after) else {
            case.fail("what is translated cannot be read")
        };
        let egress = world::egress_of(gateway, before.source);
        case.ensure(after.source == egress, "it leaves with a wrong source");
        case.ensure(after.destination == before.destination, "it goes elsewhere");
        case.ensure_hop(before, after);
        if before.has_ports() {
            let (port, remote_port) = before.ports(&case.step.frame);
            let (egress_port, same) = after.ports(&case.outcome.seen.frame);
            case.ensure(same == remote_port, "the remote's port has changed");
            let in_range = (PORTS.0..=PORTS.1).contains(&egress_port);
            case.ensure(in_range, "it leaves by a port that is not the gateway's");
            let outside = (
                before.protocol,
                egress,
                egress_port,
                before.destination,
                remote_port,
            );
            let inside = (before.source, port);
            let known = self.taken.insert(outside, inside);
            case.ensure(
                known.is_none_or(|known| known == inside),
                &format!("it shares what the outside sees with {known:?}"),
            );
            let all = self.taken.iter();
            let same = all.filter(|(key, value)| {
                **value == inside
                    && (key.0, key.1, key.3, key.4)
                        == (before.protocol, egress, before.destination, remote_port)
            });
            case.ensure(same.count() == 1, "a connection has two ports");
        }
        self.connections.insert(Translated {
            egress,
            pod: before.source,
            remote: before.destination,
            origin,
        });
    }

    /// Whether a frame has the MACs of what goes to the pod of a connection: those of its interface, or those of a frame
    /// to its node.
    fn are_homeward(&self, frame: &[u8], to: &Translated, gateway: GatewayId) -> bool {
        let mut nodes = world::nodes().into_iter();
        match nodes.find(|node| node.index == to.origin) {
            None => frame
                .first_chunk()
                .is_some_and(|macs| self.shown.contains(macs)),
            Some(node) => {
                frame[..6] == node.state.send.0
                    && frame[6..12] == FrameKind::Back(gateway).to_mac().0
            }
        }
    }

    fn judge_to_pod(&mut self, case: &Case<'_>) {
        let seen = &case.outcome.seen;
        case.ensure(seen.action == Action::Pass, "what a pod gets is left alone");
        case.ensure(seen.frame == case.step.frame, "the frame has changed");
        let mark = if case.step.mark == DELIVERED {
            0
        } else {
            case.step.mark
        };
        case.ensure(seen.mark == mark, "the mark is wrong");
        case.ensure_nothing_counted();
        if let Some(sight) = &case.before
            && case.step.mark != DELIVERED
        {
            self.came_in.insert((sight.destination, sight.source));
        }
    }

    fn judge_from_gateway(&mut self, case: &Case<'_>) {
        case.ensure(
            case.outcome.gateways.is_empty(),
            "a gateway of this node counts it",
        );
        match case.outcome.seen.action {
            Action::Pass => {
                case.ensure_untouched();
                case.ensure_nothing_counted();
            }
            Action::Drop => drop(case.dropped()),
            Action::Redirect => {
                let Some(before) = &case.before else {
                    case.fail("what is sent on cannot be read")
                };
                let is_reply = self
                    .forwarded
                    .contains(&(before.destination, before.source));
                let is_about = before.is_error(&case.step.frame)
                    && self
                        .forwarded
                        .iter()
                        .any(|(pod, _)| *pod == before.destination);
                case.ensure(is_reply || is_about, "it is a reply to nothing");
                if let Some(answer) = case.answer() {
                    let reason = case.dropped();
                    case.ensure(is_told(answer, reason), "an answer that is none to that");
                    case.ensure(
                        case.outcome.seen.frame == case.answered(answer, &case.bench.settings()),
                        "the answer is another one",
                    );
                    return;
                }
                case.ensure(
                    case.outcome.moved.is_empty(),
                    "it is delivered, and counted",
                );
                case.ensure_delivered(before, &self.shown);
            }
            Action::Other(other) => case.fail(&format!("{other} is no verdict")),
        }
    }

    fn judge_from_overlay(&mut self, case: &Case<'_>) {
        match case.outcome.seen.action {
            Action::Pass => case.fail("the kernel gets what came out of the overlay"),
            // Probes are no packets of anybody's, and what they get is answered by counting nothing.
            Action::Drop if case.is_probe() => case.ensure_nothing_counted(),
            Action::Drop => {
                case.dropped();
            }
            Action::Redirect => {
                let Some((node, kind)) = case.sender() else {
                    case.fail("no node of ours has sent it")
                };
                if let FrameKind::Probe(gateway) = kind {
                    case.ensure(
                        world::gateway_of(gateway).is_some(),
                        "a gateway of nobody is vouched for",
                    );
                    let reply = FrameKind::ProbeReply(gateway).to_mac().0;
                    case.ensure_macs(node.state.send.0, reply);
                    case.ensure_nothing_counted();
                    case.ensure(
                        case.outcome.seen.frame[12..] == case.step.frame[12..],
                        "the answer is not what was asked",
                    );
                    return;
                }
                if let Some(answer) = case.answer() {
                    let reason = case.dropped();
                    case.ensure(is_told(answer, reason), "an answer that is none to that");
                    let (speaker, back) = match kind {
                        FrameKind::Out(gateway) => {
                            (case.bench.settings(), FrameKind::Back(gateway))
                        }
                        FrameKind::Back(gateway) => (Settings::default(), FrameKind::Out(gateway)),
                        FrameKind::Probe(_) | FrameKind::ProbeReply(_) => {
                            case.fail("a probe is told something")
                        }
                    };
                    case.ensure_macs(node.state.send.0, back.to_mac().0);
                    let told = case.answered(answer, &speaker);
                    case.ensure(
                        case.outcome.seen.frame[12..] == told[12..],
                        &format!("the answer is another one than {}", hex(&told)),
                    );
                    return;
                }
                case.ensure(case.outcome.moved.is_empty(), "a policy counts it");
                match kind {
                    FrameKind::Out(gateway) => match world::gateway_of(gateway) {
                        Some(gateway) => self.translated(case, &gateway, node.index),
                        None => case.fail("it leaves by a gateway of nobody"),
                    },
                    FrameKind::Back(_) => {
                        case.ensure(case.outcome.gateways.is_empty(), "a gateway counts it");
                        let Some(before) = &case.before else {
                            case.fail("what is delivered cannot be read")
                        };
                        case.ensure_delivered(before, &self.shown);
                    }
                    FrameKind::Probe(_) | FrameKind::ProbeReply(_) => {
                        case.fail("it goes on as if it were a packet")
                    }
                }
            }
            Action::Other(other) => case.fail(&format!("{other} is no verdict")),
        }
    }

    fn judge_from_uplink(&mut self, case: &Case<'_>) {
        match case.outcome.seen.action {
            Action::Pass => {
                case.ensure_untouched();
                case.ensure_nothing_counted();
            }
            Action::Drop => {
                case.dropped();
                case.ensure_untouched();
                case.ensure(case.outcome.moved.is_empty(), "a policy counts it");
            }
            Action::Redirect => {
                let (Some(before), Some(after)) = (&case.before, &case.after) else {
                    case.fail("what is sent on cannot be read")
                };
                let to = |it: &&Translated| it.egress == before.destination;
                if let Some(answer) = case.answer() {
                    let reason = case.dropped();
                    case.ensure(is_told(answer, reason), "an answer that is none to that");
                    case.ensure(
                        case.outcome.seen.frame == case.answered(answer, &Settings::default()),
                        "the answer is another one",
                    );
                    case.ensure(
                        self.connections.iter().any(|it| to(&it)),
                        "an answer to what belongs to nothing",
                    );
                    return;
                }
                case.ensure(case.outcome.moved.is_empty(), "a policy counts it");
                let slots: Vec<_> = case.outcome.gateways.keys().collect();
                let counted = matches!(*slots, [Slot::Member(_, direction, v4)]
                    if direction == "back" && is_of(v4, before.destination));
                case.ensure(counted, "the gateway does not count it once");
                let is_error = before.is_error(&case.step.frame);
                let mut candidates = self.connections.iter().filter(to);
                let belongs = candidates.any(|it| {
                    it.pod == after.destination
                        && (is_error || it.remote == before.source)
                        && self.are_homeward(&case.outcome.seen.frame, it, gateway_id(before))
                });
                case.ensure(belongs, "it goes to a pod that it does not belong to");
                case.ensure(after.source == before.source, "its source has changed");
                case.ensure_hop(before, after);
                if before.has_ports() {
                    let (remote_port, port) = before.ports(&case.step.frame);
                    let (same, pods_port) = after.ports(&case.outcome.seen.frame);
                    case.ensure(same == remote_port, "the remote's port has changed");
                    let outside = (
                        before.protocol,
                        before.destination,
                        port,
                        before.source,
                        remote_port,
                    );
                    let is_its = self
                        .taken
                        .get(&outside)
                        .is_some_and(|inside| *inside == (after.destination, pods_port));
                    case.ensure(is_its, "it goes to another connection's port");
                }
            }
            Action::Other(other) => case.fail(&format!("{other} is no verdict")),
        }
    }
}

/// Whether a gateway that has this IPv4 address has the other one, too.
fn is_of(v4: &str, address: IpAddr) -> bool {
    ["alpha", "beta"].into_iter().any(|name| {
        world::own_gateway(name).is_some_and(|gateway| {
            gateway.v4 == v4 && world::egress_of(&gateway, address) == address
        })
    })
}

/// The gateway that a packet came back to.
fn gateway_id(before: &Sight) -> GatewayId {
    let all = ["alpha", "beta"].into_iter().filter_map(world::own_gateway);
    let mut its =
        all.filter(|gateway| world::egress_of(gateway, before.destination) == before.destination);
    its.next().map(|gateway| gateway.id).unwrap_or_default()
}

/// The MACs of a frame the other way round.
fn reversed(frame: &[u8]) -> [u8; 12] {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&frame[6..12]);
    macs[6..].copy_from_slice(&frame[..6]);
    macs
}
