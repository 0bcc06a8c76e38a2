//! Connections of pods under an egress address: out, back, and what is refused either way.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use egress_common::{
    DropReason::{Malformed, NatExhausted, NatNoState, NatUnsupported, SourceQuota},
    counter::Answer,
    gateway::{EGRESS_ALLOW_LOCAL, EGRESS_SHARED},
};
use egress_tests::packets::{
    Input,
    build::{self, Frame, authentication, proto},
    nat::{
        ALPHA, BETA,
        Fate::{Answered, Dropped, Home, Kernel, Out},
        Node, Places, QUOTA, datagram, delivered, forwarded, in_both, message, port, segment,
        with_node,
    },
};

const SYN: u8 = 2;
const ACK: u8 = 16;

/// A datagram there and back, which keeps its port.
fn round_trip(node: &mut Node<'_>, p: &Places, pod: &str, pod_port: u16, egress_port: u16) {
    node.out(
        "out",
        &datagram((pod, pod_port), (p.remote, 53), 20),
        Out(forwarded(&datagram(
            (p.alpha, egress_port),
            (p.remote, 53),
            20,
        ))),
    );
    node.back(
        "back",
        &datagram((p.remote, 53), (p.alpha, egress_port), 33),
        Home(delivered(&datagram((p.remote, 53), (pod, pod_port), 33))),
    );
}

#[test]
fn every_protocol_there_and_back() {
    in_both(|node, p| {
        round_trip(node, p, p.pod, 40_000, 40_000);
        // Odd lengths and the empty one.
        for length in [0, 1, 7] {
            node.out(
                "another length",
                &datagram((p.pod, 40_000), (p.remote, 53), length),
                Out(forwarded(&datagram(
                    (p.alpha, 40_000),
                    (p.remote, 53),
                    length,
                ))),
            );
        }
        node.out(
            "a SYN",
            &segment((p.pod, 40_000), (p.remote, 443), SYN),
            Out(forwarded(&segment((p.alpha, 40_000), (p.remote, 443), SYN))),
        );
        node.back(
            "its answer",
            &segment((p.remote, 443), (p.alpha, 40_000), SYN | ACK),
            Home(delivered(&segment(
                (p.remote, 443),
                (p.pod, 40_000),
                SYN | ACK,
            ))),
        );
        node.out(
            "a ping",
            &message(p.pod, p.remote, p.ping, 7777, b"abcdefg"),
            Out(forwarded(&message(
                p.alpha, p.remote, p.ping, 7777, b"abcdefg",
            ))),
        );
        node.back(
            "its answer",
            &message(p.remote, p.alpha, p.pong, 7777, b"abcdefg"),
            Home(delivered(&message(
                p.remote, p.pod, p.pong, 7777, b"abcdefg",
            ))),
        );
        assert_eq!(node.states().len(), 3);
    });
}

#[test]
fn a_port_that_is_taken() {
    in_both(|node, p| {
        round_trip(node, p, p.pod, 40_000, 40_000);
        let frame = datagram((p.other, 40_000), (p.remote, 53), 20);
        let (seen, _) = node.run_quietly("same port", &Input::from_pod(&frame.bytes));
        let l4 = if p.icmp == proto::ICMP { 34 } else { 54 };
        let given = u16::from_be_bytes([seen.frame[l4], seen.frame[l4 + 1]]);
        assert!(given != 40_000 && given >= 1024, "{}: port {given}", p.name);
        round_trip(node, p, p.other, 40_000, given);
        round_trip(node, p, p.pod, 40_000, 40_000);
        // To another remote the port is free.
        node.out(
            "another remote",
            &datagram((p.other, 40_000), (p.remote2, 53), 20),
            Out(forwarded(&datagram((p.alpha, 40_000), (p.remote2, 53), 20))),
        );
        assert_eq!(node.states().len(), 3);

        // Identifiers likewise.
        node.out(
            "a ping",
            &message(p.pod, p.remote, p.ping, 7777, b"1"),
            Out(forwarded(&message(p.alpha, p.remote, p.ping, 7777, b"1"))),
        );
        let frame = message(p.other, p.remote, p.ping, 7777, b"22");
        let (seen, _) = node.run_quietly("same identifier", &Input::from_pod(&frame.bytes));
        let given = u16::from_be_bytes([seen.frame[l4 + 4], seen.frame[l4 + 5]]);
        assert_ne!(given, 7777);
        node.back(
            "the answer to the second",
            &message(p.remote, p.alpha, p.pong, given, b"22"),
            Home(delivered(&message(p.remote, p.other, p.pong, 7777, b"22"))),
        );
    });
}

