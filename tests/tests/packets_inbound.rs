//! Connections that come in to a pod are answered the way they came, and nothing that is forged opens a way
//! around the gateway for what the pod started itself.
//!
//! Rows use ports of their own each: what a pod has started is remembered beyond its row.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use egress_common::{DropReason, counter::PassKind};
use egress_tests::packets::{
    Expect::{self, Drop, Pass, Sent, SentByOne},
    Row,
    build::{
        Frame, extension,
        flag::{ACK, FIN, PSH, RST, SYN},
        fragment6, icmp,
        proto::{DESTINATION, FRAGMENT, TCP, UDP},
        segment, udp,
    },
    check_all,
    places::{V4, V6, in_both},
    seed::STEERED,
    talk::{Talk, fragment, talk},
};

const INBOUND: Expect = Pass(STEERED, PassKind::Inbound);
const LOCAL: Expect = Pass(STEERED, PassKind::Local);

#[test]
fn tcp_that_came_in_is_answered() {
    check_all(&in_both(|f| {
        let red = talk(f.web, 80, f.red.0, 1001);
        let group = talk(f.web, 80, f.group.0, 1002);
        let none = talk(f.web, 80, f.no_gateway, 1003);
        let inside = talk(f.web, 80, f.inside_cluster.0, 1004);
        let whole = |name: &str, it: &Talk| {
            Row::arrival(name, it.tcp_in(SYN))
                .then(it.tcp_out(SYN | ACK), INBOUND)
                .arrives(it.tcp_in(ACK))
                .then(it.tcp_out(ACK), INBOUND)
                .then(it.tcp_out(PSH | ACK), INBOUND)
                .then(it.tcp_out(SYN | ACK), INBOUND)
                .then(it.tcp_out(FIN | ACK), INBOUND)
                .then(it.tcp_out(RST), INBOUND)
                .inbound(vec![(it.key(TCP), true)])
        };
        let other_port = Talk {
            remote_port: 1006,
            ..red
        };
        let closed = talk(f.web, 81, f.red.0, 1007);
        let again = talk(f.web, 80, f.red.0, 1008);
        vec![
            whole("a rule with one gateway", &red),
            whole("a rule with several", &group),
            whole("a rule without any", &none),
            whole("a rule within the cluster's prefix", &inside),
            Row::arrival("a second SYN changes nothing", again.tcp_in(SYN))
                .then(again.tcp_out(SYN | ACK), INBOUND)
                .arrives(again.tcp_in(SYN))
                .then(again.tcp_out(ACK), INBOUND),
            Row::arrival("a closed port refuses", closed.tcp_in(SYN))
                .then(closed.tcp_out_at(RST | ACK, 0), INBOUND)
                .inbound(vec![(closed.key(TCP), false)]),
            Row::arrival("another port of the same remote", red.tcp_in(SYN))
                .then(other_port.tcp_out(SYN | ACK), Sent(f.red.1, "red"))
                .then(red.tcp_out(SYN | ACK), INBOUND),
            Row::arrival("flags that congestion control adds", red.tcp_in(SYN | 0xc0))
                .then(red.tcp_out(SYN | ACK | 0x40), INBOUND),
        ]
    }));
}

#[test]
fn policies_that_say_otherwise() {
    check_all(&in_both(|f| {
        let missing = talk(f.lost, 80, f.red.0, 1101);
        let invalid = talk(f.garbled, 80, f.red.0, 1102);
        let local = talk(f.web, 80, f.local, 1103);
        let unmatched = talk(f.free, 80, f.red.0, 1104);
        let cluster = talk(f.web, 80, f.cluster, 1105);
        let guarded = talk(f.guarded, 80, f.red.0, 1106);
        let began = talk(f.guarded, 40_000, f.red.0, 1107);
        let refused = || Drop("guarded", DropReason::PolicyEnforcement);
        vec![
            Row::arrival("a network policy, which sees answers", guarded.tcp_in(SYN))
                .then(
                    guarded.tcp_out(SYN | ACK),
                    Pass("guarded", PassKind::Inbound),
                )
                .then(guarded.tcp_out(ACK), Pass("guarded", PassKind::Inbound)),
            Row::new(
                "a network policy, which would not see what the pod begins",
                began.tcp_out(SYN),
                refused(),
            )
            .arrives(began.tcp_in(SYN))
            .then(began.tcp_out(SYN | ACK), refused())
            .then(began.tcp_out(ACK), refused()),
            Row::arrival("a policy that is missing", missing.tcp_in(SYN)).then(
                missing.tcp_out(SYN | ACK),
                Drop("gone", DropReason::PolicyMissing),
            ),
            Row::arrival("a selector that cannot be parsed", invalid.tcp_in(SYN)).then(
                invalid.tcp_out(SYN | ACK),
                Drop("broken", DropReason::PolicyInvalid),
            ),
            Row::arrival("a rule that is local", local.tcp_in(SYN))
                .then(local.tcp_out(SYN | ACK), LOCAL),
            Row::arrival("no rule", unmatched.tcp_in(SYN)).then(
                unmatched.tcp_out(SYN | ACK),
                Pass("empty", PassKind::Unmatched),
            ),
            Row::arrival(
                "the cluster's prefix is not remembered",
                cluster.tcp_in(SYN),
            )
            .then(cluster.tcp_out(SYN | ACK), LOCAL)
            .inbound(vec![]),
        ]
    }));
}

