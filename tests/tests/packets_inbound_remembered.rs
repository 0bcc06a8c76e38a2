//! What is remembered of connections that come in, and for how long: whatever is late, forgotten, crowded or
//! mixed, no flow that a pod started goes around its gateway.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use std::collections::BTreeSet;

use egress_common::{
    counter::PassKind,
    keys::ReplyKey,
    pod::{FLOW_SECONDS, OwnFlow, OwnFlows},
};
use egress_tests::packets::{
    Action, Input, Lab, Slot,
    build::{
        Frame, address,
        flag::{ACK, FIN, RST, SYN},
        proto::{TCP, UDP},
        udp,
    },
    places::{V4, V6},
    random::Random,
    seed::{UPLINK, world},
    talk::{Talk, fragment, talk},
    with_lab,
};
use egress_userspace::kernel::Program;

/// Runs one packet and says whether it was passed as a reply.
fn passes(lab: &mut Lab, frame: &Frame) -> bool {
    let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
    let moved: Vec<Slot> = lab.moved().into_keys().collect();
    match (seen.action, &moved[..]) {
        (Action::Pass, [Slot::Pass(_, PassKind::Inbound)]) => true,
        (Action::Redirect, [Slot::Member(..)]) | (Action::Drop, [Slot::Drop(..)]) => false,
        other => panic!("neither passed as a reply nor steered: {other:?}"),
    }
}

fn arrive(lab: &mut Lab, frame: &Frame) {
    let seen = lab.run(&Input::to_pod(&frame.bytes)).unwrap();
    assert_eq!((seen.action, &seen.frame), (Action::Pass, &frame.bytes));
    assert!(lab.moved().is_empty());
}

/// With a lab in which the world's policies are at work.
fn with_world(test: impl FnOnce(&mut Lab) + Send) {
    with_lab(|lab| {
        lab.bring_to(&world());
        test(lab);
    });
}

#[test]
fn our_own_deliveries_open_nothing() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            let own = talk(f.web, 40_100, f.red.0, 443);
            lab.run(&Input::from_pod(&own.tcp_out(SYN).bytes)).unwrap();
            let reply = Input {
                program: Program::FromGateway,
                ifindex: UPLINK,
                ..Input::from_pod(&own.tcp_in(SYN | ACK).bytes)
            };
            let delivered = lab.run(&reply).unwrap();
            assert_eq!(delivered.action, Action::Redirect);
            assert_ne!(delivered.mark, 0, "what we deliver is marked");

            let it = talk(f.web, 80, f.red.0, 4001);
            let syn = Input {
                mark: delivered.mark,
                ..Input::to_pod(&it.tcp_in(SYN).bytes)
            };
            let seen = lab.run(&syn).unwrap();
            assert_eq!(
                (seen.action, seen.mark),
                (Action::Pass, 0),
                "the mark stays here"
            );
            assert!(lab.inbound().is_empty());
            let marked_by_others = Input { mark: 4, ..syn };
            let seen = lab.run(&marked_by_others).unwrap();
            assert_eq!(seen.mark, 4, "another's mark is another's");
            assert_eq!(lab.inbound().len(), 1);
            lab.forget_inbound();
        }
    });
}

/// The mark of what comes in through a gateway, as the lab sees it on a reply to `own`.
fn mark_of_deliveries(lab: &mut Lab, own: &Talk) -> u32 {
    lab.run(&Input::from_pod(&own.tcp_out(SYN).bytes)).unwrap();
    let reply = Input {
        program: Program::FromGateway,
        ifindex: UPLINK,
        ..Input::from_pod(&own.tcp_in(SYN | ACK).bytes)
    };
    let delivered = lab.run(&reply).unwrap();
    assert_eq!(delivered.action, Action::Redirect);
    lab.moved();
    delivered.mark
}

fn deliver(lab: &mut Lab, mark: u32, frame: &Frame) {
    let input = Input {
        mark,
        ..Input::to_pod(&frame.bytes)
    };
    let seen = lab.run(&input).unwrap();
    assert_eq!((seen.action, seen.mark), (Action::Pass, 0));
    lab.moved();
}

