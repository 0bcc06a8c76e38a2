//! Which packets of pods are answered because they do not fit or their TTL ends, and which never are.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use std::net::IpAddr;

use egress_common::{DropReason, counter::PassKind, gateway::Settings};
use egress_tests::packets::{
    Expect::{Drop, Pass},
    Row,
    build::{
        Frame, POD_MAC, address, extension, fragment6, icmp,
        proto::{DESTINATION, FRAGMENT, GRE, HOP_BY_HOP, ICMP, SCTP, TCP, UDP},
        tcp, udp,
    },
    mutate,
    narrow::{BOTH, V4, V6, datagram, node, too_big, too_old, whole, with_world, world},
    run,
    seed::{STEERED, resolved, rule},
    with_lab,
};
use egress_userspace::resolve::Fate;

const MAIN: &str = STEERED;
const TOO_BIG: DropReason = DropReason::TooBig;
const TOO_OLD: DropReason = DropReason::TtlExceeded;

fn check(rows: &[Row]) {
    with_world(|lab| {
        run(lab, rows);
        mutate(lab, rows, 4000);
    });
}

#[test]
fn who_answers() {
    for node in [Settings::default(), node()] {
        with_lab(|lab| {
            lab.bring_to(&world());
            lab.set_settings(node);
            let rows: Vec<Row> = BOTH
                .iter()
                .flat_map(|f| {
                    [
                        Row::new("too old", datagram(f, 100).ttl(1), too_old()),
                        Row::new("older still", datagram(f, 100).ttl(0), too_old()),
                        Row::new("too big", datagram(f, 401), too_big()),
                        Row::new("too big and too old", datagram(f, 401).ttl(1), too_old()),
                    ]
                })
                .collect();
            run(lab, &rows);
        });
    }
}

#[test]
fn padding_is_no_part_of_the_packet() {
    let mut rows = Vec::new();
    for f in BOTH {
        let h = u64::try_from(f.header).unwrap();
        rows.push(
            Row::new(
                "a short packet in a padded frame",
                datagram(f, f.header + 9).ttl(1).padded(&[0xee; 17]),
                too_old(),
            )
            .counted(1, h + 9),
        );
        rows.push(
            Row::new(
                "a packet that is too big in a padded frame",
                datagram(f, 401).padded(&[0xee; 3]),
                too_big(),
            )
            .counted(1, 401),
        );
        rows.push(
            Row::new(
                "a packet that fits in a frame that does not: nothing the pod could do",
                datagram(f, 400).padded(&[0xee; 3]),
                Drop(MAIN, TOO_BIG),
            )
            .counted(1, 400),
        );
    }
    with_world(|lab| run(lab, &rows));
}

