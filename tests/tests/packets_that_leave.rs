//! What is let through as the cluster's own is marked, and what is marked leaves only for the cluster, or for where an
//! explicit rule of its pod's policy lets it: whatever something has made of its addresses.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use egress_common::{DropReason, counter::PassKind, gateway::Settings};
use egress_tests::{
    machine,
    packets::{
        Action, Counts, Input, Lab, Slot,
        build::{
            Frame, L3,
            flag::{ACK, SYN},
            proto::{TCP, UDP},
            segment, udp,
        },
        places::{Family, V4, V6},
        seed::{OTHER, POD, STEERED, UPLINK, world},
        talk::{datagram, talk},
        with_lab,
    },
};
use egress_userspace::{kernel::Program, state::Local};

const BIT: u32 = 0x1000;
/// What others have in a mark.
const OTHERS: u32 = 0x8000_4080;
/// Addresses of the node.
const NODE: [&str; 2] = ["10.100.0.1", "fd10::1"];

/// Has a lab with the usual pods, where nothing is marked yet.
fn with_pods(test: impl FnOnce(&mut Lab) + Send) {
    with_lab(|lab| {
        lab.bring_to(&world());
        lab.make_local(&[
            ("10.96.0.0/12", Local::Cluster),
            ("fd10::/16", Local::Cluster),
            ("10.100.0.1/32", Local::Node),
            ("fd10::1/128", Local::Node),
        ]);
        lab.forget();
        if machine::report().is_some() {
            // Another test may have left flows of the same ports.
            lab.forget_own_flows();
        }
        test(lab);
    });
}

/// Makes this bit, or none, the mark.
fn set_mark(lab: &mut Lab, mark: u32) {
    lab.set_settings(Settings {
        local_mark: mark,
        ..Settings::default()
    });
    lab.moved();
}

fn both() -> [(&'static Family, &'static str); 2] {
    [(&V4, NODE[0]), (&V6, NODE[1])]
}

#[test]
fn what_is_the_clusters_is_marked() {
    with_pods(|lab| {
        for mark in [BIT, 1, 1 << 31, 0] {
            set_mark(lab, mark);
            for (f, node) in both() {
                for (what, source, destination, marked) in [
                    ("the cluster's", f.web, f.cluster, true),
                    ("a node's", f.web, node, true),
                    ("the cluster's, no rules", f.free, f.cluster, true),
                    ("an explicit rule's", f.web, f.local, false),
                    ("nobody's", f.web, f.elsewhere, false),
                    ("nobody's, no rules", f.free, f.elsewhere, false),
                    ("a gateway's", f.web, f.red.0, false),
                    (
                        "a gateway's, in the cluster",
                        f.web,
                        f.inside_cluster.0,
                        false,
                    ),
                    ("no gateway's", f.web, f.no_gateway, false),
                    ("a policy that is missing", f.lost, f.cluster, false),
                    ("a forged source", f.nobody, f.cluster, false),
                ] {
                    for before in [0, OTHERS & !mark] {
                        let mut input = Input::from_pod(&datagram(source, destination).bytes);
                        input.mark = before;
                        let seen = lab.run(&input).unwrap();
                        let after = if marked { before | mark } else { before };
                        assert_eq!(seen.mark, after, "{}: {what}, mark {mark:#x}", f.name);
                    }
                }
            }
        }
    });
}

#[test]
fn what_would_be_marked_ends_where_nobody_sees_it_leave() {
    with_pods(|lab| {
        for (mark, unguarded) in [(BIT, 1), (0, 1), (BIT, 0)] {
            lab.set_settings(Settings {
                local_mark: mark,
                unguarded,
                ..Settings::default()
            });
            lab.moved();
            let cut = mark != 0 && unguarded != 0;
            for (f, node) in both() {
                for (what, source, destination, policy, cut) in [
                    ("the cluster's", f.web, f.cluster, STEERED, cut),
                    ("a node's", f.web, node, STEERED, cut),
                    ("the cluster's, no rules", f.free, f.cluster, "empty", cut),
                    ("an explicit rule's", f.web, f.local, STEERED, false),
                    ("nobody's, no rules", f.free, f.elsewhere, "empty", false),
                ] {
                    let frame = datagram(source, destination);
                    let what = format!("{}: {what}, mark {mark:#x}, {unguarded}", f.name);
                    let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
                    let action = if cut { Action::Drop } else { Action::Pass };
                    assert_eq!(seen.action, action, "{what}");
                    let moved = lab.moved();
                    if cut {
                        let slot = Slot::Drop(policy.to_owned(), DropReason::LocalUnguarded);
                        assert_eq!(moved, [(slot, size(&frame))].into(), "{what}");
                        assert_eq!(seen.mark, 0, "{what}");
                    } else {
                        let passed = |slot: &Slot| matches!(slot, Slot::Pass(..));
                        assert!(moved.keys().all(passed), "{what}: {moved:?}");
                    }
                }
                let sent = lab.run(&Input::from_pod(&datagram(f.web, f.red.0).bytes));
                assert_eq!(sent.unwrap().action, Action::Redirect, "{}", f.name);
                lab.moved();
            }
        }
    });
}

