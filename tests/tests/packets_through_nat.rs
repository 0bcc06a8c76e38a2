//! Connections of pods under an egress address: out, back, and what is refused either way.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use egress_common::{
    DropReason::{Malformed, NatAmbiguous, NatExhausted, NatNoState, NatUnsupported, SourceQuota},
    counter::Answer,
    gateway::{EGRESS_ALLOW_LOCAL, EGRESS_SHARED},
};
use egress_tests::packets::{
    Input,
    build::{self, Frame, L3, authentication, extension, proto},
    nat::{
        ALPHA, BETA,
        Fate::{Answered, Dropped, Home, Kernel, Out},
        Node, Places, QUOTA, datagram, delivered, forwarded, in_both, message, on_uplink, port,
        segment, sum_holds, with_node, with_sum, with_sum_at,
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
fn protocols_without_ports() {
    in_both(|node, p| {
        for protocol in [proto::SCTP, proto::GRE, proto::ESP, 94] {
            let out = |from| Frame::ip(from, p.remote, protocol, &[0x5a; 24]);
            let back = |to| Frame::ip(p.remote, to, protocol, &[0xa5; 31]);
            node.out("out", &out(p.pod), Out(forwarded(&out(p.alpha))));
            node.back("back", &back(p.alpha), Home(delivered(&back(p.pod))));
            node.out("another pod", &out(p.other), Dropped(NatAmbiguous));
            node.out("again", &out(p.pod), Out(forwarded(&out(p.alpha))));
        }
        for protocol in [proto::UDP_LITE, proto::DCCP] {
            let frame = |from, to| {
                let mut payload = build::udp(1, 2, 20);
                payload[4..6].copy_from_slice(&[0, 0]);
                with_sum(Frame::ip(from, to, protocol, &payload), protocol)
            };
            node.out(
                "with a checksum",
                &frame(p.pod, p.remote),
                Out(forwarded(&frame(p.alpha, p.remote))),
            );
            node.back(
                "back",
                &frame(p.remote, p.alpha),
                Home(delivered(&frame(p.remote, p.pod))),
            );
        }
        node.age(60);
        let out = |from| Frame::ip(from, p.remote, proto::GRE, &[0x5a; 24]);
        node.out(
            "after a while",
            &out(p.other),
            Out(forwarded(&out(p.alpha))),
        );
        assert_eq!(node.states().len(), 6);
    });
}

#[test]
fn a_datagram_without_checksum() {
    in_both(|node, p| {
        let bare = |from: (&str, u16), to: (&str, u16)| {
            Frame::ip(from.0, to.0, proto::UDP, &build::udp(from.1, to.1, 9))
        };
        node.own(&ALPHA, (5000, 5000), 0);
        node.out(
            "out",
            &bare((p.pod, 40_000), (p.remote, 53)),
            Out(forwarded(&bare((p.alpha, 5000), (p.remote, 53)))),
        );
        node.back(
            "back",
            &bare((p.remote, 53), (p.alpha, 5000)),
            Home(delivered(&bare((p.remote, 53), (p.pod, 40_000)))),
        );
    });
}

#[test]
fn a_checksum_that_becomes_zero() {
    in_both(|node, p| {
        for protocol in [proto::UDP, proto::UDP_LITE] {
            // The payload is chosen so that the translated datagram's sum is zero, which is written as all ones.
            let mut payload = build::udp(40_000, 53, 2);
            if protocol == proto::UDP_LITE {
                // All of it is covered (RFC 3828, 3.1).
                payload[4..6].copy_from_slice(&[0, 0]);
            }
            payload[8..10].copy_from_slice(&[0, 0]);
            let translated = with_sum(Frame::ip(p.alpha, p.remote, protocol, &payload), protocol);
            let l4 = translated.bytes.len() - 10;
            let missing = [translated.bytes[l4 + 6], translated.bytes[l4 + 7]];
            payload[8..10].copy_from_slice(&missing);
            let packet = |from| with_sum(Frame::ip(from, p.remote, protocol, &payload), protocol);
            let expected = packet(p.alpha);
            assert_eq!(expected.bytes[l4 + 6..l4 + 8], [0xff, 0xff]);
            node.out("out", &packet(p.pod), Out(forwarded(&expected)));
        }
    });
}

#[test]
fn ipv6_extension_headers() {
    with_node(|node| {
        let p = &egress_tests::packets::nat::V6;
        let packet = |from: (&str, u16), to: (&str, u16)| {
            let payload = extension(
                proto::DESTINATION,
                0,
                &extension(proto::UDP, 2, &build::udp(from.1, to.1, 20)),
            );
            let frame = Frame::ip(from.0, to.0, proto::HOP_BY_HOP, &payload);
            with_sum_at(frame, proto::UDP, L3 + 40 + 8 + 24)
        };
        node.own(&ALPHA, (5000, 5000), 0);
        node.out(
            "out",
            &packet((p.pod, 40_000), (p.remote, 53)),
            Out(forwarded(&packet((p.alpha, 5000), (p.remote, 53)))),
        );
        node.back(
            "back",
            &packet((p.remote, 53), (p.alpha, 5000)),
            Home(delivered(&packet((p.remote, 53), (p.pod, 40_000)))),
        );
        let covered = authentication(proto::UDP, 4, &build::udp(1, 2, 8));
        node.back(
            "AH",
            &Frame::ip(p.remote, p.alpha, proto::AH, &covered),
            Dropped(NatNoState),
        );
    });
}

#[test]
fn ipv4_options_and_padding() {
    with_node(|node| {
        let p = &egress_tests::packets::nat::V4;
        let packet = |from: &str, to: &str, ports: (u16, u16)| {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let payload = build::udp(ports.0, ports.1, 20);
            let frame = Frame::v4(from, to, &[1; 8], proto::UDP, &payload);
            with_sum_at(frame, proto::UDP, L3 + 28).padded(&[0xee; 5])
        };
        node.out(
            "out",
            &packet(p.pod, p.remote, (40_000, 53)),
            Out(forwarded(&packet(p.alpha, p.remote, (40_000, 53)))),
        );
        node.back(
            "back",
            &packet(p.remote, p.alpha, (53, 40_000)),
            Home(delivered(&packet(p.remote, p.pod, (53, 40_000)))),
        );
    });
}

#[test]
fn aggregates() {
    in_both(|node, p| {
        let l4 = if p.icmp == proto::ICMP { 34 } else { 54 };
        let long = |from: (&str, u16), to: (&str, u16)| {
            let payload = build::tcp(from.1, to.1, &[], 2800);
            with_sum(Frame::ip(from.0, to.0, proto::TCP, &payload), proto::TCP)
        };
        let mut input = Input::from_pod(&long((p.pod, 40_000), (p.remote, 443)).bytes);
        input.gso = (1400, 2);
        let out = forwarded(&long((p.alpha, 40_000), (p.remote, 443)));
        assert!(sum_holds(&out.bytes, proto::TCP, l4));
        node.run("out", &input, &Out(out));
        let mut input = on_uplink(&long((p.remote, 443), (p.alpha, 40_000)));
        input.gso = (1400, 2);
        let back = delivered(&long((p.remote, 443), (p.pod, 40_000)));
        node.run("back", &input, &Home(back));
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
