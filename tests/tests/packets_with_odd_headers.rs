//! Headers that are long, many, contradictory or cut short.

use std::net::Ipv4Addr;

use egress_common::DropReason;
use egress_tests::packets::{
    Expect::{Drop, Sent, SentByOne},
    Row,
    build::{
        Frame, L3, authentication, extension, fragment6,
        proto::{
            AH, DESTINATION, FRAGMENT, HIP, HOP_BY_HOP, MOBILITY, NONE, ROUTING, SHIM6, TCP, UDP,
        },
        tcp, udp,
    },
    check_all,
};

const WEB: &str = "fd00::5";
const WEB4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const RED: (&str, &str) = ("2001:db8:1::7", "2001:db8:1::/48");
const GROUP: (&str, &str) = ("2001:db8:2::7", "2001:db8:2::/48");
const RED4: (Ipv4Addr, &str) = (Ipv4Addr::new(192, 0, 2, 7), "192.0.2.0/24");
const GROUP4: (Ipv4Addr, &str) = (Ipv4Addr::new(198, 51, 100, 7), "198.51.100.0/24");
const NAT4: (Ipv4Addr, &str) = (Ipv4Addr::new(192, 88, 99, 7), "192.88.99.0/24");

fn malformed() -> egress_tests::packets::Expect {
    Drop("", DropReason::Malformed)
}

#[test]
fn ipv4_options_of_every_length() {
    let mut rows = Vec::new();
    for words in 0..=10 {
        let options = vec![1; words * 4];
        let to_group =
            |payload: &[u8], protocol| Frame::v4(WEB4, GROUP4.0, &options, protocol, payload);
        rows.push(
            Row::new(
                &format!("ihl {}", 5 + words),
                to_group(&udp(40_000, 53, 20), UDP),
                SentByOne(GROUP4.1),
            )
            // The same flow without options: the ports were found behind them.
            .then(
                Frame::v4(WEB4, GROUP4.0, &[], UDP, &udp(40_000, 53, 20)),
                SentByOne(GROUP4.1),
            ),
        );
        rows.push(
            Row::new(
                &format!("an aggregate, ihl {}", 5 + words),
                Frame::v4(WEB4, RED4.0, &options, TCP, &tcp(1, 2, &[], 2000)),
                Sent(RED4.1, "red"),
            )
            .gso(1000, 2)
            .counted(2, 2000 + 2 * (40 + 4 * u64::try_from(words).unwrap_or(0))),
        );
    }
    check_all(&rows);
}

#[test]
fn source_routes_lead_past_no_policy() {
    let mut rows = Vec::new();
    for (name, options) in [
        ("loose", &[131, 7, 4, 203, 0, 113, 9, 0][..]),
        ("strict", &[137, 7, 4, 203, 0, 113, 9, 0][..]),
        (
            "loose, behind others",
            &[1, 1, 68, 4, 5, 0, 131, 3, 4, 0, 0, 0][..],
        ),
    ] {
        for to in [RED4.0, GROUP4.0, Ipv4Addr::new(10, 96, 0, 1)] {
            rows.push(Row::new(
                &format!("{name}, to {to}"),
                Frame::v4(WEB4, to, options, UDP, &udp(40_000, 53, 20)),
                Drop("", DropReason::SourceRouted),
            ));
        }
    }
    rows.push(Row::new(
        "an option that only looks like one",
        Frame::v4(WEB4, RED4.0, &[68, 4, 131, 137], UDP, &udp(40_000, 53, 20)),
        Sent(RED4.1, "red"),
    ));
    rows.push(Row::new(
        "a loose route behind the end of the options",
        Frame::v4(WEB4, RED4.0, &[0, 131, 3, 4], UDP, &udp(40_000, 53, 20)),
        Sent(RED4.1, "red"),
    ));
    let mut left = extension(UDP, 1, &udp(40_000, 53, 20));
    left[3] = 1;
    rows.push(Row::new(
        "an IPv6 routing header with a segment left",
        Frame::ip(WEB, GROUP.0, ROUTING, &left),
        Drop("", DropReason::SourceRouted),
    ));
    check_all(&rows);
}

#[test]
fn ipv4_headers_that_contradict_themselves() {
    let packet = || Frame::v4(WEB4, RED4.0, &[], UDP, &udp(40_000, 53, 20));
    let bad = |name: &str, at: usize, bytes: &[u8]| {
        Row::new(name, packet().set(L3 + at, bytes), malformed())
    };
    let mut rows: Vec<Row> = (0..16)
        .filter(|version| *version != 4)
        .map(|version| bad(&format!("version {version}"), 0, &[(version << 4) | 5]))
        .chain((0..5).map(|ihl| bad(&format!("ihl {ihl}"), 0, &[0x40 | ihl])))
        .collect();
    rows.extend([
        bad("a length of 0", 2, &[0, 0]),
        bad("a length less than the header", 2, &[0, 19]),
        bad("a length larger than the frame", 2, &[0, 49]),
        bad("the largest length", 2, &[0xff, 0xff]),
        bad("options beyond the packet", 0, &[0x4f]),
        Row::new(
            "options that end where the packet ends",
            Frame::v4(WEB4, NAT4.0, &[1; 40], UDP, &[]),
            Sent(NAT4.1, "nat"),
        ),
        Row::new(
            "options beyond the length that is claimed",
            Frame::v4(WEB4, RED4.0, &[1; 8], UDP, &udp(1, 2, 0)).set(L3 + 2, &[0, 24]),
            malformed(),
        ),
        Row::new(
            "a length less than the frame",
            packet().set(L3 + 2, &[0, 28]),
            Sent(RED4.1, "red"),
        )
        .counted(1, 28),
        Row::new(
            "IPv6 under IPv4's ethertype",
            Frame::raw(
                0x0800,
                &Frame::ip(WEB, RED.0, UDP, &udp(1, 2, 3)).bytes[L3..],
            ),
            malformed(),
        ),
        Row::new(
            "IPv4 under IPv6's ethertype",
            Frame::raw(0x86dd, &packet().bytes[L3..]),
            malformed(),
        ),
    ]);
    check_all(&rows);
}

