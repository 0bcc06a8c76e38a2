//! A flood of a million flows, of whoever, breaks no connection of another pod, also none that is idle.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use std::net::IpAddr;

use egress_common::{
    Addr, DropReason, WireU16,
    counter::PassKind,
    keys::ReplyKey,
    pod::FLOW_SECONDS,
    table::{self, life},
};
use egress_tests::packets::{
    Action, Input, Lab, Slot,
    build::{
        Frame, GATEWAY_MAC, HOST_MAC, L3, POD_MAC, address,
        flag::{ACK, FIN, SYN},
        fragment6, icmp,
        proto::{FRAGMENT, ICMP, ICMPV6, TCP, UDP},
        segment, udp,
    },
    flood::Varied,
    nat::{self, Fate, datagram, delivered, forwarded, message, with_node},
    seed::{self, UPLINK, gateway, resolved, rule, via},
    with_lab,
};
use egress_userspace::{kernel::Program, resolve};

/// Flows of a flood, of all its kinds together.
const FLOOD: u32 = 1_000_000;
/// Connections of each kind that a flood must not break: some hundreds in all.
const CONNECTIONS: u16 = 50;

/// Connections that a source may have here.
const QUOTA: u32 = 256;

/// The same places in one family.
struct Family {
    /// The pod that has connections, and the one that floods.
    pods: [&'static str; 2],
    /// The far end.
    far: &'static str,
    /// ICMP's protocol number, and the types of an echo request and its reply.
    icmp: (u8, u8, u8),
    /// Where in a frame the far end's last byte but one as a destination is, and the header above IP.
    at: (usize, usize),
}

const V4: Family = Family {
    pods: ["10.1.0.5", "10.1.0.6"],
    far: "198.51.100.7",
    icmp: (ICMP, 8, 0),
    at: (L3 + 19, L3 + 20),
};

const V6: Family = Family {
    pods: ["fd00::5", "fd00::6"],
    far: "2001:db8:2::7",
    icmp: (ICMPV6, 128, 129),
    at: (L3 + 39, L3 + 40),
};

impl Family {
    fn fragment(&self, from: usize, id: u16, offset: u16, more: bool, payload: &[u8]) -> Frame {
        let (pod, far) = (self.pods[from], self.far);
        if address(pod).is_ipv4() {
            Frame::ip(pod, far, UDP, payload).fragment(id, offset, more)
        } else {
            let payload = fragment6(UDP, id.into(), offset, more, payload);
            Frame::ip(pod, far, FRAGMENT, &payload)
        }
    }

    /// The flood of a pod: what it sends, and what tells its packets apart.
    fn flood(&self) -> [(Frame, Varied); 4] {
        let (pod, far) = (self.pods[1], self.far);
        let (high, l4) = self.at;
        let (icmp_, ping, _) = self.icmp;
        let at = |low| Varied::once(low, high);
        let id = if l4 == L3 + 20 { L3 + 4 } else { l4 + 6 };
        [
            (
                Frame::ip(pod, far, TCP, &segment(0, 443, SYN, 1, 0)),
                at(l4),
            ),
            (Frame::ip(pod, far, UDP, &udp(0, 53, 4)), at(l4)),
            (
                Frame::ip(pod, far, icmp_, &icmp(ping, 0, &[0; 8])),
                at(l4 + 4),
            ),
            (self.fragment(1, 0, 0, true, &udp(9, 53, 24)), at(id)),
        ]
    }

    /// The third packet of a connection of TCP.
    fn acknowledgment(&self, number: u16) -> Frame {
        let payload = segment(20_000 + number, 443, ACK, 2, 0);
        Frame::ip(self.pods[0], self.far, TCP, &payload)
    }

