//! What becomes of packets that arrive where a gateway is: replies of recorded connections reach their pod.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use anyhow::ensure;
use egress_common::DropReason;
use egress_tests::{
    packets::{
        Expect::{Answered, Delivered, Drop, Sent, Untouched},
        Lab, Row, Slot,
        build::{
            Frame, GATEWAY_MAC, HOST_MAC, L3, POD_MAC, extension, fragment6, icmp,
            proto::{DESTINATION, ESP, FRAGMENT, ICMP, ICMPV6, TCP, UDP},
            tcp, udp,
        },
        mutate, run,
        seed::world,
        with_lab,
    },
    wait,
};
use egress_userspace::kernel::Program;

struct Family {
    name: &'static str,
    pod: &'static str,
    stranger: &'static str,
    remote: &'static str,
    rule: &'static str,
    router: &'static str,
    icmp: u8,
    ping: (u8, u8),
    errors: &'static [u8],
}

const V4: Family = Family {
    name: "IPv4",
    pod: "10.1.0.5",
    stranger: "10.1.0.99",
    remote: "192.0.2.7",
    rule: "192.0.2.0/24",
    router: "172.16.0.1",
    icmp: ICMP,
    ping: (8, 0),
    errors: &[3, 11, 12],
};

const V6: Family = Family {
    name: "IPv6",
    pod: "fd00::5",
    stranger: "fd00::99",
    remote: "2001:db8:1::7",
    rule: "2001:db8:1::/48",
    router: "2001:db8:ffff::1",
    icmp: ICMPV6,
    ping: (128, 129),
    errors: &[1, 2, 3, 4],
};

impl Family {
    /// A packet from the gateway to this host's MAC.
    fn back(&self, from: &str, to: &str, protocol: u8, payload: &[u8]) -> Frame {
        Frame::ip(from, to, protocol, payload).macs(HOST_MAC, GATEWAY_MAC)
    }

    /// A row that starts with a datagram from port 40000 of the pod to port 53.
    fn row(&self, name: &str) -> Row {
        self.after(name, UDP, &udp(40_000, 53, 20))
    }

    fn after(&self, name: &str, protocol: u8, payload: &[u8]) -> Row {
        Row::new(
            &format!("{}: {name}", self.name),
            Frame::ip(self.pod, self.remote, protocol, payload),
            Sent(self.rule, "red"),
        )
    }

    fn answer(&self) -> Frame {
        self.back(self.remote, self.pod, UDP, &udp(53, 40_000, 30))
    }

    /// An error from a router about a datagram of these ports.
    fn error(&self, kind: u8, quoted: &Frame) -> Frame {
        self.back(
            self.router,
            self.pod,
            self.icmp,
            &icmp(kind, 0, &quoted.bytes[L3..]),
        )
    }

    fn sent(&self, protocol: u8, payload: &[u8]) -> Frame {
        Frame::ip(self.pod, self.remote, protocol, payload)
    }
}

fn check(of: impl Fn(&Family) -> Vec<Row>) {
    let rows: Vec<Row> = [&V4, &V6].into_iter().flat_map(of).collect();
    with_lab(|lab| {
        lab.bring_to(&world());
        run(lab, &rows);
        mutate(lab, &rows, 4000);
    });
}

