//! Gateways of every way.

use super::*;

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