#[test]
fn what_is_answered() {
    let mut rows = Vec::new();
    for f in BOTH {
        let old = |name: &str, protocol: u8, payload: &[u8]| {
            let frame = Frame::ip(f.pod, f.far, protocol, payload).ttl(1);
            Row::new(name, frame, too_old())
        };
        let big = |name: &str, protocol: u8, mut payload: Vec<u8>| {
            payload.resize(450, 0x5a);
            let frame = whole(Frame::ip(f.pod, f.far, protocol, &payload));
            Row::new(name, frame, too_big())
        };
        rows.extend([
            old("UDP", UDP, &udp(1, 2, 5)),
            old("TCP", TCP, &tcp(1, 2, &[], 5)),
            old("SCTP", SCTP, &tcp(1, 2, &[], 5)),
            old("GRE", GRE, &[7; 13]),
            old("ping", f.icmp, &icmp(f.ping, 77, &[0x61; 56])),
            old("no header above IP", UDP, &[]),
            big("UDP", UDP, udp(1, 2, 400)),
            big("TCP", TCP, tcp(1, 2, &[], 400)),
            big("GRE", GRE, vec![7; 13]),
            big("ping", f.icmp, icmp(f.ping, 77, &[0x61; 56])),
        ]);
        for (name, kind) in [
            ("a ping's answer", if f.icmp == ICMP { 0 } else { 129 }),
            ("another query", if f.icmp == ICMP { 13 } else { 139 }),
        ] {
            rows.push(old(name, f.icmp, &icmp(kind, 77, &[0x61; 9])));
        }
    }
    let options = |ttl, size| {
        let (from, to) = ([10, 1, 0, 5].into(), [192, 0, 2, 7].into());
        whole(Frame::v4(from, to, &[1; 40], UDP, &udp(1, 2, size)).ttl(ttl))
    };
    rows.extend([
        Row::new("IPv4 options, too old", options(1, 3), too_old()),
        Row::new("IPv4 options, too big", options(64, 400), too_big()),
        Row::new(
            "an IPv4 packet that might be fragmented, too old",
            Frame::ip(V4.pod, V4.far, UDP, &udp(1, 2, 5)).ttl(1),
            too_old(),
        ),
        Row::new(
            "IPv6 extension headers, too old",
            Frame::ip(
                V6.pod,
                V6.far,
                HOP_BY_HOP,
                &extension(DESTINATION, 1, &extension(UDP, 2, &udp(1, 2, 3))),
            )
            .ttl(1),
            too_old(),
        ),
        Row::new(
            "an IPv6 extension header longer than what is quoted, too big",
            Frame::ip(
                V6.pod,
                V6.far,
                DESTINATION,
                &extension(UDP, 160, &udp(1, 2, 100)),
            ),
            too_big(),
        ),
        Row::new(
            "an IPv4 packet's first fragment, too old",
            datagram(&V4, 100).ttl(1).fragment(7, 0, true),
            too_old(),
        ),
        Row::new(
            "an IPv6 packet's first fragment, too big",
            Frame::ip(
                V6.pod,
                V6.far,
                FRAGMENT,
                &fragment6(UDP, 7, 0, true, &udp(1, 2, 400)),
            ),
            too_big(),
        ),
    ]);
    check(&rows);
}

#[test]
fn aggregates_are_answered_once() {
    let mut rows = Vec::new();
    for f in BOTH {
        let h = u64::try_from(f.header).unwrap();
        let of = |protocol, payload: &[u8]| whole(Frame::ip(f.pod, f.far, protocol, payload));
        let segments = |each: usize| tcp(40_000, 443, &[1; 12], 2 * each);
        let full = 400 - f.header - 32;
        let counted = |each: usize| 2 * (u64::try_from(each).unwrap() + h + 32);
        let size = |each: usize| u32::try_from(each).unwrap();
        rows.extend([
            Row::new(
                "TCP, segments too large by one",
                of(TCP, &segments(full + 1)),
                too_big(),
            )
            .gso(size(full + 1), 2)
            .counted(2, counted(full + 1)),
            Row::new("TCP, too old", of(TCP, &segments(full)).ttl(1), too_old())
                .gso(size(full), 2)
                .counted(2, counted(full)),
            Row::new(
                "TCP, one segment too large",
                of(TCP, &tcp(1, 2, &[], 400)),
                too_big(),
            )
            .gso(400, 1)
            .counted(1, 400 + h + 20),
            Row::new(
                "TCP without a length (big TCP), segments too large",
                of(TCP, &segments(full + 1)).without_length(),
                too_big(),
            )
            .gso(size(full + 1), 2)
            .counted(2, counted(full + 1)),
            Row::new(
                "UDP, segments too large",
                of(UDP, &udp(40_000, 443, 1000)),
                too_big(),
            )
            .gso(450, 3)
            .counted(3, 1000 + 3 * (h + 8)),
        ]);
    }
    rows.push(
        Row::new(
            "an IPv4 aggregate that might be fragmented",
            Frame::ip(V4.pod, V4.far, TCP, &tcp(1, 2, &[], 900)),
            Drop(MAIN, TOO_BIG),
        )
        .gso(450, 2)
        .counted(2, 900 + 80),
    );
    check(&rows);
}

