//! What holds for any connections: each pod gets its own packets, and no two share what the outside sees.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::collections::BTreeMap;

use egress_common::{
    Addr,
    DropReason::{NatExhausted, SourceQuota},
    nat::NatBackKey,
};
use egress_tests::packets::{
    Action, Input, Slot,
    build::{Frame, proto},
    nat::{
        ALPHA, BETA, Node, Places, V4, V6, addr, datagram, delivered, forwarded, message,
        on_uplink, port, segment, with_node,
    },
    random::Random,
};

/// A connection as the pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Connection {
    v6: bool,
    beta: bool,
    protocol: u8,
    pod: &'static str,
    pod_port: u16,
    remote: &'static str,
    remote_port: u16,
}

impl Connection {
    fn random(random: &mut Random) -> Self {
        let v6 = random.once_in(2);
        let p = places(v6);
        let protocol = *random.one_of(&[proto::TCP, proto::UDP, p.icmp]);
        let ping = protocol == p.icmp;
        Self {
            v6,
            beta: random.once_in(3),
            protocol,
            pod: *random.one_of(&[p.pod, p.other]),
            // Few, so that they meet.
            pod_port: 4990 + u16::from(random.next_u8() % 30),
            remote: *random.one_of(&[p.remote, p.remote2]),
            remote_port: if ping { 0 } else { *random.one_of(&[53, 443]) },
        }
    }

    /// A packet of its, sent with this address and port in place of the pod's.
    fn out(&self, as_pod: (&str, u16)) -> Frame {
        let remote = (self.remote, self.remote_port);
        match self.protocol {
            proto::TCP => segment(as_pod, remote, 16),
            proto::UDP => datagram(as_pod, remote, 11),
            _ => message(as_pod.0, remote.0, places(self.v6).ping, as_pod.1, b"abc"),
        }
    }

    fn back(&self, as_pod: (&str, u16)) -> Frame {
        let remote = (self.remote, self.remote_port);
        match self.protocol {
            proto::TCP => segment(remote, as_pod, 16),
            proto::UDP => datagram(remote, as_pod, 12),
            _ => message(remote.0, as_pod.0, places(self.v6).pong, as_pod.1, b"abcd"),
        }
    }

    fn egress(&self) -> &'static str {
        let p = places(self.v6);
        if self.beta { p.beta } else { p.alpha }
    }

    fn key(&self, egress_port: u16) -> NatBackKey {
        NatBackKey {
            egress: addr(self.egress()),
            remote: addr(self.remote),
            egress_port: port(egress_port),
            remote_port: port(self.remote_port),
            protocol: self.protocol,
            pad: [0; 3],
        }
    }
}

const fn places(v6: bool) -> &'static Places {
    if v6 { &V6 } else { &V4 }
}

