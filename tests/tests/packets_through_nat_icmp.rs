//! ICMP errors about translated packets, and fragments of them, in both directions.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use egress_common::{
    DropReason::{FragmentUnknown, Malformed, NatAmbiguous, NatNoState},
    gateway::{EGRESS_ALLOW_LOCAL, EGRESS_SHARED},
};
use egress_tests::packets::{
    build::{self, Frame, L3, extension, fragment6, proto},
    nat::{
        ALPHA,
        Fate::{Dropped, Home, Kernel, Out},
        Node, Places, V4, V6, datagram, delivered, error, forwarded, in_both, message, segment,
        sum_holds, with_node, with_sum, with_sum_at,
    },
};

const SYN: u8 = 2;

/// A packet of a pod, the same as the outside sees it, and what answers the latter.
struct Flow {
    what: &'static str,
    out: Frame,
    translated: Frame,
    back: Frame,
    delivered: Frame,
    /// Bytes of the header above IP that tell the flow and are always quoted.
    least: usize,
}

/// One flow of each kind, whose port becomes 5000 under `ALPHA`.
fn flows(p: &Places) -> Vec<Flow> {
    let (pod, alpha) = ((p.pod, 40_000), (p.alpha, 5000));
    let bare = |from: (&str, u16), to: (&str, u16)| {
        Frame::ip(from.0, to.0, proto::UDP, &build::udp(from.1, to.1, 9))
    };
    let gre = |from, to| Frame::ip(from, to, proto::GRE, &[0x5a; 24]);
    let (dns, web) = ((p.remote, 53), (p.remote, 443));
    vec![
        Flow {
            what: "UDP",
            out: datagram(pod, dns, 30),
            translated: datagram(alpha, dns, 30),
            back: datagram(dns, alpha, 30),
            delivered: datagram(dns, pod, 30),
            least: 8,
        },
        Flow {
            what: "UDP without checksum",
            out: bare((p.pod, 40_001), (p.remote, 54)),
            translated: bare(alpha, (p.remote, 54)),
            back: bare((p.remote, 54), alpha),
            delivered: bare((p.remote, 54), (p.pod, 40_001)),
            least: 8,
        },
        Flow {
            what: "TCP",
            out: segment(pod, web, SYN),
            translated: segment(alpha, web, SYN),
            back: segment(web, alpha, SYN | 16),
            delivered: segment(web, pod, SYN | 16),
            least: 8,
        },
        Flow {
            what: "echo",
            out: message(p.pod, p.remote, p.ping, 7777, b"abcde"),
            translated: message(p.alpha, p.remote, p.ping, 5000, b"abcde"),
            back: message(p.remote, p.alpha, p.pong, 5000, b"abcde"),
            delivered: message(p.remote, p.pod, p.pong, 7777, b"abcde"),
            least: 8,
        },
        Flow {
            what: "GRE",
            out: gre(p.pod, p.remote),
            translated: gre(p.alpha, p.remote),
            back: gre(p.remote, p.alpha),
            delivered: gre(p.remote, p.pod),
            least: 0,
        },
    ]
}

/// How much of a packet errors quote: the least, all of it, and what cuts a TCP header short of its checksum and
/// behind it.
fn quotes(p: &Places, flow: &Flow) -> Vec<usize> {
    let header = if p.icmp == proto::ICMP { 20 } else { 40 };
    let whole = flow.out.bytes.len() - L3;
    [flow.least, 16, 18, 19, 20, whole - header]
        .into_iter()
        .map(|length| (header + length).min(whole))
        .collect()
}

/// An error, with the checksum of what it quotes left out where a router cut it off.
fn about(from: &str, to: &str, p: &Places, quoted: &Frame, bytes: usize) -> Frame {
    let frame = error(from, to, p.error, quoted, bytes);
    let l4 = if p.icmp == proto::ICMP { 34 } else { 54 };
    assert!(
        sum_holds(&frame.bytes, p.icmp, l4),
        "the test's own checksum"
    );
    frame
}