#[test]
fn replies_reach_their_pod() {
    check(|f| {
        let (ping, pong) = f.ping;
        let unknown = |name: &str, frame: Frame| f.row(name).back(frame, Untouched);
        vec![
            f.row("UDP").back(f.answer(), Delivered),
            f.row("UDP, answered by another interface than it left by")
                .back(f.answer(), Untouched)
                .elsewhere(),
            f.row("UDP, twice")
                .back(f.answer(), Delivered)
                .back(f.answer(), Delivered),
            f.after("TCP", TCP, &tcp(40_000, 443, &[], 0)).back(
                f.back(f.remote, f.pod, TCP, &tcp(443, 40_000, &[1; 4], 7)),
                Delivered,
            ),
            f.after("a ping", f.icmp, &icmp(ping, 77, &[0; 8])).back(
                f.back(f.remote, f.pod, f.icmp, &icmp(pong, 77, &[0; 8])),
                Delivered,
            ),
            f.after(
                "a ping's answer of another identifier",
                f.icmp,
                &icmp(ping, 77, &[]),
            )
            .back(
                f.back(f.remote, f.pod, f.icmp, &icmp(pong, 78, &[])),
                Untouched,
            ),
            f.after("a ping back", f.icmp, &icmp(ping, 77, &[])).back(
                f.back(f.remote, f.pod, f.icmp, &icmp(ping, 77, &[])),
                Untouched,
            ),
            f.after("a protocol without ports", ESP, &[9; 16])
                .back(f.back(f.remote, f.pod, ESP, &[8; 16]), Delivered),
            unknown(
                "another remote port",
                f.back(f.remote, f.pod, UDP, &udp(54, 40_000, 30)),
            ),
            unknown(
                "another port of the pod",
                f.back(f.remote, f.pod, UDP, &udp(53, 40_001, 30)),
            ),
            unknown(
                "another protocol",
                f.back(f.remote, f.pod, TCP, &tcp(53, 40_000, &[], 0)),
            ),
            unknown(
                "another remote",
                f.back(f.router, f.pod, UDP, &udp(53, 40_000, 30)),
            ),
            unknown(
                "another pod",
                f.back(f.remote, f.stranger, UDP, &udp(53, 40_000, 30)),
            ),
            unknown("half the ports", f.back(f.remote, f.pod, UDP, &[0, 53])),
            unknown(
                "ports in the padding",
                f.back(f.remote, f.pod, UDP, &[])
                    .padded(&udp(53, 40_000, 0)),
            ),
            f.row("a padded answer")
                .back(f.answer().padded(&[0; 9]), Delivered),
            f.row("TTL 2").back(f.answer().ttl(2), Delivered),
            f.row("TTL 1")
                .back(f.answer().ttl(1), Answered("", DropReason::TtlExceeded, 0)),
            f.row("TTL 0")
                .back(f.answer().ttl(0), Answered("", DropReason::TtlExceeded, 0)),
            f.row("TTL 1, unknown").back(
                f.back(f.router, f.pod, UDP, &udp(53, 40_000, 0)).ttl(1),
                Untouched,
            ),
        ]
    });
}

#[test]
fn errors_reach_the_pod_that_they_are_for() {
    check(|f| {
        let (ping, _) = f.ping;
        let datagram = || f.sent(UDP, &udp(40_000, 53, 20));
        let kind = f.errors[0];
        let mut rows: Vec<Row> = f
            .errors
            .iter()
            .map(|kind| {
                f.row(&format!("error {kind}"))
                    .back(f.error(*kind, &datagram()), Delivered)
            })
            .collect();
        rows.extend([
            f.after("about a ping", f.icmp, &icmp(ping, 77, &[])).back(
                f.error(kind, &f.sent(f.icmp, &icmp(ping, 77, &[]))),
                Delivered,
            ),
            f.after("about TCP", TCP, &tcp(40_000, 443, &[], 0)).back(
                f.error(kind, &f.sent(TCP, &tcp(40_000, 443, &[], 0)[..8])),
                Delivered,
            ),
            f.row("about another port")
                .back(f.error(kind, &f.sent(UDP, &udp(40_001, 53, 20))), Untouched),
            f.row("about another remote").back(
                f.error(kind, &Frame::ip(f.pod, f.router, UDP, &udp(40_000, 53, 20))),
                Untouched,
            ),
            f.row("about somebody else's packet").back(
                f.error(
                    kind,
                    &Frame::ip(f.stranger, f.remote, UDP, &udp(40_000, 53, 20)),
                ),
                Untouched,
            ),
            f.row("about a reply").back(
                f.error(kind, &Frame::ip(f.remote, f.pod, UDP, &udp(53, 40_000, 20))),
                Untouched,
            ),
            f.row("to somebody else").back(
                f.back(
                    f.router,
                    f.stranger,
                    f.icmp,
                    &icmp(kind, 0, &datagram().bytes[L3..]),
                ),
                Untouched,
            ),
            f.row("quoting nothing").back(
                f.back(f.router, f.pod, f.icmp, &icmp(kind, 0, &[])),
                Untouched,
            ),
            f.row("quoting half the ports")
                .back(f.error(kind, &f.sent(UDP, &[0x9c, 0x40])), Untouched),
            f.row("quoting another version")
                .back(f.error(kind, &datagram().set(L3, &[0x50])), Untouched),
            f.row("that expires here").back(
                f.error(kind, &datagram()).ttl(1),
                Drop("", DropReason::TtlExceeded),
            ),
        ]);
        rows
    });
}