#[test]
fn what_opens_nothing() {
    check_all(&in_both(|f| {
        let it = talk(f.web, 80, f.red.0, 1201);
        let sent = || Sent(f.red.1, "red");
        let mut all: Vec<Row> = [
            ("a packet without flags", 0),
            ("ACK", ACK),
            ("SYN with ACK", SYN | ACK),
            ("FIN", FIN),
            ("RST", RST),
            ("RST with ACK", RST | ACK),
        ]
        .into_iter()
        .map(|(name, flags)| {
            Row::arrival(name, it.tcp_in(flags))
                .then(it.tcp_out(SYN | ACK), sent())
                .inbound(vec![])
        })
        .collect();
        let stranger = talk(f.nobody, 80, f.red.0, 1202);
        let unnamed = talk(f.web, 5353, f.red.0, 1203);
        let echo = icmp(f.ping, 7, &[0; 8]);
        all.extend([
            Row::arrival("an address that is not steered", stranger.tcp_in(SYN)).inbound(vec![]),
            Row::arrival("an interface that is no pod's", it.tcp_in(SYN))
                .elsewhere()
                .inbound(vec![]),
            Row::arrival("UDP to a port that nobody names", unnamed.udp_in())
                .then(unnamed.udp_out(), sent())
                .inbound(vec![]),
            Row::arrival("UDP to a port that another pod names", unnamed.udp_in())
                .naming(f.free, &[5353])
                .inbound(vec![]),
            Row::arrival("a ping", Frame::ip(f.red.0, f.web, f.icmp, &echo)).inbound(vec![]),
            Row::arrival(
                "half a TCP header",
                Frame::ip(f.red.0, f.web, TCP, &segment(1, 80, SYN, 0, 0)[..13]),
            )
            .inbound(vec![]),
            Row::arrival("ARP", Frame::raw(0x0806, &[0; 28])),
            Row::arrival("another ethertype", Frame::raw(0x88cc, &[0; 40])),
        ]);
        all
    }));
}

#[test]
fn headers_before_a_syn() {
    let syn = |port| segment(port, 80, SYN, 77, 0);
    let v4 = talk(V4.web, 80, V4.red.0, 1301);
    let v6 = talk(V6.web, 80, V6.red.0, 1302);
    let [from, to] = [v4.remote, v4.pod].map(|text| text.parse().unwrap());
    let routed = Frame::v4(from, to, &[131, 7, 4, 10, 0, 0, 1, 0], TCP, &syn(1301));
    let options = Frame::v4(from, to, &[148, 4, 0, 0], TCP, &syn(1301));
    check_all(&[
        Row::arrival("IPv4: options", options).inbound(vec![(v4.key(TCP), false)]),
        Row::arrival("IPv4: a source route", routed).inbound(vec![]),
        Row::arrival(
            "IPv4: a first fragment",
            v4.tcp_in(SYN).fragment(9, 0, true),
        )
        .inbound(vec![(v4.key(TCP), false)]),
        Row::arrival(
            "IPv4: a later fragment that looks like one",
            v4.tcp_in(SYN).fragment(9, 3, false),
        )
        .inbound(vec![]),
        Row::arrival(
            "IPv6: an extension header",
            Frame::ip(
                v6.remote,
                v6.pod,
                DESTINATION,
                &extension(TCP, 0, &syn(1302)),
            ),
        )
        .inbound(vec![(v6.key(TCP), false)]),
        Row::arrival(
            "IPv6: a first fragment",
            Frame::ip(
                v6.remote,
                v6.pod,
                FRAGMENT,
                &fragment6(TCP, 9, 0, true, &syn(1302)),
            ),
        )
        .inbound(vec![(v6.key(TCP), false)]),
        Row::arrival(
            "IPv6: a later fragment that looks like one",
            Frame::ip(
                v6.remote,
                v6.pod,
                FRAGMENT,
                &fragment6(TCP, 9, 3, false, &syn(1302)),
            ),
        )
        .inbound(vec![]),
    ]);
}

