//! What is looked at once more before a packet is translated: elements that keys led to, and headers that vouch for
//! addresses.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::time::Duration;

use egress_common::{
    Addr,
    DropReason::{NatExhausted, NatNoState, StateMissing},
    WireU16,
    nat::{NatBack, NatBackKey, NatState},
    overlay::{ORIGIN_HERE, ORIGIN_KERNEL},
};
use egress_tests::packets::{
    Action, Input, Slot,
    build::{self, Frame, authentication, proto},
    nat::{
        ALPHA, BETA,
        Fate::{Dropped, Home, Kernel, Out},
        Node, Places, addr, datagram, delivered, error, forwarded, in_both, message, timeout,
    },
};
use nix::time::{ClockId, clock_gettime};

/// A datagram there and back.
fn round_trip(node: &mut Node<'_>, p: &Places) {
    node.out(
        "out",
        &datagram((p.pod, 40_000), (p.remote, 53), 20),
        Out(forwarded(&datagram((p.alpha, 40_000), (p.remote, 53), 20))),
    );
    node.back(
        "back",
        &datagram((p.remote, 53), (p.alpha, 40_000), 33),
        Home(delivered(&datagram((p.remote, 53), (p.pod, 40_000), 33))),
    );
}

/// While an element is given to another address, a packet may still find it by its old keys.
#[test]
fn an_element_that_another_address_has_by_now() {
    in_both(|node, p| {
        round_trip(node, p);
        let family = u32::from(p.icmp != proto::ICMP);
        let element = 2 * ALPHA.counter + family;
        node.own_at(&BETA, p.beta, element, (1024, 65_535), 0);
        node.back(
            "to the address that is no more",
            &datagram((p.remote, 53), (p.alpha, 40_000), 20),
            Kernel,
        );
        let out = datagram((p.pod, 40_000), (p.remote, 53), 20);
        let (seen, moved) = node.run_quietly("no gateway", &Input::from_pod(&out.bytes));
        assert_eq!(seen.action, Action::Drop, "{}", p.name);
        let drop = Slot::Drop("main".to_owned(), StateMissing);
        assert!(moved.contains_key(&drop), "{moved:?}");
        node.own(&ALPHA, (1024, 65_535), 0);
        round_trip(node, p);
    });
}

/// An authentication header covers the addresses (RFC 4302, 2.2): it is nobody's, whatever connection comes behind it.
#[test]
fn a_header_that_vouches_for_addresses() {
    in_both(|node, p| {
        round_trip(node, p);
        let covered = authentication(proto::UDP, 4, &build::udp(53, 40_000, 20));
        node.back(
            "an answer",
            &Frame::ip(p.remote, p.alpha, proto::AH, &covered),
            Dropped(NatNoState),
        );
        round_trip(node, p);
    });
}

/// Where one of the tables that a connection needs has no room, what the others have of it is taken back.
#[test]
fn a_connection_that_is_half_made() {
    in_both(|node, p| {
        let out = datagram((p.pod, 40_000), (p.remote, 53), 20);
        let mut sources = Vec::new();
        for number in 0_u128.. {
            let filler = Addr::v6((1 << 127 | number).to_be_bytes());
            if node.sources.insert(filler, 1, 1).is_err() {
                break;
            }
            sources.push(filler);
        }
        node.out("no room for a source", &out, Dropped(NatExhausted));
        assert_eq!(node.all_backs(), [], "{}: the port stays taken", p.name);
        assert_eq!(node.all_outs(), []);
        for filler in sources {
            node.sources.remove(&filler).unwrap();
        }

        round_trip(node, p);
        let (mut key, half) = node.all_outs()[0];
        let ours = key;
        for port in 0..=u16::MAX {
            key.pod_port = WireU16::new(port);
            if node.outs.insert(key, half, 1).is_err() && key.pod_port != ours.pod_port {
                break;
            }
        }
        let other = datagram((p.other, 41_000), (p.remote, 53), 20);
        node.out("no room for its packets", &other, Dropped(NatExhausted));
        assert_eq!(
            node.all_backs().len(),
            1,
            "{}: the port stays taken",
            p.name
        );
        let count = node.sources.get(&addr(p.other), 0).ok();
        assert_eq!(count, None, "{}: it counts all the same", p.name);
    });
}

/// A pod that comes again on another node, with its address and its connections: replies follow it.
#[test]
fn a_pod_that_moved() {
    const ELSEWHERE: u32 = 3;
    in_both(|node, p| {
        round_trip(node, p);
        node.move_to(ELSEWHERE);
        round_trip(node, p);
        let origins = (node.all_outs()[0].1.origin, node.all_backs()[0].1.origin);
        assert_eq!(origins, (ORIGIN_HERE, ORIGIN_HERE), "{}", p.name);
    });
}