#[test]
fn a_narrow_range() {
    in_both(|node, p| {
        node.own(&ALPHA, (5000, 5002), 0);
        let mut given = Vec::new();
        for pod_port in 40_000..40_003_u16 {
            let frame = datagram((p.pod, pod_port), (p.remote, 53), 20);
            let (seen, _) = node.run_quietly("narrow", &Input::from_pod(&frame.bytes));
            let l4 = if p.icmp == proto::ICMP { 34 } else { 54 };
            given.push(u16::from_be_bytes([seen.frame[l4], seen.frame[l4 + 1]]));
        }
        given.sort_unstable();
        assert_eq!(given, [5000, 5001, 5002], "{}: all of them", p.name);
        node.out(
            "one more",
            &datagram((p.pod, 40_003), (p.remote, 53), 20),
            Dropped(NatExhausted),
        );
        node.out(
            "another remote port",
            &datagram((p.pod, 5001), (p.remote, 54), 20),
            Out(forwarded(&datagram((p.alpha, 5001), (p.remote, 54), 20))),
        );
        assert_eq!(node.states().len(), 4);
        // When they have ended, their ports are free, swept or not.
        node.age(60);
        for pod_port in 5000..5003 {
            let frame = datagram((p.other, pod_port), (p.remote, 53), 20);
            node.out(
                "after a while",
                &frame,
                Out(forwarded(&datagram(
                    (p.alpha, pod_port),
                    (p.remote, 53),
                    20,
                ))),
            );
        }
        assert_eq!(node.states().len(), 4, "three were put in place of three");
    });
}

#[test]
fn a_quota() {
    in_both(|node, p| {
        for pod_port in 0..u16::try_from(QUOTA).unwrap() {
            let pod_port = 2000 + pod_port;
            node.out(
                "within the quota",
                &datagram((p.pod, pod_port), (p.remote, 53), 20),
                Out(forwarded(&datagram(
                    (p.alpha, pod_port),
                    (p.remote, 53),
                    20,
                ))),
            );
        }
        node.out(
            "beyond it",
            &datagram((p.pod, 3000), (p.remote, 53), 20),
            Dropped(SourceQuota),
        );
        round_trip(node, p, p.other, 3001, 3001);
        round_trip(node, p, p.pod, 2000, 2000);
        node.set_quota(QUOTA + 1);
        round_trip(node, p, p.pod, 3000, 3000);
    });
}

