//! Sources that are not the pod's, and frames that are not plain IP.

use egress_common::DropReason;
use egress_tests::packets::{
    Expect::{Drop, Untouched},
    Row,
    build::{
        Frame, icmp,
        proto::{ICMPV6, TCP, UDP},
        tcp, udp,
    },
    check_all,
    places::{V4, V6, in_both},
    talk::datagram,
};

#[test]
fn sources_that_are_not_the_pods() {
    let spoofed = || Drop("", DropReason::SpoofedSource);
    let mut all = in_both(|f| {
        vec![
            Row::new(
                "an address of nobody",
                datagram(f.nobody, f.red.0),
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
    check_all(&all);
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
    check_all(&[
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
