//! A flow stays on the gateway that it started on for as long as its group has that gateway, and not a packet
//! longer than its policy lets it.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use std::collections::BTreeMap;

use egress_common::{DropReason, counter::PassKind};
use egress_tests::packets::{
    Action as Fate, Input, Lab, Slot,
    build::{
        Frame,
        flag::{ACK, SYN},
        fragment6, icmp,
        proto::{FRAGMENT, GRE, ICMP, ICMPV6, TCP, UDP},
        segment, udp,
    },
    random::Random,
    seed::{gateway, resolved, rule, via},
    with_lab,
};
use egress_userspace::resolve::{Action, EffectiveRule, Resolved, UsableGateway};

/// Of one namespace; their numbers are in no order that anybody could see from their names.
const NAMES: [&str; 12] = [
    "red", "blue", "green", "gold", "grey", "pink", "teal", "cyan", "plum", "ruby", "jade", "onyx",
];
const POD: [&str; 2] = ["10.1.0.5", "fd00::5"];
const FAR: [&str; 2] = ["192.0.2.7", "2001:db8:1::7"];

fn gateways(weights: &[(&str, u32)]) -> Vec<UsableGateway> {
    weights
        .iter()
        .map(|(name, weight)| {
            let last = 1 + NAMES.iter().position(|known| known == name).unwrap();
            let hops = [format!("192.168.9.{last}"), format!("fd09::{last}")];
            gateway(name, *weight, 1500, &[&hops[0], &hops[1]])
        })
        .collect()
}

/// One pod with these rules.
fn told(rules: Vec<EffectiveRule>) -> Resolved {
    told_by("main", rules)
}

fn told_by(policy: &'static str, rules: Vec<EffectiveRule>) -> Resolved {
    let fate = egress_userspace::resolve::Fate::Rules(rules.into());
    resolved(&[], [("web", 5, fate, policy)])
}

/// One pod whose every packet goes through these.
fn all_through(weights: &[(&str, u32)]) -> Resolved {
    told(vec![rule("", via(gateways(weights)))])
}

