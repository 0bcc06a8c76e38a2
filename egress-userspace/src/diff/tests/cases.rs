//! Single cases.

use super::{steps::check_steps, *};

// ---- single cases ----

fn spec(policy: &str, rule: &str, gateway: u8) -> MemberSpec {
    MemberSpec {
        gateway: GatewayId(u32::from(gateway)),
        label: Arc::new(MemberLabel {
            namespace: "gateways".to_owned(),
            gateway: format!("gw{gateway}"),
            policy: policy.to_owned(),
            rule: rule.to_owned(),
        }),
        weight: NonZeroU32::MIN,
        standing: Standing::Serving,
        way: Way::NextHop {
            next_hop: IpAddr::from([192, 168, 9, gateway]),
            ifindex: 7,
            mtu: 1500,
            replies: Replies::Recorded,
        },
    }
}

fn key(number: u8) -> PodKey {
    PodKey {
        ifindex: u32::from(number),
        addr: Addr::v4([10, 0, 0, number]),
    }
}

/// A row of these numbers.
fn row(numbers: impl IntoIterator<Item = u16>) -> Arc<Row> {
    let runs: Vec<(u32, u16)> = (0..).zip(numbers).collect();
    let places = u32::try_from(runs.len()).unwrap_or(u32::MAX);
    Arc::new(Row::new(places, runs, &Limits::default()))
}

/// `pods` pods with a policy each, of `rules` rules to one gateway.
fn one_policy_each(pods: u8, rules: u8, gateway: u8) -> DesiredState {
    DesiredState {
        pods: (0..pods).map(|n| (key(n), usize::from(n))).collect(),
        profiles: (0..pods)
            .map(|n| Profile {
                policy: format!("p{n}"),
                row: 0,
                verdicts: [VerdictSpec::Unmatched, VerdictSpec::Local]
                    .into_iter()
                    .chain((0..rules).map(|rule| {
                        let policy = format!("p{n}");
                        VerdictSpec::Gateways(vec![spec(&policy, &format!("r{rule}"), gateway)])
                    }))
                    .collect(),
            })
            .collect(),
        rows: vec![row((0..rules).map(|rule| u16::from(rule) + 2))],
        prefixes: (0..rules)
            .map(|rule| net(&format!("192.0.2.{rule}/32")))
            .collect(),
        ..DesiredState::default()
    }
}

#[test]
fn a_full_map_is_changed_policy_by_policy() {
    // Ten blocks of six fit, and one more: not all ten new ones beside the old.
    let limits = Limits {
        verdicts: 66,
        members: 80,
        pods: 10,
        ..Limits::default()
    };
    let (a, b) = (one_policy_each(10, 4, 1), one_policy_each(10, 4, 2));
    let mut world = World::default();
    for state in [&a, &b] {
        let plan =
            plan(&world.live, &world.names, state, &limits).unwrap_or_else(|e| unreachable!("{e}"));
        let before = world.maps.clone();
        // Both sets of counters are there during the change: labels name the gateway.
        world.go(&plan);
        assert_shows(&world.maps, state, &world.names);
        if *state == b {
            check_steps(
                &all_pods(&[&a]),
                &before,
                std::slice::from_ref(&plan),
                &probes(),
            );
            let graces = plan.changes.iter().filter(|c| **c == Change::Grace).count();
            assert!(graces > 2, "{graces}");
        }
    }
    assert!(world.maps.verdicts.keys().all(|index| *index < 66));
}

#[test]
fn what_cannot_fit_is_refused() {
    let limits = Limits {
        verdicts: 8,
        ..Limits::default()
    };
    let mut world = World::default();
    let plan_a = world.plan(&one_policy_each(1, 4, 1));
    world.go(&plan_a);
    let refused = plan(
        &world.live,
        &world.names,
        &one_policy_each(1, 4, 2),
        &limits,
    );
    assert_eq!(
        refused,
        Err(PlanError {
            what: "verdicts",
            room: 8
        })
    );
}

#[test]
fn a_lost_gateway_rewrites_no_row() {
    let world = World::to(&one_policy_each(3, 4, 1));
    let plan = world.plan(&one_policy_each(3, 4, 2));
    assert!(
        !plan
            .changes
            .iter()
            .any(|change| matches!(change, Change::WriteLines { .. })),
        "{plan:#?}"
    );
    assert_eq!(plan.changes.last(), Some(&Change::Grace));
}

