#![expect(clippy::unwrap_used, reason = "a panic fails the test where it is")]

use std::{num::NonZeroU32, sync::Arc};

use egress_common::{
    WireU16,
    cells::SLOTS,
    flow::Flow,
    gateway::GatewayId,
    overlay::Tag,
    verdict::{Decision, Member, Replies, Verdict},
};

use super::*;
use crate::{
    compile, diff,
    gateway_id::gateway_id,
    resolve::GatewayStatus,
    state::{Extent, KernelState, Limits, MemberLabel, Names},
};

pub(crate) const VETH: u32 = 5;
const UPLINK: u32 = 7;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn gateway(name: &str, weight: u32, hops: &[&str]) -> UsableGateway {
    let name = ObjectName::new("edge", name);
    UsableGateway {
        id: gateway_id(&name),
        name,
        weight: NonZeroU32::new(weight).unwrap(),
        standing: Standing::Serving,
        ways: hops
            .iter()
            .map(|hop| Way::NextHop {
                next_hop: hop.parse().unwrap(),
                ifindex: UPLINK,
                mtu: 1500,
                replies: Replies::Recorded,
            })
            .collect(),
    }
}

fn rule(destination: Option<&str>, action: Action) -> EffectiveRule {
    EffectiveRule {
        label: destination.unwrap_or("default").to_owned(),
        destination: destination.map(net),
        action,
    }
}

fn pod(policy: &str, fate: Fate) -> SourcePod {
    SourcePod {
        ifindex: VETH,
        interface: "veth5".to_owned(),
        addresses: vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        policy: policy.to_owned(),
        fate,
        mtu: 1500,
        udp_ports: Vec::new(),
    }
}

/// A node with one pod whose policy has every kind of rule, and maps that do what it says.
pub(crate) fn node() -> Snapshot {
    let red = gateway("red", 1, &["192.0.2.1"]);
    let blue = gateway("blue", 3, &["192.0.2.2", "2001:db8::2"]);
    let rules = [
        rule(None, Action::Gateways(vec![blue.clone()].into())),
        rule(Some("10.0.0.0/8"), Action::Local),
        rule(
            Some("10.1.2.0/24"),
            Action::Gateways(vec![red.clone()].into()),
        ),
        rule(
            Some("198.51.100.0/24"),
            Action::Gateways(vec![blue, red.clone()].into()),
        ),
        rule(Some("203.0.113.0/24"), Action::Gateways(vec![].into())),
        rule(Some("2001:db8:6::/48"), Action::Gateways(vec![red].into())),
    ];
    let resolved = Resolved {
        pods: BTreeMap::from([(
            ObjectName::new("shop", "web"),
            pod("to-partners", Fate::Rules(rules.into_iter().collect())),
        )]),
        cluster_prefixes: [net("10.1.0.0/16"), net("192.0.2.0/29")].into(),
        gateways: BTreeMap::from([(ObjectName::new("edge", "red"), GatewayStatus::Up(vec![]))]),
        pod_states: BTreeMap::from([
            (ObjectName::new("shop", "web"), PodState::Steered),
            (ObjectName::new("shop", "job"), PodState::Finished),
        ]),
        ..Resolved::default()
    };
    let label = |gateway: &str, rule: &str| MemberLabel {
        namespace: "edge".to_owned(),
        gateway: gateway.to_owned(),
        policy: "to-partners".to_owned(),
        rule: rule.to_owned(),
    };
    let names = Names {
        policies: BTreeMap::from([("to-partners".to_owned(), 1)]),
        members: vec![
            (label("blue", "default"), 0),
            (label("red", "10.1.2.0/24"), 1),
            (label("blue", "198.51.100.0/24"), 2),
            (label("red", "198.51.100.0/24"), 3),
        ],
        ..Names::default()
    };
    Snapshot {
        node: "node-a".to_owned(),
        synced: true,
        resolved: Arc::new(resolved),
        kernel: Arc::new(maps()),
        names: Arc::new(names),
        interfaces: Arc::new(BTreeMap::from([
            (VETH, "veth5".to_owned()),
            (UPLINK, "eth1".to_owned()),
        ])),
        ..Snapshot::default()
    }
}