/// An IPv6 packet with these extension headers before UDP: each is a kind and a maker of its bytes.
fn chain(to: &str, kinds: &[u8]) -> Frame {
    let mut payload = udp(40_000, 53, 20);
    let mut next = UDP;
    for kind in kinds.iter().rev() {
        payload = match *kind {
            AH => authentication(next, 4, &payload),
            FRAGMENT => fragment6(next, 7, 0, false, &payload),
            _ => extension(next, 1, &payload),
        };
        next = *kind;
    }
    Frame::ip(WEB, to, next, &payload)
}

#[test]
fn ipv6_extension_headers() {
    let plain = || chain(GROUP.0, &[]);
    let all = [
        HOP_BY_HOP,
        DESTINATION,
        ROUTING,
        FRAGMENT,
        AH,
        DESTINATION,
        MOBILITY,
        HIP,
    ];
    let mut rows = Vec::new();
    for kind in [
        HOP_BY_HOP,
        ROUTING,
        FRAGMENT,
        AH,
        DESTINATION,
        MOBILITY,
        HIP,
        SHIM6,
    ] {
        rows.push(
            Row::new(
                &format!("header {kind} before UDP"),
                plain(),
                SentByOne(GROUP.1),
            )
            .then(chain(GROUP.0, &[kind]), SentByOne(GROUP.1)),
        );
    }
    for length in 1..=all.len() {
        rows.push(
            Row::new(&format!("{length} headers"), plain(), SentByOne(GROUP.1))
                .then(chain(GROUP.0, &all[..length]), SentByOne(GROUP.1)),
        );
    }
    for words in [0, 1, 3, 7] {
        let payload = authentication(UDP, words, &udp(40_000, 53, 20));
        // Eight bytes are read of each header, and that is the shortest.
        rows.push(
            Row::new(
                &format!("an authentication header of {} bytes", 4 * (words + 2)),
                plain(),
                SentByOne(GROUP.1),
            )
            .then(Frame::ip(WEB, GROUP.0, AH, &payload), SentByOne(GROUP.1)),
        );
    }
    rows.extend([
        Row::new("nine headers", chain(RED.0, &[DESTINATION; 9]), malformed()),
        Row::new(
            "eight, the last of which names a ninth that is missing",
            Frame::ip(
                WEB,
                RED.0,
                DESTINATION,
                &(0..8).fold(Vec::new(), |rest, _| extension(DESTINATION, 0, &rest)),
            ),
            malformed(),
        ),
        Row::new(
            "nothing behind the header",
            Frame::ip(WEB, RED.0, DESTINATION, &extension(NONE, 0, &[])),
            Sent(RED.1, "red"),
        ),
        Row::new(
            "no header at all",
            Frame::ip(WEB, RED.0, NONE, &[]),
            Sent(RED.1, "red"),
        ),
        Row::new(
            "a header named, and not there",
            Frame::ip(WEB, RED.0, DESTINATION, &[]),
            malformed(),
        ),
        Row::new(
            "a header longer than the packet",
            Frame::ip(
                WEB,
                "2001:db8:5::7",
                DESTINATION,
                &[UDP, 200, 0, 0, 0, 0, 0, 0],
            ),
            malformed(),
        ),
        Row::new(
            "an authentication header longer than the packet",
            Frame::ip(WEB, "2001:db8:5::7", AH, &[UDP, 9, 0, 0, 0, 0, 0, 0]),
            malformed(),
        ),
        Row::new(
            "a header in the padding of the frame",
            Frame::ip(WEB, "2001:db8:5::7", DESTINATION, &[]).padded(&extension(
                UDP,
                0,
                &udp(1, 2, 0),
            )),
            malformed(),
        ),
    ]);
    check_all(&rows);
}

#[test]
fn ipv6_headers_that_contradict_themselves() {
    let packet = || Frame::ip(WEB, RED.0, UDP, &udp(40_000, 53, 20));
    let mut rows: Vec<Row> = (0..16)
        .filter(|version| *version != 6)
        .map(|version| {
            Row::new(
                &format!("version {version}"),
                packet().set(L3, &[version << 4]),
                malformed(),
            )
        })
        .collect();
    rows.extend([
        Row::new(
            "a length larger than the frame",
            packet().set(L3 + 4, &[0, 29]),
            malformed(),
        ),
        Row::new(
            "the largest length",
            packet().set(L3 + 4, &[0xff, 0xff]),
            malformed(),
        ),
        Row::new(
            "a length of 0: its ports are padding",
            packet().set(L3 + 4, &[0, 0]),
            Drop("main", DropReason::Malformed),
        )
        .counted(1, 40),
        Row::new(
            "traffic class and flow label",
            packet().set(L3, &[0x6f, 0xff, 0xff, 0xff]),
            Sent(RED.1, "red"),
        ),
    ]);
    check_all(&rows);
}
