//! How connections change, end, and make room.

#![expect(
    clippy::unwrap_used,
    clippy::type_complexity,
    reason = "a test may fail loudly, and rows are tuples"
)]

use egress_common::{
    DropReason::{NatExhausted, NatNoState, SourceQuota},
    WireU16,
    nat::{
        NatBack, NatBackKey,
        NatState::{
            self, Icmp, TcpClose, TcpCloseWait, TcpEstablished, TcpFinWait, TcpLastAck, TcpSynRecv,
            TcpSynSent, TcpTimeWait, Udp, UdpStream,
        },
    },
};
use egress_tests::packets::{
    Action, Input,
    build::proto,
    nat::{
        ALPHA,
        Fate::{Dropped, Home, Out},
        Node, Places, addr, datagram, delivered, forwarded, in_both, message, on_uplink, port,
        segment, timeout, with_node,
    },
};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Who sends a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Pod,
    Remote,
}
use Sender::{Pod, Remote};

fn send(node: &mut Node<'_>, p: &Places, from: Sender, flags: u8) {
    let (pod, remote, alpha) = ((p.pod, 40_000), (p.remote, 443), (p.alpha, 40_000));
    let what = format!("{}: {from:?} {flags:#x}", p.name);
    match from {
        Pod => node.out(
            &what,
            &segment(pod, remote, flags),
            Out(forwarded(&segment(alpha, remote, flags))),
        ),
        Remote => node.back(
            &what,
            &segment(remote, alpha, flags),
            Home(delivered(&segment(remote, pod, flags))),
        ),
    }
}

#[test]
fn tcp_from_state_to_state() {
    let open: &[(Sender, u8, NatState)] = &[
        (Pod, SYN, TcpSynSent),
        (Pod, SYN, TcpSynSent),
        (Remote, SYN | ACK, TcpSynRecv),
        (Pod, ACK, TcpEstablished),
        (Remote, ACK, TcpEstablished),
    ];
    let walks: &[(&str, &[(Sender, u8, NatState)])] = &[
        (
            "the pod closes first",
            &[
                (Pod, FIN | ACK, TcpFinWait),
                (Remote, ACK, TcpFinWait),
                (Remote, FIN | ACK, TcpLastAck),
                (Pod, ACK, TcpTimeWait),
                (Remote, FIN | ACK, TcpTimeWait),
                (Pod, SYN, TcpSynSent),
                (Remote, SYN | ACK, TcpSynRecv),
            ],
        ),
        (
            "the far end closes first",
            &[
                (Remote, FIN | ACK, TcpCloseWait),
                (Pod, ACK, TcpEstablished),
                (Remote, ACK, TcpEstablished),
                (Pod, FIN | ACK, TcpFinWait),
                (Remote, ACK, TcpFinWait),
                (Remote, FIN | ACK, TcpLastAck),
                (Pod, ACK, TcpTimeWait),
            ],
        ),
        (
            "the far end closes first, and the pod with its next packet",
            &[
                (Remote, FIN | ACK, TcpCloseWait),
                (Pod, FIN | ACK, TcpLastAck),
                (Remote, ACK, TcpTimeWait),
            ],
        ),
        (
            "a FIN from outside that the pod does not believe",
            &[
                (Remote, FIN, TcpCloseWait),
                (Remote, ACK, TcpCloseWait),
                (Pod, SYN | ACK, TcpCloseWait),
                (Pod, ACK, TcpEstablished),
                (Remote, ACK, TcpEstablished),
            ],
        ),
        (
            "the pod uses its port again after its FIN alone",
            &[
                (Pod, FIN | ACK, TcpFinWait),
                (Pod, SYN | ACK, TcpFinWait),
                (Pod, ACK, TcpFinWait),
                (Pod, SYN, TcpSynSent),
                (Remote, SYN | ACK, TcpSynRecv),
            ],
        ),
        (
            "the pod uses its port again after the far end's FIN alone",
            &[
                (Remote, FIN | ACK, TcpCloseWait),
                (Pod, SYN, TcpSynSent),
                (Remote, SYN | ACK, TcpSynRecv),
            ],
        ),
        (
            "the pod uses its port again before the last ACK",
            &[
                (Pod, FIN | ACK, TcpFinWait),
                (Remote, FIN | ACK, TcpLastAck),
                (Pod, SYN, TcpSynSent),
            ],
        ),
        (
            "the pod resets",
            &[(Pod, RST, TcpClose), (Pod, SYN, TcpSynSent)],
        ),
        (
            "a reset from outside that the pod does not believe",
            &[
                (Remote, RST, TcpClose),
                (Remote, ACK, TcpClose),
                (Pod, ACK, TcpEstablished),
                (Remote, ACK, TcpEstablished),
            ],
        ),
        (
            "a reset from outside, then the pod closes",
            &[(Remote, RST | ACK, TcpClose), (Pod, FIN | ACK, TcpFinWait)],
        ),
        (
            "SYNs that mean nothing",
            &[
                (Pod, SYN, TcpEstablished),
                (Remote, SYN, TcpEstablished),
                (Remote, SYN | ACK, TcpEstablished),
            ],
        ),
    ];
    in_both(|node, p| {
        for (walk, steps) in walks {
            node.reset();
            for (from, flags, state) in open.iter().chain(*steps) {
                send(node, p, *from, *flags);
                assert_eq!(node.states(), [*state], "{walk}: after {from:?} {flags:#x}");
            }
        }
        let others: &[(&str, &[(Sender, u8, NatState)])] = &[
            (
                "from the middle",
                &[(Pod, ACK, TcpSynSent), (Remote, ACK, TcpEstablished)],
            ),
            (
                "both open at once",
                &[
                    (Pod, SYN, TcpSynSent),
                    (Remote, SYN, TcpSynRecv),
                    (Pod, ACK, TcpEstablished),
                ],
            ),
            (
                "refused",
                &[(Pod, SYN, TcpSynSent), (Remote, RST | ACK, TcpClose)],
            ),
        ];
        for (walk, steps) in others {
            node.reset();
            for (from, flags, state) in *steps {
                send(node, p, *from, *flags);
                assert_eq!(node.states(), [*state], "{walk}: after {from:?} {flags:#x}");
            }
        }
    });
}

