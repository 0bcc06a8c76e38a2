//! Compilation against a naive reading of the rules, its limits, and the README's policy as a golden file.

mod content;
mod limits;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
};

use egress_common::{DropReason, overlay::Tag};
use proptest::prelude::*;

use super::*;
use crate::{
    gateway_id::gateway_id,
    model::{ObjectName, Replies},
    resolve::Way,
    state::{EgressAddress, Holder, OtherNode},
};

/// Prefixes that nest in several ways, in both families.
pub(crate) const POOL: [&str; 14] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.128/25",
    "10.1.2.3/32",
    "10.200.0.0/16",
    "192.0.2.0/24",
    "192.0.2.0/25",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::7/128",
    "fd00::/8",
];

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|e| unreachable!("{text}: {e}"))
}

/// Addresses in, at the edges of and beside every prefix of the pool.
pub(crate) fn probes() -> Vec<IpAddr> {
    let mut probes: BTreeSet<IpAddr> = POOL
        .iter()
        .flat_map(|text| match net(text) {
            IpNet::V4(net) => {
                let (first, last) = (net.network(), net.broadcast());
                let inside = u32::from(first).wrapping_add(1).into();
                [first.into(), last.into(), IpAddr::V4(inside)]
            }
            IpNet::V6(net) => {
                let (first, last) = (net.network(), net.broadcast());
                let inside = u128::from(first).wrapping_add(1).into();
                [first.into(), last.into(), IpAddr::V6(inside)]
            }
        })
        .collect();
    for other in ["8.8.8.8", "2001:4860::8", "172.16.0.9", "172.16.1.20"] {
        probes.extend(other.parse::<IpAddr>());
    }
    probes.into_iter().collect()
}

/// A gateway; which way leads to it depends on its number.
fn gateway(number: u8, v4: bool, v6: bool, weight: u32) -> UsableGateway {
    let name = ObjectName::new("gateways", format!("gw{number}"));
    let addresses = [
        v4.then_some(IpAddr::from([192, 168, 9, number])),
        v6.then_some(IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, u16::from(number)])),
    ];
    let ways = addresses.into_iter().flatten().map(|address| {
        let (ifindex, mtu) = (7, if address.is_ipv4() { 1500 } else { 1400 });
        match number % 3 {
            0 => Way::NextHop {
                next_hop: address,
                ifindex,
                mtu,
                replies: Replies::Recorded,
            },
            1 => Way::Here {
                egress: address,
                node: "here".to_owned(),
                ifindex,
                mtu,
            },
            _ => Way::Overlay {
                egress: address,
                node: "there".to_owned(),
                address: IpAddr::from([172, 18, 0, number]),
                ifindex: 8,
                mtu: mtu - 50,
                tag: Tag([2, 4, 6, 8, 10, number]),
            },
        }
    });
    UsableGateway {
        id: gateway_id(&name),
        weight: NonZeroU32::new(weight).unwrap_or(NonZeroU32::MIN),
        standing: Standing::Serving,
        ways: ways.collect(),
        name,
    }
}

fn arbitrary_action() -> impl Strategy<Value = Action> {
    let gateways = prop::collection::btree_map(
        1_u8..4,
        (
            prop::bool::weighted(0.8),
            prop::bool::weighted(0.6),
            1_u32..3,
        ),
        0..4,
    );
    prop_oneof![
        1 => Just(Action::Local),
        1 => Just(Action::Drop(DropReason::PolicyEnforcement)),
        3 => gateways.prop_map(|gateways| Action::Gateways(
            gateways
                .into_iter()
                .map(|(number, (v4, v6, weight))| gateway(number, v4, v6, weight))
                .collect()
        )),
    ]
}

fn arbitrary_fate() -> impl Strategy<Value = Fate> {
    let destination = prop_oneof![
        1 => Just(None),
        6 => prop::sample::select(&POOL[..]).prop_map(|text| Some(net(text))),
    ];
    let rules = prop::collection::btree_map(destination, arbitrary_action(), 0..6);
    prop_oneof![
        1 => Just(Fate::Drop(DropReason::PolicyMissing)),
        9 => rules.prop_map(|rules| fate(rules.into_iter().collect())),
    ]
}

/// Rules from destinations and actions, sorted.
fn fate(rules: Vec<(Option<IpNet>, Action)>) -> Fate {
    let effective = rules
        .into_iter()
        .map(|(destination, action)| EffectiveRule {
            label: destination.map_or_else(|| "default".to_owned(), |d| d.to_string()),
            destination,
            action,
        });
    Fate::Rules(effective.collect())
}

