//! What pods are told of packets that do not fit, or whose TTL ends: which, what exactly, and how often.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use std::{net::IpAddr, time::Instant};

use anyhow::ensure;
use egress_common::{
    Addr, DropReason,
    counter::{Answer, PassKind},
    gateway::Settings,
};
use egress_tests::{
    packets::{
        Action, Expect,
        Expect::{Answered, Drop, Pass},
        Input, Lab, Row, Slot,
        answer::answered,
        build::{
            Frame, L3, POD_MAC, address, extension, fragment6, hex, icmp,
            proto::{DESTINATION, FRAGMENT, GRE, HOP_BY_HOP, ICMP, ICMPV6, SCTP, TCP, UDP},
            tcp, udp,
        },
        mutate,
        random::Random,
        run,
        seed::{STEERED, gateway, resolved, rule, via},
        with_lab,
    },
    wait,
};
use egress_userspace::resolve::{Fate, Resolved};

const MAIN: &str = STEERED;
const TOO_BIG: DropReason = DropReason::TooBig;
const TOO_OLD: DropReason = DropReason::TtlExceeded;
/// Small, so that packets which do not fit are soon cut at each length.
const MTU: u32 = 400;

/// A pod of each family, a far end, and the headers in front of a quoted packet.
struct Family {
    pod: &'static str,
    far: &'static str,
    icmp: u8,
    ping: u8,
    header: usize,
    /// Bytes that are quoted at most.
    quoted: usize,
}

const V4: Family = Family {
    pod: "10.1.0.5",
    far: "192.0.2.7",
    icmp: ICMP,
    ping: 8,
    header: 20,
    quoted: 548,
};

const V6: Family = Family {
    pod: "fd00::5",
    far: "2001:db8:1::7",
    icmp: ICMPV6,
    ping: 128,
    header: 40,
    quoted: 1232,
};

const BOTH: [&Family; 2] = [&V4, &V6];

/// Pods that send everything, multicast and broadcast too, through one gateway whose way takes [`MTU`].
fn world() -> Resolved {
    let narrow = || via(vec![gateway("narrow", 1, MTU, &["192.168.9.4", "fd09::4"])]);
    let rules = || vec![rule("", narrow()), rule("fd10::/16", narrow())];
    let fate = || Fate::Rules(rules().into());
    resolved(&[], [("web", 5, fate(), MAIN), ("batch", 6, fate(), MAIN)])
}

fn node() -> Settings {
    Settings {
        node4: Addr::from(address("172.18.0.2")),
        node6: Addr::from(address("fd00:18::2")),
        ..Settings::default()
    }
}

fn with_world(test: impl FnOnce(&mut Lab) + Send) {
    with_lab(|lab| {
        lab.bring_to(&world());
        lab.set_settings(node());
        test(lab);
    });
}

fn check(rows: &[Row]) {
    with_world(|lab| {
        run(lab, rows);
        mutate(lab, rows, 4000);
    });
}

/// With "don't fragment", which IPv6 packets always are.
fn whole(frame: Frame) -> Frame {
    if frame.bytes[12..14] == [8, 0] {
        frame.set(L3 + 6, &[0x40, 0])
    } else {
        frame
    }
}

/// A datagram of so many bytes from the IP header on.
fn datagram(f: &Family, size: usize) -> Frame {
    whole(Frame::ip(
        f.pod,
        f.far,
        UDP,
        &udp(40_000, 53, size - f.header - 8),
    ))
}

fn too_old() -> Expect {
    Answered(MAIN, TOO_OLD, 0)
}