#[test]
fn what_belongs_to_no_connection() {
    in_both(|node, p| {
        let stranger = |egress_port| datagram((p.remote, 53), (p.alpha, egress_port), 20);
        let ping = message(p.remote, p.alpha, p.ping, 7, b"hello");
        let pong = message(p.remote, p.alpha, p.pong, 7, b"hello");
        let gre = Frame::ip(p.remote, p.alpha, proto::GRE, &[0; 16]);
        let other = message(
            p.remote,
            p.alpha,
            if p.ping == 8 { 13 } else { 130 },
            7,
            &[],
        );
        let short = Frame::ip(p.remote, p.alpha, proto::TCP, &[0; 19]);

        node.back("no connection", &stranger(40_000), Dropped(NatNoState));
        node.back("a ping", &ping, Kernel);
        node.back("an answer to none", &pong, Dropped(NatNoState));
        node.back("GRE", &gre, Dropped(NatNoState));
        node.back("another message", &other, Dropped(NatNoState));
        node.back("half a header", &short, Dropped(Malformed));
        if p.icmp == proto::ICMPV6 {
            for kind in 133..=137 {
                let discovery = message(p.remote, p.alpha, kind, 0, &[0; 16]);
                node.back("neighbour discovery", &discovery, Kernel);
            }
        }
        // The identifier of a pod's ping opens nothing for pings from outside.
        node.out(
            "a pod's ping",
            &message(p.pod, p.remote, p.ping, 2007, b"x"),
            Out(forwarded(&message(p.alpha, p.remote, p.ping, 2007, b"x"))),
        );
        let same = message(p.remote, p.alpha, p.ping, 2007, b"hello");
        node.back("a ping with its identifier", &same, Kernel);
        node.back(
            "to nobody's address",
            &datagram((p.remote, 53), (p.remote2, 53), 20),
            Kernel,
        );

        node.own(&ALPHA, (1024, 65_535), EGRESS_ALLOW_LOCAL);
        for frame in [&stranger(40_000), &ping, &pong, &gre, &other, &short] {
            node.back("with local services", frame, Kernel);
        }
        round_trip(node, p, p.pod, 40_000, 40_000);

        node.own(&ALPHA, (40_000, 49_999), EGRESS_SHARED);
        for frame in [
            &stranger(39_999),
            &stranger(50_000),
            &ping,
            &pong,
            &gre,
            &other,
        ] {
            node.back("outside the range of a shared address", frame, Kernel);
        }
        for egress_port in [40_001, 49_999] {
            node.back("inside", &stranger(egress_port), Dropped(NatNoState));
        }
        node.back(
            "an answer to a ping of the node's own, whose identifier may be any",
            &message(p.remote, p.alpha, p.pong, 40_007, b"hello"),
            Kernel,
        );
        round_trip(node, p, p.pod, 40_000, 40_000);
    });
}

#[test]
fn frames_to_many() {
    in_both(|node, p| {
        round_trip(node, p, p.pod, 40_000, 40_000);
        let answer = datagram((p.remote, 53), (p.alpha, 40_000), 20);
        let everybody = [0xff; 6];
        let group = [0x01, 0, 0x5e, 0, 0, 1];
        let to = |mac| answer.clone().macs(mac, build::GATEWAY_MAC);
        for mac in [everybody, group] {
            node.back("to many", &to(mac), Dropped(NatNoState));
            let ping = message(p.remote, p.alpha, p.ping, 7, b"hello");
            node.back(
                "a ping to many",
                &ping.macs(mac, build::GATEWAY_MAC),
                Dropped(NatNoState),
            );
            node.back(
                "to many, and to nobody's address",
                &datagram((p.remote, 53), (p.remote2, 53), 20).macs(mac, build::GATEWAY_MAC),
                Kernel,
            );
        }
        node.back("to another host", &to([2, 0, 0, 0, 0xdd, 1]), Kernel);
        for flags in [EGRESS_ALLOW_LOCAL, EGRESS_SHARED] {
            node.own(&ALPHA, (1024, 65_535), flags);
            node.back("where the kernel has services", &to(everybody), Kernel);
        }
    });
}

#[test]
fn frames_with_a_tag() {
    with_node(|node| {
        let wire = node.connect_uplink();
        for p in [
            &egress_tests::packets::nat::V4,
            &egress_tests::packets::nat::V6,
        ] {
            node.reset();
            round_trip(node, p, p.pod, 40_000, 40_000);
            let tagged = |remote_port, tag: u16| {
                let mut bytes = datagram((p.remote, remote_port), (p.alpha, 40_000), 20).bytes;
                let [high, low] = tag.to_be_bytes();
                bytes.splice(12..12, [0x81, 0, high, low]);
                bytes
            };
            let (home, nobodys) = node.came_back();
            // Of a VLAN; of none; of none, with a priority.
            for tag in [7, 0, 0xe000] {
                wire.send(&tagged(53, tag)).unwrap();
                wire.send(&tagged(54, tag)).unwrap();
            }
            egress_tests::wait::until("those without a VLAN were looked at", || {
                let seen = node.came_back();
                anyhow::ensure!(seen == (home + 2, nobodys + 2), "{}: {seen:?}", p.name);
                Ok(())
            })
            .unwrap();
        }
    });
}