/// A SYN may be forged with the far end of a connection that the pod has through its gateway.
#[test]
fn a_forged_syn_opens_no_way_around() {
    check_all(&in_both(|f| {
        let sent = || Sent(f.red.1, "red");
        let one = SentByOne(f.group.1);
        let no_gateway = || Drop(STEERED, DropReason::NoGateway);
        let established = talk(f.web, 40_001, f.red.0, 443);
        let opening = talk(f.web, 40_002, f.red.0, 443);
        let late = talk(f.web, 40_003, f.red.0, 443);
        let reused = talk(f.web, 40_004, f.red.0, 443);
        let grouped = talk(f.web, 40_005, f.group.0, 443);
        let nowhere = talk(f.web, 40_006, f.no_gateway, 443);
        vec![
            Row::arrival("on an open connection", established.tcp_in(SYN))
                // What the pod's stack answers in any state but listening: a challenge (RFC 5961, 4).
                .then(established.tcp_out(ACK), sent())
                .then(established.tcp_out(PSH | ACK), sent())
                .then(established.tcp_out(FIN | ACK), sent())
                .then(established.tcp_out(RST | ACK), sent())
                .then(established.tcp_out(RST), sent())
                .then(established.tcp_out_at(RST, 0), sent()),
            Row::new("while the pod opens it", opening.tcp_out(SYN), sent())
                .arrives(opening.tcp_in(SYN))
                // A simultaneous open (RFC 9293, 3.5).
                .then(opening.tcp_out(SYN | ACK), sent())
                .then(opening.tcp_out(ACK), sent())
                .inbound(vec![]),
            Row::arrival("before the pod opens it", late.tcp_in(SYN))
                .then(late.tcp_out(SYN), sent())
                .then(late.tcp_out(SYN | ACK), sent())
                .arrives(late.tcp_in(SYN))
                .then(late.tcp_out(SYN | ACK), sent())
                .then(late.tcp_out(ACK), sent())
                .inbound(vec![]),
            Row::arrival("of a connection that was answered once", reused.tcp_in(SYN))
                .then(reused.tcp_out(SYN | ACK), INBOUND)
                .then(reused.tcp_out(SYN), sent())
                .then(reused.tcp_out(ACK), sent())
                .inbound(vec![]),
            Row::new("with several gateways", grouped.tcp_out(SYN), one.clone())
                .arrives(grouped.tcp_in(SYN))
                .then(grouped.tcp_out(SYN | ACK), one.clone())
                .then(grouped.tcp_out(ACK), one),
            Row::new("without gateways", nowhere.tcp_out(SYN), no_gateway())
                .arrives(nowhere.tcp_in(SYN))
                .then(nowhere.tcp_out(SYN | ACK), no_gateway())
                .inbound(vec![]),
        ]
    }));
}

#[test]
fn udp_comes_in_on_named_ports() {
    check_all(&in_both(|f| {
        let sent = || Sent(f.red.1, "red");
        let dns = talk(f.web, 53, f.red.0, 2001);
        let sip = talk(f.web, 5060, f.group.0, 2002);
        let none = talk(f.web, 53, f.no_gateway, 2003);
        let other = talk(f.web, 54, f.red.0, 2001);
        let own = talk(f.web, 53, f.red.0, 2004);
        let late = talk(f.web, 53, f.red.0, 2005);
        let beside = talk(f.web, 53, f.red.0, 2006);
        let nowhere = talk(f.web, 53, f.no_gateway, 2007);
        let last = talk(f.web, 115, f.red.0, 2008);
        let ports: Vec<u16> = (101..=115).collect();
        vec![
            Row::arrival("one gateway", dns.udp_in())
                .naming(f.web, &[5060, 53])
                .then(dns.udp_out(), INBOUND)
                .then(dns.udp_out(), INBOUND)
                .inbound(vec![(dns.key(UDP), false)]),
            Row::arrival("several gateways", sip.udp_in())
                .naming(f.web, &[53, 5060])
                .then(sip.udp_out(), INBOUND),
            Row::arrival("no gateway", none.udp_in())
                .naming(f.web, &[53])
                .then(none.udp_out(), INBOUND),
            Row::arrival("as many ports as there may be", last.udp_in())
                .naming(f.web, &ports)
                .then(last.udp_out(), INBOUND),
            Row::arrival("another port of the pod", dns.udp_in())
                .naming(f.web, &[53])
                .then(other.udp_out(), sent()),
            Row::arrival("TCP to the same port", dns.udp_in())
                .naming(f.web, &[53])
                .then(dns.tcp_out(SYN | ACK), sent()),
            Row::new("the pod's own flow", own.udp_out(), sent())
                .naming(f.web, &[53])
                .arrives(own.udp_in())
                .then(own.udp_out(), sent())
                .inbound(vec![]),
            Row::new("another flow beside the pod's own", late.udp_out(), sent())
                .naming(f.web, &[53])
                .arrives(beside.udp_in())
                .then(beside.udp_out(), INBOUND)
                .then(late.udp_out(), sent()),
            Row::new(
                "the pod's own flow, which was dropped",
                nowhere.udp_out(),
                Drop(STEERED, DropReason::NoGateway),
            )
            .naming(f.web, &[53])
            .arrives(nowhere.udp_in())
            .then(nowhere.udp_out(), Drop(STEERED, DropReason::NoGateway))
            .inbound(vec![]),
        ]
    }));
}