/// Maps as the compiler would fill them, written down by hand.
fn maps() -> KernelState {
    let key = |addr: &str| PodKey {
        ifindex: VETH,
        addr: Addr::from(addr.parse::<IpAddr>().unwrap()),
    };
    let member = |counter, hop: &str| {
        let hop = Addr::from(hop.parse::<IpAddr>().unwrap());
        Member::next_hop(
            counter,
            GatewayId::default(),
            UPLINK,
            1500,
            hop,
            Replies::Recorded,
        )
    };
    // Numbers: 0 unmatched, 1 cluster, then the rules by destination and family.
    let decisions = [
        Decision::Unmatched,
        Decision::Local,
        Decision::Member(0),
        Decision::Member(1),
        Decision::Local,
        Decision::Member(2),
        Decision::Group {
            lines: 512,
            first_member: 3,
            members: 2,
        },
        Decision::Drop(DropReason::NoGateway),
        Decision::Drop(DropReason::NoGateway),
    ];
    let classes = [
        ("0.0.0.0/0", 2),
        ("::/0", 3),
        ("10.0.0.0/8", 4),
        ("10.1.0.0/16", 1),
        ("10.1.2.0/24", 5),
        ("192.0.2.0/29", 1),
        ("198.51.100.0/24", 6),
        ("203.0.113.0/24", 7),
        ("2001:db8:6::/48", 8),
    ];
    let mut cells = vec![0; 32];
    let mut prefixes = BTreeMap::new();
    for (class, (prefix, number)) in classes.into_iter().enumerate() {
        cells[class] = number;
        prefixes.insert(net(prefix), u32::try_from(class).unwrap());
    }
    KernelState {
        pods: BTreeMap::from([(key("10.1.0.5"), 0), (key("fd00::5"), 0)]),
        slots: BTreeMap::from([(0, egress_common::verdict::PodState::new(64, 100))]),
        prefixes,
        rows: BTreeMap::from([(
            64,
            Extent {
                lines: 1,
                cells: Arc::new(cells),
            },
        )]),
        // Three of four slots are the first member's.
        slot_tables: BTreeMap::from([(
            512,
            Arc::new(
                (0..SLOTS)
                    .map(|slot| u16::from(slot.is_multiple_of(4)))
                    .collect(),
            ),
        )]),
        blocks: BTreeMap::from([(
            100,
            decisions.into_iter().map(|d| Verdict::new(1, d)).collect(),
        )]),
        members: BTreeMap::from([
            (0, member(0, "192.0.2.2")),
            (1, member(0, "2001:db8::2")),
            (2, member(1, "192.0.2.1")),
            (3, member(2, "192.0.2.2")),
            (4, member(3, "192.0.2.1")),
        ]),
    }
}

fn ask(snapshot: &Snapshot, dst: &str) -> Answer {
    against_kernel(
        snapshot,
        &ObjectName::new("shop", "web"),
        dst.parse().unwrap(),
    )
}

fn because<'a>(answer: &'a Answer, rule: &str) -> &'a str {
    let found = answer.explanation.rules.iter().find(|r| r.rule == rule);
    &found.unwrap().because
}