#[test]
fn errors_from_outside() {
    in_both(|node, p| {
        node.own(&ALPHA, (5000, 5000), 0);
        for flow in flows(p) {
            node.out(flow.what, &flow.out, Out(forwarded(&flow.translated)));
            for bytes in quotes(p, &flow) {
                for from in [p.remote, p.router] {
                    // The hops that the quoted packet had left are the router's to tell.
                    let seen = flow.translated.clone().ttl(11);
                    let meant = flow.out.clone().ttl(11);
                    node.back(
                        &format!("{}, {bytes} bytes quoted, from {from}", flow.what),
                        &about(from, p.alpha, p, &seen, bytes),
                        Home(delivered(&about(from, p.pod, p, &meant, bytes))),
                    );
                }
            }
            // The connection was not touched: what an error says is for the pod.
            node.back(flow.what, &flow.back, Home(delivered(&flow.delivered)));
        }
        assert_eq!(node.states().len(), 5);
    });
}

#[test]
fn errors_from_a_pod() {
    in_both(|node, p| {
        node.own(&ALPHA, (5000, 5000), 0);
        for flow in flows(p) {
            node.out(flow.what, &flow.out, Out(forwarded(&flow.translated)));
            node.back(flow.what, &flow.back, Home(delivered(&flow.delivered)));
            for bytes in quotes(p, &flow) {
                let seen = flow.delivered.clone().ttl(11);
                let meant = flow.back.clone().ttl(11);
                node.out(
                    &format!("{}, {bytes} bytes quoted", flow.what),
                    &about(p.pod, p.remote, p, &seen, bytes),
                    Out(forwarded(&about(p.alpha, p.remote, p, &meant, bytes))),
                );
            }
        }
    });
}

#[test]
fn errors_about_nothing_of_ours() {
    in_both(|node, p| {
        let flow = &flows(p)[0];
        node.own(&ALPHA, (5000, 5000), 0);
        let whole = flow.out.bytes.len() - L3;
        let known = about(p.router, p.alpha, p, &flow.translated, whole);
        node.back("no connection yet", &known, Dropped(NatNoState));
        node.out(
            "no connection yet, from a pod",
            &about(p.pod, p.remote, p, &flow.delivered, whole),
            Dropped(NatNoState),
        );
        node.out("it starts", &flow.out, Out(forwarded(&flow.translated)));
        node.back(
            "quoting what somebody else sent",
            &about(
                p.router,
                p.alpha,
                p,
                &datagram((p.beta, 5000), (p.remote, 53), 1),
                48,
            ),
            Dropped(NatNoState),
        );
        node.back(
            "quoting another remote",
            &about(
                p.router,
                p.alpha,
                p,
                &datagram((p.alpha, 5000), (p.remote2, 53), 1),
                48,
            ),
            Dropped(NatNoState),
        );
        node.back(
            "quoting an error",
            &about(
                p.router,
                p.alpha,
                p,
                &about(p.alpha, p.remote, p, &flow.translated, 28),
                60,
            ),
            Dropped(NatNoState),
        );
        node.back(
            "quoting too little",
            &about(p.router, p.alpha, p, &flow.translated, 22),
            Dropped(NatNoState),
        );
        node.out(
            "to somebody else than it quotes",
            &about(p.pod, p.remote2, p, &flow.delivered, whole),
            Dropped(NatNoState),
        );
        node.out(
            "about another pod's packet",
            &about(
                p.pod,
                p.remote,
                p,
                &datagram((p.remote, 53), (p.other, 40_000), 1),
                whole,
            ),
            Dropped(NatNoState),
        );
        // A shared address has errors of its own.
        node.own(&ALPHA, (5000, 5000), EGRESS_SHARED);
        let own = datagram((p.alpha, 4999), (p.remote, 53), 1);
        let inside = datagram((p.alpha, 5000), (p.remote, 54), 1);
        node.back(
            "outside the range",
            &about(p.router, p.alpha, p, &own, 48),
            Kernel,
        );
        node.back(
            "inside",
            &about(p.router, p.alpha, p, &inside, 48),
            Dropped(NatNoState),
        );
        node.back("a stub", &about(p.router, p.alpha, p, &inside, 9), Kernel);
        node.back(
            "known",
            &known,
            Home(delivered(&about(p.router, p.pod, p, &flow.out, whole))),
        );
        node.own(&ALPHA, (5000, 5000), EGRESS_ALLOW_LOCAL);
        node.back(
            "local services",
            &about(p.router, p.alpha, p, &inside, 48),
            Kernel,
        );
        // Errors keep nothing alive.
        node.age(60);
        node.own(&ALPHA, (5000, 5000), 0);
        node.back("expired", &known, Dropped(NatNoState));
        node.out(
            "expired, from a pod",
            &about(p.pod, p.remote, p, &flow.delivered, whole),
            Dropped(NatNoState),
        );
    });
}

