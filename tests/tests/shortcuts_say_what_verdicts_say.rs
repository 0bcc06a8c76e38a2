//! Shortcuts: the same packets leave the same way with them and without. Whether they say what verdicts say is looked at
//! after each change of any test of packets.
#![expect(clippy::unwrap_used, reason = "a test fails where it is")]

use aya::maps::{Array, MapData};
use egress_common::maps;
use egress_tests::packets::{
    Input, Lab,
    build::{Frame, proto, udp},
    seed::{addresses, gateway, resolved, rule, via},
    with_lab,
};
use egress_userspace::{
    kernel::Maps,
    resolve::{Fate, Resolved},
};

const PODS: u8 = 6;
/// Rules of a pod.
const RULES: u8 = 4;

/// Pods whose rules lead to gateways that differ with `turn`.
fn world(turn: u8) -> Resolved {
    let names: Vec<String> = (0..PODS).map(|pod| format!("pod-{pod}")).collect();
    let pods = (0..PODS).zip(&names).map(|(pod, name)| {
        let rules = (0..RULES).map(|number| {
            let hop = 1 + (pod + number * turn + turn) % 7;
            let hops = [format!("192.168.9.{hop}"), format!("fd09::{hop}")];
            let via = via(vec![gateway(
                &format!("gw-{hop}"),
                1,
                1500,
                &[&hops[0], &hops[1]],
            )]);
            rule(&format!("192.0.{number}.0/24"), via)
        });
        let rules: Vec<_> = rules.collect();
        (name.as_str(), 5 + pod, Fate::Rules(rules.into()), "main")
    });
    resolved(&["10.0.0.0/8"], pods.collect::<Vec<_>>())
}

/// What becomes of a packet from each pod to each rule's prefix: the action, and what was counted.
fn outcomes(lab: &mut Lab) -> Vec<String> {
    let mut outcomes = Vec::new();
    for pod in 0..PODS {
        for number in 0..RULES {
            let source = addresses(5 + pod)[0].to_string();
            let destination = format!("192.0.{number}.9");
            let frame = Frame::ip(&source, &destination, proto::UDP, &udp(4000, 53, 8));
            let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
            outcomes.push(format!("{:?} {:?}", seen.action, lab.moved()));
        }
    }
    outcomes
}

#[test]
fn packets_leave_alike_with_and_without() {
    with_lab(|lab| {
        lab.bring_to(&world(1));
        let with = outcomes(lab);
        let path = lab.paths().map(maps::SHORTCUTS);
        let map = aya::maps::Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
        let mut shortcuts: Array<MapData, [u32; 2]> = map.try_into().unwrap();
        let mut named = 0_usize;
        for index in 0..shortcuts.len() {
            let both = shortcuts.get(&index, 0).unwrap();
            named += both.iter().filter(|shortcut| **shortcut != 0).count();
            shortcuts.set(index, [0, 0], 0).unwrap();
        }
        assert_eq!(named, usize::from(PODS * RULES));
        assert_eq!(outcomes(lab), with);
    });
}

/// Ways are shared and given back; who opens the maps anew finds them as they are.
#[test]
fn ways_change_hands() {
    with_lab(|lab| {
        for turn in 1..20 {
            lab.bring_to(&world(turn));
            if turn % 3 == 0 {
                lab.datapath().maps = Maps::open(&lab.paths().clone()).unwrap();
            }
            let outcomes = outcomes(lab);
            assert!(
                outcomes.iter().all(|outcome| outcome.contains("Redirect")),
                "{outcomes:?}"
            );
        }
    });
}
