//! What becomes of packets from pods: every verdict, in both families, with every counter that moves.

use egress_common::{
    Addr, DropReason, Mac, WireU16,
    counter::PassKind,
    keys::{ReplyKey, ReplyPath},
};
use egress_tests::packets::{
    Expect::{Answered, Drop, Pass, Sent, SentByOne, Untouched},
    Row,
    build::{
        Frame, HOST_MAC, L3, POD_MAC, address, fragment6, icmp,
        proto::{ESP, FRAGMENT, GRE, ICMP, ICMPV6, SCTP, TCP, UDP},
        tcp, udp,
    },
    mutate, run,
    seed::{POD, STEERED, UPLINK, world},
    with_lab,
};

const MAIN: &str = STEERED;
const LOCAL: PassKind = PassKind::Local;
const UNMATCHED: PassKind = PassKind::Unmatched;

/// The same places in one family: what a row needs to be said once for both.
struct Family {
    name: &'static str,
    web: &'static str,
    lost: &'static str,
    garbled: &'static str,
    free: &'static str,
    /// An address of each rule, and the rule.
    red: (&'static str, &'static str),
    group: (&'static str, &'static str),
    nat: (&'static str, &'static str),
    narrow: (&'static str, &'static str),
    /// In the prefix of `red`, but in a longer one that is local.
    inside_red: &'static str,
    no_gateway: &'static str,
    other_family_only: &'static str,
    cluster: &'static str,
    /// In the cluster's prefix, but in a longer one of a rule.
    inside_cluster: (&'static str, &'static str),
    elsewhere: &'static str,
    ping: u8,
    icmp: u8,
}

const V4: Family = Family {
    name: "IPv4",
    web: "10.1.0.5",
    lost: "10.1.0.6",
    garbled: "10.1.0.7",
    free: "10.1.0.8",
    red: ("192.0.2.7", "192.0.2.0/24"),
    group: ("198.51.100.7", "198.51.100.0/24"),
    nat: ("192.88.99.7", "192.88.99.0/24"),
    narrow: ("100.64.0.7", "100.64.0.0/10"),
    inside_red: "192.0.2.200",
    no_gateway: "198.18.0.1",
    other_family_only: "203.0.113.7",
    cluster: "10.96.0.10",
    inside_cluster: ("10.96.7.1", "10.96.7.0/24"),
    elsewhere: "8.8.8.8",
    ping: 8,
    icmp: ICMP,
};

const V6: Family = Family {
    name: "IPv6",
    web: "fd00::5",
    lost: "fd00::6",
    garbled: "fd00::7",
    free: "fd00::8",
    red: ("2001:db8:1::7", "2001:db8:1::/48"),
    group: ("2001:db8:2::7", "2001:db8:2::/48"),
    nat: ("2001:db8:5::7", "2001:db8:5::/48"),
    narrow: ("2001:db8:7::7", "2001:db8:7::/48"),
    inside_red: "2001:db8:1:8000::7",
    no_gateway: "2001:db8:4::7",
    other_family_only: "2001:db8:6::7",
    cluster: "fd10::10",
    inside_cluster: ("fd10:7::1", "fd10:7::/32"),
    elsewhere: "2606:4700::1",
    ping: 128,
    icmp: ICMPV6,
};

const BOTH: [&Family; 2] = [&V4, &V6];

fn datagram(source: &str, destination: &str) -> Frame {
    Frame::ip(source, destination, UDP, &udp(40_000, 53, 20))
}

fn record(
    pod: &str,
    remote: &str,
    protocol: u8,
    pod_port: u16,
    remote_port: u16,
) -> (ReplyKey, ReplyPath) {
    (
        ReplyKey {
            remote: Addr::from(address(remote)),
            pod: Addr::from(address(pod)),
            remote_port: WireU16::new(remote_port),
            pod_port: WireU16::new(pod_port),
            protocol,
            pad: [0; 3],
        },
        ReplyPath {
            ifindex: POD,
            pod_mac: Mac(POD_MAC),
            host_mac: Mac(HOST_MAC),
            via: UPLINK,
        },
    )
}

fn rows(of: impl Fn(&Family) -> Vec<Row>) -> Vec<Row> {
    BOTH.iter()
        .flat_map(|family| {
            of(family).into_iter().map(|mut row| {
                row.name = format!("{}: {}", family.name, row.name);
                row
            })
        })
        .collect()
}

fn check(rows: &[Row]) {
    with_lab(|lab| {
        lab.bring_to(&world());
        run(lab, rows);
        mutate(lab, rows, 4000);
    });
}