#[test]
fn datagrams_and_pings() {
    in_both(|node, p| {
        let out = datagram((p.pod, 40_000), (p.remote, 53), 4);
        let back = datagram((p.remote, 53), (p.alpha, 40_000), 4);
        let run = |node: &mut Node<'_>, input: &Input| {
            let (seen, _) = node.run_quietly("datagram", input);
            assert_eq!(seen.action, Action::Redirect);
        };
        run(node, &Input::from_pod(&out.bytes));
        assert_eq!(node.states(), [Udp]);
        run(node, &on_uplink(&back));
        assert_eq!(node.states(), [UdpStream]);
        run(node, &Input::from_pod(&out.bytes));
        assert_eq!(node.states(), [UdpStream]);
        node.reset();
        let ping = message(p.pod, p.remote, p.ping, 7777, b"x");
        run(node, &Input::from_pod(&ping.bytes));
        assert_eq!(node.states(), [Icmp]);
        run(
            node,
            &on_uplink(&message(p.remote, p.alpha, p.pong, 7777, b"x")),
        );
        assert_eq!(node.states(), [Icmp]);
    });
}

#[test]
fn each_state_has_its_time() {
    let walks: &[(NatState, &[(Sender, u8)])] = &[
        (TcpSynSent, &[(Pod, SYN)]),
        (TcpSynRecv, &[(Pod, SYN), (Remote, SYN | ACK)]),
        (TcpEstablished, &[(Pod, ACK), (Remote, ACK)]),
        (TcpFinWait, &[(Pod, ACK), (Pod, FIN | ACK)]),
        (TcpCloseWait, &[(Pod, ACK), (Remote, FIN | ACK)]),
        (TcpLastAck, &[(Pod, FIN | ACK), (Remote, FIN | ACK)]),
        (
            TcpTimeWait,
            &[(Pod, FIN | ACK), (Remote, FIN | ACK), (Pod, ACK)],
        ),
        (TcpClose, &[(Pod, SYN), (Remote, RST | ACK)]),
    ];
    in_both(|node, p| {
        for (state, steps) in walks {
            node.reset();
            for (from, flags) in *steps {
                send(node, p, *from, *flags);
            }
            assert_eq!(node.states(), [*state]);
            node.age(timeout(*state) - 1);
            let keys: Vec<_> = node.all_backs().into_iter().map(|(key, _)| key).collect();
            assert_eq!(node.sweep(&keys), 0, "{state:?}: too early");
            assert_eq!(node.states(), [*state]);
            node.age(1);
            node.back(
                &format!("{state:?}: an answer to what has ended"),
                &segment((p.remote, 443), (p.alpha, 40_000), ACK),
                Dropped(NatNoState),
            );
            assert_eq!(node.states(), [*state], "looking does not remove");
            assert_eq!(node.sweep(&keys), 1, "{state:?}");
            assert!(node.states().is_empty());
            assert_eq!(node.sources.keys().count(), 0, "the source is forgotten");
        }
    });
}

