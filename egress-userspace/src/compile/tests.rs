//! Compilation against a naive reading of the rules, its limits, and the README's policy as a golden file.

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

/// What a pod's packet should be told, read from the rules one by one.
fn naive(pod: &SourcePod, cluster: &BTreeSet<IpNet>, to: IpAddr) -> VerdictSpec {
    let rules = match &pod.fate {
        Fate::Drop(reason) => return VerdictSpec::Drop(*reason),
        Fate::Rules(rules) => rules,
    };
    let length = |rule: &EffectiveRule| match rule.destination {
        Some(net) => net.contains(&to).then(|| i16::from(net.prefix_len())),
        // Without a destination a rule loses against one that names the default itself.
        None => Some(-1),
    };
    let rule = rules
        .iter()
        .filter_map(|rule| Some((length(rule)?, rule)))
        .max_by_key(|(length, _)| *length);
    let cluster = cluster
        .iter()
        .filter(|net| net.contains(&to))
        .map(|net| i16::from(net.prefix_len()))
        .max();
    let (length, rule) = match (rule, cluster) {
        (None, None) => return VerdictSpec::Unmatched,
        (None, Some(_)) => return VerdictSpec::Local,
        (Some(rule), _) => rule,
    };
    if cluster.is_some_and(|cluster| cluster > length.max(0)) {
        return VerdictSpec::Local;
    }
    let Action::Gateways(gateways) = &rule.action else {
        return VerdictSpec::Local;
    };
    let mut members: Vec<MemberSpec> = gateways
        .iter()
        .flat_map(|gateway| gateway.ways.iter().map(move |way| (gateway, way)))
        .filter(|(_, way)| (way.family() == Family::V4) == to.is_ipv4())
        .map(|(gateway, way)| MemberSpec {
            gateway: gateway.id,
            label: MemberLabel {
                namespace: gateway.name.namespace.clone(),
                gateway: gateway.name.name.clone(),
                policy: pod.policy.clone(),
                rule: rule.label.clone(),
            },
            weight: gateway.weight,
            standing: gateway.standing,
            way: way.clone(),
        })
        .collect();
    members.sort_by_key(|member| member.gateway);
    if members.is_empty() {
        VerdictSpec::Drop(DropReason::NoGateway)
    } else {
        VerdictSpec::Gateways(members)
    }
}

/// What a desired state tells a packet.
pub(crate) fn told(state: &DesiredState, pod: PodKey, to: IpAddr) -> Option<&VerdictSpec> {
    let profile = &state.profiles[*state.pods.get(&pod)?];
    let number = state
        .prefixes
        .iter()
        .zip(&state.rows[profile.row])
        .filter(|(net, _)| net.contains(&to))
        .max_by_key(|(net, _)| net.prefix_len())
        .map_or(0, |(_, number)| *number);
    Some(&profile.verdicts[usize::from(number)])
}