#[test]
fn quoted_headers_of_ipv6() {
    with_node(|node| {
        let p = &V6;
        node.own(&ALPHA, (5000, 5000), 0);
        let packet = |from: (&str, u16), to: (&str, u16)| {
            let payload = fragment6(
                proto::DESTINATION,
                77,
                0,
                false,
                &extension(proto::UDP, 1, &build::udp(from.1, to.1, 20)),
            );
            let frame = Frame::ip(from.0, to.0, proto::FRAGMENT, &payload);
            with_sum_at(frame, proto::UDP, L3 + 40 + 8 + 16)
        };
        let out = packet((p.pod, 40_000), (p.remote, 53));
        let translated = packet((p.alpha, 5000), (p.remote, 53));
        node.out("out", &out, Out(forwarded(&translated)));
        let whole = out.bytes.len() - L3;
        node.back(
            "an error",
            &about(p.router, p.alpha, p, &translated, whole),
            Home(delivered(&about(p.router, p.pod, p, &out, whole))),
        );
        node.back(
            "cut within the extensions",
            &about(p.router, p.alpha, p, &translated, 50),
            Dropped(NatNoState),
        );
    });
}

/// A datagram of 64 bytes above IP in three fragments.
fn fragments(p: &Places, from: (&str, u16), to: (&str, u16)) -> [Frame; 3] {
    let whole = datagram(from, to, 56);
    let l4 = if p.icmp == proto::ICMP { 34 } else { 54 };
    let upper = &whole.bytes[l4..];
    [(0, 24, true), (24, 48, true), (48, 64, false)].map(|(start, end, more)| {
        let offset = u16::try_from(start / 8).unwrap();
        if p.icmp == proto::ICMP {
            Frame::ip(from.0, to.0, proto::UDP, &upper[start..end]).fragment(99, offset, more)
        } else {
            let payload = fragment6(proto::UDP, 99, offset, more, &upper[start..end]);
            Frame::ip(from.0, to.0, proto::FRAGMENT, &payload)
        }
    })
}

#[test]
fn fragments_both_ways() {
    in_both(|node, p| {
        node.own(&ALPHA, (5000, 5000), 0);
        let out = fragments(p, (p.pod, 40_000), (p.remote, 53));
        let translated = fragments(p, (p.alpha, 5000), (p.remote, 53));
        let back = fragments(p, (p.remote, 53), (p.alpha, 5000));
        let home = fragments(p, (p.remote, 53), (p.pod, 40_000));
        node.out("before the first", &out[1], Dropped(FragmentUnknown));
        node.back("before the first", &back[1], Dropped(FragmentUnknown));
        for number in [0, 2, 1] {
            node.out("out", &out[number], Out(forwarded(&translated[number])));
        }
        for number in [0, 2, 1] {
            node.back("back", &back[number], Home(delivered(&home[number])));
        }
        assert_eq!(node.states().len(), 1);
        // Another gateway did not see the first one.
        node.steer_to(&egress_tests::packets::nat::BETA);
        node.out("elsewhere", &out[1], Dropped(FragmentUnknown));
        node.steer_to(&ALPHA);
        node.own(&ALPHA, (5000, 5000), EGRESS_ALLOW_LOCAL);
        let stranger = fragments(p, (p.remote2, 53), (p.alpha, 5000));
        node.back("local services", &stranger[1], Kernel);
    });
}

/// Numbers of datagrams come again, of others: a fragment without its first is nobody's.
#[test]
fn fragments_long_after_the_first() {
    in_both(|node, p| {
        let out = fragments(p, (p.pod, 40_000), (p.remote, 53));
        let translated = fragments(p, (p.alpha, 40_000), (p.remote, 53));
        let back = fragments(p, (p.remote, 53), (p.alpha, 40_000));
        let home = fragments(p, (p.remote, 53), (p.pod, 40_000));
        node.out("the first", &out[0], Out(forwarded(&translated[0])));
        node.back("the first back", &back[0], Home(delivered(&home[0])));
        node.age(59);
        node.out("in time", &out[1], Out(forwarded(&translated[1])));
        node.back("in time", &back[1], Home(delivered(&home[1])));
        node.age(1);
        node.out("too late", &out[2], Dropped(FragmentUnknown));
        node.back("too late", &back[2], Dropped(FragmentUnknown));
    });
}

