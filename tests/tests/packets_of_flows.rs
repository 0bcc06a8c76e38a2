//! What is recorded of flows, protocol by protocol, and that fragments go where their flow goes.

use egress_common::{DropReason, counter::PassKind};
use egress_tests::packets::{
    Expect::{Drop, Pass, Sent, SentByOne},
    Row,
    build::{
        Frame, fragment6, icmp,
        proto::{ESP, FRAGMENT, GRE, ICMP, SCTP, TCP, UDP},
        tcp, udp,
    },
    check_all,
    places::{V4, V6, in_both},
    seed::STEERED,
    talk::record,
};

const MAIN: &str = STEERED;
const LOCAL: PassKind = PassKind::Local;

#[test]
fn protocols_and_what_is_recorded_of_them() {
    check_all(&in_both(|f| {
        let ports = |name: &str, protocol: u8| {
            let frame = Frame::ip(f.web, f.red.0, protocol, &tcp(40_000, 443, &[], 10));
            Row::new(name, frame, Sent(f.red.1, "red"))
                .records(vec![record(f.web, f.red.0, protocol, 40_000, 443)])
        };
        let portless = |name: &str, protocol: u8| {
            let frame = Frame::ip(f.web, f.red.0, protocol, &[7; 16]);
            Row::new(name, frame, Sent(f.red.1, "red"))
                .records(vec![record(f.web, f.red.0, protocol, 0, 0)])
        };
        let icmp_row = |name: &str, kind: u8, records| {
            let frame = Frame::ip(f.web, f.red.0, f.icmp, &icmp(kind, 77, &[0; 48]));
            Row::new(name, frame, Sent(f.red.1, "red")).records(records)
        };
        let (reply, error, other) = if f.icmp == ICMP {
            (0, 3, 13)
        } else {
            (129, 1, 133)
        };
        let short = |name: &str, protocol: u8, payload: &[u8]| {
            Row::new(
                name,
                Frame::ip(f.web, f.red.0, protocol, payload),
                Drop(MAIN, DropReason::Malformed),
            )
            .records(vec![])
        };
        vec![
            ports("TCP", TCP),
            ports("UDP", UDP),
            ports("UDP-Lite", 136),
            ports("SCTP", SCTP),
            ports("DCCP", 33),
            portless("GRE", GRE),
            portless("ESP", ESP),
            icmp_row(
                "a ping",
                f.ping,
                vec![record(f.web, f.red.0, f.icmp, 77, 0)],
            ),
            icmp_row("a ping's answer", reply, vec![]),
            icmp_row("an ICMP error", error, vec![]),
            icmp_row("another ICMP message", other, vec![]),
            short("half the ports", UDP, &[0x9c, 0x40]),
            short("no ports at all", TCP, &[]),
            short("three bytes of ports", SCTP, &[1, 2, 3]),
            short("half an ICMP header", f.icmp, &[f.ping, 0, 0, 0]),
            Row::new(
                "ports in the padding of the frame",
                Frame::ip(f.web, f.red.0, UDP, &[]).padded(&udp(1, 2, 20)),
                Drop(MAIN, DropReason::Malformed),
            )
            .counted(1, if f.icmp == ICMP { 20 } else { 40 })
            .records(vec![]),
            Row::new(
                "half the ports, where nobody asks for them",
                Frame::ip(f.web, f.nat.0, UDP, &[1, 2]),
                Sent(f.nat.1, "nat"),
            ),
            Row::new(
                "half the ports, several gateways",
                Frame::ip(f.web, f.group.0, UDP, &[1, 2]),
                Drop(MAIN, DropReason::Malformed),
            ),
        ]
    }));
}

