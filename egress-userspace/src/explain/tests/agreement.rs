//! The kernel's decision beside the explanation: they agree, or the difference is an error.

use super::*;

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