#[test]
fn an_own_flow_that_only_receives_stays_the_pods_own() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            lab.name_udp_ports(address(f.web), &[53]);
            let mark = mark_of_deliveries(lab, &talk(f.web, 40_101, f.red.0, 443));
            assert_ne!(mark, 0);
            for (remote_port, through_gateway) in [(4401, true), (4402, false)] {
                let it = talk(f.web, 53, f.red.0, remote_port);
                assert!(!passes(lab, &it.udp_out()), "the pod's own");
                for _ in 0..3 {
                    lab.age(FLOW_SECONDS - 5, &[it.key(UDP)]);
                    if through_gateway {
                        deliver(lab, mark, &it.udp_in());
                    } else {
                        arrive(lab, &it.udp_in());
                    }
                }
                lab.age(FLOW_SECONDS - 5, &[it.key(UDP)]);
                arrive(lab, &it.udp_in());
                assert!(lab.inbound().is_empty(), "{it:?}");
                assert!(!passes(lab, &it.udp_out()), "{it:?} went around");
            }
            let stranger = talk(f.web, 53, f.red.0, 4403);
            deliver(lab, mark, &stranger.udp_in());
            arrive(lab, &stranger.udp_in());
            assert!(
                passes(lab, &stranger.udp_out()),
                "a delivery makes no flow the pod's own"
            );
            lab.forget_inbound();
        }
    });
}

/// A SYN with ACK that the pod's stack does not accept (RFC 9293, 3.10.7.3) leaves the pod opening its
/// connection, so that it would still answer a SYN: what comes in through a gateway may be forged too.
#[test]
fn a_delivered_answer_does_not_end_an_attempt() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            let mark = mark_of_deliveries(lab, &talk(f.web, 40_102, f.red.0, 443));
            let it = talk(f.web, 40_103, f.red.0, 443);
            assert!(!passes(lab, &it.tcp_out(SYN)));
            deliver(lab, mark, &it.tcp_in(SYN | ACK));
            arrive(lab, &it.tcp_in(SYN));
            assert!(lab.inbound().is_empty());
            assert!(!passes(lab, &it.tcp_out(SYN | ACK)), "{it:?} went around");
        }
    });
}

#[test]
fn a_pod_is_noted_once_something_came_in() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            let pod = address(f.web);
            for quiet in [
                talk(f.web, 80, f.cluster, 4101).tcp_in(SYN),
                talk(f.web, 80, f.red.0, 4101).tcp_in(ACK),
                talk(f.web, 80, f.red.0, 4101).udp_in(),
            ] {
                arrive(lab, &quiet);
                assert!(!lab.has_inbound(pod), "{quiet:?}");
            }
            arrive(lab, &talk(f.web, 80, f.red.0, 4101).tcp_in(SYN));
            assert!(lab.has_inbound(pod));
            assert!(!lab.has_inbound(address(f.free)));
        }
    });
}

#[test]
fn time_closes_what_nobody_answered_or_used() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            lab.name_udp_ports(address(f.web), &[53]);
            let tcp = talk(f.web, 80, f.red.0, 4201);
            arrive(lab, &tcp.tcp_in(SYN));
            lab.age(FLOW_SECONDS - 5, &[]);
            assert!(passes(lab, &tcp.tcp_out_at(RST | ACK, 0)));
            lab.age(5, &[]);
            assert!(!passes(lab, &tcp.tcp_out(SYN | ACK)), "a SYN of long ago");
            arrive(lab, &tcp.tcp_in(SYN));
            assert!(passes(lab, &tcp.tcp_out(SYN | ACK)), "and once more");
            lab.age(10_000, &[]);
            assert!(
                passes(lab, &tcp.tcp_out(ACK)),
                "an open connection may be idle"
            );

            let udp = talk(f.web, 53, f.red.0, 4202);
            arrive(lab, &udp.udp_in());
            lab.age(FLOW_SECONDS - 5, &[]);
            assert!(passes(lab, &udp.udp_out()));
            lab.age(5, &[]);
            assert!(
                !passes(lab, &udp.udp_out()),
                "its own packets keep nothing open"
            );
            arrive(lab, &udp.udp_in());
            assert!(!passes(lab, &udp.udp_out()), "it is the pod's own by now");
            lab.age(0, &[]);
            let own = [udp.key(UDP)];
            lab.age(FLOW_SECONDS - 5, &own);
            arrive(lab, &udp.udp_in());
            assert!(!passes(lab, &udp.udp_out()), "still its own");
            lab.age(FLOW_SECONDS, &own);
            arrive(lab, &udp.udp_in());
            assert!(passes(lab, &udp.udp_out()), "its own has ended");

            let retry = talk(f.web, 40_200, f.red.0, 443);
            assert!(!passes(lab, &retry.tcp_out(SYN)));
            lab.age(FLOW_SECONDS - 5, &[retry.key(TCP)]);
            arrive(lab, &retry.tcp_in(SYN));
            assert!(
                !passes(lab, &retry.tcp_out(SYN | ACK)),
                "it may still be opening"
            );
        }
    });
}