#[test]
fn a_row_without_room_moves_before_its_new_prefix_is_published() {
    let mut a = one_policy_each(1, 1, 1);
    let mut b = a.clone();
    for (state, hosts) in [(&mut a, 200_u16), (&mut b, 300)] {
        let (mut prefixes, mut cells) = (
            state.prefixes.to_vec(),
            state.rows[0].cells().collect::<Vec<_>>(),
        );
        for host in 0..hosts {
            let [high, low] = host.to_be_bytes();
            prefixes.push(net(&format!("198.18.{high}.{low}/32")));
            cells.push(NUMBER_UNMATCHED);
        }
        state.prefixes = prefixes.into();
        state.rows[0] = row(cells);
    }
    let world = World::to(&a);
    let plan = world.plan(&b);
    let order: Vec<u8> = plan
        .changes
        .iter()
        .map(|change| match change {
            Change::WriteLines { .. } => 0,
            Change::TurnPod { .. } => 1,
            Change::Grace => 2,
            Change::InsertPrefix { .. } => 3,
            Change::WriteMember { .. }
            | Change::WriteVerdicts { .. }
            | Change::InsertPod { .. }
            | Change::RemovePod { .. }
            | Change::RemovePrefix { .. } => 9,
        })
        .collect();
    let mut wanted = vec![0, 1, 2];
    wanted.extend([3; 100]);
    assert_eq!(order, wanted);
    check_steps(&all_pods(&[&a]), &world.maps, &[plan], &probes());
}

#[test]
fn a_gateway_of_next_to_no_weight_does_not_make_plans_restless() {
    let mut state = one_policy_each(1, 1, 1);
    let light = spec("p0", "r0", 9);
    let mut heavy = spec("p0", "r0", 1);
    heavy.weight = NonZeroU32::MAX;
    Arc::make_mut(&mut state.profiles[0].verdicts)[2] = VerdictSpec::Gateways(vec![heavy, light]);
    let mut world = World::to(&state);
    assert_eq!(world.plan(&state).changes, vec![]);
    world.live = traced(&world.maps);
    assert_eq!(world.plan(&state).changes, vec![]);
    assert_eq!(world.names.members.len(), 2);
    // No slot names it, and yet a flow that is on it finds it, in whichever place its id puts it.
    let places: Vec<u16> = world
        .live
        .slot_tables
        .values()
        .flat_map(|t| t.to_vec())
        .collect();
    assert!(places.iter().all(|place| *place == 0));
    assert_eq!(world.live.members.len(), 2);
    let groups: Vec<_> = world
        .live
        .blocks
        .values()
        .flatten()
        .filter_map(Verdict::decode)
        .filter_map(|decision| match decision {
            Decision::Group { members, .. } => Some(members),
            Decision::Unmatched | Decision::Local | Decision::Member(_) | Decision::Drop(_) => None,
        })
        .collect();
    assert_eq!(groups, [2]);
}

#[test]
fn slots_are_drawn_by_name_whatever_the_order_of_ids() {
    let owners = |ids: [u32; 3]| {
        let mut group: Vec<MemberSpec> = (1..)
            .zip(ids)
            .map(|(n, id)| {
                let mut member = spec("p", "r", n);
                member.gateway = GatewayId(id);
                member
            })
            .collect();
        group.sort();
        let table = Tables::default().table(&candidates(&group));
        let names: Vec<String> = table
            .iter()
            .map(|place| group[usize::from(*place)].label.gateway.clone())
            .collect();
        names
    };
    assert_eq!(owners([1, 2, 3]), owners([7, 6, 5]));
    assert_eq!(owners([1, 2, 3]), owners([9, 1, 4]));
}

#[test]
fn a_table_that_names_more_than_its_group_has_is_written_anew() {
    let mut state = one_policy_each(1, 1, 1);
    let group = (1..=3).map(|n| spec("p0", "r0", n)).collect();
    Arc::make_mut(&mut state.profiles[0].verdicts)[2] = VerdictSpec::Gateways(group);
    let mut world = World::to(&state);
    for verdict in world.maps.verdicts.values_mut() {
        if let Some(Decision::Group {
            lines,
            first_member,
            ..
        }) = verdict.decode()
        {
            let broken = Decision::Group {
                lines,
                first_member,
                members: 2,
            };
            *verdict = Verdict::new(verdict.policy, broken);
        }
    }
    world.live = traced(&world.maps);
    assert_eq!(world.live.members.len(), 3, "a packet may read all of them");
    let plan = world.plan(&state);
    world.go(&plan);
    assert_shows(&world.maps, &state, &world.names);
    assert_eq!(world.plan(&state).changes, vec![]);
}

#[test]
fn lost_names_cost_new_counters_and_nothing_else() {
    let state = one_policy_each(2, 2, 1);
    let mut world = World::to(&state);
    world.names = Names::default();
    let plan = world.plan(&state);
    world.go(&plan);
    assert_shows(&world.maps, &state, &world.names);
    assert!(world.names.members.iter().all(|(_, id)| *id >= 4));
}

#[test]
fn unchanged_rows_are_shared_between_before_and_after() {
    let world = World::to(&one_policy_each(1, 4, 1));
    let plan = world.plan(&one_policy_each(1, 4, 2));
    let cells = |live: &KernelState| live.rows.values().next().map(|row| Arc::as_ptr(&row.cells));
    assert_eq!(cells(&world.live), cells(&plan.after));
}