#[test]
fn every_verdict() {
    check(&rows(|f| {
        let record_of_red = record(f.web, f.red.0, UDP, 40_000, 53);
        vec![
            Row::new(
                "a rule with one gateway",
                datagram(f.web, f.red.0),
                Sent(f.red.1, "red"),
            )
            .records(vec![record_of_red]),
            Row::new(
                "a rule with several gateways",
                datagram(f.web, f.group.0),
                SentByOne(f.group.1),
            )
            .then(datagram(f.web, f.group.0), SentByOne(f.group.1)),
            Row::new(
                "a gateway whose replies the kernel routes",
                datagram(f.web, f.nat.0),
                Sent(f.nat.1, "nat"),
            )
            .records(vec![]),
            Row::new(
                "a longer prefix that is local",
                datagram(f.web, f.inside_red),
                Pass(MAIN, LOCAL),
            )
            .records(vec![]),
            Row::new(
                "the cluster's prefix",
                datagram(f.web, f.cluster),
                Pass(MAIN, LOCAL),
            ),
            Row::new(
                "a rule within the cluster's prefix",
                datagram(f.web, f.inside_cluster.0),
                Sent(f.inside_cluster.1, "red"),
            ),
            Row::new(
                "no rule",
                datagram(f.web, f.elsewhere),
                Pass(MAIN, UNMATCHED),
            ),
            Row::new(
                "a rule without gateways",
                datagram(f.web, f.no_gateway),
                Drop(MAIN, DropReason::NoGateway),
            ),
            Row::new(
                "a rule whose gateway has the other family only",
                datagram(f.web, f.other_family_only),
                Drop(MAIN, DropReason::NoGateway),
            ),
            Row::new(
                "a policy that does not exist",
                datagram(f.lost, f.elsewhere),
                Drop("gone", DropReason::PolicyMissing),
            ),
            Row::new(
                "a policy that does not exist, to the cluster",
                datagram(f.lost, f.cluster),
                Drop("gone", DropReason::PolicyMissing),
            ),
            Row::new(
                "a selector that cannot be parsed",
                datagram(f.garbled, f.red.0),
                Drop("broken", DropReason::PolicyInvalid),
            ),
            Row::new(
                "a selector that cannot be parsed, to the cluster",
                datagram(f.garbled, f.cluster),
                Drop("broken", DropReason::PolicyInvalid),
            ),
            Row::new(
                "a policy without rules",
                datagram(f.free, f.red.0),
                Pass("empty", UNMATCHED),
            ),
            Row::new(
                "a policy without rules, to the cluster",
                datagram(f.free, f.cluster),
                Pass("empty", LOCAL),
            ),
        ]
    }));
}

#[test]
fn a_rule_as_specific_as_the_cluster_wins() {
    check(&[Row::new(
        "10.112.0.0/12 is the cluster's and a rule's",
        datagram(V4.web, "10.113.0.1"),
        Sent("10.112.0.0/12", "red"),
    )]);
}

#[test]
fn addresses_that_nobody_steers_to() {
    let pass = |name: &str, destination: &str| {
        let source = if destination.contains(':') {
            V6.web
        } else {
            V4.web
        };
        Row::new(name, datagram(source, destination), Pass(MAIN, LOCAL))
    };
    check(&[
        pass("link-local", "169.254.169.254"),
        pass("multicast", "224.0.0.251"),
        pass("broadcast", "255.255.255.255"),
        pass("IPv6 link-local", "fe80::1"),
        pass("IPv6 multicast", "ff02::fb"),
        Row::new(
            "unspecified",
            datagram(V4.web, "0.0.0.0"),
            Pass(MAIN, UNMATCHED),
        ),
    ]);
}