/// Whatever a full table forgets goes by the policy.
#[test]
fn what_is_forgotten_is_steered() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            lab.name_udp_ports(address(f.web), &[53]);
            let tcp = talk(f.web, 80, f.red.0, 4301);
            let udp = talk(f.web, 53, f.red.0, 4302);
            arrive(lab, &tcp.tcp_in(SYN));
            arrive(lab, &udp.udp_in());
            lab.forget_inbound();
            assert!(!passes(lab, &tcp.tcp_out(SYN | ACK)));
            assert!(!passes(lab, &tcp.tcp_out(ACK)));
            assert!(!passes(lab, &udp.udp_out()));
        }
    });
}

/// Far ends whose connections to one port of a pod meet in one bucket.
fn neighbours(pod: &'static str, count: usize) -> Vec<Talk> {
    let talks = (1024..u16::MAX).flat_map(|pod_port| {
        let remotes = [V4.red.0, V4.group.0];
        remotes.map(|remote| talk(pod, pod_port, remote, 443))
    });
    let more = (1024..u16::MAX).flat_map(|pod_port| {
        (1..12).map(move |remote_port| talk(pod, pod_port, V4.red.0, remote_port))
    });
    let bucket = OwnFlow::new(&talk(pod, 80, V4.red.0, 5001).key(TCP)).bucket;
    let found: Vec<Talk> = talks
        .chain(more)
        .filter(|it| OwnFlow::new(&it.key(TCP)).bucket == bucket)
        .take(count)
        .collect();
    assert_eq!(found.len(), count, "too few flows meet by chance");
    found
}

/// A flood of the pod's own connections makes it forget nothing: what it has no room for, it takes for its own.
#[test]
fn a_crowded_bucket_opens_nothing() {
    with_world(|lab| {
        let inbound = talk(V4.web, 80, V4.red.0, 5001);
        let own = neighbours(V4.web, OwnFlows::FLOWS + 1);
        let (last, all_but_last) = own.split_last().unwrap();
        for it in all_but_last {
            assert!(!passes(lab, &it.tcp_out(SYN)));
        }
        arrive(lab, &inbound.tcp_in(SYN));
        assert!(passes(lab, &inbound.tcp_out(SYN | ACK)), "room for all");
        lab.forget_inbound();
        assert!(!passes(lab, &last.tcp_out(SYN)));
        arrive(lab, &inbound.tcp_in(SYN));
        assert!(!passes(lab, &inbound.tcp_out(SYN | ACK)), "no room");
        for it in &own {
            arrive(lab, &it.tcp_in(SYN));
            assert!(!passes(lab, &it.tcp_out(SYN | ACK)), "{it:?}");
        }
        let elsewhere = talk(V4.web, 80, V4.red.0, 5002);
        arrive(lab, &elsewhere.tcp_in(SYN));
        assert!(passes(lab, &elsewhere.tcp_out(SYN | ACK)), "another bucket");
    });
}