/// The source port, or identifier, of a frame of these connections.
fn source_port(frame: &[u8], connection: &Connection) -> u16 {
    let l4 = if connection.v6 { 54 } else { 34 };
    let echo = connection.protocol == places(connection.v6).icmp;
    let at = if echo { l4 + 4 } else { l4 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn every_pod_gets_its_own_packets() {
    with_node(|node| {
        let mut random = Random::new();
        // Fewer ports than connections want.
        node.own(&ALPHA, (5000, 5019), 0);
        node.own(&BETA, (5000, 5019), 0);
        // Longer than the packets between two pauses take.
        node.set_all(200, 50);
        let mut live: BTreeMap<Connection, u16> = BTreeMap::new();
        let mut seen_by_outside: BTreeMap<NatBackKey, Connection> = BTreeMap::new();
        let mut refused = 0;
        for round in 0..6000 {
            if round % 1000 == 999 {
                node.age(60);
                live.clear();
                seen_by_outside.clear();
                if random.once_in(2) {
                    sweep_all(node);
                    assert!(node.states().is_empty());
                }
            }
            let connection = Connection::random(&mut random);
            node.steer_to(if connection.beta { &BETA } else { &ALPHA });
            let pod = (connection.pod, connection.pod_port);
            let what = format!("round {round}: {connection:?}");
            let frame = connection.out(pod);
            let (seen, moved) = node.run_quietly(&what, &Input::from_pod(&frame.bytes));
            if seen.action == Action::Drop {
                let reason = moved.keys().next().unwrap();
                assert!(
                    matches!(reason, Slot::Drop(_, NatExhausted | SourceQuota)),
                    "{what}: {moved:?}"
                );
                assert!(
                    !live.contains_key(&connection),
                    "{what}: a live connection is refused"
                );
                refused += 1;
                continue;
            }
            let given = source_port(&seen.frame, &connection);
            assert!((5000..5020).contains(&given), "{what}: {given}");
            let expected = forwarded(&connection.out((connection.egress(), given)));
            assert_eq!(seen.frame, expected.bytes, "{what}");
            let before = live.insert(connection, given);
            assert!(
                before.is_none_or(|before| before == given),
                "{what}: another port"
            );
            let other = seen_by_outside.insert(connection.key(given), connection);
            assert!(
                other.is_none_or(|other| other == connection),
                "{what}: shares what the outside sees with {other:?}"
            );
            // Any live connection may be answered.
            let all: Vec<_> = live.iter().collect();
            let (answered, egress_port) = *random.one_of(&all);
            let back = answered.back((answered.egress(), *egress_port));
            let (seen, _) = node.run_quietly(&what, &on_uplink(&back));
            assert_eq!(seen.action, Action::Redirect, "{what}: {answered:?}");
            let expected = delivered(&answered.back((answered.pod, answered.pod_port)));
            assert_eq!(seen.frame, expected.bytes, "{what}: answer to {answered:?}");
        }
        assert!(
            refused > 100,
            "too few were refused to test that: {refused}"
        );
        drop(node.states());
        node.age(60);
        sweep_all(node);
        assert!(node.states().is_empty());
    });
}

fn sweep_all(node: &mut Node<'_>) {
    let keys: Vec<_> = node.all_backs().into_iter().map(|(key, _)| key).collect();
    let removed: u32 = keys.chunks(32).map(|keys| node.sweep(keys)).sum();
    assert_eq!(usize::try_from(removed).unwrap(), keys.len());
}

/// Connections are made and removed on several CPUs at once, and nothing is left of them in the end.
///
/// A connection that ends while its second packet makes it too, which takes a time of zero, leaves a half alone.
#[test]
fn made_and_removed_at_once() {
    with_node(|node| {
        let mut random = Random::new();
        node.own(&ALPHA, (5000, 5003), 0);
        // Whatever is looked at has ended; only packets within a second of the last look at nothing.
        node.set_all(1000, 0);
        let connections: Vec<Connection> = (0..40)
            .map(|_| Connection {
                beta: false,
                remote: V4.remote,
                remote_port: 53,
                protocol: proto::UDP,
                v6: false,
                pod: [V4.pod, V4.other][usize::from(random.next_u8() % 2)],
                pod_port: 4998 + u16::from(random.next_u8() % 8),
            })
            .collect();
        let list = |random: &mut Random| -> Vec<Input> {
            (0..200)
                .map(|_| {
                    let c = random.one_of(&connections);
                    if random.once_in(4) {
                        let egress_port = 5000 + u16::from(random.next_u8() % 4);
                        on_uplink(&c.back((c.egress(), egress_port)))
                    } else {
                        Input::from_pod(&c.out((c.pod, c.pod_port)).bytes)
                    }
                })
                .collect()
        };
        let keys: Vec<_> = (5000..5004).map(|port| connections[0].key(port)).collect();
        let mut gone: BTreeMap<Addr, i64> = BTreeMap::new();
        for _ in 0..20 {
            let lists = [list(&mut random), list(&mut random)];
            node.at_once(&lists, &keys, 60);
            for (source, halves) in node.mend() {
                *gone.entry(source).or_default() += halves;
            }
            let keys: Vec<_> = node.all_backs().into_iter().map(|(key, _)| key).collect();
            for keys in keys.chunks(32) {
                node.sweep(keys);
            }
            assert_eq!(node.all_outs(), [], "halves of pods' packets alone");
            assert_eq!(node.all_backs(), []);
            let counts: Vec<_> = node.sources.iter().map(|entry| entry.unwrap()).collect();
            let known = |source| gone.get(source).copied().unwrap_or_default();
            assert!(
                counts.iter().all(|(source, count)| *count == known(source)),
                "connections that nobody has: {counts:?}, but {gone:?}"
            );
        }
    });
}

/// Random bytes change nothing but what may change: a packet that goes out has an egress address.
#[test]
fn whatever_arrives() {
    with_node(|node| {
        let mut random = Random::new();
        let frames: Vec<(Connection, Frame, Frame)> = (0..40)
            .map(|_| {
                let c = Connection::random(&mut random);
                (
                    c,
                    c.out((c.pod, c.pod_port)),
                    c.back((c.egress(), c.pod_port)),
                )
            })
            .collect();
        for _ in 0..8000 {
            let (connection, out, back) = random.one_of(&frames);
            node.steer_to(if connection.beta { &BETA } else { &ALPHA });
            let from_pod = random.once_in(2);
            let mut frame = if from_pod { out.clone() } else { back.clone() };
            for _ in 0..random.below(4) {
                let at = 14 + random.below(frame.bytes.len() - 14);
                frame = frame.set(at, &[random.next_u8()]);
            }
            let input = if from_pod {
                Input::from_pod(&frame.bytes)
            } else {
                on_uplink(&frame)
            };
            let (seen, moved) = node.run_quietly("random", &input);
            if moved.keys().any(|slot| matches!(slot, Slot::Answer(_))) {
                // It was the last hop: what goes is an answer to its sender.
                continue;
            }
            if seen.action != Action::Redirect {
                assert_eq!(seen.frame, frame.bytes, "{}", input.describe());
                continue;
            }
            let at = match (from_pod, seen.frame[12..14] == [8, 0]) {
                (true, true) => 26..30,
                (true, false) => 22..38,
                (false, true) => 30..34,
                (false, false) => 38..54,
            };
            let address = &seen.frame[at];
            let of = |texts: [&str; 4]| {
                texts.iter().any(|text| {
                    let addr = addr(text);
                    address == addr.0 || address == addr.v4_bytes()
                })
            };
            assert!(
                if from_pod {
                    of([V4.alpha, V4.beta, V6.alpha, V6.beta])
                } else {
                    of([V4.pod, V4.other, V6.pod, V6.other])
                },
                "{}",
                input.describe()
            );
        }
        drop(node.states());
    });
}
