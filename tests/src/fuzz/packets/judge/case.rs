//! One frame before the judge, and what is asked about it again and again.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use egress_common::{
    DropReason, Mac, counter::Answer, gateway::Settings, overlay::FrameKind, probe,
};
use egress_userspace::{
    explain::{Outcome as Verdict, explain},
    kernel::Program,
    resolve::Resolved,
};

use super::super::{
    bench::{Bench, Outcome},
    script::{DELIVERED, Step},
    sight::{Sight, header_sum_holds},
    tunnel, world,
};
use crate::packets::{
    Input, Slot,
    answer::answered,
    build::{HOST_MAC, L3, POD_MAC, hex, proto},
};

/// One frame before the judge.
pub(super) struct Case<'a> {
    pub(super) bench: &'a Bench,
    pub(super) step: &'a Step,
    pub(super) outcome: &'a Outcome,
    /// The frame as it was, if it can be read.
    pub(super) before: Option<Sight>,
    /// The frame as it is.
    pub(super) after: Option<Sight>,
}

impl Case<'_> {
    pub(super) fn world(&self) -> &Resolved {
        self.bench.world()
    }

    pub(super) fn fail(&self, why: &str) -> ! {
        panic!(
            "{why}: {:?} on {}, gso {:?}, tunnel {:?}, frame {}\nread as {:?}\nbecame {:?} {}\nread as {:?}\ncounted {:?} {:?}",
            self.step.program,
            self.step.ifindex,
            self.step.gso,
            self.step.tunnel,
            hex(&self.step.frame),
            self.before,
            self.outcome.seen.action,
            hex(&self.outcome.seen.frame),
            self.after,
            self.outcome.moved,
            self.outcome.gateways
        )
    }

    pub(super) fn ensure(&self, holds: bool, otherwise: &str) {
        if !holds {
            self.fail(otherwise);
        }
    }

    pub(super) fn ensure_untouched(&self) {
        self.ensure(
            self.outcome.seen.frame == self.step.frame,
            "the frame has changed",
        );
        self.ensure(
            self.outcome.seen.mark == self.step.mark,
            "the mark has changed",
        );
    }

    pub(super) fn ensure_nothing_counted(&self) {
        let nothing = self.outcome.moved.is_empty() && self.outcome.gateways.is_empty();
        self.ensure(nothing, "it is counted");
    }

    pub(super) fn ensure_macs(&self, destination: [u8; 6], source: [u8; 6]) {
        let frame = &self.outcome.seen.frame;
        let right = frame[..6] == destination && frame[6..12] == source;
        self.ensure(right, "its MACs are wrong");
    }

    /// The one counter but those of gateways and answers that moved.
    pub(super) fn only_slot(&self) -> Option<&Slot> {
        let mut slots = self.outcome.moved.keys().filter(|slot| !is_answer(slot));
        let slot = slots.next();
        self.ensure(slots.next().is_none(), "it is counted twice");
        slot
    }

    /// Which answer the frame has become.
    pub(super) fn answer(&self) -> Option<Answer> {
        self.outcome.moved.keys().find_map(|slot| match slot {
            Slot::Answer(answer) => Some(*answer),
            Slot::Member(..) | Slot::Drop(..) | Slot::Pass(..) | Slot::Nameless(..) => None,
        })
    }

    /// The one reason for which it was dropped.
    pub(super) fn dropped(&self) -> DropReason {
        let of = |slot: &Slot| match slot {
            Slot::Drop(_, reason) => *reason,
            Slot::Member(..) | Slot::Pass(..) | Slot::Answer(_) | Slot::Nameless(..) => {
                self.fail(&format!("it is dropped, and counted as {slot:?}"))
            }
        };
        let mut gateways = self.outcome.gateways.keys();
        let gateway = gateways.next().map(of);
        self.ensure(gateways.next().is_none(), "two gateways drop it");
        let policy = self.only_slot().map(of);
        let reason = match (policy, gateway) {
            (Some(reason), None) | (None, Some(reason)) => reason,
            // What this node's own pods send is both their policies' and the gateway's.
            (Some(reason), Some(same))
                if reason == same && self.step.program == Program::FromPod =>
            {
                reason
            }
            (Some(_), Some(_)) => self.fail("it is dropped twice"),
            (None, None) => self.fail("it is dropped, and not counted"),
        };
        self.ensure(
            reason != DropReason::StateMissing,
            "the datapath's state is broken",
        );
        reason
    }

    /// Each counter that moved did so by what is on the wire.
    pub(super) fn check_counters(&self) {
        let lengths = [
            self.step.frame.len() - L3,
            self.before.as_ref().map_or(0, |sight| sight.length),
        ];
        let (size, segments) = self.step.gso;
        for (slot, (packets, bytes)) in self.outcome.moved.iter().chain(&self.outcome.gateways) {
            let right = match slot {
                Slot::Answer(_) => (*packets, *bytes) == (1, 0),
                Slot::Nameless(..) => false,
                Slot::Member(..) | Slot::Drop(..) | Slot::Pass(..) if size == 0 => {
                    *packets == 1
                        && lengths
                            .iter()
                            .any(|length| u64::try_from(*length) == Ok(*bytes))
                }
                // Headers are counted with each segment.
                Slot::Member(..) | Slot::Drop(..) | Slot::Pass(..) => {
                    let counted = u64::from(segments);
                    (*packets == 1 || segments == 0 || *packets == counted)
                        && *packets > 0
                        && *bytes >= lengths[1].min(lengths[0]).try_into().unwrap_or(0)
                }
            };
            self.ensure(
                right,
                &format!("{slot:?} moved by {packets} packets of {bytes} bytes"),
            );
        }
        let all = self.outcome.moved.iter().chain(&self.outcome.gateways);
        let amounts: BTreeSet<_> = all
            .filter(|(slot, _)| !is_answer(slot))
            .map(|(_, amount)| amount)
            .collect();
        self.ensure(amounts.len() < 2, "counters disagree about one frame");
    }

    /// The packet of a pod that the frame has to be.
    pub(super) fn pods_packet(&self) -> Sight {
        let Some(sight) = &self.before else {
            self.fail("it is taken, and cannot be read")
        };
        let pod = world::pod_at(self.world(), self.step.ifindex, sight.source);
        self.ensure(pod.is_some(), "no pod has its source there");
        sight.clone()
    }

    /// What the pod's policy says of the packet, which has to be this one.
    pub(super) fn verdict(&self, policy: &str) -> Verdict {
        let sight = self.pods_packet();
        let pod = world::pod_at(self.world(), self.step.ifindex, sight.source);
        let Some(pod) = pod else {
            self.fail("no pod has its source there")
        };
        self.ensure(
            self.world().pods[pod].policy == policy,
            "another policy counts it",
        );
        explain(self.world(), pod, sight.destination).verdict
    }

    pub(super) fn pod_may_drop(&self, reason: DropReason) {
        let policy = match self.only_slot() {
            Some(Slot::Drop(policy, _)) => policy.as_str(),
            _ => self.fail("no policy counts it"),
        };
        if policy.is_empty() {
            let nobodys = [
                DropReason::NotPlainIp,
                DropReason::Malformed,
                DropReason::SpoofedSource,
                DropReason::SourceRouted,
            ];
            self.ensure(nobodys.contains(&reason), "nobody's, for a policy's reason");
            if reason == DropReason::SpoofedSource
                && let Some(sight) = &self.before
            {
                let pod = world::pod_at(self.world(), self.step.ifindex, sight.source);
                self.ensure(pod.is_none(), "it is the pod's own");
            }
            return;
        }
        let verdict = self.verdict(policy);
        let right = match verdict {
            Verdict::Drop(name) => name == reason.name(),
            Verdict::Gateway => true,
            Verdict::Local | Verdict::Unmatched | Verdict::NotSteered => false,
        };
        self.ensure(right, "its policy does not drop it");
    }

    /// ARP, and what any host sends while it has no address, or to its neighbours alone.
    pub(super) fn is_neighbourly(&self) -> bool {
        if self.step.frame[12..14] == [0x08, 0x06] {
            return true;
        }
        let Some(sight) = &self.before else {
            return false;
        };
        let groups = |to: Ipv6Addr| to.segments()[0] == 0xff02;
        match (sight.source, sight.destination) {
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::BROADCAST)) => {
                sight.protocol == proto::UDP && sight.ports(&self.step.frame) == (68, 67)
            }
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(to)) => {
                groups(to) && sight.protocol == proto::ICMPV6
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                from.is_unicast_link_local() && (to.is_unicast_link_local() || groups(to))
            }
            _ => false,
        }
    }

    /// One hop on: the TTL is one less, and what was right is right.
    pub(super) fn ensure_hop(&self, before: &Sight, after: &Sight) {
        self.ensure(
            after.ttl.wrapping_add(1) == before.ttl,
            "its TTL is not one less",
        );
        self.ensure(before.ttl > 1, "it has no hop left");
        let (was, is) = (&self.step.frame, &self.outcome.seen.frame);
        self.ensure(is.len() == was.len(), "its length has changed");
        self.ensure(
            after.protocol == before.protocol,
            "its protocol has changed",
        );
        self.ensure(
            header_sum_holds(is) || !header_sum_holds(was),
            "the checksum of its IP header is wrong",
        );
        // Of an aggregate the device writes it.
        if self.step.gso.0 == 0 && before.sum_holds(was) == Some(true) {
            self.ensure(after.sum_holds(is) == Some(true), "its checksum is wrong");
        }
    }

    /// The packet is what it was, one hop on; of a SYN options may have changed.
    pub(super) fn ensure_forwarded(&self, before: &Sight) {
        let Some(after) = &self.after else {
            self.fail("what is sent on cannot be read")
        };
        self.ensure_hop(before, after);
        self.ensure(
            after.source == before.source,
            "it leaves with a wrong source",
        );
        self.ensure(after.destination == before.destination, "it goes elsewhere");
        let mut wanted = self.step.frame.clone();
        let mut found = self.outcome.seen.frame.clone();
        let is_syn = before.protocol == proto::TCP
            && !before.later
            && wanted
                .get(before.l4 + 13)
                .is_some_and(|flags| flags & 2 != 0);
        for frame in [&mut wanted, &mut found] {
            frame[..12].fill(0);
            match before.source {
                IpAddr::V4(_) => {
                    frame[L3 + 8] = 0;
                    frame[L3 + 10..L3 + 12].fill(0);
                }
                IpAddr::V6(_) => frame[L3 + 7] = 0,
            }
            if is_syn {
                frame.truncate(before.l4 + 14);
            }
        }
        self.ensure(wanted == found, "what it says has changed");
    }

    /// It goes out of the pod's interface, one hop on.
    pub(super) fn ensure_delivered(&self, before: &Sight, shown: &BTreeSet<[u8; 12]>) {
        let pod = world::pod_at(self.world(), world::PODS, before.destination);
        self.ensure(pod.is_some(), "it goes to nobody");
        self.ensure(self.outcome.seen.mark == DELIVERED, "its mark is wrong");
        let macs = &self.outcome.seen.frame[..12];
        self.ensure(
            macs.first_chunk().is_some_and(|macs| shown.contains(macs))
                || *macs == [POD_MAC, HOST_MAC].concat(),
            "its MACs are wrong",
        );
        self.ensure_forwarded(before);
    }

    /// The answer to the frame, as an independent library builds it.
    pub(super) fn answered(&self, answer: Answer, node: &Settings) -> Vec<u8> {
        let Some(before) = &self.before else {
            self.fail("what is answered cannot be read")
        };
        self.ensure(
            !before.is_error(&self.step.frame) && !before.later,
            "an answer that is never due",
        );
        let frame = &self.outcome.seen.frame;
        let at = if before.source.is_ipv4() {
            L3 + 24
        } else {
            L3 + 44
        };
        let bytes = frame.get(at..).and_then(<[u8]>::first_chunk).copied();
        let told = u32::from_be_bytes(bytes.unwrap_or_default());
        let told = if answer == Answer::TooBig { told } else { 0 };
        let known = [
            0,
            world::NARROW,
            world::TUNNELLED,
            1300,
            1280,
            world::ROOM,
            1500,
        ];
        self.ensure(
            known.contains(&told),
            &format!("no way has an MTU of {told}"),
        );
        let input = Input {
            program: self.step.program,
            ifindex: self.step.ifindex,
            frame: self.step.frame.clone(),
            gso: self.step.gso,
            mark: 0,
            received_by: 0,
        };
        answered(&input, answer, told, node)
    }

    /// Whether the frame is a probe, or the answer to one: a node's, or one that could be a stranger's.
    pub(super) fn is_probe(&self) -> bool {
        let frame = &self.step.frame;
        let source = frame.get(6..12).and_then(<[u8]>::first_chunk).copied();
        let kind = source.and_then(|mac| FrameKind::from_mac(Mac(mac)));
        let is_kind = matches!(kind, Some(FrameKind::Probe(_) | FrameKind::ProbeReply(_)));
        let named = frame.get(12..14) == Some(&probe::ETHERTYPE.to_be_bytes());
        is_kind && (named || self.sender().is_some())
    }

    /// The node that has sent the frame, and what the frame is.
    pub(super) fn sender(&self) -> Option<(world::Node, FrameKind)> {
        let (flags, identifier, words) = self.step.tunnel?;
        if identifier != world::VNI || flags == tunnel::NO_TUNNEL {
            return None;
        }
        let address = if flags == tunnel::IS_V6 {
            IpAddr::from(
                words
                    .map(u32::to_ne_bytes)
                    .concat()
                    .first_chunk::<16>()
                    .copied()?,
            )
        } else {
            IpAddr::from(words[0].to_be_bytes())
        };
        let nodes = world::nodes().into_iter();
        let node = nodes
            .filter(|node| {
                node.addresses
                    .iter()
                    .any(|text| text.parse() == Ok(address))
            })
            .find(|node| {
                let tags = node.state.accept.iter().map(|tag| tag.0);
                tags.filter(|tag| *tag != [0; 6])
                    .any(|tag| self.step.frame[..6] == tag)
            })?;
        let mac = *self.step.frame[6..].first_chunk()?;
        Some((node, FrameKind::from_mac(Mac(mac))?))
    }
}

fn is_answer(slot: &Slot) -> bool {
    matches!(slot, Slot::Answer(_))
}

/// Whether the answer is one to what was dropped for this reason.
pub(super) fn is_told(answer: Answer, reason: DropReason) -> bool {
    matches!(
        (answer, reason),
        (Answer::TooBig, DropReason::TooBig) | (Answer::TimeExceeded, DropReason::TtlExceeded)
    )
}
