#![expect(clippy::unwrap_used, reason = "a panic fails the test where it is")]

use std::collections::BTreeMap;

use egress_common::{Addr, WireU16, gateway::GatewayId, overlay::ORIGIN_KERNEL};

use super::*;

const GATEWAY: GatewayId = GatewayId(7);
const EGRESS: Addr = Addr::v4([203, 0, 113, 1]);
const REMOTE: Addr = Addr::v4([192, 0, 2, 80]);
const TCP: u8 = 6;
const NOW: u64 = 1_000_000 * SECOND;

/// A connection's two entries.
pub(crate) type Pair = ((NatOutKey, NatOut), (NatBackKey, NatBack));

/// A TCP connection from `pod` under `port`, whose halves were last seen so many seconds ago.
fn connection(pod: u8, port: u16, state: NatState, out_age: u64, back_age: u64) -> Pair {
    let pod = Addr::v4([10, 0, 0, pod]);
    let out = (
        NatOutKey {
            pod,
            remote: REMOTE,
            pod_port: WireU16::new(port),
            remote_port: WireU16::new(443),
            gateway: GATEWAY,
            protocol: TCP,
            pad: [0; 3],
        },
        NatOut {
            last_seen: NOW - out_age * SECOND,
            egress: EGRESS,
            origin: 0,
            egress_port: WireU16::new(port),
            state: state as u8,
            pad: 0,
        },
    );
    let back = (
        back_key(&out.0, &out.1),
        NatBack {
            last_seen: NOW - back_age * SECOND,
            pod,
            origin: 0,
            gateway: GATEWAY,
            pod_port: WireU16::new(port),
            state: state as u8,
            pad: [0; 5],
        },
    );
    (out, back)
}

fn timeouts() -> Timeouts {
    Timeouts::of(NatState::ALL.map(|(_, _, seconds)| seconds)).unwrap()
}

/// Walks at `now`: what is found of each reply's entry, and which pods' halves are orphans.
fn walk(
    halves: &mut OutHalves,
    now: u64,
    outs: &[(NatOutKey, NatOut)],
    backs: &[(NatBackKey, NatBack)],
) -> (Vec<Found>, Vec<NatOutKey>) {
    halves.begin();
    for (key, out) in outs {
        halves.learn(key, out);
    }
    let mut walk = Walk::new(halves, timeouts(), now);
    let found = backs
        .iter()
        .map(|(key, back)| walk.back(key, back))
        .collect();
    let orphans = walk.finish();
    let keys = outs.iter().map(|(key, _)| *key);
    (found, keys.filter(|key| orphans.contains(key)).collect())
}

#[test]
fn halves_know_each_other() {
    let ((out_key_is, out), (back_key_is, back)) =
        connection(5, 4000, NatState::TcpEstablished, 0, 0);
    assert_eq!(out_key(&back_key_is, &back), out_key_is);
    assert_eq!(back_key(&out_key_is, &out), back_key_is);
}

#[test]
fn a_connection_ends_when_both_halves_have_been_silent_for_its_states_time() {
    for (what, state, out_age, back_age, expected) in [
        ("both fresh", NatState::TcpClose, 0, 0, Found::Lives),
        ("one fresh", NatState::TcpClose, 9, 500, Found::Lives),
        ("the other fresh", NatState::TcpClose, 500, 9, Found::Lives),
        ("to the second", NatState::TcpClose, 10, 10, Found::Expired),
        ("long ago", NatState::Udp, 31, 31, Found::Expired),
        ("answered", NatState::UdpStream, 31, 31, Found::Lives),
        (
            "idle for days",
            NatState::TcpEstablished,
            431_999,
            431_999,
            Found::Lives,
        ),
        (
            "for five days",
            NatState::TcpEstablished,
            432_000,
            432_001,
            Found::Expired,
        ),
    ] {
        let (out, back) = connection(5, 4000, state, out_age, back_age);
        let (found, orphans) = walk(&mut OutHalves::default(), NOW, &[out], &[back]);
        assert_eq!((found, orphans), (vec![expected], vec![]), "{what}");
    }
}