/// A packet that leaves by the uplink.
fn leaving(frame: &Frame, received_by: u32) -> Input {
    Input {
        program: Program::ToUplink,
        ifindex: UPLINK,
        mark: BIT | OTHERS,
        received_by,
        ..Input::from_pod(&frame.bytes)
    }
}

/// What becomes of a packet that leaves, which is never changed: nothing, or a drop for this policy.
#[track_caller]
fn check(lab: &mut Lab, input: &Input, dropped: Option<&str>, counted: (u64, u64), what: &str) {
    let seen = lab.run(input).unwrap();
    let action = match dropped {
        Some(_) => Action::Drop,
        None => Action::Pass,
    };
    assert_eq!(seen.action, action, "{what}: {}", input.describe());
    assert_eq!(seen.frame, input.frame, "{what}");
    assert_eq!(seen.mark, input.mark, "{what}");
    let wanted: Counts = dropped
        .map(|policy| {
            let slot = Slot::Drop(policy.to_owned(), DropReason::LocalLeftCluster);
            (slot, counted)
        })
        .into_iter()
        .collect();
    assert_eq!(lab.moved(), wanted, "{what}: {}", input.describe());
}

fn size(frame: &Frame) -> (u64, u64) {
    (1, u64::try_from(frame.bytes.len() - L3).unwrap())
}

#[test]
fn what_is_marked_leaves_for_the_cluster_only() {
    with_pods(|lab| {
        without_a_mark_nothing_is_looked_at(lab);
        set_mark(lab, BIT);
        if !lab.tells_receivers() {
            println!(
                "skipped: this kernel's test-run cannot say where a packet was received (5.19)"
            );
            return;
        }
        for (f, node) in both() {
            // Whose address the source is, where the packet came in, and whose the policy is that is asked.
            for (source, received_by, policy) in [
                (f.web, POD, STEERED),
                // Behind a bridge.
                (f.web, OTHER, STEERED),
                // Translated too.
                (node, POD, STEERED),
                // Both: nobody knows whose it is.
                (node, OTHER, ""),
                (f.free, POD, "empty"),
            ] {
                let known = policy == STEERED;
                for (what, destination, stays) in [
                    ("outside", f.red.0, false),
                    ("outside, no gateway", f.no_gateway, false),
                    ("outside, of no rule", f.elsewhere, false),
                    ("the cluster's", f.cluster, true),
                    ("a node's", node, true),
                    ("an explicit rule's", f.local, known),
                    ("a gateway's, in the cluster", f.inside_cluster.0, !known),
                ] {
                    let frame = datagram(source, destination);
                    let what = format!("{}: {what}, from {source} by {received_by}", f.name);
                    let dropped = (!stays).then_some(policy);
                    let input = leaving(&frame, received_by);
                    check(lab, &input, dropped, size(&frame), &what);
                }
            }
            let outside = datagram(f.web, f.red.0);
            let unmarked = Input {
                mark: OTHERS,
                ..leaving(&outside, POD)
            };
            check(lab, &unmarked, None, (0, 0), "not marked");
            check(
                lab,
                &leaving(&outside, 0),
                None,
                (0, 0),
                "a tunnel's, or the node's own",
            );
        }
        let strange = Frame::raw(0x88b5, &[0; 46]);
        let what = "no IP";
        check(lab, &leaving(&strange, POD), Some(""), size(&strange), what);
        aggregates_are_counted_as_their_segments(lab);
    });
}