/// Packets of many flows in both families, of every protocol that has flows.
fn flows() -> Vec<Frame> {
    let both = POD.into_iter().zip(FAR);
    both.flat_map(|(pod, far)| {
        (0..40).flat_map(move |number| {
            let port = 30_000 + number;
            let (echo, ping) = if pod.contains(':') {
                (ICMPV6, 128)
            } else {
                (ICMP, 8)
            };
            [
                Frame::ip(pod, far, TCP, &segment(port, 443, ACK, 1, 4)),
                Frame::ip(pod, far, UDP, &udp(port, 53, 4)),
                Frame::ip(pod, far, echo, &icmp(ping, port, &[0; 8])),
            ]
        })
    })
    .collect()
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Became {
    Sent(String),
    Passed(PassKind),
    Dropped(DropReason),
}

fn became(lab: &mut Lab, frame: &Frame) -> Became {
    let input = Input::from_pod(&frame.bytes);
    let seen = lab.run(&input).unwrap();
    let moved: Vec<Slot> = lab.moved().into_keys().collect();
    match (seen.action, &moved[..]) {
        (Fate::Redirect, [Slot::Member(_, _, gateway)]) => Became::Sent(gateway.clone()),
        (Fate::Pass, [Slot::Pass(_, kind)]) => Became::Passed(*kind),
        (Fate::Drop, [Slot::Drop(_, reason)]) => Became::Dropped(*reason),
        other => panic!("{other:?}: {}", input.describe()),
    }
}

fn used(lab: &mut Lab, frame: &Frame) -> String {
    match became(lab, frame) {
        Became::Sent(gateway) => gateway,
        other @ (Became::Passed(_) | Became::Dropped(_)) => panic!("not sent but {other:?}"),
    }
}

fn all_used(lab: &mut Lab, flows: &[Frame]) -> Vec<String> {
    flows.iter().map(|frame| used(lab, frame)).collect()
}

fn shares(used: &[String]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for gateway in used {
        *shares.entry(gateway.as_str()).or_default() += 1;
    }
    shares
}

/// Checks that every flow whose gateway is among `left` stayed, and returns how many had to move.
fn only_moved_from_lost(before: &[String], after: &[String], left: &[&str]) -> usize {
    let mut moved = 0;
    for (before, after) in before.iter().zip(after) {
        assert!(left.contains(&after.as_str()), "{after} is not in use");
        if left.contains(&before.as_str()) {
            assert_eq!(before, after, "a flow moved without need");
        } else {
            moved += 1;
        }
    }
    moved
}

#[test]
fn gateways_that_are_added_take_new_flows_only() {
    with_lab(|lab| {
        let flows = flows();
        let (old, new) = flows.split_at(flows.len() / 2);
        lab.bring_to(&all_through(&[("red", 1), ("blue", 1)]));
        let before = all_used(lab, old);
        assert_eq!(shares(&before).len(), 2);
        let every: Vec<(&str, u32)> = NAMES.iter().map(|name| (*name, 1)).collect();
        lab.bring_to(&all_through(&every));
        assert_eq!(all_used(lab, old), before, "they stay");
        assert!(shares(&all_used(lab, new)).len() > 6, "new ones are spread");
    });
}

#[test]
fn weights_change_for_new_flows_only() {
    with_lab(|lab| {
        let flows = flows();
        lab.bring_to(&all_through(&[("red", 1), ("blue", 1), ("green", 1)]));
        let before = all_used(lab, &flows);
        for weights in [[1, 100, 1], [100, 1, 1]] {
            let weighted: Vec<_> = ["red", "blue", "green"].into_iter().zip(weights).collect();
            lab.bring_to(&all_through(&weighted));
            assert_eq!(all_used(lab, &flows), before);
        }
        lab.forget_flows();
        let red = shares(&all_used(lab, &flows))["red"];
        assert!(
            red > flows.len() * 8 / 10,
            "what is forgotten is placed anew: {red}"
        );
    });
}

#[test]
fn a_flow_leaves_a_gateway_that_is_gone_and_stays_where_it_went() {
    with_lab(|lab| {
        let flows = flows();
        let three = [("red", 1), ("blue", 1), ("green", 1)];
        lab.bring_to(&all_through(&three));
        let before = all_used(lab, &flows);
        lab.bring_to(&all_through(&[("red", 1), ("green", 1)]));
        let without = all_used(lab, &flows);
        let moved = only_moved_from_lost(&before, &without, &["red", "green"]);
        assert_eq!(moved, shares(&before)["blue"]);
        assert!(moved > 0);
        lab.bring_to(&all_through(&three));
        assert_eq!(all_used(lab, &flows), without, "it is back, and they stay");
    });
}

#[test]
fn an_edited_policy_keeps_what_it_still_allows() {
    with_lab(|lab| {
        let flows = flows();
        let two = |a, b| via(gateways(&[(a, 1), (b, 1)]));
        lab.bring_to(&told(vec![rule("", two("red", "blue"))]));
        let before = all_used(lab, &flows);
        // Other rules, another order of gateways, another policy: what counts is the gateway.
        lab.bring_to(&told(vec![
            rule("", Action::Local),
            rule("192.0.2.0/24", two("red", "green")),
            rule("2001:db8:1::/48", two("green", "red")),
        ]));
        let narrowed = all_used(lab, &flows);
        let moved = only_moved_from_lost(&before, &narrowed, &["red", "green"]);
        assert_eq!(moved, shares(&before)["blue"]);
        lab.bring_to(&told_by(
            "another",
            vec![rule(
                "",
                via(gateways(&[("gold", 9), ("green", 1), ("red", 1)])),
            )],
        ));
        assert_eq!(all_used(lab, &flows), narrowed);
    });
}

#[test]
fn the_next_packet_obeys_the_new_policy() {
    with_lab(|lab| {
        let flows = flows();
        let group = || all_through(&[("red", 1), ("blue", 1)]);
        for (new, expected) in [
            (Action::Local, vec![Became::Passed(PassKind::Local)]),
            (via(vec![]), vec![Became::Dropped(DropReason::NoGateway)]),
            (
                via(gateways(&[("green", 1)])),
                vec![Became::Sent("green".to_owned())],
            ),
            (
                via(gateways(&[("green", 1), ("gold", 1)])),
                ["green", "gold"]
                    .map(|name| Became::Sent(name.to_owned()))
                    .into(),
            ),
        ] {
            lab.forget_flows();
            lab.bring_to(&group());
            all_used(lab, &flows);
            lab.bring_to(&told(vec![rule("", new.clone())]));
            for frame in &flows {
                let became = became(lab, frame);
                assert!(expected.contains(&became), "{became:?} under {new:?}");
            }
        }
    });
}

#[test]
fn groups_of_one_have_no_table() {
    with_lab(|lab| {
        lab.bring_to(&all_through(&[("red", 1)]));
        for frame in &flows() {
            assert_eq!(used(lab, frame), "red");
        }
        assert_eq!(lab.flows().len(), 0);
        lab.bring_to(&all_through(&[("red", 1), ("blue", 1)]));
        all_used(lab, &flows());
        assert_eq!(lab.flows().len(), flows().len());
    });
}

#[test]
fn what_a_full_table_forgets_is_placed_by_its_hash() {
    with_lab(|lab| {
        let flows = flows();
        lab.bring_to(&all_through(&[("red", 1), ("blue", 1), ("green", 1)]));
        let before = all_used(lab, &flows);
        lab.forget_flows();
        assert_eq!(
            all_used(lab, &flows),
            before,
            "the same table, the same place"
        );
    });
}

/// A datagram in fragments: the first, and a later one.
fn fragments(family: usize, id: u16) -> [Frame; 2] {
    let (pod, far) = (POD[family], FAR[family]);
    let parts = [(0, true, udp(30_000 + id, 53, 24)), (4, false, vec![7; 16])];
    parts.map(|(offset, more, payload)| {
        if family == 0 {
            Frame::ip(pod, far, UDP, &payload).fragment(id, offset, more)
        } else {
            let payload = fragment6(UDP, id.into(), offset, more, &payload);
            Frame::ip(pod, far, FRAGMENT, &payload)
        }
    })
}

#[test]
fn later_fragments_follow_their_first_through_a_change() {
    with_lab(|lab| {
        for family in [0, 1] {
            lab.forget();
            lab.bring_to(&all_through(&[("red", 1), ("blue", 1)]));
            let mut firsts = BTreeMap::new();
            for id in 0..30 {
                firsts.insert(id, used(lab, &fragments(family, id)[0]));
            }
            let every: Vec<(&str, u32)> = NAMES.iter().map(|name| (*name, 1)).collect();
            lab.bring_to(&all_through(&every));
            for (id, first) in &firsts {
                assert_eq!(&used(lab, &fragments(family, *id)[1]), first);
            }
            lab.bring_to(&all_through(&[("blue", 1), ("green", 1)]));
            for (id, first) in &firsts {
                let later = became(lab, &fragments(family, *id)[1]);
                if first == "blue" {
                    assert_eq!(later, Became::Sent("blue".to_owned()));
                } else {
                    assert_eq!(later, Became::Dropped(DropReason::FragmentUnknown));
                }
            }
            lab.bring_to(&told(vec![rule("", Action::Local)]));
            for id in firsts.keys() {
                let later = became(lab, &fragments(family, *id)[1]);
                assert_eq!(later, Became::Passed(PassKind::Local));
            }
        }
    });
}

/// Flows of protocols without ports are known by their addresses.
#[test]
fn flows_without_ports_stay_too() {
    with_lab(|lab| {
        lab.bring_to(&all_through(&[("red", 1), ("blue", 1)]));
        let flows: Vec<Frame> = (0..40)
            .map(|last| Frame::ip(POD[0], &format!("192.0.2.{last}"), GRE, &[7; 12]))
            .collect();
        let before = all_used(lab, &flows);
        lab.bring_to(&all_through(&[("red", 1), ("blue", 1), ("gold", 50)]));
        assert_eq!(all_used(lab, &flows), before);
    });
}

/// A pod's ICMP error about a packet of each of [`flows`] that came back to it.
fn errors() -> Vec<Frame> {
    let both = POD.into_iter().zip(FAR);
    both.flat_map(|(pod, far)| {
        (0..40).flat_map(move |number| {
            let port = 30_000 + number;
            // Port unreachable, reassembly time exceeded, packet too big.
            let (protocol, kinds, echo, pong) = if pod.contains(':') {
                (ICMPV6, [1, 3, 2], ICMPV6, 129)
            } else {
                (ICMP, [3, 11, 3], ICMP, 0)
            };
            let came = [
                Frame::ip(far, pod, TCP, &segment(443, port, ACK, 1, 4)),
                Frame::ip(far, pod, UDP, &udp(53, port, 4)),
                Frame::ip(far, pod, echo, &icmp(pong, port, &[0; 8])),
            ];
            came.into_iter().zip(kinds).map(move |(came, kind)| {
                let mut error = vec![kind, 0, 0, 0, 0, 0, 0, 0];
                error.extend_from_slice(&came.bytes[14..]);
                Frame::ip(pod, far, protocol, &error)
            })
        })
    })
    .collect()
}

#[test]
fn errors_of_a_pod_go_where_their_connection_goes() {
    with_lab(|lab| {
        let (flows, errors) = (flows(), errors());
        lab.bring_to(&all_through(&[("red", 1), ("blue", 1), ("green", 1)]));
        let before = all_used(lab, &flows);
        let known = lab.flows().len();
        assert_eq!(all_used(lab, &errors), before);
        lab.bring_to(&all_through(&[
            ("red", 1),
            ("blue", 1),
            ("green", 1),
            ("gold", 100),
        ]));
        assert_eq!(all_used(lab, &errors), before, "they stay as it does");
        assert_eq!(lab.flows().len(), known, "an error is no flow");
        lab.forget_flows();
        let by_hash = all_used(lab, &errors);
        assert_eq!(lab.flows().len(), 0);
        assert_eq!(
            all_used(lab, &flows),
            by_hash,
            "the same table, the same place"
        );
    });
}

/// Whatever comes and goes: a flow moves only when its gateway is gone.
#[test]
fn groups_that_change_at_random() {
    with_lab(|lab| {
        let mut random = Random::new();
        let flows: Vec<Frame> = flows().into_iter().step_by(3).collect();
        let mut at: Option<Vec<String>> = None;
        for _ in 0..30 {
            let mut group: Vec<(&str, u32)> = Vec::new();
            while group.len() < 2 {
                group = NAMES
                    .iter()
                    .map(|name| (*name, u32::from(random.next_u8() % 6)))
                    .filter(|(_, weight)| (1..=3).contains(weight))
                    .collect();
            }
            lab.bring_to(&all_through(&group));
            let now = all_used(lab, &flows);
            let left: Vec<&str> = group.iter().map(|(name, _)| *name).collect();
            if let Some(before) = at {
                only_moved_from_lost(&before, &now, &left);
            }
            at = Some(now);
        }
    });
}

/// A SYN on the ports of an earlier connection goes where that one went.
#[test]
fn a_reopened_connection_stays() {
    with_lab(|lab| {
        lab.bring_to(&all_through(&[("red", 1), ("blue", 1)]));
        let syn = Frame::ip(POD[0], FAR[0], TCP, &segment(30_000, 443, SYN, 1, 0));
        let before = used(lab, &syn);
        lab.bring_to(&all_through(&[("red", 1), ("blue", 1), ("gold", 100)]));
        assert_eq!(used(lab, &syn), before);
    });
}