#[test]
fn what_is_never_answered() {
    let mut rows = Vec::new();
    for f in BOTH {
        let errors: &[u8] = if f.icmp == ICMP {
            &[3, 4, 5, 11, 12, 19, 42, 255]
        } else {
            &[0, 1, 2, 3, 4, 100, 127, 137]
        };
        for kind in errors {
            let message = |size| Frame::ip(f.pod, f.far, f.icmp, &icmp(*kind, 0, &vec![0; size]));
            rows.push(Row::new(
                &format!("ICMP {kind}, too old"),
                message(40).ttl(1),
                Drop(MAIN, TOO_OLD),
            ));
            rows.push(Row::new(
                &format!("ICMP {kind}, too big"),
                whole(message(420)),
                Drop(MAIN, TOO_BIG),
            ));
        }
        rows.extend([
            Row::new(
                "ICMP without a type",
                Frame::ip(f.pod, f.far, f.icmp, &[]).ttl(1),
                Drop(MAIN, TOO_OLD),
            ),
            Row::new(
                "a type that is padding",
                Frame::ip(f.pod, f.far, f.icmp, &[]).ttl(1).padded(&[8; 20]),
                Drop(MAIN, TOO_OLD),
            )
            .counted(1, u64::try_from(f.header).unwrap()),
            Row::new(
                "a frame for everybody",
                datagram(f, 100).ttl(1).macs([0xff; 6], POD_MAC),
                Drop(MAIN, TOO_OLD),
            ),
            Row::new(
                "a frame for a group",
                datagram(f, 401).macs([1, 0, 0x5e, 0, 0, 1], POD_MAC),
                Drop(MAIN, TOO_BIG),
            ),
        ]);
    }
    let later6 = |size: usize| {
        let payload = fragment6(UDP, 7, 5, false, &vec![9; size]);
        Frame::ip(V6.pod, V6.far, FRAGMENT, &payload)
    };
    rows.extend([
        Row::new(
            "a later fragment, too old",
            datagram(&V4, 100).ttl(1).fragment(7, 5, true),
            Drop(MAIN, TOO_OLD),
        ),
        Row::new(
            "a later fragment of IPv6, too old",
            later6(9).ttl(1),
            Drop(MAIN, TOO_OLD),
        ),
        Row::new(
            "a later fragment of IPv6, too big",
            later6(400),
            Drop(MAIN, TOO_BIG),
        ),
        Row::new(
            "an IPv4 packet that might be fragmented",
            Frame::ip(V4.pod, V4.far, UDP, &udp(1, 2, 400)),
            Drop(MAIN, TOO_BIG),
        ),
    ]);
    for (from, to) in [
        (V4.pod, "224.0.0.251"),
        (V4.pod, "239.255.255.255"),
        (V4.pod, "255.255.255.255"),
        (V6.pod, "ff05::2"),
        (V6.pod, "ff0e::1:3"),
    ] {
        rows.push(Row::new(
            &format!("to {to}"),
            Frame::ip(from, to, UDP, &udp(1, 2, 5)).ttl(1),
            Drop(MAIN, TOO_OLD),
        ));
        rows.push(Row::new(
            &format!("large, to {to}"),
            whole(Frame::ip(from, to, UDP, &udp(1, 2, 400))),
            Drop(MAIN, TOO_BIG),
        ));
    }
    check(&rows);
}

#[test]
fn sources_that_are_no_host() {
    for source in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.9",
        "255.255.255.255",
        "::",
        "ff02::9",
    ] {
        let of: IpAddr = address(source);
        let mut world = world();
        for pod in world.pods.values_mut() {
            pod.addresses = vec![of];
        }
        world.pods.pop_last();
        let far = if of.is_ipv4() { V4.far } else { V6.far };
        let packet = |size: usize| whole(Frame::ip(source, far, UDP, &udp(1, 2, size)));
        with_lab(|lab| {
            lab.bring_to(&world);
            run(
                lab,
                &[
                    Row::new(source, packet(5).ttl(1), Drop(MAIN, TOO_OLD)),
                    Row::new(source, packet(1400), Drop(MAIN, TOO_BIG)),
                ],
            );
        });
    }
}

#[test]
fn what_passes_is_not_ours_to_answer() {
    let local = || {
        let rules = vec![rule("", egress_userspace::resolve::Action::Local)];
        resolved(&[], [("web", 5, Fate::Rules(rules.into()), MAIN)])
    };
    let pass = || Pass(MAIN, PassKind::Local);
    let rows: Vec<Row> = BOTH
        .iter()
        .flat_map(|f| {
            [
                Row::new("too old", datagram(f, 100).ttl(1), pass()),
                Row::new("too big", datagram(f, 1600), pass()),
            ]
        })
        .collect();
    with_lab(|lab| {
        lab.bring_to(&local());
        run(lab, &rows);
    });
}
