//! What became of a connection's packets a moment ago, and how long that is believed.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use egress_common::{
    DropReason::NoRoute,
    nat::{
        NatOutKey,
        NatState::{self, TcpEstablished, TcpFinWait, UdpStream},
        recent_lines, recent_sum,
    },
};
use egress_tests::packets::{
    Action, Input,
    build::proto,
    nat::{
        ALPHA,
        Fate::{Dropped, Home, Out},
        Node, Places, V6, addr, datagram, delivered, forwarded, in_both, port, segment,
    },
};

const FIN: u8 = 1;
const ACK: u8 = 16;
const QUOTA: u32 = 100;
/// Seconds of silence that end a connection.
const SILENT: u32 = 120;

/// Sends a datagram from the pod and its answer, so that the connection may be silent for long.
fn talk(node: &mut Node<'_>, p: &Places) {
    node.set_all(QUOTA, SILENT);
    let packet = datagram((p.pod, 40_000), (p.remote, 53), 20);
    let sent = datagram((p.alpha, 40_000), (p.remote, 53), 20);
    node.out("a question", &packet, Out(forwarded(&sent)));
    let answer = datagram((p.remote, 53), (p.alpha, 40_000), 20);
    let home = datagram((p.remote, 53), (p.pod, 40_000), 20);
    node.back("an answer", &answer, Home(delivered(&home)));
    node.out("the next question", &packet, Out(forwarded(&sent)));
    assert_eq!(node.states(), [UdpStream]);
}

#[test]
fn times_are_written_now_and_then() {
    let seconds = |nanoseconds: u64| u32::try_from(nanoseconds / 1_000_000_000).unwrap();
    let rests = seconds(NatState::refresh(SILENT));
    assert!(rests > 1);
    in_both(|node, p| {
        talk(node, p);
        let packet = datagram((p.pod, 40_000), (p.remote, 53), 20);
        let sent = forwarded(&datagram((p.alpha, 40_000), (p.remote, 53), 20));
        let seen = |node: &Node<'_>| node.all_outs()[0].1.last_seen;
        for (age, is_written) in [(rests - 1, false), (2, true)] {
            node.age(age);
            let before = seen(node);
            node.out(&format!("{age} s later"), &packet, Out(sent.clone()));
            assert_eq!(seen(node) != before, is_written, "{age} s later");
        }
    });
}

/// A connection's times may rest for seconds, but its way may not.
#[test]
fn ways_are_asked_for_though_times_rest() {
    in_both(|node, p| {
        node.forward();
        let route = if p.name == V6.name {
            "2001:db8:a::/48"
        } else {
            "203.0.113.0/24"
        };
        node.ip(&format!("route add {route} dev uplink"));
        talk(node, p);
        let last_seen = node.all_outs()[0].1.last_seen;
        let packet = datagram((p.pod, 40_000), (p.remote, 53), 20);
        let sent = forwarded(&datagram((p.alpha, 40_000), (p.remote, 53), 20));
        node.ip(&format!("route replace blackhole {route}"));
        let gone = Instant::now();
        loop {
            let (seen, _) = node.run_quietly("its route is gone", &Input::from_pod(&packet.bytes));
            if seen.action == Action::Drop {
                break;
            }
            assert_eq!(seen.frame, sent.bytes);
            assert!(
                gone.elapsed() < Duration::from_secs(2),
                "it goes on without a route"
            );
        }
        node.out("it has no route", &packet, Dropped(NoRoute));
        node.ip(&format!("route replace {route} dev uplink"));
        for _ in 0..3 {
            node.out("it has one again", &packet, Out(sent.clone()));
        }
        assert_eq!(node.all_outs()[0].1.last_seen, last_seen, "times rested");
    });
}

/// Three connections that share a pair of lines.
fn crowd(p: &Places) -> [u16; 3] {
    let mut pairs: HashMap<u32, Vec<u16>> = HashMap::new();
    (1024..=u16::MAX)
        .find_map(|pod_port| {
            let [first, second] = recent_lines(recent_sum(&key(p, pod_port).recent()));
            assert_eq!(first ^ second, 1);
            let pair = pairs.entry(first.min(second)).or_default();
            pair.push(pod_port);
            <[u16; 3]>::try_from(pair.as_slice()).ok()
        })
        .unwrap()
}

fn key(p: &Places, pod_port: u16) -> NatOutKey {
    NatOutKey {
        pod: addr(p.pod),
        remote: addr(p.remote),
        pod_port: port(pod_port),
        remote_port: port(443),
        gateway: ALPHA.id,
        protocol: proto::TCP,
        pad: [0; 3],
    }
}

#[test]
fn lines_that_are_shared_mislead_nobody() {
    in_both(|node, p| {
        let ports = crowd(p);
        let remote = (p.remote, 443);
        for pod_port in ports {
            let (pod, egress) = ((p.pod, pod_port), (p.alpha, pod_port));
            let out = Out(forwarded(&segment(egress, remote, ACK)));
            node.out("a first packet", &segment(pod, remote, ACK), out);
            let home = Home(delivered(&segment(remote, pod, ACK)));
            node.back("an answer", &segment(remote, egress, ACK), home);
        }
        assert_eq!(node.states(), [TcpEstablished; 3]);
        for turn in 0..4 {
            for pod_port in ports {
                let sent = forwarded(&segment((p.alpha, pod_port), remote, ACK));
                let packet = segment((p.pod, pod_port), remote, ACK);
                node.out(
                    &format!("turn {turn} of {pod_port}"),
                    &packet,
                    Out(sent.clone()),
                );
                node.out(&format!("turn {turn} again"), &packet, Out(sent));
            }
        }
        // What one does is seen, whichever line it had, and the others go on.
        for (closed, pod_port) in ports.into_iter().enumerate() {
            let sent = forwarded(&segment((p.alpha, pod_port), remote, FIN | ACK));
            let packet = segment((p.pod, pod_port), remote, FIN | ACK);
            node.out("it closes", &packet, Out(sent));
            let states = node.states();
            let of = |state| states.iter().filter(|it| **it == state).count();
            assert_eq!(of(TcpFinWait), closed + 1);
            assert_eq!(of(TcpEstablished), 2 - closed);
        }
    });
}