#[test]
fn fragments_of_a_ping_to_the_address() {
    in_both(|node, p| {
        let whole = message(p.remote, p.alpha, p.ping, 5, &[7; 40]);
        let l4 = if p.icmp == proto::ICMP { 34 } else { 54 };
        let upper = &whole.bytes[l4..];
        let part = |start: usize, end: usize, more| {
            let offset = u16::try_from(start / 8).unwrap();
            if p.icmp == proto::ICMP {
                Frame::ip(p.remote, p.alpha, p.icmp, &upper[start..end]).fragment(5, offset, more)
            } else {
                let payload = fragment6(p.icmp, 5, offset, more, &upper[start..end]);
                Frame::ip(p.remote, p.alpha, proto::FRAGMENT, &payload)
            }
        };
        node.back("too early", &part(24, 48, false), Dropped(FragmentUnknown));
        node.back("the first", &part(0, 24, true), Kernel);
        node.back("the last", &part(24, 48, false), Kernel);
    });
}

#[test]
fn first_fragments_that_are_cut_short() {
    with_node(|node| {
        let p = &V4;
        let tiny = Frame::ip(p.pod, p.remote, proto::TCP, &build::tcp(1, 2, &[], 0)[..8]);
        node.out("TCP", &tiny.fragment(1, 0, true), Dropped(Malformed));
        let gre = |from: &str| Frame::ip(from, p.remote, proto::GRE, &[1; 16]).fragment(2, 0, true);
        let later =
            |from: &str| Frame::ip(from, p.remote, proto::GRE, &[1; 16]).fragment(2, 2, false);
        node.out("GRE", &gre(p.pod), Out(forwarded(&gre(p.alpha))));
        node.out("GRE, later", &later(p.pod), Out(forwarded(&later(p.alpha))));
        node.out("another's GRE", &gre(p.other), Dropped(NatAmbiguous));
        node.out(
            "another's, later",
            &later(p.other),
            Dropped(FragmentUnknown),
        );
    });
}

/// The checksum of the datagram whose fragments were translated, over all of them.
#[test]
fn fragments_put_together() {
    in_both(|node: &mut Node<'_>, p| {
        let translated = fragments(p, (p.alpha, 40_000), (p.remote, 53));
        let mut upper = Vec::new();
        for (number, part) in fragments(p, (p.pod, 40_000), (p.remote, 53))
            .iter()
            .enumerate()
        {
            node.out("out", part, Out(forwarded(&translated[number])));
            let header = if p.icmp == proto::ICMP { 34 } else { 62 };
            upper.extend(&translated[number].bytes[header..]);
        }
        let whole = Frame::ip(p.alpha, p.remote, proto::UDP, &upper);
        assert_eq!(whole, with_sum(whole.clone(), proto::UDP));
    });
}

/// Datagrams of IPv4 with one number and two protocols are two (RFC 791, 3.2).
#[test]
fn fragments_of_two_protocols() {
    with_node(|node| {
        let p = &V4;
        node.own(&ALPHA, (5000, 5000), 0);
        let [first, _, _] = fragments(p, (p.pod, 40_000), (p.remote, 53));
        let [translated, _, _] = fragments(p, (p.alpha, 5000), (p.remote, 53));
        let [answer, _, _] = fragments(p, (p.remote, 53), (p.alpha, 5000));
        let [home, _, _] = fragments(p, (p.remote, 53), (p.pod, 40_000));
        let later =
            |from: &str, to: &str| Frame::ip(from, to, proto::TCP, &[7; 16]).fragment(99, 3, false);
        node.out("a datagram", &first, Out(forwarded(&translated)));
        let foreign = later(p.pod, p.remote);
        node.out("of a segment", &foreign, Dropped(FragmentUnknown));
        node.back("its answer", &answer, Home(delivered(&home)));
        let foreign = later(p.remote, p.alpha);
        node.back("of a segment", &foreign, Dropped(FragmentUnknown));
    });
}