/// A crowded bucket stays so for what the pod has to itself, and not for whoever knocks at it.
#[test]
fn who_knocks_keeps_no_bucket_crowded() {
    with_world(|lab| {
        let named = [53, 5060, 5061, 5062, 5063, 5064, 5065, 5066];
        lab.name_udp_ports(address(V4.web), &named);
        let mark = mark_of_deliveries(lab, &talk(V4.web, 40_104, V4.red.0, 443));
        let crowd = neighbours(V4.web, OwnFlows::FLOWS);
        let bucket = OwnFlow::new(&crowd[0].key(TCP)).bucket;
        let mut there = named
            .into_iter()
            .flat_map(|port| (1024..u16::MAX).map(move |far| talk(V4.web, port, V4.red.0, far)))
            .filter(|it| OwnFlow::new(&it.key(UDP)).bucket == bucket);
        let (own, stranger) = (there.next().unwrap(), there.next().unwrap());
        let mut keys: Vec<ReplyKey> = crowd.iter().map(|it| it.key(TCP)).collect();
        keys.push(own.key(UDP));
        assert!(!passes(lab, &own.udp_out()), "the pod's own");
        for it in &crowd {
            assert!(!passes(lab, &it.tcp_out(SYN)));
        }
        // The first is pushed out, and goes on to receive through its gateway.
        for _ in 0..3 {
            lab.age(FLOW_SECONDS - 5, &keys);
            deliver(lab, mark, &own.udp_in());
        }
        lab.age(FLOW_SECONDS - 5, &keys);
        for it in [own, stranger] {
            arrive(lab, &it.udp_in());
            assert!(lab.inbound().is_empty(), "{it:?}");
        }
        lab.age(10, &keys);
        arrive(lab, &stranger.udp_in());
        assert!(
            passes(lab, &stranger.udp_out()),
            "it was kept from coming in"
        );
    });
}

/// However packets of both sides are mixed: once the pod has sent a SYN, or a datagram that was steered, no
/// packet of that flow passes.
#[test]
fn nothing_forged_makes_an_own_flow_pass() {
    with_world(|lab| {
        let mut random = Random::new();
        for f in [&V4, &V6] {
            lab.name_udp_ports(address(f.web), &[53, 5060]);
            let mut own: BTreeSet<(Talk, u8)> = BTreeSet::new();
            let (mut passed, mut steered) = (0, 0);
            for _ in 0..6000 {
                let remote = *random.one_of(&[f.red.0, f.group.0, f.no_gateway]);
                let pod_port = *random.one_of(&[53, 5060, 80, 6000, 6001]);
                let remote_port = 7000 + random.next_u16() % 40;
                let it = talk(f.web, pod_port, remote, remote_port);
                let flags = *random.one_of(&[SYN, SYN, SYN | ACK, ACK, RST, RST | ACK, FIN | ACK]);
                let id = random.next_u16() % 4;
                let frame = match random.below(8) {
                    0 | 1 => {
                        arrive(lab, &it.tcp_in(flags));
                        continue;
                    }
                    2 => {
                        arrive(lab, &it.udp_in());
                        continue;
                    }
                    3 => {
                        let payload = udp(it.remote_port, it.pod_port, 24);
                        arrive(lab, &fragment(it.remote, it.pod, id, 0, true, &payload));
                        continue;
                    }
                    4 => (UDP, it.udp_out()),
                    5 => {
                        let payload = udp(it.pod_port, it.remote_port, 24);
                        (UDP, fragment(it.pod, it.remote, id, 0, true, &payload))
                    }
                    // A pod opens connections more rarely than it sends on them.
                    _ if flags == SYN && !random.once_in(8) => continue,
                    _ => (TCP, it.tcp_out(flags)),
                };
                let (protocol, frame) = frame;
                let pass = passes(lab, &frame);
                let flow = (it, protocol);
                assert!(!(pass && own.contains(&flow)), "{flow:?} went around");
                let opens = match protocol {
                    TCP => flags == SYN,
                    _ => !pass,
                };
                if opens {
                    own.insert(flow);
                }
                if pass {
                    passed += 1;
                } else {
                    steered += 1;
                }
            }
            assert!(
                passed > 50 && steered > 50,
                "{passed} passed, {steered} steered"
            );
        }
    });
}

/// Frames that no program of ours has anything to say about.
#[test]
fn strangers_pass_untouched() {
    with_world(|lab| {
        for frame in [
            Frame::raw(0x8100, &[0; 60]),
            Frame::raw(0x0800, &[0x45; 20]),
            Frame::raw(0x86dd, &[0x60; 40]),
        ] {
            arrive(lab, &frame);
        }
        assert!(lab.inbound().is_empty());
    });
}
