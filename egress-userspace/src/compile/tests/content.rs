//! What is compiled, against a naive reading of the rules.

use super::*;

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
    let gateways = match &rule.action {
        Action::Local => return VerdictSpec::Local,
        Action::Drop(reason) => return VerdictSpec::Drop(*reason),
        Action::Gateways(gateways) => gateways,
    };
    let mut members: Vec<MemberSpec> = gateways
        .iter()
        .flat_map(|gateway| gateway.ways.iter().map(move |way| (gateway, way)))
        .filter(|(_, way)| (way.family() == Family::V4) == to.is_ipv4())
        .map(|(gateway, way)| MemberSpec {
            gateway: gateway.id,
            label: Arc::new(MemberLabel {
                namespace: gateway.name.namespace.clone(),
                gateway: gateway.name.name.clone(),
                policy: pod.policy.clone(),
                rule: rule.label.clone(),
            }),
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
            let highest = state.rows[profile.row].cells().max().unwrap_or(0);
            prop_assert_eq!(profile.verdicts.len(), usize::from(highest) + 1);
        }
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
    let rows: Vec<Vec<u16>> = state.rows.iter().map(|row| row.cells().collect()).collect();
    for (place, net) in state.prefixes.iter().enumerate() {
        let cells: Vec<u16> = rows.iter().map(|row| row[place]).collect();
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
fn policies_over_the_same_destinations_have_one_row() -> Result<(), CompileError> {
    let nets = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"];
    let out = || Action::Gateways([gateway(1, true, false, 1)].into());
    let of = |number, locals: &[usize], order: &[usize]| {
        let action = |at: &usize| {
            if locals.contains(at) {
                Action::Local
            } else {
                out()
            }
        };
        let rules = order.iter().map(|at| (Some(net(nets[*at])), action(at)));
        pod(number, &format!("policy{number}"), fate(rules.collect()))
    };
    let state = |second| {
        let resolved = Resolved {
            pods: BTreeMap::from([of(1, &[0], &[0, 1, 2, 3]), second]),
            ..Resolved::default()
        };
        compile(&resolved, &Limits::default())
    };
    let alike = state(of(2, &[2, 3], &[3, 1, 0, 2]))?;
    assert_eq!((alike.profiles.len(), alike.rows.len()), (2, 1));
    // Rules without gateway do not take a verdict each where they are most of them.
    let local = state(of(2, &[1, 2, 3], &[0, 1, 2, 3]))?;
    assert_eq!((local.profiles.len(), local.rows.len()), (2, 2));
    let verdicts = local.profiles.iter().map(|profile| profile.verdicts.len());
    assert_eq!(verdicts.collect::<Vec<_>>(), [2 + 4, 2 + 1 + 1]);
    Ok(())
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

/// What a network policy takes from one pod is verdicts, and no memory for another row.
#[test]
fn refused_rules_share_the_row_of_those_that_are_not() -> Result<(), CompileError> {
    let rules = |first: Action| {
        fate(vec![
            (None, first.clone()),
            (Some(net("10.0.0.0/8")), Action::Local),
            (Some(net("192.0.2.0/24")), first),
        ])
    };
    let open = Action::Gateways([gateway(1, true, true, 1)].into());
    let refused = Action::Drop(DropReason::PolicyEnforcement);
    let resolved = Resolved {
        pods: BTreeMap::from([pod(1, "p", rules(open)), pod(2, "p", rules(refused))]),
        cluster_prefixes: [net("10.96.0.0/12")].into(),
        ..Resolved::default()
    };
    let state = compile(&resolved, &Limits::default())?;
    assert_eq!((state.profiles.len(), state.rows.len()), (2, 1));
    let key = |number| PodKey {
        ifindex: 100 + u32::from(number),
        addr: IpAddr::from([10, 0, 0, number]).into(),
    };
    let refuse = Some(VerdictSpec::Drop(DropReason::PolicyEnforcement));
    let cases = [
        ([198, 51, 100, 1], refuse.clone()),
        ([192, 0, 2, 1], refuse),
        ([10, 1, 1, 1], Some(VerdictSpec::Local)),
        ([10, 97, 0, 1], Some(VerdictSpec::Local)),
    ];
    for (to, expected) in cases {
        let told = |number| told(&state, key(number), to.into()).cloned();
        assert_eq!(told(2), expected, "{to:?}");
        let is_open = matches!(told(1), Some(VerdictSpec::Gateways(_)));
        assert_eq!(is_open, told(1) != expected, "{to:?}");
    }
    Ok(())
}
