//! What is said of a pod and a destination.

use super::*;

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
fn network_policies_that_packets_go_past_are_named() {
    let ask = |action: Action, dst: &str| {
        let mut pod = pod(
            "p",
            Fate::Rules([rule(None, action), rule(Some("10.0.0.0/8"), Action::Local)].into()),
        );
        pod.network_policies = vec!["NetworkPolicy shop/deny".to_owned()];
        let resolved = Resolved {
            pods: BTreeMap::from([(ObjectName::new("shop", "web"), pod)]),
            ..Resolved::default()
        };
        offline(
            &resolved,
            &BTreeMap::new(),
            &ObjectName::new("shop", "web"),
            dst.parse().unwrap(),
        )
    };
    let refused = || Action::Drop(DropReason::PolicyEnforcement);
    let it = ask(refused(), "192.0.2.80").explanation;
    assert_eq!(it.verdict, Outcome::Drop("PolicyEnforcement".to_owned()));
    assert!(
        it.because.contains("NetworkPolicy shop/deny"),
        "{}",
        it.because
    );
    let it = ask(refused(), "10.1.1.1").explanation;
    assert_eq!((it.verdict, it.network_policies.len()), (Outcome::Local, 1));
    let open = || Action::Gateways([gateway("red", 1, &["192.0.2.1"])].into());
    let text = ask(refused(), "192.0.2.80").to_string()
        + "----\n"
        + &ask(open(), "192.0.2.80").to_string();
    insta::assert_snapshot!(text);
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
    text += &format!(
        "{}\n----\n",
        offline(&node.resolved, &BTreeMap::new(), &web, dst)
    );
    text += &offline(
        &node.resolved,
        &BTreeMap::new(),
        &ObjectName::new("shop", "job"),
        dst,
    )
    .to_string();
    let mut broken = node.clone();
    broken.kernel = Arc::new(KernelState::default());
    text += &format!("\n----\n{}", ask(&broken, "8.8.8.8"));
    insta::assert_snapshot!(text);
}

#[test]
fn an_answer_survives_json() {
    let answer = ask(&node(), "198.51.100.1");
    let json = serde_json::to_string(&answer).unwrap();
    assert_eq!(serde_json::from_str::<Answer>(&json).unwrap(), answer);
}
