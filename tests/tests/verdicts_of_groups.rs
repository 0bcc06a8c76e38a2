//! Which gateway of several a flow uses: the kernel's choice is the one that userspace computes.
#![expect(
    clippy::panic,
    reason = "a test fails where it is, with the packet at hand"
)]

use std::{collections::BTreeMap, net::IpAddr};

use egress_common::{Addr, WireU16, flow::Flow, keys::PodKey};
use egress_tests::packets::{
    Input, Lab, Slot,
    build::{Frame, icmp, proto, tcp, udp},
    random::Random,
    seed::{POD, addresses, gateway, resolved, rule, via},
    with_lab,
};
use egress_userspace::{
    explain::choose,
    resolve::{Fate, Resolved},
};

const GATEWAYS: [&str; 3] = ["red", "blue", "green"];

/// One pod whose every packet goes through these gateways (name, weight).
fn group(gateways: &[(&str, u32)]) -> Resolved {
    let gateways = gateways
        .iter()
        .map(|(name, weight)| {
            let last = 1 + GATEWAYS.iter().position(|known| known == name).unwrap_or(0);
            let hops = [format!("192.168.9.{last}"), format!("fd09::{last}")];
            gateway(name, *weight, 1500, &[&hops[0], &hops[1]])
        })
        .collect();
    let rules = vec![rule("", via(gateways))];
    resolved(&[], [("web", 5, Fate::Rules(rules.into()), "main")])
}

fn random_flow(random: &mut Random) -> Flow {
    let bits = (u128::from(random.next_u64()) << 64) | u128::from(random.next_u64());
    let (source, destination) = if random.once_in(2) {
        let low = u32::try_from(bits & 0xffff_ffff).unwrap_or(0);
        (addresses(5)[0], IpAddr::from(low.to_be_bytes()))
    } else {
        // Global unicast, so that nothing else has a say.
        let bits = (bits >> 3) | (1 << 125);
        (addresses(5)[1], IpAddr::from(bits.to_be_bytes()))
    };
    let echo = if source.is_ipv4() {
        proto::ICMP
    } else {
        proto::ICMPV6
    };
    let protocol = *random.one_of(&[proto::TCP, proto::UDP, proto::SCTP, proto::GRE, echo]);
    let ports = protocol != proto::GRE;
    let both = ports && protocol != echo;
    let (a, b) = (random.next_u16(), random.next_u16());
    Flow {
        source: Addr::from(source),
        destination: Addr::from(destination),
        source_port: WireU16::new(if ports { a } else { 0 }),
        destination_port: WireU16::new(if both { b } else { 0 }),
        protocol,
    }
}

fn packet(flow: &Flow) -> Input {
    let (a, b) = (flow.source_port.get(), flow.destination_port.get());
    let payload = match flow.protocol {
        proto::TCP => tcp(a, b, &[], 3),
        proto::ICMP => icmp(8, a, &[0; 9]),
        proto::ICMPV6 => icmp(128, a, &[0; 9]),
        proto::GRE => vec![7; 12],
        _ => udp(a, b, 5),
    };
    let text = |addr: Addr| IpAddr::from(addr).to_string();
    let frame = Frame::ip(
        &text(flow.source),
        &text(flow.destination),
        flow.protocol,
        &payload,
    );
    Input::from_pod(&frame.bytes)
}

/// The gateway whose counter moves for a packet of the flow.
fn used(lab: &mut Lab, flow: &Flow) -> String {
    let input = packet(flow);
    let seen = lab
        .run(&input)
        .unwrap_or_else(|error| panic!("{error:#}: {}", input.describe()));
    let moved: Vec<_> = lab.moved().into_iter().collect();
    match &moved[..] {
        [(Slot::Member(_, _, gateway), (1, _))] => gateway.clone(),
        other => panic!(
            "{flow:?}: no single member, but {other:?} and {seen:?}: {}",
            input.describe()
        ),
    }
}

#[test]
fn the_kernel_chooses_as_userspace_does() {
    with_lab(|lab| {
        lab.bring_to(&group(&[("red", 1), ("blue", 2), ("green", 1)]));
        let mut random = Random::new();
        for _ in 0..1000 {
            let flow = random_flow(&mut random);
            let pod = PodKey {
                ifindex: POD,
                addr: flow.source,
            };
            let member = choose(lab.state(), pod, &flow);
            let counter = member.map(|id| lab.state().members[&id].counter);
            let names = lab.names().members.iter();
            let computed = names
                .filter(|(_, id)| Some(*id) == counter)
                .map(|(label, _)| label.gateway.clone())
                .next();
            assert_eq!(computed.as_ref(), Some(&used(lab, &flow)), "{flow:?}");
        }
    });
}

#[test]
fn weights_are_respected() {
    with_lab(|lab| {
        lab.bring_to(&group(&[("red", 3), ("blue", 1)]));
        let mut random = Random::new();
        let mut flows: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..10_000 {
            *flows
                .entry(used(lab, &random_flow(&mut random)))
                .or_default() += 1;
        }
        let red = flows.get("red").copied().unwrap_or(0);
        assert!(
            (7000..=8000).contains(&red),
            "3:1 within 5 % of 10,000 flows, but {flows:?}"
        );
    });
}

#[test]
fn a_lost_gateway_moves_only_its_own_flows() {
    with_lab(|lab| {
        let mut random = Random::new();
        let flows: Vec<Flow> = (0..2000).map(|_| random_flow(&mut random)).collect();
        lab.bring_to(&group(&[("red", 1), ("blue", 1), ("green", 1)]));
        let before: Vec<String> = flows.iter().map(|flow| used(lab, flow)).collect();
        lab.bring_to(&group(&[("red", 1), ("green", 1)]));
        let mut moved_to: BTreeMap<String, u32> = BTreeMap::new();
        for (flow, before) in flows.iter().zip(&before) {
            let after = used(lab, flow);
            if before == "blue" {
                *moved_to.entry(after).or_default() += 1;
            } else {
                assert_eq!(before, &after, "{flow:?} moved without need");
            }
        }
        assert_eq!(moved_to.len(), 2, "its flows are spread: {moved_to:?}");
        lab.bring_to(&group(&[("red", 1), ("blue", 1), ("green", 1)]));
        lab.forget_flows();
        let again: Vec<String> = flows.iter().map(|flow| used(lab, flow)).collect();
        assert_eq!(
            before, again,
            "the gateway is back, and not all that is new goes as before"
        );
    });
}