fn too_big() -> Expect {
    Answered(MAIN, TOO_BIG, MTU)
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
fn how_much_is_quoted() {
    with_world(|lab| {
        for f in BOTH {
            let shortest = f.header + 8;
            let pieces = [511, 512, 513, 514, 515, 1023, 1024, 1025, 1027, 1399, 1400];
            let most = f.quoted - 3..=f.quoted + 4;
            let old = (shortest..shortest + 9).chain(pieces).chain(most);
            let old = old.map(|size| (datagram(f, size).ttl(1), Answer::TimeExceeded));
            let big = [401, 402, 403, 1500, 3000];
            let big = big.map(|size| (datagram(f, size), Answer::TooBig));
            for (frame, answer) in old.chain(big) {
                lab.forget();
                let input = Input::from_pod(&frame.bytes);
                let seen = lab.run(&input).unwrap();
                assert_eq!(seen.action, Action::Redirect, "{}", input.describe());
                assert_eq!(
                    hex(&seen.frame),
                    hex(&answered(&input, answer, MTU, &node())),
                    "{}",
                    input.describe()
                );
            }
        }
    });
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
        let without_length = |frame: Frame| {
            let at = if f.icmp == ICMP { L3 + 2 } else { L3 + 4 };
            frame.set(at, &[0, 0])
        };
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
                without_length(of(TCP, &segments(full + 1))),
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

/// The complement of the sum of these bytes (RFC 1071), by hand: the library sums whole messages only.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([
                word[0],
                word.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// The pseudo-header of RFC 9293, 3.1 and RFC 8200, 8.1.
fn pseudo_header(packet: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [addresses, &length, &[0, 0, 0, protocol]].concat()
}

/// A packet that leaves its checksum to a device has only the pseudo-header's sum in it; the answer's
/// checksum has to be right once a device has written the quoted one.
#[test]
fn a_quoted_checksum_that_a_device_is_to_write() {
    with_world(|lab| {
        let mut random = Random::new();
        for f in BOTH {
            for (protocol, at) in [(TCP, 16), (UDP, 6)] {
                for size in [0, 1, 2, 3, 33, 300, 600, 1300, 1391, 2000] {
                    lab.forget();
                    let mut data = match protocol {
                        TCP => tcp(random.next_u16(), 443, &[], size),
                        _ => udp(random.next_u16(), 53, size),
                    };
                    let frame = Frame::ip(f.pod, f.far, protocol, &data);
                    let pseudo = pseudo_header(&frame.bytes[L3..], protocol, data.len());
                    let sum = !checksum(&[&pseudo]);
                    data[at..at + 2].copy_from_slice(&sum.to_be_bytes());
                    let frame = whole(Frame::ip(f.pod, f.far, protocol, &data));
                    // A small one is old, a large one too big.
                    let frame = if size < 340 { frame.ttl(1) } else { frame };
                    let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
                    assert_eq!(seen.action, Action::Redirect, "{}", hex(&frame.bytes));
                    let mut answer = seen.frame[L3..].to_vec();
                    let message = f.header;
                    let l4 = message + 8 + f.header;
                    let written = checksum(&[&answer[l4..]]);
                    answer[l4 + at..l4 + at + 2].copy_from_slice(&written.to_be_bytes());
                    let over = match f.icmp {
                        ICMP => Vec::new(),
                        _ => pseudo_header(&answer, ICMPV6, answer.len() - message),
                    };
                    assert_eq!(
                        checksum(&[&over, &answer[message..]]),
                        0,
                        "protocol {protocol}, {size} bytes: {}",
                        hex(&answer)
                    );
                }
            }
        }
    });
}

#[test]
fn a_source_is_told_fifty_times_and_then_a_hundred_times_a_second() {
    with_world(|lab| {
        let told_now =
            |lab: &mut Lab, frame: &Frame| match lab.run(&Input::from_pod(&frame.bytes)).unwrap() {
                seen if seen.action == Action::Redirect => true,
                seen => {
                    assert_eq!(seen.action, Action::Drop, "{seen:?}");
                    assert_eq!(
                        hex(&seen.frame),
                        hex(&frame.bytes),
                        "a drop leaves it alone"
                    );
                    false
                }
            };
        for f in BOTH {
            lab.moved();
            let frames = [datagram(f, 100).ttl(1), datagram(f, 1500)];
            let began = Instant::now();
            let mut told = [0_u64; 2];
            for turn in 0..200 {
                let kind = turn % 2;
                let answer = told_now(lab, &frames[kind]);
                assert!(
                    answer || turn >= 50,
                    "answer {turn} of the first fifty is missing"
                );
                told[kind] += u64::from(answer);
            }
            let more = began.elapsed().as_millis() / 10;
            let all = u128::from(told[0] + told[1]);
            assert!(
                (50..=51 + more).contains(&all),
                "{all} answers, and only {more} after the first fifty were due"
            );
            let moved = lab.moved();
            for (kind, (answer, reason)) in
                [(Answer::TimeExceeded, TOO_OLD), (Answer::TooBig, TOO_BIG)]
                    .into_iter()
                    .enumerate()
            {
                assert_eq!(moved[&Slot::Answer(answer)].0, told[kind], "{moved:?}");
                assert_eq!(
                    moved[&Slot::Drop(MAIN.to_owned(), reason)].0,
                    100,
                    "{moved:?}"
                );
            }
            assert_eq!(moved.len(), 4, "{moved:?}");

            let other = if f.icmp == ICMP {
                "10.1.0.6"
            } else {
                "fd00::6"
            };
            let neighbour = Frame::ip(other, f.far, UDP, &udp(1, 2, 3)).ttl(1);
            assert!(
                told_now(lab, &neighbour),
                "another source has its own share"
            );

            wait::until("the source may be told again", || {
                ensure!(told_now(lab, &frames[0]), "not yet");
                Ok(())
            })
            .unwrap();
        }
    });
}