fn pod(number: u8, policy: &str, fate: Fate) -> (ObjectName, SourcePod) {
    let pod = SourcePod {
        ifindex: 100 + u32::from(number),
        interface: format!("veth{number}"),
        addresses: vec![
            IpAddr::from([10, 0, 0, number]),
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)]),
        ],
        policy: policy.to_owned(),
        fate,
        mtu: 1500,
        network_policies: Vec::new(),
        udp_ports: Vec::new(),
    };
    (ObjectName::new("pods", format!("pod{number}")), pod)
}

/// A node with a few pods, three fates among them, and sometimes many prefixes of the cluster.
pub(crate) fn arbitrary_resolved() -> impl Strategy<Value = Resolved> {
    let pods = prop::collection::btree_map(
        0_u8..5,
        (
            prop::sample::select(&["one", "two", "three", "four"][..]),
            0_usize..3,
        ),
        0..5,
    );
    let fates = prop::collection::vec(arbitrary_fate(), 3);
    let cluster = prop::collection::btree_set(prop::sample::select(&POOL[..]), 0..3);
    let bulk = prop_oneof![4 => Just(0_u16), 1 => Just(40), 1 => Just(300)];
    (pods, fates, cluster, bulk).prop_map(|(pods, fates, cluster, bulk)| Resolved {
        pods: pods
            .into_iter()
            .map(|(number, (policy, place))| pod(number, policy, fates[place].clone()))
            .collect(),
        cluster_prefixes: cluster
            .into_iter()
            .map(net)
            .chain((0..bulk).map(|i| {
                let [high, low] = i.to_be_bytes();
                IpNet::from(IpAddr::from([172, 16, high, low]))
            }))
            .collect(),
        ..Resolved::default()
    })
}

/// Nodes one after another, most of whose rules and prefixes stay what they were.
pub(crate) fn arbitrary_nodes() -> impl Strategy<Value = Vec<Resolved>> {
    let pods = || {
        prop::collection::btree_map(
            0_u8..5,
            (
                prop::sample::select(&["one", "two", "three", "four"][..]),
                0_usize..4,
            ),
            0..5,
        )
    };
    let clusters = prop::collection::vec(
        prop::collection::btree_set(prop::sample::select(&POOL[..]), 0..3),
        2,
    );
    let fates = prop::collection::vec(arbitrary_fate(), 4);
    let nodes = prop::collection::vec((pods(), 0_usize..2), 2..6);
    (fates, clusters, nodes).prop_map(|(fates, clusters, nodes)| {
        let node = |(pods, cluster): (BTreeMap<u8, (&str, usize)>, usize)| Resolved {
            pods: pods
                .into_iter()
                .map(|(number, (policy, place))| pod(number, policy, fates[place].clone()))
                .collect(),
            cluster_prefixes: clusters[cluster].iter().copied().map(net).collect(),
            ..Resolved::default()
        };
        nodes.into_iter().map(node).collect()
    })
}

/// What a desired state tells a packet.
pub(crate) fn told(state: &DesiredState, pod: PodKey, to: IpAddr) -> Option<&VerdictSpec> {
    let profile = &state.profiles[*state.pods.get(&pod)?];
    let number = state
        .prefixes
        .iter()
        .zip(state.rows[profile.row].cells())
        .filter(|(net, _)| net.contains(&to))
        .max_by_key(|(net, _)| net.prefix_len())
        .map_or(0, |(_, number)| number);
    Some(&profile.verdicts[usize::from(number)])
}

/// The policy that the README shows, for one pod.
fn readme() -> Resolved {
    let fate = fate(vec![
        (None, Action::Gateways([gateway(3, true, true, 1)].into())),
        (Some(net("10.0.0.0/8")), Action::Local),
        (
            Some(net("192.0.2.0/24")),
            Action::Gateways([gateway(1, true, true, 1), gateway(2, true, false, 2)].into()),
        ),
    ]);
    Resolved {
        pods: BTreeMap::from([
            pod(1, "egw-policy", fate),
            pod(2, "gone", Fate::Drop(DropReason::PolicyMissing)),
        ]),
        cluster_prefixes: ["10.96.0.0/12", "192.0.2.0/24", "fd00::/8"].map(net).into(),
        ..Resolved::default()
    }
}
