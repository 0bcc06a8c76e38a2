//! Connections that come in to a pod are answered the way they came, and nothing that is forged opens a way
//! around the gateway for what the pod started itself.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use std::collections::BTreeSet;

use egress_common::{
    Addr, DropReason, WireU16,
    counter::PassKind,
    keys::ReplyKey,
    pod::{FLOW_SECONDS, OwnFlow, OwnFlows},
};
use egress_tests::packets::{
    Action,
    Expect::{self, Drop, Pass, Sent, SentByOne},
    Input, Lab, Row, Slot,
    build::{
        Frame, address, extension,
        flag::{ACK, FIN, PSH, RST, SYN},
        fragment6, icmp,
        proto::{DESTINATION, FRAGMENT, ICMP, ICMPV6, TCP, UDP},
        segment, udp,
    },
    mutate,
    random::Random,
    run,
    seed::{STEERED, UPLINK, world},
    with_lab,
};
use egress_userspace::kernel::Program;

const INBOUND: Expect = Pass(STEERED, PassKind::Inbound);
const LOCAL: Expect = Pass(STEERED, PassKind::Local);

/// The same places in one family.
struct Family {
    name: &'static str,
    web: &'static str,
    lost: &'static str,
    garbled: &'static str,
    free: &'static str,
    nobody: &'static str,
    /// An address of each rule, and the rule.
    red: (&'static str, &'static str),
    group: (&'static str, &'static str),
    local: &'static str,
    no_gateway: &'static str,
    cluster: &'static str,
    /// In the cluster's prefix, but in a longer one of a rule.
    inside_cluster: (&'static str, &'static str),
    ping: u8,
    icmp: u8,
}

const V4: Family = Family {
    name: "IPv4",
    web: "10.1.0.5",
    lost: "10.1.0.6",
    garbled: "10.1.0.7",
    free: "10.1.0.8",
    nobody: "10.1.0.99",
    red: ("192.0.2.7", "192.0.2.0/24"),
    group: ("198.51.100.7", "198.51.100.0/24"),
    local: "192.0.2.200",
    no_gateway: "198.18.0.1",
    cluster: "10.96.0.10",
    inside_cluster: ("10.96.7.1", "10.96.7.0/24"),
    ping: 8,
    icmp: ICMP,
};

const V6: Family = Family {
    name: "IPv6",
    web: "fd00::5",
    lost: "fd00::6",
    garbled: "fd00::7",
    free: "fd00::8",
    nobody: "fd00::99",
    red: ("2001:db8:1::7", "2001:db8:1::/48"),
    group: ("2001:db8:2::7", "2001:db8:2::/48"),
    local: "2001:db8:1:8000::7",
    no_gateway: "2001:db8:4::7",
    cluster: "fd10::10",
    inside_cluster: ("fd10:7::1", "fd10:7::/32"),
    ping: 128,
    icmp: ICMPV6,
};

/// A flow between a pod and a far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Talk {
    pod: &'static str,
    pod_port: u16,
    remote: &'static str,
    remote_port: u16,
}

const fn talk(pod: &'static str, pod_port: u16, remote: &'static str, remote_port: u16) -> Talk {
    Talk {
        pod,
        pod_port,
        remote,
        remote_port,
    }
}

impl Talk {
    /// A segment from the far end.
    fn tcp_in(&self, flags: u8) -> Frame {
        let payload = segment(self.remote_port, self.pod_port, flags, 77, 0);
        Frame::ip(self.remote, self.pod, TCP, &payload)
    }

    /// A segment from the pod.
    fn tcp_out(&self, flags: u8) -> Frame {
        self.tcp_out_at(flags, 4711)
    }

    fn tcp_out_at(&self, flags: u8, sequence: u32) -> Frame {
        let payload = segment(self.pod_port, self.remote_port, flags, sequence, 0);
        Frame::ip(self.pod, self.remote, TCP, &payload)
    }

    fn udp_in(&self) -> Frame {
        let payload = udp(self.remote_port, self.pod_port, 24);
        Frame::ip(self.remote, self.pod, UDP, &payload)
    }

    fn udp_out(&self) -> Frame {
        let payload = udp(self.pod_port, self.remote_port, 24);
        Frame::ip(self.pod, self.remote, UDP, &payload)
    }

    fn key(&self, protocol: u8) -> ReplyKey {
        ReplyKey {
            remote: Addr::from(address(self.remote)),
            pod: Addr::from(address(self.pod)),
            remote_port: WireU16::new(self.remote_port),
            pod_port: WireU16::new(self.pod_port),
            protocol,
            pad: [0; 3],
        }
    }
}