#[test]
fn sources_that_are_not_the_pods() {
    let spoofed = || Drop("", DropReason::SpoofedSource);
    let mut all = rows(|f| {
        vec![
            Row::new(
                "an address of nobody",
                datagram(
                    if f.icmp == ICMP {
                        "10.1.0.99"
                    } else {
                        "fd00::99"
                    },
                    f.red.0,
                ),
                spoofed(),
            ),
            Row::new(
                "to the cluster",
                datagram(f.elsewhere, f.cluster),
                spoofed(),
            ),
            Row::new(
                "the pod's address on another interface",
                datagram(f.web, f.red.0),
                spoofed(),
            )
            .elsewhere(),
        ]
    });
    let dhcp = |source: u16, destination: u16| udp(source, destination, 240);
    let bad = |name: &str, from: &str, to: &str, protocol: u8, payload: &[u8]| {
        Row::new(name, Frame::ip(from, to, protocol, payload), spoofed())
    };
    let fine = |name: &str, from: &str, to: &str, protocol: u8, payload: &[u8]| {
        Row::new(name, Frame::ip(from, to, protocol, payload), Untouched)
    };
    let (none, all_ones) = ("0.0.0.0", "255.255.255.255");
    let solicitation = icmp(135, 0, &[0; 16]);
    all.extend([
        fine("DHCP", none, all_ones, UDP, &dhcp(68, 67)),
        bad("a DHCP server's ports", none, all_ones, UDP, &dhcp(67, 68)),
        bad("DHCP from another port", none, all_ones, UDP, &dhcp(69, 67)),
        bad("DHCP to another port", none, all_ones, UDP, &dhcp(68, 69)),
        bad("DHCP over TCP", none, all_ones, TCP, &tcp(68, 67, &[], 0)),
        bad("DHCP to one server", none, "10.96.0.1", UDP, &dhcp(68, 67)),
        bad(
            "DHCP from an address",
            "10.1.0.99",
            all_ones,
            UDP,
            &dhcp(68, 67),
        ),
        bad(
            "a link-local source",
            "169.254.7.7",
            V4.red.0,
            UDP,
            &dhcp(68, 67),
        ),
        bad(
            "link-local to link-local",
            "169.254.7.7",
            "169.254.7.8",
            UDP,
            &dhcp(1, 2),
        ),
        bad("loopback", "127.0.0.1", "127.0.0.1", UDP, &dhcp(1, 2)),
        Row::new(
            "a later fragment that looks like DHCP",
            Frame::ip(none, all_ones, UDP, &dhcp(68, 67)).fragment(1, 5, false),
            spoofed(),
        ),
        Row::new(
            "DHCP ports in the padding",
            Frame::ip(none, all_ones, UDP, &[]).padded(&dhcp(68, 67)),
            spoofed(),
        )
        .counted(1, 20),
        Row::new(
            "DHCP behind options",
            Frame::v4([0; 4].into(), [255; 4].into(), &[1; 8], UDP, &dhcp(68, 67)),
            Untouched,
        ),
        fine(
            "duplicate address detection",
            "::",
            "ff02::1:ff00:5",
            ICMPV6,
            &solicitation,
        ),
        fine(
            "router solicitation",
            "::",
            "ff02::2",
            ICMPV6,
            &icmp(133, 0, &[]),
        ),
        Row::new(
            "MLD, behind a hop-by-hop header",
            Frame::ip(
                "::",
                "ff02::16",
                0,
                &egress_tests::packets::build::extension(ICMPV6, 0, &icmp(143, 0, &[0; 24])),
            ),
            Untouched,
        ),
        bad(
            "no address, to a group, not ICMPv6",
            "::",
            "ff02::1",
            UDP,
            &dhcp(68, 67),
        ),
        bad(
            "no address, to a wider group",
            "::",
            "ff05::1",
            ICMPV6,
            &solicitation,
        ),
        bad(
            "no address, to a host",
            "::",
            "fe80::1",
            ICMPV6,
            &solicitation,
        ),
        bad(
            "no address, to the world",
            "::",
            V6.red.0,
            ICMPV6,
            &solicitation,
        ),
        fine("link-local", "fe80::5", "fe80::1", ICMPV6, &solicitation),
        fine(
            "link-local, the last address",
            "febf::5",
            "fe80::1",
            UDP,
            &dhcp(546, 547),
        ),
        fine(
            "link-local to a group",
            "fe80::5",
            "ff02::1:2",
            UDP,
            &dhcp(546, 547),
        ),
        bad(
            "beyond link-local",
            "fec0::5",
            "fe80::1",
            UDP,
            &dhcp(546, 547),
        ),
        bad(
            "link-local to the world",
            "fe80::5",
            V6.red.0,
            UDP,
            &dhcp(1, 2),
        ),
        bad(
            "link-local to the cluster",
            "fe80::5",
            V6.cluster,
            UDP,
            &dhcp(1, 2),
        ),
        bad(
            "link-local to a wider group",
            "fe80::5",
            "ff05::2",
            UDP,
            &dhcp(1, 2),
        ),
        bad(
            "IPv4 as IPv6",
            "::ffff:10.1.0.5",
            V6.red.0,
            UDP,
            &dhcp(1, 2),
        ),
        bad(
            "IPv4 as IPv6, both",
            "::ffff:10.1.0.5",
            "::ffff:192.0.2.7",
            UDP,
            &dhcp(1, 2),
        ),
        Row::new(
            "to IPv4 as IPv6",
            datagram(V6.web, "::ffff:192.0.2.7"),
            Drop("", DropReason::Malformed),
        ),
        bad(
            "the pod's IPv4 address, compatible",
            "::10.1.0.5",
            V6.red.0,
            UDP,
            &dhcp(1, 2),
        ),
    ]);
    check(&all);
}