/// What the pod's own side of a veth would drop, and nobody would be told.
#[test]
fn replies_larger_than_the_pods_interface_takes() {
    const MTU: u32 = 1400;
    const TOO_BIG: DropReason = DropReason::TooBig;
    check(|f| {
        let (header, segment, other) = if f.icmp == ICMP {
            (20, 1356, "10.1.0.6")
        } else {
            (40, 1336, "fd00::6")
        };
        let sized = |size: usize| {
            let payload = udp(53, 40_000, size - header - 8);
            f.back(f.remote, f.pod, UDP, &payload)
        };
        let whole = |frame: Frame| match f.icmp {
            ICMP => frame.set(L3 + 6, &[0x40, 0]),
            _ => frame,
        };
        let row = |name: &str| f.row(name).narrow(f.pod, MTU);
        let segments = tcp(443, 40_000, &[1; 4], 2 * (1400 - header - 24));
        let aggregate = || f.back(f.remote, f.pod, TCP, &segments);
        let opened = |name: &str| {
            f.after(name, TCP, &tcp(40_000, 443, &[], 0))
                .narrow(f.pod, MTU)
        };
        let mut rows = vec![
            row("it fits").back(whole(sized(1400)), Delivered),
            row("too long by one").back(whole(sized(1401)), Answered("", TOO_BIG, MTU)),
            row("a long error").back(
                f.error(f.errors[0], &f.sent(UDP, &udp(40_000, 53, 1400))),
                Drop("", TOO_BIG),
            ),
            row("a frame that is too long with its padding")
                .back(sized(1400).padded(&[0; 3]), Drop("", TOO_BIG))
                .counted(1, 1400),
            f.row("of another pod's interface")
                .narrow(other, MTU)
                .back(whole(sized(1401)), Delivered),
            opened("segments that fit")
                .back(aggregate(), Delivered)
                .gso(segment, 2),
            opened("segments that are too long")
                .back(whole(aggregate()), Answered("", TOO_BIG, MTU))
                .gso(segment + 1, 2)
                .counted(2, 2 * 1400),
        ];
        if f.icmp == ICMP {
            let row = row("too long, and may be fragmented");
            rows.push(row.back(sized(1401), Drop("", TOO_BIG)));
        }
        rows
    });
}

#[test]
fn errors_about_packets_with_options() {
    let options = Frame::v4(
        [10, 1, 0, 5].into(),
        [192, 0, 2, 7].into(),
        &[1; 12],
        UDP,
        &udp(40_000, 53, 20),
    );
    let later = V4.sent(UDP, &udp(40_000, 53, 20)).fragment(1, 3, false);
    let rows = [
        V4.row("quoted options")
            .back(V4.error(3, &options), Delivered),
        V4.row("a quoted later fragment")
            .back(V4.error(3, &later), Untouched),
        V6.row("options before the error").back(
            V6.back(
                V6.router,
                V6.pod,
                DESTINATION,
                &extension(
                    ICMPV6,
                    0,
                    &icmp(1, 0, &V6.sent(UDP, &udp(40_000, 53, 20)).bytes[L3..]),
                ),
            ),
            Delivered,
        ),
    ];
    with_lab(|lab| {
        lab.bring_to(&world());
        run(lab, &rows);
        mutate(lab, &rows, 2000);
    });
}