#[test]
fn an_ended_connection_is_made_anew() {
    in_both(|node, p| {
        send(node, p, Pod, ACK);
        send(node, p, Remote, ACK);
        node.age(timeout(TcpEstablished));
        node.out(
            "a reset for what has ended",
            &segment((p.pod, 40_000), (p.remote, 443), RST),
            Dropped(NatNoState),
        );
        assert!(node.states().is_empty(), "both halves are gone");
        send(node, p, Pod, ACK);
        send(node, p, Remote, ACK);
        node.age(timeout(TcpEstablished));
        send(node, p, Pod, SYN);
        assert_eq!(node.states(), [TcpSynSent]);
    });
}

#[test]
fn either_half_keeps_a_connection() {
    in_both(|node, p| {
        for quiet in [Pod, Remote] {
            node.reset();
            send(node, p, Pod, ACK);
            send(node, p, Remote, ACK);
            for _ in 0..4 {
                node.age(timeout(TcpEstablished) - 2);
                let busy = if quiet == Pod { Remote } else { Pod };
                send(node, p, busy, ACK);
            }
            let keys: Vec<_> = node.all_backs().into_iter().map(|(key, _)| key).collect();
            assert_eq!(node.sweep(&keys), 0, "{quiet:?} is quiet");
            send(node, p, quiet, ACK);
            assert_eq!(node.states(), [TcpEstablished]);
        }
        // But nobody outside keeps what is closed.
        send(node, p, Remote, RST);
        node.age(timeout(TcpClose) - 1);
        send(node, p, Remote, ACK);
        node.age(1);
        node.back(
            "closed",
            &segment((p.remote, 443), (p.alpha, 40_000), ACK),
            Dropped(NatNoState),
        );
    });
}

#[test]
fn the_sweep_removes_what_has_ended() {
    in_both(|node, p| {
        let send = |node: &mut Node<'_>, pod: &str, pod_port: u16| {
            let frame = datagram((pod, pod_port), (p.remote, 53), 4);
            let (seen, _) = node.run_quietly("datagram", &Input::from_pod(&frame.bytes));
            assert_eq!(seen.action, Action::Redirect);
        };
        for pod_port in 2000..2020 {
            send(node, p.pod, pod_port);
            send(node, p.other, pod_port + 100);
        }
        node.age(timeout(Udp));
        for pod_port in 2000..2005 {
            send(node, p.pod, pod_port);
        }
        let keys: Vec<_> = node.all_backs().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 40);
        let unknown = NatBackKey {
            egress_port: port(9),
            ..keys[0]
        };
        assert_eq!(node.sweep(&[]), 0);
        assert_eq!(node.sweep(&[unknown]), 0);
        let removed: u32 = keys.chunks(32).map(|keys| node.sweep(keys)).sum();
        assert_eq!(removed, 35);
        assert_eq!(node.states().len(), 5);
        assert_eq!(node.sweep(&keys[..32]) + node.sweep(&keys[32..]), 0);
        // A key beyond the 32nd is not looked at.
        node.age(timeout(Udp));
        let many: Vec<_> = std::iter::repeat_n(unknown, 32).chain(keys).collect();
        assert_eq!(node.sweep(&many[..40]), 0);
    });
}