#[test]
fn the_longest_prefix_decides_and_the_kernel_agrees() {
    let cases: &[(&str, Outcome, Option<&str>)] = &[
        ("8.8.8.8", Outcome::Gateway, Some("default")),
        ("2001:4860::8", Outcome::Gateway, Some("default")),
        ("10.9.9.9", Outcome::Local, Some("10.0.0.0/8")),
        ("10.1.9.9", Outcome::Local, None),
        ("10.1.2.3", Outcome::Gateway, Some("10.1.2.0/24")),
        ("192.0.2.1", Outcome::Local, None),
        ("198.51.100.1", Outcome::Gateway, Some("198.51.100.0/24")),
        (
            "203.0.113.1",
            Outcome::Drop("NoGateway".to_owned()),
            Some("203.0.113.0/24"),
        ),
        (
            "2001:db8:6::1",
            Outcome::Drop("NoGateway".to_owned()),
            Some("2001:db8:6::/48"),
        ),
    ];
    let node = node();
    for (dst, verdict, winner) in cases {
        let answer = ask(&node, dst);
        assert_eq!(answer.explanation.verdict, *verdict, "{dst}");
        let wins: Vec<_> = answer.explanation.rules.iter().filter(|r| r.wins).collect();
        assert_eq!(wins.first().map(|r| r.rule.as_str()), *winner, "{dst}");
        assert!(wins.len() <= 1, "{dst}");
        assert_eq!(answer.disagreements, [""; 0], "{dst}");
        assert!(answer.kernel.is_some(), "{dst}");
    }
}

#[test]
fn the_losers_hear_why() {
    let node = node();
    let answer = ask(&node, "10.1.2.3");
    assert_eq!(
        because(&answer, "default"),
        "shorter prefix than 10.1.2.0/24"
    );
    assert_eq!(
        because(&answer, "203.0.113.0/24"),
        "does not contain 10.1.2.3"
    );
    assert_eq!(because(&answer, "2001:db8:6::/48"), "other family");
    let answer = ask(&node, "10.1.9.9");
    assert_eq!(
        because(&answer, "10.0.0.0/8"),
        "cluster prefix 10.1.0.0/16 is longer than 10.0.0.0/8"
    );
}

#[test]
fn a_rule_as_long_as_a_cluster_prefix_wins() {
    let mut node = node();
    let mut resolved = (*node.resolved).clone();
    resolved.cluster_prefixes.insert(net("10.1.2.0/24"));
    node.resolved = Arc::new(resolved);
    assert_eq!(ask(&node, "10.1.2.3").explanation.verdict, Outcome::Gateway);
}

#[test]
fn a_policy_that_is_missing_drops_inside_the_cluster_too() {
    let resolved = Resolved {
        pods: BTreeMap::from([(
            ObjectName::new("shop", "web"),
            pod("gone", Fate::Drop(DropReason::PolicyMissing)),
        )]),
        cluster_prefixes: [net("10.0.0.0/8")].into(),
        ..Resolved::default()
    };
    let it = explain(
        &resolved,
        &ObjectName::new("shop", "web"),
        "10.1.0.9".parse().unwrap(),
    );
    assert_eq!(it.verdict, Outcome::Drop("PolicyMissing".to_owned()));
}

#[test]
fn a_pod_that_is_not_steered_hears_why() {
    let node = node();
    let dst = "8.8.8.8".parse().unwrap();
    let because = |name| explain(&node.resolved, &ObjectName::new("shop", name), dst).because;
    assert_eq!(because("job"), "The pod is not steered: it has finished.");
    assert_eq!(
        because("nobody"),
        "The pod is not steered: no annotated pod of this name is known on this node."
    );
}

#[test]
fn shares_follow_weights_on_both_sides() {
    let answer = ask(&node(), "198.51.100.1");
    let wanted: Vec<f64> = answer
        .explanation
        .gateways
        .iter()
        .map(|g| g.share)
        .collect();
    assert_eq!(wanted, [0.75, 0.25]);
    let KernelDecision::Members(members) = answer.kernel.unwrap().decision else {
        unreachable!("a group");
    };
    let is: Vec<f64> = members.iter().map(|m| m.share).collect();
    assert_eq!(is, [0.75, 0.25]);
}