/// As a fragment of datagram `id`: `frame` is whole, and `payload` what stands above IP in the fragment.
fn fragment(from: &str, to: &str, id: u16, offset: u16, more: bool, payload: &[u8]) -> Frame {
    if address(from).is_ipv4() {
        Frame::ip(from, to, UDP, payload).fragment(id, offset, more)
    } else {
        let payload = fragment6(UDP, id.into(), offset, more, payload);
        Frame::ip(from, to, FRAGMENT, &payload)
    }
}

fn rows(of: impl Fn(&'static Family) -> Vec<Row>) -> Vec<Row> {
    [&V4, &V6]
        .into_iter()
        .flat_map(|family| {
            of(family).into_iter().map(|mut row| {
                row.name = format!("{}: {}", family.name, row.name);
                row
            })
        })
        .collect()
}

/// Rows use ports of their own each: what a pod has started is remembered beyond its row.
fn check(rows: &[Row]) {
    with_lab(|lab| {
        lab.bring_to(&world());
        run(lab, rows);
        mutate(lab, rows, 4000);
    });
}

#[test]
fn tcp_that_came_in_is_answered() {
    check(&rows(|f| {
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
    check(&rows(|f| {
        let missing = talk(f.lost, 80, f.red.0, 1101);
        let invalid = talk(f.garbled, 80, f.red.0, 1102);
        let local = talk(f.web, 80, f.local, 1103);
        let unmatched = talk(f.free, 80, f.red.0, 1104);
        let cluster = talk(f.web, 80, f.cluster, 1105);
        vec![
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
    check(&rows(|f| {
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
    check(&[
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
    check(&rows(|f| {
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
    check(&rows(|f| {
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
    check(&rows(|f| {
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

/// Runs one packet and says whether it was passed as a reply.
fn passes(lab: &mut Lab, frame: &Frame) -> bool {
    let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
    let moved: Vec<Slot> = lab.moved().into_keys().collect();
    match (seen.action, &moved[..]) {
        (Action::Pass, [Slot::Pass(_, PassKind::Inbound)]) => true,
        (Action::Redirect, [Slot::Member(..)]) | (Action::Drop, [Slot::Drop(..)]) => false,
        other => panic!("neither passed as a reply nor steered: {other:?}"),
    }
}

fn arrive(lab: &mut Lab, frame: &Frame) {
    let seen = lab.run(&Input::to_pod(&frame.bytes)).unwrap();
    assert_eq!((seen.action, &seen.frame), (Action::Pass, &frame.bytes));
    assert!(lab.moved().is_empty());
}

/// With a lab in which the world's policies are at work.
fn with_world(test: impl FnOnce(&mut Lab) + Send) {
    with_lab(|lab| {
        lab.bring_to(&world());
        test(lab);
    });
}

#[test]
fn our_own_deliveries_open_nothing() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            let own = talk(f.web, 40_100, f.red.0, 443);
            lab.run(&Input::from_pod(&own.tcp_out(SYN).bytes)).unwrap();
            let reply = Input {
                program: Program::FromGateway,
                ifindex: UPLINK,
                ..Input::from_pod(&own.tcp_in(SYN | ACK).bytes)
            };
            let delivered = lab.run(&reply).unwrap();
            assert_eq!(delivered.action, Action::Redirect);
            assert_ne!(delivered.mark, 0, "what we deliver is marked");

            let it = talk(f.web, 80, f.red.0, 4001);
            let syn = Input {
                mark: delivered.mark,
                ..Input::to_pod(&it.tcp_in(SYN).bytes)
            };
            let seen = lab.run(&syn).unwrap();
            assert_eq!(
                (seen.action, seen.mark),
                (Action::Pass, 0),
                "the mark stays here"
            );
            assert!(lab.inbound().is_empty());
            let marked_by_others = Input { mark: 4, ..syn };
            let seen = lab.run(&marked_by_others).unwrap();
            assert_eq!(seen.mark, 4, "another's mark is another's");
            assert_eq!(lab.inbound().len(), 1);
            lab.forget_inbound();
        }
    });
}

/// The mark of what comes in through a gateway, as the lab sees it on a reply to `own`.
fn mark_of_deliveries(lab: &mut Lab, own: &Talk) -> u32 {
    lab.run(&Input::from_pod(&own.tcp_out(SYN).bytes)).unwrap();
    let reply = Input {
        program: Program::FromGateway,
        ifindex: UPLINK,
        ..Input::from_pod(&own.tcp_in(SYN | ACK).bytes)
    };
    let delivered = lab.run(&reply).unwrap();
    assert_eq!(delivered.action, Action::Redirect);
    lab.moved();
    delivered.mark
}

fn deliver(lab: &mut Lab, mark: u32, frame: &Frame) {
    let input = Input {
        mark,
        ..Input::to_pod(&frame.bytes)
    };
    let seen = lab.run(&input).unwrap();
    assert_eq!((seen.action, seen.mark), (Action::Pass, 0));
    lab.moved();
}

#[test]
fn an_own_flow_that_only_receives_stays_the_pods_own() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            lab.name_udp_ports(address(f.web), &[53]);
            let mark = mark_of_deliveries(lab, &talk(f.web, 40_101, f.red.0, 443));
            assert_ne!(mark, 0);
            for (remote_port, through_gateway) in [(4401, true), (4402, false)] {
                let it = talk(f.web, 53, f.red.0, remote_port);
                assert!(!passes(lab, &it.udp_out()), "the pod's own");
                for _ in 0..3 {
                    lab.age(FLOW_SECONDS - 5, &[it.key(UDP)]);
                    if through_gateway {
                        deliver(lab, mark, &it.udp_in());
                    } else {
                        arrive(lab, &it.udp_in());
                    }
                }
                lab.age(FLOW_SECONDS - 5, &[it.key(UDP)]);
                arrive(lab, &it.udp_in());
                assert!(lab.inbound().is_empty(), "{it:?}");
                assert!(!passes(lab, &it.udp_out()), "{it:?} went around");
            }
            let stranger = talk(f.web, 53, f.red.0, 4403);
            deliver(lab, mark, &stranger.udp_in());
            arrive(lab, &stranger.udp_in());
            assert!(
                passes(lab, &stranger.udp_out()),
                "a delivery makes no flow the pod's own"
            );
            lab.forget_inbound();
        }
    });
}

/// A SYN with ACK that the pod's stack does not accept (RFC 9293, 3.10.7.3) leaves the pod opening its
/// connection, so that it would still answer a SYN: what comes in through a gateway may be forged too.
#[test]
fn a_delivered_answer_does_not_end_an_attempt() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            let mark = mark_of_deliveries(lab, &talk(f.web, 40_102, f.red.0, 443));
            let it = talk(f.web, 40_103, f.red.0, 443);
            assert!(!passes(lab, &it.tcp_out(SYN)));
            deliver(lab, mark, &it.tcp_in(SYN | ACK));
            arrive(lab, &it.tcp_in(SYN));
            assert!(lab.inbound().is_empty());
            assert!(!passes(lab, &it.tcp_out(SYN | ACK)), "{it:?} went around");
        }
    });
}

#[test]
fn a_pod_is_noted_once_something_came_in() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            let pod = address(f.web);
            for quiet in [
                talk(f.web, 80, f.cluster, 4101).tcp_in(SYN),
                talk(f.web, 80, f.red.0, 4101).tcp_in(ACK),
                talk(f.web, 80, f.red.0, 4101).udp_in(),
            ] {
                arrive(lab, &quiet);
                assert!(!lab.has_inbound(pod), "{quiet:?}");
            }
            arrive(lab, &talk(f.web, 80, f.red.0, 4101).tcp_in(SYN));
            assert!(lab.has_inbound(pod));
            assert!(!lab.has_inbound(address(f.free)));
        }
    });
}

#[test]
fn time_closes_what_nobody_answered_or_used() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            lab.name_udp_ports(address(f.web), &[53]);
            let tcp = talk(f.web, 80, f.red.0, 4201);
            arrive(lab, &tcp.tcp_in(SYN));
            lab.age(FLOW_SECONDS - 5, &[]);
            assert!(passes(lab, &tcp.tcp_out_at(RST | ACK, 0)));
            lab.age(5, &[]);
            assert!(!passes(lab, &tcp.tcp_out(SYN | ACK)), "a SYN of long ago");
            arrive(lab, &tcp.tcp_in(SYN));
            assert!(passes(lab, &tcp.tcp_out(SYN | ACK)), "and once more");
            lab.age(10_000, &[]);
            assert!(
                passes(lab, &tcp.tcp_out(ACK)),
                "an open connection may be idle"
            );

            let udp = talk(f.web, 53, f.red.0, 4202);
            arrive(lab, &udp.udp_in());
            lab.age(FLOW_SECONDS - 5, &[]);
            assert!(passes(lab, &udp.udp_out()));
            lab.age(5, &[]);
            assert!(
                !passes(lab, &udp.udp_out()),
                "its own packets keep nothing open"
            );
            arrive(lab, &udp.udp_in());
            assert!(!passes(lab, &udp.udp_out()), "it is the pod's own by now");
            lab.age(0, &[]);
            let own = [udp.key(UDP)];
            lab.age(FLOW_SECONDS - 5, &own);
            arrive(lab, &udp.udp_in());
            assert!(!passes(lab, &udp.udp_out()), "still its own");
            lab.age(FLOW_SECONDS, &own);
            arrive(lab, &udp.udp_in());
            assert!(passes(lab, &udp.udp_out()), "its own has ended");

            let retry = talk(f.web, 40_200, f.red.0, 443);
            assert!(!passes(lab, &retry.tcp_out(SYN)));
            lab.age(FLOW_SECONDS - 5, &[retry.key(TCP)]);
            arrive(lab, &retry.tcp_in(SYN));
            assert!(
                !passes(lab, &retry.tcp_out(SYN | ACK)),
                "it may still be opening"
            );
        }
    });
}

/// Whatever a full table forgets goes by the policy.
#[test]
fn what_is_forgotten_is_steered() {
    with_world(|lab| {
        for f in [&V4, &V6] {
            lab.name_udp_ports(address(f.web), &[53]);
            let tcp = talk(f.web, 80, f.red.0, 4301);
            let udp = talk(f.web, 53, f.red.0, 4302);
            arrive(lab, &tcp.tcp_in(SYN));
            arrive(lab, &udp.udp_in());
            lab.forget_inbound();
            assert!(!passes(lab, &tcp.tcp_out(SYN | ACK)));
            assert!(!passes(lab, &tcp.tcp_out(ACK)));
            assert!(!passes(lab, &udp.udp_out()));
        }
    });
}

/// Far ends whose connections to one port of a pod meet in one bucket.
fn neighbours(pod: &'static str, count: usize) -> Vec<Talk> {
    let talks = (1024..u16::MAX).flat_map(|pod_port| {
        let remotes = [V4.red.0, V4.group.0];
        remotes.map(|remote| talk(pod, pod_port, remote, 443))
    });
    let more = (1024..u16::MAX).flat_map(|pod_port| {
        (1..12).map(move |remote_port| talk(pod, pod_port, V4.red.0, remote_port))
    });
    let bucket = OwnFlow::new(&talk(pod, 80, V4.red.0, 5001).key(TCP)).bucket;
    let found: Vec<Talk> = talks
        .chain(more)
        .filter(|it| OwnFlow::new(&it.key(TCP)).bucket == bucket)
        .take(count)
        .collect();
    assert_eq!(found.len(), count, "too few flows meet by chance");
    found
}

/// A flood of the pod's own connections makes it forget nothing: what it has no room for, it takes for its own.
#[test]
fn a_crowded_bucket_opens_nothing() {
    with_world(|lab| {
        let inbound = talk(V4.web, 80, V4.red.0, 5001);
        let own = neighbours(V4.web, OwnFlows::FLOWS + 1);
        let (last, all_but_last) = own.split_last().unwrap();
        for it in all_but_last {
            assert!(!passes(lab, &it.tcp_out(SYN)));
        }
        arrive(lab, &inbound.tcp_in(SYN));
        assert!(passes(lab, &inbound.tcp_out(SYN | ACK)), "room for all");
        lab.forget_inbound();
        assert!(!passes(lab, &last.tcp_out(SYN)));
        arrive(lab, &inbound.tcp_in(SYN));
        assert!(!passes(lab, &inbound.tcp_out(SYN | ACK)), "no room");
        for it in &own {
            arrive(lab, &it.tcp_in(SYN));
            assert!(!passes(lab, &it.tcp_out(SYN | ACK)), "{it:?}");
        }
        let elsewhere = talk(V4.web, 80, V4.red.0, 5002);
        arrive(lab, &elsewhere.tcp_in(SYN));
        assert!(passes(lab, &elsewhere.tcp_out(SYN | ACK)), "another bucket");
    });
}

/// A crowded bucket stays so for what the pod has to itself, and not for whoever knocks at it.
#[test]
fn who_knocks_keeps_no_bucket_crowded() {
    with_world(|lab| {
        let named = [53, 5060, 5061, 5062, 5063, 5064, 5065, 5066];
        lab.name_udp_ports(address(V4.web), &named);
        let mark = mark_of_deliveries(lab, &talk(V4.web, 40_104, V4.red.0, 443));
        let crowd = neighbours(V4.web, OwnFlows::FLOWS);
        let bucket = OwnFlow::new(&crowd[0].key(TCP)).bucket;
        let mut there = named
            .into_iter()
            .flat_map(|port| (1024..u16::MAX).map(move |far| talk(V4.web, port, V4.red.0, far)))
            .filter(|it| OwnFlow::new(&it.key(UDP)).bucket == bucket);
        let (own, stranger) = (there.next().unwrap(), there.next().unwrap());
        let mut keys: Vec<ReplyKey> = crowd.iter().map(|it| it.key(TCP)).collect();
        keys.push(own.key(UDP));
        assert!(!passes(lab, &own.udp_out()), "the pod's own");
        for it in &crowd {
            assert!(!passes(lab, &it.tcp_out(SYN)));
        }
        // The first is pushed out, and goes on to receive through its gateway.
        for _ in 0..3 {
            lab.age(FLOW_SECONDS - 5, &keys);
            deliver(lab, mark, &own.udp_in());
        }
        lab.age(FLOW_SECONDS - 5, &keys);
        for it in [own, stranger] {
            arrive(lab, &it.udp_in());
            assert!(lab.inbound().is_empty(), "{it:?}");
        }
        lab.age(10, &keys);
        arrive(lab, &stranger.udp_in());
        assert!(
            passes(lab, &stranger.udp_out()),
            "it was kept from coming in"
        );
    });
}

/// However packets of both sides are mixed: once the pod has sent a SYN, or a datagram that was steered, no
/// packet of that flow passes.
#[test]
fn nothing_forged_makes_an_own_flow_pass() {
    with_world(|lab| {
        let mut random = Random::new();
        for f in [&V4, &V6] {
            lab.name_udp_ports(address(f.web), &[53, 5060]);
            let mut own: BTreeSet<(Talk, u8)> = BTreeSet::new();
            let (mut passed, mut steered) = (0, 0);
            for _ in 0..6000 {
                let remote = *random.one_of(&[f.red.0, f.group.0, f.no_gateway]);
                let pod_port = *random.one_of(&[53, 5060, 80, 6000, 6001]);
                let remote_port = 7000 + random.next_u16() % 40;
                let it = talk(f.web, pod_port, remote, remote_port);
                let flags = *random.one_of(&[SYN, SYN, SYN | ACK, ACK, RST, RST | ACK, FIN | ACK]);
                let id = random.next_u16() % 4;
                let frame = match random.below(8) {
                    0 | 1 => {
                        arrive(lab, &it.tcp_in(flags));
                        continue;
                    }
                    2 => {
                        arrive(lab, &it.udp_in());
                        continue;
                    }
                    3 => {
                        let payload = udp(it.remote_port, it.pod_port, 24);
                        arrive(lab, &fragment(it.remote, it.pod, id, 0, true, &payload));
                        continue;
                    }
                    4 => (UDP, it.udp_out()),
                    5 => {
                        let payload = udp(it.pod_port, it.remote_port, 24);
                        (UDP, fragment(it.pod, it.remote, id, 0, true, &payload))
                    }
                    // A pod opens connections more rarely than it sends on them.
                    _ if flags == SYN && !random.once_in(8) => continue,
                    _ => (TCP, it.tcp_out(flags)),
                };
                let (protocol, frame) = frame;
                let pass = passes(lab, &frame);
                let flow = (it, protocol);
                assert!(!(pass && own.contains(&flow)), "{flow:?} went around");
                let opens = match protocol {
                    TCP => flags == SYN,
                    _ => !pass,
                };
                if opens {
                    own.insert(flow);
                }
                if pass {
                    passed += 1;
                } else {
                    steered += 1;
                }
            }
            assert!(
                passed > 50 && steered > 50,
                "{passed} passed, {steered} steered"
            );
        }
    });
}

/// Frames that no program of ours has anything to say about.
#[test]
fn strangers_pass_untouched() {
    with_world(|lab| {
        for frame in [
            Frame::raw(0x8100, &[0; 60]),
            Frame::raw(0x0800, &[0x45; 20]),
            Frame::raw(0x86dd, &[0x60; 40]),
        ] {
            arrive(lab, &frame);
        }
        assert!(lab.inbound().is_empty());
    });
}
