//! What does not fit.

use super::*;

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
        sparse_from: 64,
        pods: 4,
        prefixes: 4,
        verdicts: 7,
        members: 4,
        policies: 3,
    };
    assert_eq!(refused(exact), "compiled");
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
        is_down: false,
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
            ..Translation::default()
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