fn aggregates_are_counted_as_their_segments(lab: &mut Lab) {
    for (f, _) in both() {
        let header = if f.name == V4.name { 20 } else { 40 };
        for (protocol, payload, transport) in [
            (TCP, segment(40_000, 443, ACK, 1, 2500), 20),
            (UDP, udp(40_000, 443, 2500), 8),
        ] {
            let aggregate = Frame::ip(f.web, f.red.0, protocol, &payload);
            let mut input = leaving(&aggregate, POD);
            input.gso = (1000, 3);
            let counted = (3, 2500 + 3 * (header + transport));
            check(lab, &input, Some(STEERED), counted, f.name);
        }
    }
}

fn without_a_mark_nothing_is_looked_at(lab: &mut Lab) {
    set_mark(lab, 0);
    for (f, _) in both() {
        let mut input = leaving(&datagram(f.web, f.red.0), 0);
        input.mark = u32::MAX;
        check(lab, &input, None, (0, 0), f.name);
    }
}

/// What comes in by a node's address (a node port) has that address for the pod: its answers go back to it, and then
/// to whoever it was.
#[test]
fn answers_to_who_came_in_by_the_node_are_not_marked() {
    with_pods(|lab| {
        if !lab.tells_receivers() {
            return;
        }
        for mark in [BIT, 0] {
            set_mark(lab, mark);
            for (index, (f, node)) in both().into_iter().enumerate() {
                let port = 3000 + 100 * u16::try_from(index).unwrap() + u16::from(mark == 0);
                let arrives = |lab: &mut Lab, frame: &Frame, received_by| {
                    let mut input = Input::to_pod(&frame.bytes);
                    input.received_by = received_by;
                    assert_eq!(lab.run(&input).unwrap().action, Action::Pass);
                };
                let leaves = |lab: &mut Lab, frame: &Frame| {
                    let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
                    assert_eq!(seen.action, Action::Pass);
                    (seen.mark, lab.moved().into_keys().next())
                };
                let pass = |kind| Some(Slot::Pass(STEERED.to_owned(), kind));
                let local = (mark, pass(PassKind::Local));
                let answer = if mark == 0 {
                    local.clone()
                } else {
                    (0, pass(PassKind::Inbound))
                };

                // The order matters: from the first connection on the pod is one that others talk to.
                let own = talk(f.web, port + 1, node, 30_000);
                assert_eq!(leaves(lab, &own.tcp_out(SYN)), local, "the pod's own");
                let probed = talk(f.web, 80, node, port + 2);
                arrives(lab, &probed.tcp_in(SYN), 0);
                assert_eq!(
                    leaves(lab, &probed.tcp_out(SYN | ACK)),
                    local,
                    "the node's own"
                );

                let hidden = talk(f.web, 80, node, port);
                arrives(lab, &hidden.tcp_in(SYN), UPLINK);
                assert_eq!(leaves(lab, &hidden.tcp_out(SYN | ACK)), answer, "an answer");
                assert_eq!(leaves(lab, &hidden.tcp_out(ACK)), answer, "more of it");
                assert_eq!(
                    leaves(lab, &own.tcp_out(ACK)),
                    local,
                    "the pod's own, later"
                );
                arrives(lab, &own.tcp_in(SYN), UPLINK);
                assert_eq!(
                    leaves(lab, &own.tcp_out(SYN | ACK)),
                    local,
                    "forged over the pod's own"
                );

                let elsewhere = talk(f.web, 80, f.cluster, port);
                arrives(lab, &elsewhere.tcp_in(SYN), UPLINK);
                assert_eq!(
                    leaves(lab, &elsewhere.tcp_out(SYN | ACK)),
                    local,
                    "another pod's"
                );

                let datagrams = talk(f.web, 53, node, port);
                arrives(lab, &datagrams.udp_in(), UPLINK);
                assert_eq!(
                    leaves(lab, &datagrams.udp_out()),
                    local,
                    "a port that is not named"
                );
                lab.name_udp_ports(egress_tests::packets::build::address(f.web), &[53]);
                let datagrams = talk(f.web, 53, node, port + 3);
                arrives(lab, &datagrams.udp_in(), UPLINK);
                assert_eq!(leaves(lab, &datagrams.udp_out()), answer, "a port that is");
                lab.name_udp_ports(egress_tests::packets::build::address(f.web), &[]);
            }
        }
    });
}
