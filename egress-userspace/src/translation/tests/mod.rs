//! Plans for the maps of egress addresses and nodes, carried out on plain maps.
#![expect(clippy::unwrap_used, reason = "tests")]

mod properties;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egress_common::{
    Addr, Family,
    gateway::{
        EGRESS_ALLOW_LOCAL, EGRESS_DOWN, EGRESS_SHARED, Egress, GatewayId, GatewayKey,
        LOCAL_CLUSTER, LOCAL_NODE, Settings,
    },
    overlay::Tag,
};

use super::{Change, Limits, Plan, State, plan};
use crate::{
    model::ObjectName,
    settings::NatOptions,
    state::{EgressAddress, Holder, Local, Names, OtherNode, Translation},
};

const LIMITS: Limits = Limits {
    egress: 8,
    nodes: 10,
    locals: 8,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addr(text: &str) -> Addr {
    ip(text).into()
}

/// An address of the gateway with this number.
fn egress(gateway: u32, mtu: u32) -> EgressAddress {
    EgressAddress {
        gateway: ObjectName::new("default", format!("gw{gateway}")),
        id: GatewayId(gateway),
        ifindex: 2,
        interface: "eth0".to_owned(),
        mtu,
        ports: (1024, 65_535),
        holder: Holder::Agent,
        allow_local_services: false,
        is_down: false,
    }
}

fn node(addresses: &[&str], mtu: u32) -> OtherNode {
    OtherNode {
        addresses: addresses.iter().copied().map(ip).collect(),
        address: ip(addresses[0]),
        mtu,
        send: Tag([1; 6]),
        accept: [Tag([2; 6]), Tag::ZERO],
    }
}

fn wanted(addresses: &[(&str, EgressAddress)], nodes: &[(&str, OtherNode)]) -> Translation {
    Translation {
        addresses: addresses
            .iter()
            .map(|(address, spec)| (ip(address), spec.clone()))
            .collect(),
        nodes: nodes
            .iter()
            .map(|(name, node)| ((*name).to_owned(), node.clone()))
            .collect(),
        ..Translation::default()
    }
}

#[test]
fn prefixes_are_local_before_policies_change_and_until_they_have() {
    let with = |locals: &[(&str, Local)]| Translation {
        locals: locals
            .iter()
            .map(|(prefix, why)| (prefix.parse().unwrap(), *why))
            .collect(),
        ..Translation::default()
    };
    let mut kernel = Kernel::default();
    kernel.bring_to(&with(&[
        ("10.96.0.0/12", Local::Cluster),
        ("fd00::1/128", Local::Cluster),
    ]));
    let after = with(&[
        ("fd00::1/128", Local::Node),
        ("192.0.2.0/24", Local::Cluster),
    ]);
    let plan = kernel.plan(&after);
    let insert = |prefix: &str, why| Change::InsertLocal {
        prefix: prefix.parse().unwrap(),
        why,
    };
    assert_eq!(
        plan.additions,
        [
            insert("192.0.2.0/24", LOCAL_CLUSTER),
            insert("fd00::1/128", LOCAL_NODE)
        ]
    );
    let prefix = "10.96.0.0/12".parse().unwrap();
    assert_eq!(plan.removals, [Change::RemoveLocal { prefix }]);
    kernel.bring_to(&after);
    assert_eq!(kernel.plan(&after).changes(), 0);
    let many = (0..9).map(|n| (format!("10.{n}.0.0/16").parse().unwrap(), Local::Cluster));
    let many = Translation {
        locals: many.collect(),
        ..Translation::default()
    };
    let settings = kernel.state.settings;
    let refused = plan_for(&kernel, &many, &settings).unwrap_err();
    assert_eq!(refused.room, LIMITS.locals);
}

fn plan_for(
    kernel: &Kernel,
    wanted: &Translation,
    settings: &Settings,
) -> Result<Plan, super::PlanError> {
    plan(&kernel.state, &kernel.names, wanted, settings, &LIMITS)
}

/// Maps with what they say, and the names beside them.
#[derive(Clone, Debug, Default)]
struct Kernel {
    state: State,
    names: Names,
}

impl Kernel {
    fn plan(&self, wanted: &Translation) -> Plan {
        let settings = super::settings(
            wanted,
            Some((9, 4097)),
            &NatOptions::default(),
            0x1000,
            true,
        );
        plan(&self.state, &self.names, wanted, &settings, &LIMITS).unwrap()
    }

    fn bring_to(&mut self, wanted: &Translation) {
        let plan = self.plan(wanted);
        for change in plan.additions.iter().chain(&plan.removals) {
            self.state.apply(change);
        }
        assert_eq!(self.state, plan.after);
        self.names.gateways = plan.gateways;
        self.names.nodes = plan.nodes;
    }

    fn index_of(&self, address: &str) -> Option<u32> {
        self.state.nodes.get(&addr(address)).copied()
    }
}

/// What a packet for a gateway finds.
fn out(state: &State, key: GatewayKey) -> Option<Egress> {
    state.egress.get(state.gateways.get(&key)?).copied()
}

/// What a reply to an address finds.
fn back(state: &State, address: Addr) -> Option<Egress> {
    state.egress.get(state.addresses.get(&address)?).copied()
}

#[test]
fn an_element_says_what_its_gateway_is_told() {
    for (holder, allow, is_down, flags) in [
        (Holder::Agent, false, false, 0),
        (Holder::Agent, true, false, EGRESS_ALLOW_LOCAL),
        (Holder::Agent, false, true, EGRESS_DOWN),
        (Holder::Routing, false, false, 0),
        (Holder::Node, false, false, EGRESS_SHARED),
        (
            Holder::Node,
            true,
            false,
            EGRESS_SHARED | EGRESS_ALLOW_LOCAL,
        ),
        (Holder::Node, false, true, EGRESS_SHARED | EGRESS_DOWN),
        (Holder::Pod, false, false, EGRESS_ALLOW_LOCAL),
    ] {
        let spec = EgressAddress {
            holder,
            allow_local_services: allow,
            is_down,
            ports: (40_000, 49_999),
            ..egress(7, 1400)
        };
        let mut kernel = Kernel::default();
        kernel.bring_to(&wanted(&[("203.0.113.10", spec)], &[]));
        let found = back(&kernel.state, addr("203.0.113.10")).unwrap();
        let expected = Egress {
            address: addr("203.0.113.10"),
            gateway: GatewayId(7),
            ifindex: 2,
            mtu: 1400,
            counter: 0,
            first_port: 40_000,
            last_port: 49_999,
            flags,
        };
        assert_eq!(found, expected, "{holder:?} {allow}");
        let key = GatewayKey::new(GatewayId(7), Family::V4);
        assert_eq!(out(&kernel.state, key), Some(expected));
    }
}

#[test]
fn the_families_of_a_gateway_share_its_counter() {
    let mut kernel = Kernel::default();
    kernel.bring_to(&wanted(
        &[
            ("203.0.113.10", egress(1, 1500)),
            ("2001:db8::10", egress(1, 1500)),
            ("203.0.113.11", egress(2, 1500)),
        ],
        &[],
    ));
    let counter = |text| back(&kernel.state, addr(text)).unwrap().counter;
    assert_eq!(counter("203.0.113.10"), counter("2001:db8::10"));
    assert_ne!(counter("203.0.113.10"), counter("203.0.113.11"));
    assert_eq!(kernel.names.gateways.len(), 2);
}

#[test]
fn settings_carry_own_addresses_and_the_overlay() {
    let nat = NatOptions {
        source_quota: 17,
        ..NatOptions::default()
    };
    let mut translation = wanted(&[], &[]);
    let without = super::settings(&translation, None, &nat, 0, true);
    assert_eq!(without.node4, Addr::default());
    assert_eq!((without.overlay_ifindex, without.vni), (0, 0));
    assert_eq!((without.source_quota, without.timeouts), (17, nat.timeouts));
    translation.own = vec![ip("2001:db8::1"), ip("192.0.2.1")];
    let with = super::settings(&translation, Some((5, 4097)), &nat, 0x20, false);
    assert_eq!(with.node4, addr("192.0.2.1"));
    assert_eq!(with.node6, addr("2001:db8::1"));
    assert_eq!((with.overlay_ifindex, with.vni), (5, 4097));
    assert_eq!((without.local_mark, with.local_mark), (0, 0x20));
    assert_eq!((without.unguarded, with.unguarded), (0, 1));
}

#[test]
fn what_changes_is_written_elsewhere_before_keys_are_turned() {
    let mut kernel = Kernel::default();
    kernel.bring_to(&wanted(&[("203.0.113.10", egress(1, 1500))], &[]));
    let plan = kernel.plan(&wanted(&[("203.0.113.10", egress(1, 1400))], &[]));
    let key = GatewayKey::new(GatewayId(1), Family::V4);
    let address = addr("203.0.113.10");
    let [write, turns @ ..] = plan.additions.as_slice() else {
        unreachable!("{plan:?}");
    };
    assert!(
        matches!(write, Change::WriteEgress { index: 1, .. }),
        "{plan:?}"
    );
    assert_eq!(
        turns,
        [
            Change::InsertAddress { address, index: 1 },
            Change::InsertGateway { key, index: 1 }
        ]
    );
    assert_eq!(plan.removals, [Change::Grace]);
}

#[test]
fn what_goes_is_removed_after_policies_and_waited_for() {
    let mut kernel = Kernel::default();
    kernel.bring_to(&wanted(
        &[("203.0.113.10", egress(1, 1500))],
        &[("b", node(&["192.0.2.2"], 1450))],
    ));
    let plan = kernel.plan(&wanted(&[], &[]));
    assert_eq!(plan.additions, []);
    let key = GatewayKey::new(GatewayId(1), Family::V4);
    assert_eq!(
        plan.removals,
        [
            Change::RemoveGateway { key },
            Change::RemoveAddress {
                address: addr("203.0.113.10")
            },
            Change::RemoveNode {
                address: addr("192.0.2.2")
            },
            Change::Grace,
        ]
    );
    assert_eq!(
        plan.retired_gateways,
        [(ObjectName::new("default", "gw1"), 0)]
    );
}

#[test]
fn a_node_keeps_its_index_while_it_lives() {
    let mut kernel = Kernel::default();
    let (a, b) = (
        node(&["192.0.2.2", "2001:db8::2"], 1450),
        node(&["192.0.2.3"], 1450),
    );
    kernel.bring_to(&wanted(&[], &[("b", a), ("c", b.clone())]));
    assert_eq!(kernel.index_of("192.0.2.2"), Some(1));
    assert_eq!(kernel.index_of("2001:db8::2"), Some(1));
    assert_eq!(kernel.index_of("192.0.2.3"), Some(2));

    // With other addresses, another MTU, and a node that comes before it by name.
    let moved = node(&["192.0.2.9"], 1400);
    let new = node(&["192.0.2.8"], 1450);
    kernel.bring_to(&wanted(&[], &[("a", new), ("b", moved), ("c", b)]));
    assert_eq!(kernel.index_of("192.0.2.9"), Some(1));
    assert_eq!(kernel.index_of("192.0.2.2"), None);
    assert_eq!(kernel.index_of("192.0.2.3"), Some(2));
    assert_eq!(kernel.index_of("192.0.2.8"), Some(3));
    assert_eq!(kernel.state.node_state[&1].mtu, 1400);
}

#[test]
fn a_node_without_a_name_is_known_by_its_addresses() {
    let mut kernel = Kernel::default();
    let nodes = [
        ("b", node(&["192.0.2.2"], 1450)),
        ("c", node(&["192.0.2.3"], 1450)),
    ];
    kernel.bring_to(&wanted(&[], &nodes));
    kernel.names = Names::default();
    let reversed = [
        ("y", node(&["192.0.2.3"], 1450)),
        ("z", node(&["192.0.2.2"], 1450)),
    ];
    let plan = kernel.plan(&wanted(&[], &reversed));
    assert_eq!(plan.changes(), 0, "{plan:?}");
    assert_eq!(
        plan.nodes,
        [("y".to_owned(), 2), ("z".to_owned(), 1)].into()
    );
}

#[test]
fn indexes_that_no_node_had_are_given_out_first() {
    let mut kernel = Kernel::default();
    for n in 2..=20 {
        let address = format!("192.0.2.{n}");
        let name = format!("node{n}");
        kernel.bring_to(&wanted(&[], &[(&name, node(&[&address], 1450))]));
        let index = kernel.index_of(&address).unwrap();
        // Nine indexes from 1 to 9, and then the lowest that is not the last node's.
        let expected = if n <= 10 { n - 1 } else { 2 - n % 2 };
        assert_eq!(index, expected, "node {n}");
    }
}

#[test]
fn names_that_are_damaged_are_not_believed() {
    let mut kernel = Kernel::default();
    kernel.names.nodes = [("b", 0), ("c", 3), ("d", 3), ("e", LIMITS.nodes)]
        .map(|(name, index)| (name.to_owned(), index))
        .into();
    kernel.names.gateways = [(1, 4), (2, 4), (3, LIMITS.egress)]
        .map(|(n, id)| (ObjectName::new("default", format!("gw{n}")), id))
        .into();
    kernel.bring_to(&wanted(
        &[
            ("203.0.113.1", egress(1, 1500)),
            ("203.0.113.2", egress(2, 1500)),
            ("203.0.113.3", egress(3, 1500)),
        ],
        &[
            ("b", node(&["192.0.2.2"], 1450)),
            ("c", node(&["192.0.2.3"], 1450)),
            ("d", node(&["192.0.2.4"], 1450)),
            ("e", node(&["192.0.2.5"], 1450)),
        ],
    ));
    let indexes: BTreeSet<u32> = kernel.names.nodes.values().copied().collect();
    assert_eq!(indexes.len(), 4);
    assert!(
        indexes
            .iter()
            .all(|index| (1..LIMITS.nodes).contains(index))
    );
    assert_eq!(kernel.names.nodes["c"], 3);
    let counters: BTreeSet<u32> = kernel.names.gateways.values().copied().collect();
    assert_eq!(counters.len(), 3);
    assert!(counters.iter().all(|id| *id < LIMITS.egress));
}

#[test]
fn an_address_that_two_nodes_claim_is_the_first_ones() {
    let mut kernel = Kernel::default();
    let nodes = [
        ("b", node(&["192.0.2.2"], 1450)),
        ("c", node(&["192.0.2.2"], 1400)),
    ];
    kernel.bring_to(&wanted(&[], &nodes));
    assert_eq!(kernel.index_of("192.0.2.2"), Some(kernel.names.nodes["b"]));
    assert_eq!(kernel.plan(&wanted(&[], &nodes)).changes(), 0);
}

#[test]
fn more_than_fits_is_refused_before_anything_changes() {
    let addresses: Vec<(String, EgressAddress)> = (0..=LIMITS.egress)
        .map(|n| (format!("203.0.113.{n}"), egress(n, 1500)))
        .collect();
    let all: Vec<_> = addresses
        .iter()
        .map(|(address, spec)| (address.as_str(), spec.clone()))
        .collect();
    let settings = Settings::default();
    let names = Names::default();
    let state = State::default();
    let error = plan(&state, &names, &wanted(&all, &[]), &settings, &LIMITS).unwrap_err();
    assert!(error.to_string().contains("8"), "{error}");
    assert!(plan(&state, &names, &wanted(&all[1..], &[]), &settings, &LIMITS).is_ok());

    // Four stay, four are new and four more would have to be there meanwhile.
    let mut kernel = Kernel::default();
    kernel.bring_to(&wanted(&all[..5], &[]));
    let turned: Vec<_> = all[..5]
        .iter()
        .map(|(address, spec)| {
            (
                *address,
                EgressAddress {
                    mtu: 1400,
                    ..spec.clone()
                },
            )
        })
        .collect();
    let refused = plan(
        &kernel.state,
        &kernel.names,
        &wanted(&turned, &[]),
        &settings,
        &LIMITS,
    );
    assert_eq!(refused.unwrap_err().what, "egress addresses");
}