#[test]
fn fragments_of_replies() {
    let first4 = |id| V4.answer().fragment(id, 0, true);
    let later4 = |id, offset| {
        V4.back(V4.remote, V4.pod, UDP, &[0xab; 24])
            .fragment(id, offset, false)
    };
    let fragment = |id, offset, more, payload: &[u8]| {
        let payload = fragment6(UDP, id, offset, more, payload);
        V6.back(V6.remote, V6.pod, FRAGMENT, &payload)
    };
    let first6 = |id| fragment(id, 0, true, &udp(53, 40_000, 16));
    let later6 = |id| fragment(id, 3, false, &[0xab; 24]);
    let rows = [
        V4.row("in order")
            .back(first4(9), Delivered)
            .back(later4(9, 4), Delivered),
        V4.row("not in order")
            .back(later4(9, 4), Untouched)
            .back(first4(9), Delivered)
            .back(later4(9, 4), Delivered),
        V4.row("another datagram")
            .back(first4(9), Delivered)
            .back(later4(10, 4), Untouched),
        V4.row("a first fragment of nobody's")
            .back(
                V4.back(V4.remote, V4.pod, UDP, &udp(1, 2, 24))
                    .fragment(9, 0, true),
                Untouched,
            )
            .back(later4(9, 4), Untouched),
        V4.row("a later fragment that expires")
            .back(first4(9), Delivered)
            .back(later4(9, 4).ttl(1), Drop("", DropReason::TtlExceeded)),
        V6.row("in order")
            .back(first6(9), Delivered)
            .back(later6(9), Delivered),
        V6.row("not in order")
            .back(later6(9), Untouched)
            .back(first6(9), Delivered)
            .back(later6(9), Delivered),
        V6.row("another datagram")
            .back(first6(0x0001_0009), Delivered)
            .back(later6(0x0002_0009), Untouched),
        V6.row("an atomic fragment is remembered for nobody")
            .back(fragment(9, 0, false, &udp(53, 40_000, 16)), Delivered)
            .back(later6(9), Untouched),
    ];
    with_lab(|lab| {
        lab.bring_to(&world());
        run(lab, &rows);
        mutate(lab, &rows, 2000);
    });
}

#[test]
fn frames_that_are_not_ours() {
    check(|f| {
        let answer = f.answer().bytes;
        let behind = |head: &[u8]| [head, &answer[12..]].concat();
        let to = |mac: [u8; 6]| f.answer().macs(mac, GATEWAY_MAC);
        let raw = |ethertype: u16, payload: &[u8]| {
            Frame::raw(ethertype, payload).macs(HOST_MAC, GATEWAY_MAC)
        };
        vec![
            f.row("to another host's MAC").back(to(POD_MAC), Untouched),
            f.row("to every MAC").back(to([0xff; 6]), Untouched),
            f.row("to a group's MAC")
                .back(to([0x33, 0x33, 0, 0, 0, 1]), Untouched),
            f.row("802.1Q")
                .back(raw(0x8100, &behind(&[0, 7])), Untouched),
            f.row("ARP").back(raw(0x0806, &[0; 46]), Untouched),
            f.row("MPLS")
                .back(raw(0x8847, &behind(&[0, 0, 0x11, 0x40])), Untouched),
            f.row("a bad version")
                .back(f.answer().set(L3, &[0x75]), Untouched),
        ]
    });
}

/// A tag that names no VLAN says a frame's priority alone.
#[test]
fn frames_with_a_tag() {
    with_lab(|lab| {
        lab.bring_to(&world());
        let wire = lab.connect_uplink(Program::FromGateway).unwrap();
        for f in [&V4, &V6] {
            run(lab, &[f.row("a connection")]);
            // What is looked at and cannot live for another hop is counted, what is not ours is not.
            for (tag, counted) in [(7_u16, 0), (0, 1), (0xe000, 1)] {
                let mut bytes = f.answer().ttl(1).bytes;
                let [high, low] = tag.to_be_bytes();
                bytes.splice(12..12, [0x81, 0, high, low]);
                let mut seen = 0;
                for _ in 0..2 {
                    wire.send(&bytes).unwrap();
                    // Behind it, one without a tag: then it was looked at.
                    wire.send(&f.answer().ttl(1).bytes).unwrap();
                }
                wait::until("the frames were looked at", || {
                    seen += expired(lab);
                    ensure!(seen >= 2 + 2 * counted, "{} {tag:#x}: {seen}", f.name);
                    Ok(())
                })
                .unwrap();
                assert_eq!(seen, 2 + 2 * counted, "{} {tag:#x}", f.name);
            }
        }
    });
}

/// How many packets could not live for another hop, since it was last asked.
fn expired(lab: &mut Lab) -> u64 {
    let slot = Slot::Drop(String::new(), DropReason::TtlExceeded);
    lab.moved().get(&slot).map_or(0, |(packets, _)| *packets)
}