#[test]
fn what_opens_no_connection() {
    in_both(|node, p| {
        for flags in [4, 4 | ACK, SYN | ACK] {
            node.out(
                "TCP that answers nothing",
                &segment((p.pod, 40_000), (p.remote, 443), flags),
                Dropped(NatNoState),
            );
        }
        node.out(
            "an echo reply",
            &message(p.pod, p.remote, p.pong, 7, b"x"),
            Dropped(NatNoState),
        );
        node.out(
            "another ICMP message",
            &message(p.pod, p.remote, if p.ping == 8 { 13 } else { 130 }, 7, &[]),
            Dropped(NatUnsupported),
        );
        let foreign = if p.icmp == proto::ICMP {
            proto::ICMPV6
        } else {
            proto::ICMP
        };
        node.out(
            "the other family's ICMP",
            &Frame::ip(p.pod, p.remote, foreign, &[8; 8]),
            Dropped(NatUnsupported),
        );
        let covered = authentication(proto::UDP, 4, &build::udp(1, 2, 8));
        node.out(
            "AH",
            &Frame::ip(p.pod, p.remote, proto::AH, &covered),
            Dropped(NatUnsupported),
        );
        for (protocol, length) in [(proto::TCP, 19), (proto::UDP, 7), (proto::UDP_LITE, 7)] {
            node.out(
                "half a header",
                &Frame::ip(p.pod, p.remote, protocol, &vec![0; length]),
                Dropped(Malformed),
            );
        }
        node.out(
            "the last hop",
            &datagram((p.pod, 1), (p.remote, 53), 0).ttl(1),
            Answered(Answer::TimeExceeded, 0),
        );
        assert!(node.states().is_empty() && node.sources.keys().count() == 0);
        // A connection may be taken over in its midst.
        node.out(
            "an ACK",
            &segment((p.pod, 40_000), (p.remote, 443), ACK),
            Out(forwarded(&segment((p.alpha, 40_000), (p.remote, 443), ACK))),
        );
        node.back(
            "the last hop back",
            &segment((p.remote, 443), (p.alpha, 40_000), ACK).ttl(1),
            Answered(Answer::TimeExceeded, 0),
        );
    });
}

#[test]
fn two_gateways() {
    in_both(|node, p| {
        round_trip(node, p, p.pod, 40_000, 40_000);
        node.steer_to(&BETA);
        let out = datagram((p.pod, 40_000), (p.remote, 53), 20);
        node.out(
            "the same ports through another gateway",
            &out,
            Out(forwarded(&datagram((p.beta, 40_000), (p.remote, 53), 20))),
        );
        node.back(
            "back",
            &datagram((p.remote, 53), (p.beta, 40_000), 20),
            Home(delivered(&datagram((p.remote, 53), (p.pod, 40_000), 20))),
        );
        node.steer_to(&ALPHA);
        round_trip(node, p, p.pod, 40_000, 40_000);
        assert_eq!(node.states().len(), 2);
    });
}

#[test]
fn a_gateway_whose_address_changed() {
    in_both(|node, p| {
        round_trip(node, p, p.pod, 40_000, 40_000);
        let new = if p.icmp == proto::ICMP {
            "192.0.2.99"
        } else {
            "2001:db8:ee::99"
        };
        node.own_at(&ALPHA, new, 30, (1024, 65_535), 0);
        node.out(
            "out by the new address",
            &datagram((p.pod, 40_000), (p.remote, 53), 20),
            Out(forwarded(&datagram((new, 40_000), (p.remote, 53), 20))),
        );
        node.back(
            "back to the new address",
            &datagram((p.remote, 53), (new, 40_000), 20),
            Home(delivered(&datagram((p.remote, 53), (p.pod, 40_000), 20))),
        );
        node.back(
            "back to the old one",
            &datagram((p.remote, 53), (p.alpha, 40_000), 20),
            Dropped(NatNoState),
        );
        assert_eq!(node.states().len(), 1);
        let key = node.all_backs()[0].0;
        assert_eq!(key.egress_port, port(40_000));
    });
}