#[test]
fn fragments_of_replies_follow_their_first() {
    check_all(&in_both(|f| {
        let sent = || Sent(f.red.1, "red");
        let first = |it: &Talk, id, more| {
            let payload = udp(it.pod_port, it.remote_port, 24);
            fragment(it.pod, it.remote, id, 0, more, &payload)
        };
        let later = |it: &Talk, id, offset, more| {
            fragment(it.pod, it.remote, id, offset, more, &[0xee; 32])
        };
        let red = talk(f.web, 53, f.red.0, 3001);
        let group = talk(f.web, 53, f.group.0, 3002);
        let both = talk(f.web, 53, f.red.0, 3003);
        let own = talk(f.web, 40_007, f.red.0, 3004);
        let own_of_group = talk(f.web, 40_008, f.group.0, 3005);
        let incoming = talk(f.web, 53, f.red.0, 3006);
        let (in_from, in_to) = (incoming.remote, incoming.pod);
        let forged = talk(f.web, 53, f.red.0, 3007);
        let unknown = || Drop(STEERED, DropReason::FragmentUnknown);
        vec![
            Row::arrival("one gateway", red.udp_in())
                .naming(f.web, &[53])
                .then(first(&red, 7, true), INBOUND)
                .then(later(&red, 7, 4, true), INBOUND)
                .then(later(&red, 7, 8, false), INBOUND)
                // Forgotten with the last: the number may be another datagram's next.
                .then(later(&red, 7, 8, false), sent()),
            Row::arrival("several gateways", group.udp_in())
                .naming(f.web, &[53])
                .then(first(&group, 7, true), INBOUND)
                .then(later(&group, 7, 4, true), INBOUND)
                .then(later(&group, 7, 8, false), INBOUND)
                .then(later(&group, 7, 8, false), unknown()),
            Row::arrival("another datagram", both.udp_in())
                .naming(f.web, &[53])
                .then(first(&both, 7, true), INBOUND)
                .then(later(&both, 8, 4, false), sent()),
            Row::arrival(
                "a number that the pod's own datagram takes over",
                both.udp_in(),
            )
            .naming(f.web, &[53])
            .then(first(&both, 9, true), INBOUND)
            .then(first(&own, 9, true), sent())
            .then(later(&own, 9, 4, true), sent())
            .then(later(&own, 9, 8, false), sent()),
            Row::arrival("the same with several gateways", group.udp_in())
                .naming(f.web, &[53])
                .then(first(&group, 9, true), INBOUND)
                .then(first(&own_of_group, 9, true), SentByOne(f.group.1))
                .then(later(&own_of_group, 9, 4, false), SentByOne(f.group.1)),
            Row::arrival(
                "a datagram that comes in as fragments",
                fragment(in_from, in_to, 5, 0, true, &udp(3006, 53, 24)),
            )
            .naming(f.web, &[53])
            .arrives(fragment(in_from, in_to, 5, 4, false, &[0xee; 32]))
            .then(incoming.udp_out(), INBOUND)
            .inbound(vec![(incoming.key(UDP), false)]),
            Row::new(
                "first fragments of the pod's own",
                first(&forged, 5, true),
                sent(),
            )
            .naming(f.web, &[53])
            .arrives(fragment(f.red.0, f.web, 6, 0, true, &udp(3007, 53, 24)))
            .then(later(&forged, 5, 4, false), sent())
            .then(forged.udp_out(), sent())
            .inbound(vec![]),
        ]
    }));
}
