//! Headers of translated packets: protocols without ports, checksums, options, extensions, padding and aggregates.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use egress_common::DropReason::{NatAmbiguous, NatNoState};
use egress_tests::packets::{
    Input,
    build::{self, Frame, L3, authentication, extension, proto},
    nat::{
        ALPHA,
        Fate::{Dropped, Home, Out},
        delivered, forwarded, in_both, on_uplink, sum_holds, with_node, with_sum, with_sum_at,
    },
};

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