#[test]
fn frames_that_are_not_plain_ip() {
    let inner = datagram(V4.web, V4.red.0).bytes;
    let behind = |head: &[u8]| [head, &inner[12..]].concat();
    let dropped = |name: &str, ethertype: u16, payload: &[u8]| {
        Row::new(
            name,
            Frame::raw(ethertype, payload),
            Drop("", DropReason::NotPlainIp),
        )
    };
    check(&[
        Row::new("ARP", Frame::raw(0x0806, &[0; 46]), Untouched),
        dropped("802.1Q", 0x8100, &behind(&[0, 7])),
        dropped("802.1Q, vid 0", 0x8100, &behind(&[0, 0])),
        dropped("802.1ad", 0x88a8, &behind(&[0, 7])),
        dropped("QinQ", 0x9100, &behind(&[0, 7])),
        dropped("MPLS", 0x8847, &behind(&[0, 0, 0x11, 0x40])),
        dropped("PPPoE discovery", 0x8863, &[0; 46]),
        dropped("PPPoE session", 0x8864, &behind(&[0x11, 0, 0, 1])),
        dropped("an 802.3 length", 0x0040, &[0x42, 0x42, 3, 0, 0]),
        dropped(
            "an 802.3 length with SNAP and IP",
            0x0040,
            &behind(&[0xaa, 0xaa, 3, 0, 0, 0]),
        ),
        dropped("Novell's raw 802.3", 0x0040, &[0xff; 46]),
        dropped("RARP", 0x8035, &[0; 46]),
        dropped("LLDP", 0x88cc, &[0; 46]),
        dropped("a local experiment", 0x88b5, &inner[14..]),
        dropped("batman", 0x4305, &inner[14..]),
    ]);
}