    /// Packets that a pod begins its connections with, from its `number`th port, and the replies.
    fn connections(&self, number: u16) -> [(Frame, Frame); 3] {
        let (pod, far) = (self.pods[0], self.far);
        let (icmp_, ping, pong) = self.icmp;
        let port = 20_000 + number;
        let back = |protocol, payload: &[u8]| {
            Frame::ip(far, pod, protocol, payload).macs(HOST_MAC, GATEWAY_MAC)
        };
        [
            (
                Frame::ip(pod, far, TCP, &segment(port, 443, SYN, 1, 0)),
                back(TCP, &segment(443, port, SYN | ACK, 1, 0)),
            ),
            (
                Frame::ip(pod, far, UDP, &udp(port, 53, 4)),
                back(UDP, &udp(53, port, 4)),
            ),
            (
                Frame::ip(pod, far, icmp_, &icmp(ping, port, &[0; 8])),
                back(icmp_, &icmp(pong, port, &[0; 8])),
            ),
        ]
    }
}

/// Both pods go through these gateways, with whatever they send.
fn through(names: &[&str]) -> resolve::Resolved {
    let group = || {
        let gateways = names.iter().zip(1..).map(|(name, last)| {
            let hops = [format!("192.168.9.{last}"), format!("fd09::{last}")];
            gateway(name, 1, 1500, &[&hops[0], &hops[1]])
        });
        let rules = vec![rule("", via(gateways.collect()))];
        resolve::Fate::Rules(rules.into())
    };
    resolved(
        &[],
        [("web", 5, group(), "main"), ("batch", 6, group(), "main")],
    )
}

/// The gateway that a pod's packet leaves by.
fn sent(lab: &mut Lab, frame: &Frame) -> String {
    let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
    let moved: Vec<Slot> = lab.moved().into_keys().collect();
    match (seen.action, &moved[..]) {
        (Action::Redirect, [Slot::Member(_, _, gateway)]) => gateway.clone(),
        other => panic!("not sent but {other:?}"),
    }
}

fn is_delivered(lab: &mut Lab, frame: &Frame) -> bool {
    let input = Input {
        program: Program::FromGateway,
        ifindex: UPLINK,
        ..Input::from_pod(&frame.bytes)
    };
    let seen = lab.run(&input).unwrap();
    seen.action == Action::Redirect
}

/// Recorded replies, flows that stay on their gateway, and datagrams in fragments, through a group of next hops.
#[test]
fn of_a_pod_break_nobodys_connections() {
    with_lab(|lab| {
        lab.bring_to(&through(&["red", "blue"]));
        let mut known = Vec::new();
        for family in [&V4, &V6] {
            for number in 0..CONNECTIONS {
                for (out, back) in family.connections(number) {
                    let gateway = sent(lab, &out);
                    assert!(is_delivered(lab, &back));
                    known.push((out, back, gateway));
                }
                sent(lab, &family.acknowledgment(number));
            }
        }
        lab.idle(FLOW_SECONDS - 60);
        let firsts: Vec<(Frame, String)> = [&V4, &V6]
            .into_iter()
            .flat_map(|family| (0..20).map(move |id| (family, id)))
            .map(|(family, id)| {
                let gateway = sent(lab, &family.fragment(0, id, 0, true, &udp(id, 53, 24)));
                (family.fragment(0, id, 4, false, &[7; 16]), gateway)
            })
            .collect();
        for (frame, varied) in [&V4, &V6].into_iter().flat_map(Family::flood) {
            lab.flood(&Input::from_pod(&frame.bytes), varied, FLOOD / 8);
        }
        for (later, gateway) in &firsts {
            assert_eq!(&sent(lab, later), gateway, "a later fragment");
        }
        // What is new goes elsewhere more often than not.
        lab.bring_to(&through(&["red", "blue", "green", "gold", "grey", "pink"]));
        let hold = |lab: &mut Lab, when: &str| {
            for (_, back, _) in &known {
                assert!(is_delivered(lab, back), "{when}: a reply to a silent pod");
            }
            for (out, _, gateway) in &known {
                assert_eq!(&sent(lab, out), gateway, "{when}: it stays on its gateway");
            }
        };
        hold(lab, "new flows");
        hold(lab, "they are in use");
        // Of flows that seem to be in use, since each has two packets.
        for family in [&V4, &V6] {
            let [_, (datagram, varied), ..] = family.flood();
            lab.flood(
                &Input::from_pod(&datagram.bytes),
                varied.twice(),
                FLOOD / 16,
            );
        }
        hold(lab, "flows in use");
        // And who opens a connection now gets replies too.
        for family in [&V4, &V6] {
            for number in CONNECTIONS..2 * CONNECTIONS {
                for (out, back) in family.connections(number) {
                    sent(lab, &out);
                    assert!(is_delivered(lab, &back));
                }
            }
        }
    });
}

fn passes(lab: &mut Lab, frame: &Frame) -> bool {
    let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
    let moved: Vec<Slot> = lab.moved().into_keys().collect();
    seen.action == Action::Pass && matches!(&moved[..], [Slot::Pass(_, PassKind::Inbound)])
}

fn arrive(lab: &mut Lab, frame: &Frame) {
    lab.run(&Input::to_pod(&frame.bytes)).unwrap();
}

/// Connections of TCP and UDP that came in to the first pod: what comes in, and what answers.
fn inbound(family: &Family, number: u16) -> [(Frame, Frame); 2] {
    let (pod, far) = (family.pods[0], family.far);
    let port = 30_000 + number;
    [
        (
            Frame::ip(far, pod, TCP, &segment(port, 80, SYN, 1, 0)),
            Frame::ip(pod, far, TCP, &segment(80, port, ACK, 2, 0)),
        ),
        (
            Frame::ip(far, pod, UDP, &udp(port, 53, 4)),
            Frame::ip(pod, far, UDP, &udp(53, port, 4)),
        ),
    ]
}

/// Opens connections to the first pod, of which those of TCP are accepted.
fn open_inbound(lab: &mut Lab, numbers: std::ops::Range<u16>) -> Vec<(Frame, Frame)> {
    let mut known = Vec::new();
    for family in [&V4, &V6] {
        for number in numbers.clone() {
            for (came, answer) in inbound(family, number) {
                arrive(lab, &came);
                if protocol(family, &came) == TCP {
                    let port = 30_000 + number;
                    let payload = segment(80, port, SYN | ACK, 1, 0);
                    let accept = Frame::ip(family.pods[0], family.far, TCP, &payload);
                    assert!(passes(lab, &accept), "it may be accepted");
                }
                assert!(passes(lab, &answer), "it may be answered");
                known.push((came, answer));
            }
        }
    }
    known
}

fn protocol(family: &Family, frame: &Frame) -> u8 {
    frame.bytes[if family.at.1 == L3 + 20 {
        L3 + 9
    } else {
        L3 + 6
    }]
}

/// From outside, to another pod and to the very same one, and of a pod's own connections.
#[test]
fn of_anybody_break_no_connection_that_came_in() {
    with_lab(|lab| {
        lab.bring_to(&through(&["red", "blue"]));
        for family in [&V4, &V6] {
            for pod in family.pods {
                lab.name_udp_ports(address(pod), &[53]);
            }
        }
        let known = open_inbound(lab, 0..CONNECTIONS);
        lab.idle(FLOW_SECONDS - 60);
        for family in [&V4, &V6] {
            let (destination, l4) = family.at;
            // An address is followed by another one.
            let address = if l4 == L3 + 20 { 4 } else { 16 };
            let varied = Varied::once(l4, destination - address);
            for (pod, share) in [(family.pods[1], 6), (family.pods[0], 12)] {
                let syn = Frame::ip(family.far, pod, TCP, &segment(0, 80, SYN, 1, 0));
                lab.flood(&Input::to_pod(&syn.bytes), varied, FLOOD / share);
                let datagram = Frame::ip(family.far, family.pods[1], UDP, &udp(0, 53, 4));
                lab.flood(&Input::to_pod(&datagram.bytes), varied, FLOOD / 12);
            }
            // Its own, so many that it may have begun any.
            let (frame, varied) = family.flood()[0].clone();
            lab.flood(&Input::from_pod(&frame.bytes), varied, FLOOD / 12);
        }
        for (came, answer) in &known {
            assert!(passes(lab, answer), "{answer:?} after {came:?}");
        }
        open_inbound(lab, CONNECTIONS..2 * CONNECTIONS);
    });
}

/// Connections that this node translates: a source has a quota of them.
#[test]
fn of_a_pod_break_no_translated_connection() {
    with_node(|node| {
        node.set_all(QUOTA, 600);
        let mut known = Vec::new();
        for p in [&nat::V4, &nat::V6] {
            for port in 20_000..20_000 + CONNECTIONS {
                let out = datagram((p.pod, port), (p.remote, 53), 8);
                let sent = forwarded(&datagram((p.alpha, port), (p.remote, 53), 8));
                node.out("a connection", &out, Fate::Out(sent));
                let back = datagram((p.remote, 53), (p.alpha, port), 8);
                let home = delivered(&datagram((p.remote, 53), (p.pod, port), 8));
                node.back("its reply", &back, Fate::Home(home.clone()));
                known.push((back, home));
            }
        }
        for (p, family) in [(&nat::V4, &V4), (&nat::V6, &V6)] {
            let (high, l4) = family.at;
            for (frame, low) in [
                (datagram((p.other, 0), (p.remote, 53), 8), l4),
                (nat::segment((p.other, 0), (p.remote, 443), SYN), l4),
                (message(p.other, p.remote, p.ping, 0, &[0; 8]), l4 + 4),
            ] {
                let input = Input::from_pod(&frame.bytes);
                node.flood(&input, Varied::once(low, high), FLOOD / 6);
            }
        }
        for (back, home) in known {
            node.back("a reply to a pod that was silent", &back, Fate::Home(home));
        }
    });
}

/// The bucket of a connection from this port of a pod's to one of the far end's, of a table that has so many.
fn bucket(pod: IpAddr, protocol: u8, port: u16, buckets: u32) -> u32 {
    let key = ReplyKey {
        remote: address(V4.far).into(),
        pod: Addr::from(pod),
        remote_port: WireU16::new(port),
        pod_port: WireU16::new(40_000),
        protocol,
        pad: [0; 3],
    };
    table::bucket(table::hash(&key.words()), buckets)
}

/// Far ends of connections of TCP from one port of these pods that meet in one bucket, of which a table has so many.
fn neighbours(pods: &[IpAddr], buckets: u32) -> Vec<(IpAddr, u16)> {
    let place = bucket(pods[0], TCP, 443, buckets);
    let meet = |pod: &IpAddr| {
        let port = (1..u16::MAX).find(|port| bucket(*pod, TCP, *port, buckets) == place);
        (*pod, port.unwrap())
    };
    pods.iter().map(meet).collect()
}

/// Who fills a bucket with flows that are in use gives its own up for the next one, not another's that are new.
#[test]
fn of_flows_in_use_take_no_places_of_new_ones() {
    with_lab(|lab| {
        lab.bring_to(&through(&["red"]));
        let buckets = lab.reply_buckets();
        let place = bucket(address(V4.pods[0]), UDP, 53, buckets);
        let meet = |of: usize| {
            let pod = V4.pods[of];
            let ports = (53..=u16::MAX)
                .filter(move |port| bucket(address(pod), UDP, *port, buckets) == place);
            ports.map(move |port| {
                let out = Frame::ip(pod, V4.far, UDP, &udp(40_000, port, 4));
                let back = Frame::ip(V4.far, pod, UDP, &udp(port, 40_000, 4));
                (out, back.macs(HOST_MAC, GATEWAY_MAC))
            })
        };
        let new: Vec<_> = meet(0).take(2).collect();
        assert_eq!(new.len(), 2);
        for (out, _) in &new {
            sent(lab, out);
        }
        let flood: Vec<_> = meet(1).collect();
        assert!(flood.len() > table::WAYS, "{}", flood.len());
        for (out, _) in &flood {
            sent(lab, out);
            sent(lab, out);
        }
        for (_, back) in &new {
            assert!(is_delivered(lab, back), "{back:?}");
        }
        // It was a flood: most of its own replies find nobody.
        let kept = flood.iter().filter(|(_, back)| is_delivered(lab, back));
        assert_eq!(kept.count(), table::WAYS - new.len());
    });
}

/// What a busy connection does anew is noted in the same second in which it was noted before.
#[test]
fn busy_connections_are_noted_when_they_change() {
    with_lab(|lab| {
        lab.bring_to(&through(&["red"]));
        for family in [&V4, &V6] {
            let (pod, far) = (family.pods[0], family.far);
            let out = |flags| Frame::ip(pod, far, TCP, &segment(20_000, 443, flags, 2, 0));
            sent(lab, &out(SYN));
            let path = |lab: &Lab| lab.replies().into_values().next().unwrap();
            let settle = |lab: &mut Lab, mac: [u8; 6]| {
                for _ in 0..3 {
                    sent(lab, &out(ACK).macs(HOST_MAC, mac));
                    assert_eq!(path(lab).pod_mac.0, mac, "the MAC that the pod has now");
                }
            };
            settle(lab, [2, 0, 0, 0, 0, 0x77]);
            settle(lab, POD_MAC);
            assert_eq!(lab.replies().len(), 1);
            sent(lab, &out(FIN | ACK));
            sent(lab, &out(ACK));
            // Closed, it does not live for as long as one that is in use.
            lab.idle(life::HALF_TCP);
            assert_eq!(lab.live_replies(), 0);
            sent(lab, &out(SYN));
            lab.forget();
        }
    });
}

/// Where others have all places, and none of them more than its share, a connection is refused rather than one of
/// theirs broken; what has ended makes room.
#[test]
fn a_bucket_of_others_is_full() {
    with_lab(|lab| {
        let names: Vec<String> = (0..=table::WAYS).map(|pod| format!("pod-{pod}")).collect();
        let pods = names.iter().zip(10..).map(|(name, last)| {
            let red = via(vec![gateway("red", 1, 1500, &["192.168.9.1"])]);
            let fate = resolve::Fate::Rules(vec![rule("", red)].into());
            (name.as_str(), last, fate, "main")
        });
        lab.bring_to(&resolved(&[], pods));
        let addresses: Vec<IpAddr> = (10..)
            .take(names.len())
            .map(|last| seed::addresses(last)[0])
            .collect();
        let met = neighbours(&addresses, lab.reply_buckets());
        let frame = |(pod, port): (IpAddr, u16), flags| {
            let payload = segment(40_000, port, flags, 1, 0);
            Frame::ip(&pod.to_string(), V4.far, TCP, &payload)
        };
        let (last, others) = met.split_last().unwrap();
        for it in others {
            sent(lab, &frame(*it, SYN));
            sent(lab, &frame(*it, ACK));
        }
        let refused = Slot::Drop("main".to_owned(), DropReason::FlowsExhausted);
        let seen = lab.run(&Input::from_pod(&frame(*last, SYN).bytes)).unwrap();
        assert_eq!(seen.action, Action::Drop);
        assert_eq!(lab.moved().into_keys().collect::<Vec<_>>(), [refused]);
        lab.idle(life::TCP);
        sent(lab, &frame(*last, SYN));
    });
}