proptest! {
    #[test]
    fn rows_say_what_the_rules_say(resolved in arbitrary_resolved()) {
        let state = compile(&resolved, &Limits::default())?;
        for pod in resolved.pods.values() {
            for address in &pod.addresses {
                let key = PodKey { ifindex: pod.ifindex, addr: (*address).into() };
                for to in probes() {
                    let wanted = naive(pod, &resolved.cluster_prefixes, to);
                    prop_assert_eq!(told(&state, key, to), Some(&wanted), "{:?} to {}", key, to);
                }
            }
        }
        // Blocks are measured by their rows when the maps are read back.
        for profile in &state.profiles {
            let highest = state.rows[profile.row].iter().max().copied().unwrap_or(0);
            prop_assert_eq!(profile.verdicts.len(), usize::from(highest) + 1);
        }
    }
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

#[test]
fn golden_state_of_the_example_policy() -> Result<(), CompileError> {
    insta::assert_snapshot!(render(&compile(&readme(), &Limits::default())?));
    Ok(())
}

/// A desired state as a person would write it down.
fn render(state: &DesiredState) -> String {
    let mut text = String::new();
    for (key, profile) in &state.pods {
        let address = IpAddr::from(key.addr);
        text += &format!("pod {}%{address} -> profile {profile}\n", key.ifindex);
    }
    for (place, profile) in state.profiles.iter().enumerate() {
        text += &format!("profile {place}: {}, row {}\n", profile.policy, profile.row);
        for (number, verdict) in profile.verdicts.iter().enumerate() {
            let VerdictSpec::Gateways(members) = verdict else {
                text += &format!("  {number}: {verdict:?}\n");
                continue;
            };
            for member in members {
                text += &format!(
                    "  {number}: rule {} -> {}/{} ({:08x}) * {} by {:?}\n",
                    member.label.rule,
                    member.label.namespace,
                    member.label.gateway,
                    member.gateway.0,
                    member.weight,
                    member.way
                );
            }
        }
    }
    for (place, net) in state.prefixes.iter().enumerate() {
        let cells: Vec<u16> = state.rows.iter().map(|row| row[place]).collect();
        text += &format!("{net}: {cells:?}\n");
    }
    text
}

#[test]
fn rows_do_not_depend_on_which_gateways_are_usable() -> Result<(), CompileError> {
    let with = |gateways: Vec<UsableGateway>| {
        let fate = fate(vec![
            (None, Action::Gateways(gateways.into())),
            (Some(net("10.0.0.0/8")), Action::Local),
        ]);
        let resolved = Resolved {
            pods: BTreeMap::from([pod(1, "p", fate)]),
            ..Resolved::default()
        };
        compile(&resolved, &Limits::default())
    };
    let up = with(vec![gateway(1, true, true, 1)])?;
    let down = with(vec![])?;
    assert_eq!(up.rows, down.rows);
    assert_ne!(up.profiles, down.profiles);
    Ok(())
}

#[test]
fn the_same_content_is_held_once() -> Result<(), CompileError> {
    let rules = |gw| {
        fate(vec![(
            Some(net("192.0.2.0/24")),
            Action::Gateways([gateway(gw, true, false, 1)].into()),
        )])
    };
    let resolved = Resolved {
        pods: BTreeMap::from([
            pod(1, "a", rules(1)),
            pod(2, "a", rules(1)),
            pod(3, "b", rules(1)),
            pod(4, "b", rules(2)),
        ]),
        ..Resolved::default()
    };
    let state = compile(&resolved, &Limits::default())?;
    assert_eq!((state.rows.len(), state.profiles.len()), (1, 3));
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_with_numbers() {
    let refused = |limits: Limits| match compile(&readme(), &limits) {
        Ok(_) => "compiled".to_owned(),
        Err(error) => error.to_string(),
    };
    let all = Limits::default();
    let errors = [
        Limits {
            matrix_memory: 33_791,
            ..all
        },
        Limits { pods: 3, ..all },
        Limits { prefixes: 2, ..all },
        Limits { verdicts: 6, ..all },
        Limits { members: 3, ..all },
        Limits { policies: 2, ..all },
    ]
    .map(refused);
    insta::assert_debug_snapshot!(errors);
    let exact = Limits {
        matrix_memory: 33_792,
        pods: 4,
        prefixes: 4,
        verdicts: 7,
        members: 4,
        policies: 3,
    };
    assert_eq!(refused(exact), "compiled");
}

#[test]
fn groups_are_in_the_order_of_ids() -> Result<(), CompileError> {
    let all: Vec<_> = (1..=9).map(|n| gateway(n, true, false, 1)).collect();
    let fate = fate(vec![(None, Action::Gateways(all.into()))]);
    let resolved = Resolved {
        pods: BTreeMap::from([pod(1, "p", fate)]),
        ..Resolved::default()
    };
    let state = compile(&resolved, &Limits::default())?;
    let VerdictSpec::Gateways(members) = &state.profiles[0].verdicts[2] else {
        unreachable!("nine gateways: {state:?}");
    };
    assert_eq!(members.len(), 9);
    assert!(members.is_sorted_by(|a, b| a.gateway < b.gateway));
    assert!(!members.is_sorted_by(|a, b| a.label < b.label));
    Ok(())
}

#[test]
fn facts_of_pods_are_under_each_of_their_addresses() -> Result<(), CompileError> {
    let mut naming = pod(1, "p", fate(vec![(None, Action::Local)]));
    naming.1.udp_ports = vec![53, 5060];
    naming.1.mtu = 1450;
    let silent = pod(2, "p", fate(vec![(None, Action::Local)]));
    let facts = |mtu, udp_ports| Facts { mtu, udp_ports };
    let expected = pod_keys(&naming.1)
        .map(|key| (key, facts(1450, vec![53, 5060])))
        .chain(pod_keys(&silent.1).map(|key| (key, facts(1500, vec![]))))
        .collect();
    let resolved = Resolved {
        pods: BTreeMap::from([naming, silent]),
        ..Resolved::default()
    };
    let state = compile(&resolved, &Limits::default())?;
    assert_eq!(state.facts, expected);
    Ok(())
}

/// A node with so many egress addresses, and so many other nodes with so many addresses each.
fn translating(addresses: u32, nodes: u32, each: u32) -> Resolved {
    let ip = |net: u8, n: u32| IpAddr::from((u32::from(net) << 24 | n).to_be_bytes());
    let address = EgressAddress {
        gateway: ObjectName::new("gateways", "gw"),
        id: gateway_id(&ObjectName::new("gateways", "gw")),
        ifindex: 2,
        interface: "eth0".to_owned(),
        mtu: 1500,
        ports: (1024, 65_535),
        holder: Holder::Agent,
        allow_local_services: false,
    };
    let node = |n: u32| OtherNode {
        addresses: (0..each).map(|m| ip(10, n * each + m)).collect(),
        address: ip(10, n * each),
        mtu: 1450,
        send: Tag([1; 6]),
        accept: [Tag([2; 6]), Tag::ZERO],
    };
    Resolved {
        translation: Translation {
            addresses: (0..addresses)
                .map(|n| (ip(11, n), address.clone()))
                .collect(),
            nodes: (0..nodes).map(|n| (format!("n{n}"), node(n))).collect(),
            own: vec![ip(192, 7)],
        },
        ..Resolved::default()
    }
}

#[test]
fn egress_addresses_and_nodes_come_along_if_they_fit() -> Result<(), CompileError> {
    let fits = translating(capacity::EGRESS, capacity::NODES / 2, 2);
    let state = compile(&fits, &Limits::default())?;
    assert_eq!(state.translation, fits.translation);
    for (resolved, what) in [
        (translating(capacity::EGRESS + 1, 1, 1), "egress addresses"),
        (
            translating(1, capacity::NODES / 2, 3),
            "addresses of other nodes",
        ),
        (translating(1, capacity::NODES, 1), "nodes"),
    ] {
        let refused = compile(&resolved, &Limits::default());
        assert!(
            matches!(refused, Err(CompileError::Full { what: is, .. }) if is == what),
            "{what}: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn a_policy_with_too_many_numbers_is_named() {
    let many = |count: u32| {
        let rules = (0..count)
            .map(|i| {
                let host = IpNet::from(IpAddr::from((0x0b00_0000 + i).to_be_bytes()));
                (Some(host), Action::Gateways([].into()))
            })
            .collect();
        Resolved {
            pods: BTreeMap::from([pod(1, "vast", fate(rules))]),
            ..Resolved::default()
        }
    };
    assert!(compile(&many(65_533), &Limits::default()).is_ok());
    assert_eq!(
        compile(&many(65_534), &Limits::default()),
        Err(CompileError::PolicyTooLarge {
            policy: "vast".to_owned(),
            needed: 65_536,
        })
    );
}

#[test]
#[ignore = "a measurement, meaningful with --release only: prints seconds"]
fn how_long_large_policies_take() {
    let local = |base: u32, count: u32| {
        let rules = (0..count)
            .map(|i| {
                let host = IpNet::from(IpAddr::from((base + i).to_be_bytes()));
                (Some(host), Action::Local)
            })
            .collect();
        fate(rules)
    };
    let node = |policies: u32, prefixes: u32| Resolved {
        pods: (0..policies)
            .map(|i| {
                let mut pod = pod(
                    1,
                    &format!("p{i}"),
                    local(0x0b00_0000 + i * prefixes, prefixes),
                );
                pod.0.name = format!("pod{i}");
                pod.1.ifindex = i;
                pod
            })
            .collect(),
        ..Resolved::default()
    };
    for (policies, prefixes) in [(1000, 100), (1, 1_000_000)] {
        let resolved = node(policies, prefixes);
        let start = std::time::Instant::now();
        let state = compile(&resolved, &Limits::default());
        let compiled = start.elapsed();
        assert!(state.is_ok(), "{state:?}");
        let state = state.unwrap_or_default();
        let start = std::time::Instant::now();
        let plan = crate::diff::plan(
            &crate::state::KernelState::default(),
            &crate::state::Names::default(),
            &state,
            &Limits::default(),
        );
        let first = start.elapsed();
        assert!(plan.is_ok(), "no plan");
        let Ok(plan) = plan else { return };
        let start = std::time::Instant::now();
        let again = crate::diff::plan(&plan.after, &plan.names, &state, &Limits::default());
        assert_eq!(again.map(|plan| plan.changes.len()), Ok(0));
        println!(
            "{policies} policies of {prefixes} prefixes: compile {compiled:?}, first plan {first:?}, \
             empty plan {:?}",
            start.elapsed()
        );
    }
}