#[test]
fn hop_limits_and_sizes() {
    check(&rows(|f| {
        let header = if f.icmp == ICMP { 20 } else { 40 };
        let of_size =
            |to: &str, size: usize| Frame::ip(f.web, to, UDP, &udp(40_000, 53, size - header - 8));
        let segments = |bytes: usize| tcp(40_000, 443, &[1; 12], bytes);
        let aggregate = |to: &str, payload: &[u8]| Frame::ip(f.web, to, TCP, payload);
        let h = u64::try_from(header).unwrap_or(0);
        let too_old = || Answered(MAIN, DropReason::TtlExceeded, 0);
        // These IPv4 packets may be fragmented: a router would have done that, and has nothing to tell.
        let too_big = |mtu: u32| {
            if f.icmp == ICMP {
                Drop(MAIN, DropReason::TooBig)
            } else {
                Answered(MAIN, DropReason::TooBig, mtu)
            }
        };
        vec![
            Row::new(
                "TTL 0",
                datagram(f.web, f.red.0).ttl(0),
                too_old(),
            )
            .records(vec![]),
            Row::new(
                "TTL 1",
                datagram(f.web, f.red.0).ttl(1),
                too_old(),
            )
            .records(vec![]),
            Row::new(
                "TTL 2",
                datagram(f.web, f.red.0).ttl(2),
                Sent(f.red.1, "red"),
            ),
            Row::new(
                "TTL 255",
                datagram(f.web, f.red.0).ttl(255),
                Sent(f.red.1, "red"),
            ),
            Row::new(
                "TTL 1, local",
                datagram(f.web, f.cluster).ttl(1),
                Pass(MAIN, LOCAL),
            ),
            Row::new(
                "TTL 1, several gateways",
                datagram(f.web, f.group.0).ttl(1),
                too_old(),
            ),
            Row::new(
                "a frame for everybody",
                datagram(f.web, f.red.0).macs([0xff; 6], POD_MAC),
                Drop(MAIN, DropReason::RedirectFailed),
            ),
            Row::new(
                "as large as the way",
                of_size(f.red.0, 1500),
                Sent(f.red.1, "red"),
            ),
            Row::new(
                "larger by one",
                of_size(f.red.0, 1501),
                too_big(1500),
            )
            .records(vec![]),
            Row::new(
                "as large as a narrow way",
                of_size(f.narrow.0, 1280),
                Sent(f.narrow.1, "narrow"),
            ),
            Row::new(
                "too large for a narrow way",
                of_size(f.narrow.0, 1281),
                too_big(1280),
            ),
            Row::new(
                "a small packet in a padded frame",
                datagram(f.web, f.red.0).padded(&[0; 46]),
                Sent(f.red.1, "red"),
            )
            .counted(1, h + 28),
            Row::new(
                "a small packet in a frame that is larger than the way: no answer would make it smaller",
                datagram(f.web, f.red.0).padded(&[0; 1480]),
                Drop(MAIN, DropReason::TooBig),
            )
            .counted(1, h + 28),
            Row::new("large, local", of_size(f.cluster, 1501), Pass(MAIN, LOCAL)),
            Row::new(
                "a TCP aggregate of three full segments",
                aggregate(f.red.0, &segments(3 * 1000)),
                Sent(f.red.1, "red"),
            )
            .gso(1000, 3)
            .counted(3, 3000 + 3 * (h + 32)),
            Row::new(
                "a TCP aggregate whose last segment is short",
                aggregate(f.red.0, &segments(2 * 1000 + 1)),
                Sent(f.red.1, "red"),
            )
            .gso(1000, 3)
            .counted(3, 2001 + 3 * (h + 32)),
            Row::new(
                "a TCP aggregate that nobody counted",
                aggregate(f.red.0, &segments(2 * 1000 + 1)),
                Sent(f.red.1, "red"),
            )
            .gso(1000, 0)
            .counted(3, 2001 + 3 * (h + 32)),
            Row::new(
                "an aggregate whose segments just fit",
                aggregate(f.narrow.0, &segments(2 * (1280 - header - 32))),
                Sent(f.narrow.1, "narrow"),
            )
            .gso(u32::try_from(1280 - header - 32).unwrap_or(0), 2)
            .counted(2, 2 * 1280),
            Row::new(
                "an aggregate whose segments are too large by one",
                aggregate(f.narrow.0, &segments(2 * (1281 - header - 32))),
                too_big(1280),
            )
            .gso(u32::try_from(1281 - header - 32).unwrap_or(0), 2)
            .counted(2, 2 * 1281),
            Row::new(
                "an aggregate of a single short segment",
                aggregate(f.narrow.0, &segments(100)),
                Sent(f.narrow.1, "narrow"),
            )
            .gso(1400, 1)
            .counted(1, h + 132),
            Row::new(
                "a UDP aggregate",
                Frame::ip(f.web, f.red.0, UDP, &udp(40_000, 443, 2500)),
                Sent(f.red.1, "red"),
            )
            .gso(1200, 3)
            .counted(3, 2500 + 3 * (h + 8)),
            Row::new(
                "a UDP aggregate, local",
                Frame::ip(f.web, f.cluster, UDP, &udp(40_000, 443, 2500)),
                Pass(MAIN, LOCAL),
            )
            .gso(1200, 3)
            .counted(3, 2500 + 3 * (h + 8)),
            Row::new(
                "a spoofed aggregate",
                Frame::ip(f.elsewhere, f.red.0, UDP, &udp(40_000, 443, 2500)),
                Drop("", DropReason::SpoofedSource),
            )
            .gso(1200, 3)
            .counted(3, 2500 + 3 * (h + 8)),
            Row::new(
                "an aggregate without a length (big TCP)",
                without_length(aggregate(f.red.0, &segments(3 * 1000))),
                Sent(f.red.1, "red"),
            )
            .gso(1000, 3)
            .counted(3, 3000 + 3 * (h + 32)),
            Row::new(
                "an aggregate that claims less than it carries: it is cut by what it carries",
                with_length(aggregate(f.narrow.0, &segments(2 * 1400)), 100),
                Drop(MAIN, DropReason::TooBig),
            )
            .gso(1400, 2)
            .counted(2, h + 100 + h + 32),
        ]
    }));
}

/// With this many bytes behind the IP header, as that says.
fn with_length(frame: Frame, length: u16) -> Frame {
    if frame.bytes[12..14] == [8, 0] {
        frame.set(L3 + 2, &(20 + length).to_be_bytes())
    } else {
        frame.set(L3 + 4, &length.to_be_bytes())
    }
}

/// As an aggregate of more than 64 KiB would be: no length in its header.
fn without_length(frame: Frame) -> Frame {
    let at = if frame.bytes[12..14] == [8, 0] {
        L3 + 2
    } else {
        L3 + 4
    };
    frame.set(at, &[0, 0])
}

#[test]
fn protocols_and_what_is_recorded_of_them() {
    check(&rows(|f| {
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
    check(&[
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