#[test]
fn fragments_go_where_their_flow_goes() {
    let v4 = |to: &str, id: u16, offset: u16, more: bool| {
        let frame = if offset == 0 {
            Frame::ip(V4.web, to, UDP, &udp(40_000, 53, 24))
        } else {
            Frame::ip(V4.web, to, UDP, &[0xee; 32])
        };
        frame.fragment(id, offset, more)
    };
    let v6 = |to: &str, id: u32, offset: u16, more: bool| {
        let payload = if offset == 0 {
            udp(40_000, 53, 24)
        } else {
            vec![0xee; 32]
        };
        let payload = fragment6(UDP, id, offset, more, &payload);
        Frame::ip(V6.web, to, FRAGMENT, &payload)
    };
    let unknown = || Drop(MAIN, DropReason::FragmentUnknown);
    let (g4, g6) = (V4.group, V6.group);
    check_all(&[
        Row::new("IPv4: in order", v4(g4.0, 7, 0, true), SentByOne(g4.1))
            .then(v4(g4.0, 7, 4, true), SentByOne(g4.1))
            .then(v4(g4.0, 7, 8, false), SentByOne(g4.1)),
        Row::new("IPv4: not in order", v4(g4.0, 7, 4, true), unknown())
            .then(v4(g4.0, 7, 0, true), SentByOne(g4.1))
            .then(v4(g4.0, 7, 4, true), SentByOne(g4.1)),
        Row::new(
            "IPv4: another datagram",
            v4(g4.0, 7, 0, true),
            SentByOne(g4.1),
        )
        .then(v4(g4.0, 8, 4, true), unknown()),
        Row::new(
            "IPv4: another protocol",
            v4(g4.0, 7, 0, true),
            SentByOne(g4.1),
        )
        .then(
            Frame::ip(V4.web, g4.0, TCP, &[0xee; 32]).fragment(7, 4, false),
            unknown(),
        ),
        Row::new(
            "IPv4: a first fragment goes where the whole goes",
            Frame::ip(V4.web, g4.0, UDP, &udp(40_000, 53, 24)),
            SentByOne(g4.1),
        )
        .then(v4(g4.0, 9, 0, true), SentByOne(g4.1)),
        Row::new(
            "IPv4: one gateway needs no first",
            v4(V4.red.0, 7, 4, true),
            Sent(V4.red.1, "red"),
        )
        .records(vec![]),
        Row::new(
            "IPv4: a first fragment records",
            v4(V4.red.0, 7, 0, true),
            Sent(V4.red.1, "red"),
        )
        .records(vec![record(V4.web, V4.red.0, UDP, 40_000, 53)]),
        Row::new(
            "IPv4: a first fragment without ports",
            Frame::ip(V4.web, g4.0, UDP, &[]).fragment(7, 0, true),
            Drop(MAIN, DropReason::Malformed),
        ),
        Row::new(
            "IPv4: local fragments",
            v4(V4.cluster, 7, 4, true),
            Pass(MAIN, LOCAL),
        ),
        Row::new("IPv6: in order", v6(g6.0, 7, 0, true), SentByOne(g6.1))
            .then(v6(g6.0, 7, 4, true), SentByOne(g6.1))
            .then(v6(g6.0, 7, 8, false), SentByOne(g6.1)),
        Row::new("IPv6: not in order", v6(g6.0, 7, 4, false), unknown())
            .then(v6(g6.0, 7, 0, true), SentByOne(g6.1))
            .then(v6(g6.0, 7, 4, false), SentByOne(g6.1)),
        Row::new(
            "IPv6: identifications of 32 bits",
            v6(g6.0, 0x0001_0007, 0, true),
            SentByOne(g6.1),
        )
        .then(v6(g6.0, 0x0002_0007, 4, false), unknown()),
        Row::new(
            "IPv6: an atomic fragment is a whole packet",
            Frame::ip(V6.web, g6.0, UDP, &udp(40_000, 53, 24)),
            SentByOne(g6.1),
        )
        .then(v6(g6.0, 7, 0, false), SentByOne(g6.1))
        .then(v6(g6.0, 7, 4, false), unknown()),
        Row::new(
            "IPv6: one gateway needs no first",
            v6(V6.red.0, 7, 4, true),
            Sent(V6.red.1, "red"),
        )
        .records(vec![]),
        Row::new(
            "IPv6: a first fragment records",
            v6(V6.red.0, 7, 0, true),
            Sent(V6.red.1, "red"),
        )
        .records(vec![record(V6.web, V6.red.0, UDP, 40_000, 53)]),
        Row::new(
            "IPv6: an extension header in every fragment's reach",
            Frame::ip(
                V6.web,
                g6.0,
                FRAGMENT,
                &fragment6(
                    60,
                    7,
                    0,
                    true,
                    &egress_tests::packets::build::extension(UDP, 0, &udp(40_000, 53, 24)),
                ),
            ),
            SentByOne(g6.1),
        )
        .then(
            Frame::ip(
                V6.web,
                g6.0,
                FRAGMENT,
                &fragment6(60, 7, 5, false, &[9; 16]),
            ),
            SentByOne(g6.1),
        ),
    ]);
}
