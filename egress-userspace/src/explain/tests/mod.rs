//! One pod whose policy has every kind of rule, asked about.
#![expect(clippy::unwrap_used, reason = "a panic fails the test where it is")]

mod agreement;
mod explanations;
mod ways;

use std::{num::NonZeroU32, sync::Arc};

use egress_common::{
    WireU16,
    cells::{RowPlace, SLOTS},
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
    rows::Cells,
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
        network_policies: Vec::new(),
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
    let label = |gateway: &str, rule: &str| {
        Arc::new(MemberLabel {
            namespace: "edge".to_owned(),
            gateway: gateway.to_owned(),
            policy: "to-partners".to_owned(),
            rule: rule.to_owned(),
        })
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
        slots: BTreeMap::from([(
            0,
            egress_common::verdict::PodState::new(RowPlace::dense(64), 100),
        )]),
        prefixes,
        rows: BTreeMap::from([(
            RowPlace::dense(64),
            Extent {
                lines: 1,
                cells: Arc::new(Cells::Dense(cells)),
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