/// What the node's own sockets ask has one half, and its own time; it is no connection of its gateway.
#[test]
fn the_nodes_own_are_no_orphans_and_no_connections() {
    let (_, (key, back)) = connection(5, 4000, NatState::TcpClose, 0, 0);
    let own = |last_seen| NatBack {
        last_seen,
        pod: Addr::v6([0; 16]),
        origin: ORIGIN_KERNEL,
        ..back
    };
    let mut halves = OutHalves::default();
    for (now, last_seen, expected) in [
        (NOW, NOW + 30 * SECOND, Found::Lives),
        (NOW + ORPHANED_AFTER, NOW + ORPHANED_AFTER, Found::Lives),
        (
            NOW + 2 * ORPHANED_AFTER,
            NOW + 2 * ORPHANED_AFTER - 10 * SECOND,
            Found::Expired,
        ),
    ] {
        let found = walk(&mut halves, now, &[], &[(key, own(last_seen))]);
        assert_eq!(found, (vec![expected], vec![]), "at {now}");
    }
    let mut tally = Tally::new();
    tally.add(&key, &own(NOW));
    let statistics = tally.finish(&BTreeMap::new(), 10, 0);
    assert!(statistics.connections.is_empty() && statistics.fullest.is_empty());
    assert_eq!(statistics.back_entries, 1);
}

#[test]
fn a_packet_after_the_clock_was_read_is_no_long_silence() {
    let timeouts = timeouts();
    let state = NatState::TcpClose as u8;
    assert_eq!(timeouts.left(state, NOW + SECOND, NOW), Some(10 * SECOND));
    assert_eq!(timeouts.left(state, NOW - 9 * SECOND, NOW), Some(SECOND));
    assert_eq!(timeouts.left(state, NOW - 10 * SECOND, NOW), None);
}

#[test]
fn timeouts_that_were_never_written_end_nothing() {
    assert_eq!(Timeouts::of([0; NatState::COUNT]), None);
    let unknown = 200;
    assert_eq!(timeouts().nanoseconds(unknown), 432_000 * SECOND);
}

#[test]
fn a_half_is_an_orphan_once_it_was_alone_for_a_minute() {
    let mut halves = OutHalves::default();
    // Traffic keeps a half fresh that has lost the other one.
    let (lone_out, _) = connection(5, 4000, NatState::TcpEstablished, 0, 0);
    let (_, lone_back) = connection(6, 5000, NatState::TcpEstablished, 0, 0);
    let (out, back) = connection(7, 6000, NatState::TcpEstablished, 0, 0);
    let outs = [lone_out, out];
    let backs = [lone_back, back];
    for (after, is_orphan) in [(0, false), (30, false), (59, false), (60, true), (65, true)] {
        let (found, orphans) = walk(&mut halves, NOW + after * SECOND, &outs, &backs);
        let of_back = if is_orphan {
            Found::Orphan
        } else {
            Found::Lives
        };
        assert_eq!(found, [of_back, Found::Lives], "after {after} s");
        let of_out = if is_orphan { vec![lone_out.0] } else { vec![] };
        assert_eq!(orphans, of_out, "after {after} s");
    }
    // Whoever finds its other half begins anew.
    let (_, other) = connection(5, 4000, NatState::TcpEstablished, 0, 0);
    assert_eq!(
        walk(&mut halves, NOW + 70 * SECOND, &[lone_out], &[other]),
        (vec![Found::Lives], vec![])
    );
    assert_eq!(
        walk(&mut halves, NOW + 75 * SECOND, &[lone_out], &[]),
        (vec![], vec![])
    );
}

#[test]
fn connections_add_up() {
    let mut tally = Tally::new();
    let remote_port = |n: u16| WireU16::new(1000 + n);
    // Remote n has n connections, for n up to twelve.
    for n in 1..=12_u16 {
        for port in 0..n {
            let (_, (mut key, back)) = connection(5, 2000 + port, NatState::TcpEstablished, 0, 0);
            key.remote_port = remote_port(n);
            tally.add(&key, &back);
        }
    }
    let (_, (mut key, mut back)) = connection(9, 77, NatState::Icmp, 0, 0);
    key.protocol = 50;
    back.gateway = GatewayId(8);
    tally.add(&key, &back);

    let ports = BTreeMap::from([(
        EGRESS,
        Ports {
            first: 2000,
            last: 2023,
        },
    )]);
    let statistics = tally.finish(&ports, 100, 79);
    assert_eq!(
        statistics.connections,
        BTreeMap::from([((GATEWAY, TCP), 78), ((GatewayId(8), 50), 1)])
    );
    assert_eq!((statistics.back_entries, statistics.out_entries), (79, 79));
    let used: Vec<_> = statistics.fullest.iter().map(|load| load.used).collect();
    assert_eq!(used, [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]);
    let fullest = &statistics.fullest[0];
    assert_eq!(fullest.remote.far_end(), "192.0.2.80:1012/tcp");
    assert_eq!(fullest.remote.egress().to_string(), "203.0.113.1");
    assert_eq!(fullest.ratio(), Some(0.5));
    let nowhere = Load {
        available: None,
        ..fullest.clone()
    };
    assert_eq!(nowhere.ratio(), None, "the address went with its gateway");
}
