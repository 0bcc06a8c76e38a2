//! What becomes of packets from pods: every verdict, in both families, with every counter that moves.

use egress_common::{DropReason, counter::PassKind};
use egress_tests::packets::{
    Expect::{Answered, Drop, Pass, Sent, SentByOne},
    Row,
    build::{
        Frame, POD_MAC,
        proto::{ICMP, TCP, UDP},
        tcp, udp,
    },
    check_all,
    places::{V4, V6, in_both},
    seed::STEERED,
    talk::{datagram, record},
};

const MAIN: &str = STEERED;
const LOCAL: PassKind = PassKind::Local;
const UNMATCHED: PassKind = PassKind::Unmatched;

#[test]
fn every_verdict() {
    check_all(&in_both(|f| {
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
                datagram(f.web, f.local),
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
                "a network policy that the packet would go past",
                datagram(f.guarded, f.red.0),
                Drop("guarded", DropReason::PolicyEnforcement),
            )
            .then(datagram(f.guarded, f.local), Pass("guarded", LOCAL))
            .then(datagram(f.guarded, f.cluster), Pass("guarded", LOCAL))
            .then(datagram(f.guarded, f.elsewhere), Pass("guarded", UNMATCHED))
            .records(vec![]),
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
    check_all(&[Row::new(
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
    check_all(&[
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
fn hop_limits_and_sizes() {
    check_all(&in_both(|f| {
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
                aggregate(f.red.0, &segments(3 * 1000)).without_length(),
                Sent(f.red.1, "red"),
            )
            .gso(1000, 3)
            .counted(3, 3000 + 3 * (h + 32)),
            Row::new(
                "a UDP aggregate without a length, which is big TCP's alone",
                Frame::ip(f.web, f.red.0, UDP, &udp(40_000, 443, 2500)).without_length(),
                Drop("", DropReason::Malformed),
            )
            .gso(1200, 3)
            .counted(1, 2500 + h + 8),
            Row::new(
                "an aggregate that claims less than it carries: it is cut by what it carries",
                aggregate(f.narrow.0, &segments(2 * 1400)).with_length(100),
                Drop(MAIN, DropReason::TooBig),
            )
            .gso(1400, 2)
            .counted(2, h + 100 + h + 32),
        ]
    }));
}