#[test]
fn a_source_without_connections_is_forgotten() {
    in_both(|node, p| {
        let out = |pod| datagram((pod, 5000), (p.remote, 53), 4);
        let sent = |egress_port| {
            Out(forwarded(&datagram(
                (p.alpha, egress_port),
                (p.remote, 53),
                4,
            )))
        };
        let sources = |node: &Node<'_>| {
            let sources = node.sources.iter().map(|entry| entry.unwrap());
            sources.collect::<Vec<_>>()
        };
        node.own(&ALPHA, (5000, 5000), 0);
        node.out("the first", &out(p.other), sent(5000));
        node.out("no port is free", &out(p.pod), Dropped(NatExhausted));
        assert_eq!(sources(node), [(addr(p.other), 1)]);
        node.age(timeout(Udp));
        node.out("in place of what ended", &out(p.pod), sent(5000));
        assert_eq!(sources(node), [(addr(p.pod), 1)]);
        // Its own connection has ended, and the range no longer has a port.
        node.age(timeout(Udp));
        node.own(&ALPHA, (5001, 5000), 0);
        node.out("no port at all", &out(p.pod), Dropped(NatExhausted));
        assert_eq!(sources(node), []);
        assert!(node.states().is_empty());
        node.set_quota(0);
        node.out("no quota", &out(p.pod), Dropped(SourceQuota));
        assert_eq!(sources(node), []);
    });
}

#[test]
fn halves_that_are_alone() {
    in_both(|node, p| {
        // A half of replies that another CPU left behind is taken over by its pod, and swept otherwise.
        send(node, p, Pod, SYN);
        let (out_key, _) = node.all_outs()[0];
        let (back_key, back) = node.all_backs()[0];
        node.outs.remove(&out_key).unwrap();
        node.sources.remove(&out_key.pod).unwrap();
        send(node, p, Pod, SYN);
        assert_eq!(node.states(), [TcpSynSent]);
        node.outs.remove(&out_key).unwrap();
        node.sources.remove(&out_key.pod).unwrap();
        assert_eq!(node.sweep(&[back_key]), 0);
        node.age(timeout(TcpSynSent));
        assert_eq!(node.sweep(&[back_key]), 1);
        assert!(node.states().is_empty());
        // A half of the pod's packets alone is mended once it is looked at: after a second, or a change.
        send(node, p, Pod, SYN);
        node.backs.remove(&back_key).unwrap();
        node.age(1);
        send(node, p, Pod, SYN);
        send(node, p, Remote, SYN | ACK);
        assert_eq!(node.states(), [TcpSynRecv]);
        // The port of a half that is somebody else's by now is not touched.
        let theirs = NatBack {
            pod: addr(p.other),
            ..back
        };
        node.backs.insert(back_key, theirs, 0).unwrap();
        node.age(1);
        let frame = segment((p.pod, 40_000), (p.remote, 443), ACK);
        let (seen, _) = node.run_quietly("another port", &Input::from_pod(&frame.bytes));
        assert_eq!(seen.action, Action::Redirect);
        assert_eq!(node.backs.get(&back_key, 0).unwrap().pod, addr(p.other));
        assert_eq!(node.all_backs().len(), 2);
    });
}

#[test]
fn a_full_table() {
    with_node(|node| {
        let p = &egress_tests::packets::nat::V4;
        let filler = NatBack {
            last_seen: u64::MAX / 2,
            pod: addr(p.other),
            origin: 0,
            gateway: ALPHA.id,
            pod_port: port(1),
            state: Udp as u8,
            pad: [0; 5],
        };
        let mut key = NatBackKey {
            egress: addr(p.beta),
            remote: addr(p.router),
            egress_port: port(0),
            remote_port: port(0),
            protocol: proto::UDP,
            pad: [0; 3],
        };
        let mut number = 0_u32;
        loop {
            let bytes = number.to_be_bytes();
            key.egress_port = WireU16([bytes[0], bytes[1]]);
            key.remote_port = WireU16([bytes[2], bytes[3]]);
            if node.backs.insert(key, filler, 1).is_err() {
                break;
            }
            number += 1;
        }
        node.out(
            "no room",
            &datagram((p.pod, 40_000), (p.remote, 53), 4),
            Dropped(NatExhausted),
        );
        key.egress_port = port(0);
        key.remote_port = port(0);
        node.backs.remove(&key).unwrap();
        node.out(
            "room for one",
            &datagram((p.pod, 40_000), (p.remote, 53), 4),
            Out(forwarded(&datagram((p.alpha, 40_000), (p.remote, 53), 4))),
        );
        node.out(
            "no room again",
            &datagram((p.pod, 40_001), (p.remote, 53), 4),
            Dropped(NatExhausted),
        );
        assert_eq!(node.sources.get(&addr(p.pod), 0).unwrap(), 1);
    });
}