#[test]
fn a_flow_takes_the_member_of_its_slot() {
    let maps = maps();
    let pod = *maps.pods.keys().next().unwrap();
    let mut seen = BTreeMap::new();
    for port in 1000..1100 {
        let flow = Flow {
            source: Addr::v4([10, 1, 0, 5]),
            destination: Addr::v4([198, 51, 100, 1]),
            source_port: WireU16::new(port),
            destination_port: WireU16::new(443),
            protocol: 6,
        };
        let member = choose(&maps, pod, &flow).unwrap();
        assert_eq!(
            member,
            3 + u32::from((flow.hash() % SLOTS).is_multiple_of(4))
        );
        *seen.entry(member).or_insert(0) += 1;
    }
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn maps_that_differ_are_an_error() {
    type Change = fn(&mut KernelState);
    let broken = |dst: &str, change: Change| {
        let mut node = node();
        let mut kernel = (*node.kernel).clone();
        change(&mut kernel);
        node.kernel = Arc::new(kernel);
        ask(&node, dst).disagreements.join("; ")
    };
    let cases: [(&str, &str, Change); 7] = [
        (
            "10.9.9.9",
            "the resources say local: routed by the kernel, the kernel says unmatched: routed by the kernel",
            |k| {
                k.prefixes.clear();
            },
        ),
        ("8.8.8.8", "the kernel says dropped (SpoofedSource)", |k| {
            k.pods.clear()
        }),
        ("8.8.8.8", "POD_STATE has nothing at slot 0", |k| {
            k.slots.clear()
        }),
        ("8.8.8.8", "LINES has no row at line 64", |k| k.rows.clear()),
        (
            "8.8.8.8",
            "VERDICTS has nothing for number 2 at base 100",
            |k| k.blocks.clear(),
        ),
        ("198.51.100.1", "MEMBERS has nothing at 4", |k| {
            k.members.remove(&4);
        }),
        ("198.51.100.1", "which the kernel does not use", |k| {
            k.slot_tables.insert(512, Arc::new(vec![0; 16384]));
        }),
    ];
    for (dst, expected, change) in cases {
        let found = broken(dst, change);
        assert!(found.contains(expected), "{expected:?} is not in {found:?}");
    }
}

#[test]
fn pods_and_addresses_are_read_strictly() {
    assert_eq!(
        parse_pod("shop/web-0"),
        Ok(ObjectName::new("shop", "web-0"))
    );
    for bad in ["web", "/web", "shop/", "a/b/c", "a/b&dst=1", "Shop/web"] {
        assert!(parse_pod(bad).is_err(), "{bad}");
    }
    assert!(
        parse_address("::ffff:192.0.2.1")
            .unwrap_err()
            .contains("192.0.2.1")
    );
    assert!(parse_address("192.0.2.0/24").is_err());
}

#[test]
fn for_people() {
    let node = node();
    let web = ObjectName::new("shop", "web");
    let mut text = String::new();
    for dst in ["198.51.100.1", "10.1.9.9", "203.0.113.1", "2001:db8:6::1"] {
        text += &format!("{}\n----\n", ask(&node, dst));
    }
    let dst = "8.8.8.8".parse().unwrap();
    text += &format!("{}\n----\n", offline(&node.resolved, &web, dst));
    text += &offline(&node.resolved, &ObjectName::new("shop", "job"), dst).to_string();
    let mut broken = node.clone();
    broken.kernel = Arc::new(KernelState::default());
    text += &format!("\n----\n{}", ask(&broken, "8.8.8.8"));
    insta::assert_snapshot!(text);
}

/// A gateway on this node, one on another, and a next hop.
fn ways() -> Resolved {
    let ways = [
        (
            "here",
            Way::Here {
                egress: "203.0.113.10".parse().unwrap(),
                node: "node-a".to_owned(),
                ifindex: UPLINK,
                mtu: 1500,
            },
        ),
        (
            "there",
            Way::Overlay {
                egress: "203.0.113.11".parse().unwrap(),
                node: "node-b".to_owned(),
                address: "2001:db8:18::2".parse().unwrap(),
                ifindex: 9,
                mtu: 1430,
                tag: Tag([1, 2, 3, 4, 5, 6]),
            },
        ),
    ];
    let mut gateways = vec![gateway("box", 2, &["192.0.2.1"])];
    gateways.extend(ways.map(|(name, way)| UsableGateway {
        ways: vec![way],
        ..gateway(name, 1, &[])
    }));
    let rules = [rule(None, Action::Gateways(gateways.into()))];
    Resolved {
        pods: BTreeMap::from([(
            ObjectName::new("shop", "web"),
            pod("out", Fate::Rules(rules.into_iter().collect())),
        )]),
        ..Resolved::default()
    }
}

/// An agent that has applied this.
fn applied(resolved: Resolved) -> Snapshot {
    let limits = Limits::default();
    let desired = compile::compile(&resolved, &limits).unwrap();
    let plan = diff::plan(
        &KernelState::default(),
        &Names::default(),
        &desired,
        &limits,
    )
    .unwrap();
    Snapshot {
        resolved: Arc::new(resolved),
        kernel: Arc::new(plan.after),
        names: Arc::new(plan.names),
        interfaces: Arc::new(BTreeMap::from([
            (VETH, "veth5".to_owned()),
            (UPLINK, "eth1".to_owned()),
            (9, "egress.vxlan".to_owned()),
        ])),
        ..Snapshot::default()
    }
}

#[test]
fn every_way_is_told_with_its_node_and_address() {
    let answer = ask(&applied(ways()), "8.8.8.8");
    assert_eq!(answer.disagreements, [""; 0]);
    insta::assert_snapshot!(answer);
    let json = serde_json::to_value(&answer).unwrap();
    let gateways = json["explanation"]["gateways"].as_array().unwrap();
    let told: Vec<_> = gateways
        .iter()
        .map(|g| ["way", "node", "egress", "address"].map(|key| g[key].as_str().unwrap_or("-")))
        .collect();
    assert_eq!(
        told,
        [
            ["next_hop", "-", "-", "192.0.2.1"],
            ["local", "node-a", "203.0.113.10", "203.0.113.10"],
            ["overlay", "node-b", "203.0.113.11", "2001:db8:18::2"],
        ]
    );
}

#[test]
fn another_way_than_asked_for_is_an_error() {
    let mut node = applied(ways());
    let mut kernel = (*node.kernel).clone();
    for member in kernel.members.values_mut() {
        if member.way() == Some(egress_common::verdict::Way::Overlay) {
            *member = Member::here(member.counter, member.gateway, member.mtu, member.address);
        }
    }
    node.kernel = Arc::new(kernel);
    let found = ask(&node, "8.8.8.8").disagreements.join("; ");
    for part in [
        "the kernel uses 2001:db8:18::2 on this node with MTU 1430",
        "the resources ask for the overlay to 2001:db8:18::2 by device #9",
    ] {
        assert!(found.contains(part), "{part:?} is not in {found:?}");
    }
}

#[test]
fn an_answer_survives_json() {
    let answer = ask(&node(), "198.51.100.1");
    let json = serde_json::to_string(&answer).unwrap();
    assert_eq!(serde_json::from_str::<Answer>(&json).unwrap(), answer);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// What the compiler makes of any rules, and the planner of that, is what the rules are explained to mean.
    #[test]
    fn compiled_maps_agree_with_every_explanation(resolved in compile::tests::arbitrary_resolved()) {
        let limits = Limits::default();
        let desired = compile::compile(&resolved, &limits)?;
        let empty = (KernelState::default(), Names::default());
        let plan = diff::plan(&empty.0, &empty.1, &desired, &limits)?;
        let snapshot = Snapshot {
            resolved: Arc::new(resolved),
            kernel: Arc::new(plan.after),
            names: Arc::new(plan.names),
            ..Snapshot::default()
        };
        for pod in snapshot.resolved.pods.keys() {
            for dst in compile::tests::probes() {
                let answer = against_kernel(&snapshot, pod, dst);
                proptest::prop_assert_eq!(&answer.disagreements, &[""; 0], "{}", answer);
            }
        }
    }
}
