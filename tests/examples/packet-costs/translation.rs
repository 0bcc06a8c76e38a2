//! What translation costs, with few connections and with many.

use egress_common::{
    Addr,
    nat::{NatBack, NatBackKey, NatOut, NatOutKey, NatState},
};
use egress_tests::packets::{
    Input,
    build::{Frame, proto},
    nat::{ALPHA, Node, V4, V6, addr, datagram, on_uplink, port, with_node},
    random::Random,
};

/// The test-run repeats a program with what it made of the frame, so the pod's address is the egress
/// address here, and every write writes what was there before. Only the TTL goes down.
const REPEAT: u32 = 200;

/// A flow's far end: one of many.
fn remote(pod: Addr, number: u32) -> Addr {
    let mut remote = if pod.is_v4() {
        addr(V4.remote)
    } else {
        addr(V6.remote)
    };
    remote.0[15] = u8::try_from(number / 60_000).unwrap();
    remote
}

fn pod_port(number: u32) -> u16 {
    u16::try_from(2000 + number % 60_000).unwrap()
}

/// Makes this many connections of the pod.
fn fill(node: &mut Node<'_>, pod: Addr, count: u32) {
    node.reset();
    let now = u64::MAX / 2;
    for number in 0..count {
        let state = NatState::UdpStream as u8;
        let (remote, pod_port) = (remote(pod, number), port(pod_port(number)));
        let key = NatOutKey {
            pod,
            remote,
            pod_port,
            remote_port: port(53),
            gateway: ALPHA.id,
            protocol: proto::UDP,
            pad: [0; 3],
        };
        let out = NatOut {
            last_seen: now,
            egress: pod,
            origin: 0,
            egress_port: pod_port,
            state,
            pad: 0,
        };
        node.outs.insert(key, out, 0).unwrap();
        let key = NatBackKey {
            egress: pod,
            remote,
            egress_port: pod_port,
            remote_port: port(53),
            protocol: proto::UDP,
            pad: [0; 3],
        };
        let back = NatBack {
            last_seen: now,
            pod,
            origin: 0,
            gateway: ALPHA.id,
            pod_port,
            state,
            pad: [0; 5],
        };
        node.backs.insert(key, back, 0).unwrap();
    }
}

fn frames(pod: &str, number: u32) -> (Input, Input) {
    let far = std::net::IpAddr::from(remote(addr(pod), number)).to_string();
    let (pod, far) = ((pod, pod_port(number)), (far.as_str(), 53));
    let hops = |frame: Frame| frame.ttl(255);
    (
        Input::from_pod(&hops(datagram(pod, far, 64)).bytes),
        on_uplink(&hops(datagram(far, pod, 64))),
    )
}

pub(crate) fn measure() {
    with_node(|node| {
        let mut random = Random::new();
        println!("instructions verified: {:?}", node.verified());
        for p in [&V4, &V6] {
            for count in [1000, 4000] {
                fill(node, addr(p.pod), count);
                node.own_at(&ALPHA, p.pod, 30, (1024, 65_535), 0);
                let mut one_flow = (0, 0);
                let mut any_flow = (0, 0);
                for _ in 0..500 {
                    let (out, back) = frames(p.pod, random.next_u64() as u32 % count);
                    any_flow.0 += node.measure(&out, 1).as_nanos();
                    any_flow.1 += node.measure(&back, 1).as_nanos();
                    one_flow.0 += node.measure(&out, REPEAT).as_nanos();
                    one_flow.1 += node.measure(&back, REPEAT).as_nanos();
                }
                let (_, stranger) = frames(p.other, 1);
                let miss = node.measure(&stranger, 100_000).as_nanos();
                println!(
                    "{} {count} flows, ns a packet: out {} back {}; each packet of another flow: out {} back {}; \
                     not ours {miss}",
                    p.name,
                    one_flow.0 / 500,
                    one_flow.1 / 500,
                    any_flow.0 / 500,
                    any_flow.1 / 500,
                );
            }
        }
    });
}