/// As many ports as there are tries are all found, wherever the search begins.
#[test]
fn every_port_of_a_range_that_is_tried_wholly() {
    const TRIES: u16 = 64;
    in_both(|node, p| {
        node.set_quota(1000);
        node.own(&ALPHA, (5000, 5000 + TRIES - 1), 0);
        for number in 0..TRIES {
            let out = datagram((p.pod, 40_000 + number), (p.remote, 53), 20);
            let (seen, _) = node.run_quietly("a free port", &Input::from_pod(&out.bytes));
            assert_eq!(seen.action, Action::Redirect, "{}: {number}", p.name);
        }
        let more = datagram((p.pod, 40_000 + TRIES), (p.remote, 53), 20);
        node.out("none is left", &more, Dropped(NatExhausted));
        assert_eq!(node.states().len(), usize::from(TRIES));
    });
}

/// Anybody may send an error that quotes a connection: it keeps none alive.
#[test]
fn an_error_keeps_no_connection() {
    in_both(|node, p| {
        round_trip(node, p);
        let quoting = |pod: &str| {
            let sent = datagram((pod, 40_000), (p.remote, 53), 20).ttl(11);
            error(p.router, pod, p.error, &sent, sent.bytes.len())
        };
        let [told, home] = [p.alpha, p.pod].map(quoting);
        let life = timeout(NatState::UdpStream);
        node.age(life - 2);
        node.back("an error", &told, Home(delivered(&home)));
        node.age(2);
        node.back("another error", &told, Dropped(NatNoState));
        node.back(
            "an answer",
            &datagram((p.remote, 53), (p.alpha, 40_000), 33),
            Dropped(NatNoState),
        );
    });
}

/// A port from which a socket of the node itself asks: what comes back is the kernel's, and no pod has the port.
#[test]
fn a_port_of_the_nodes_own() {
    in_both(|node, p| {
        let sent = datagram((p.alpha, 40_000), (p.remote, 53), 20);
        let answer = datagram((p.remote, 53), (p.alpha, 40_000), 33);
        let about = error(p.router, p.alpha, p.error, &sent, sent.bytes.len());
        let key = NatBackKey {
            egress: addr(p.alpha),
            remote: addr(p.remote),
            egress_port: WireU16::new(40_000),
            remote_port: WireU16::new(53),
            protocol: proto::UDP,
            pad: [0; 3],
        };
        let ping = NatBackKey {
            remote_port: WireU16::new(0),
            protocol: p.icmp,
            ..key
        };
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
        let until = u64::try_from((now + Duration::from_secs(60)).as_nanos()).unwrap();
        let claim = NatBack {
            last_seen: until,
            pod: Addr::v6([0; 16]),
            origin: ORIGIN_KERNEL,
            gateway: ALPHA.id,
            pod_port: WireU16::new(0),
            state: NatState::TcpClose as u8,
            pad: [0; 5],
        };
        let pong = message(p.remote, p.alpha, p.pong, 40_000, b"egress");
        node.back("before", &answer, Dropped(NatNoState));
        node.back("a pong before", &pong, Dropped(NatNoState));
        for key in [key, ping] {
            node.backs.insert(key, claim, 0).unwrap();
        }
        node.back("an answer", &answer, Kernel);
        node.back("an error", &about, Kernel);
        node.back("a pong", &pong, Kernel);
        node.back(
            "from another port",
            &datagram((p.remote, 54), (p.alpha, 40_000), 33),
            Dropped(NatNoState),
        );

        let out = datagram((p.pod, 40_000), (p.remote, 53), 20);
        let (seen, _) = node.run_quietly("the port is taken", &Input::from_pod(&out.bytes));
        assert_eq!(seen.action, Action::Redirect, "{}", p.name);
        assert_ne!(node.all_outs()[0].1.egress_port, key.egress_port);
        node.back("an answer all the same", &answer, Kernel);

        // Whoever asks later finds that its time is over.
        node.age(60 + timeout(NatState::TcpClose));
        let later = datagram((p.other, 40_000), (p.remote, 53), 20);
        let became = datagram((p.alpha, 40_000), (p.remote, 53), 20);
        node.out("the port is free", &later, Out(forwarded(&became)));
        let home = datagram((p.remote, 53), (p.other, 40_000), 33);
        node.back("its answer", &answer, Home(delivered(&home)));
    });
}
