//! Where plans of any states lead, whatever breaks them off.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_plan_leads_to_what_is_desired(a in arbitrary_state(), b in arbitrary_state()) {
        let mut world = World::to(&a);
        assert_shows(&world.maps, &a, &world.names);
        let plan = world.plan(&b);
        world.go(&plan);
        assert_shows(&world.maps, &b, &world.names);
        for pod in all_pods(&[&a]) {
            prop_assert_eq!(world.maps.state_of(pod).is_some(), b.pods.contains_key(&pod));
        }
        prop_assert_eq!(world.maps.prefixes.keys().copied().collect::<Vec<_>>(), b.prefixes.to_vec());
        prop_assert_eq!(&traced(&world.maps), &measured(world.live.clone()));
        // Planning again changes nothing, from what was kept or from what the maps say.
        prop_assert_eq!(world.plan(&b).changes, vec![]);
        world.live = traced(&world.maps);
        let again = world.plan(&b);
        prop_assert_eq!(again.changes, vec![]);
        prop_assert_eq!(again.names, world.names);
        prop_assert!(again.retired_members.is_empty() && again.retired_policies.is_empty());
    }

    #[test]
    fn what_is_remembered_changes_nothing(nodes in arbitrary_nodes()) {
        let limits = Limits::default();
        let (mut compilations, mut planned) = (compile::Memo::default(), Memo::default());
        let mut world = World::default();
        for resolved in &nodes {
            let desired = compile_again(resolved, &limits, &mut compilations);
            prop_assert_eq!(&desired, &compile(resolved, &limits));
            let desired = desired.unwrap_or_else(|e| unreachable!("{e}"));
            let (live, names) = (&world.live, &world.names);
            let (plan, memo) = plan_again(live, names, &desired, &limits, &planned)
                .unwrap_or_else(|e| unreachable!("{e}"));
            let anew = world.plan(&desired);
            prop_assert_eq!(&plan.names, &anew.names);
            prop_assert_eq!(plan.changes.len(), anew.changes.len());
            world.go(&plan);
            planned = memo;
            assert_shows(&world.maps, &desired, &world.names);
            prop_assert_eq!(&traced(&world.maps), &measured(world.live.clone()));
            let (live, names) = (&world.live, &world.names);
            let (again, _) = plan_again(live, names, &desired, &limits, &planned)
                .unwrap_or_else(|e| unreachable!("{e}"));
            prop_assert_eq!(again.changes, vec![]);
            prop_assert_eq!(world.plan(&desired).changes, vec![]);
        }
    }

    #[test]
    fn every_change_can_be_made_twice(a in arbitrary_state(), b in arbitrary_state()) {
        let mut once = World::to(&a);
        let plan = once.plan(&b);
        let mut twice = once.clone();
        once.go(&plan);
        for change in &plan.changes {
            twice.maps.apply(change);
            twice.maps.apply(change);
        }
        prop_assert_eq!(&once.maps, &twice.maps);
        twice.go(&plan);
        prop_assert_eq!(&traced(&once.maps), &traced(&twice.maps));
    }

    #[test]
    fn a_plan_broken_off_anywhere_is_completed(
        a in arbitrary_state(),
        b in arbitrary_state(),
        c in arbitrary_state(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut world = World::to(&a);
        let plan = world.plan(&b);
        for change in plan.changes.iter().take(at.index(plan.changes.len() + 1)) {
            world.maps.apply(change);
        }
        // Names are kept before the first change is made.
        world.names = plan.names.clone();
        for next in [&b, &c] {
            let mut world = world.clone();
            world.live = traced(&world.maps);
            let plan = world.plan(next);
            world.go(&plan);
            assert_shows(&world.maps, next, &world.names);
            prop_assert_eq!(&traced(&world.maps), &measured(world.live.clone()));
            prop_assert_eq!(world.plan(next).changes, vec![]);
        }
    }

    #[test]
    fn names_are_stable_and_never_reused_at_once(a in arbitrary_state(), b in arbitrary_state()) {
        let world = World::to(&a);
        let plan = world.plan(&b);
        let before: BTreeMap<_, _> = world.names.members.iter().cloned().collect();
        let after: BTreeMap<_, _> = plan.names.members.iter().cloned().collect();
        let old: BTreeSet<u32> = before.values().copied().collect();
        prop_assert_eq!(after.values().collect::<BTreeSet<_>>().len(), after.len());
        for (label, id) in &after {
            match before.get(label) {
                Some(known) => prop_assert_eq!(known, id),
                None => prop_assert!(!old.contains(id)),
            }
        }
        let retired: BTreeMap<_, _> = plan.retired_members.iter().cloned().collect();
        for (label, id) in &before {
            prop_assert_eq!(!after.contains_key(label), retired.get(label) == Some(id));
        }
        prop_assert!(plan.names.policies.values().all(|id| *id != 0));
        for (policy, id) in &plan.retired_policies {
            prop_assert_eq!(world.names.policies.get(policy), Some(id));
            prop_assert!(!plan.names.policies.values().any(|kept| kept == id));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn ids_are_given_back(states in prop::collection::vec(arbitrary_state(), 30)) {
        let mut world = World::default();
        for state in &states {
            let plan = world.plan(state);
            world.go(&plan);
        }
        assert_shows(&world.maps, &states[29], &world.names);
        // No more than the largest two states side by side ever take, with gaps.
        prop_assert!(world.maps.verdicts.len() < 200, "{} verdicts", world.maps.verdicts.len());
        prop_assert!(world.maps.members.len() < 200, "{} members", world.maps.members.len());
        prop_assert!(world.maps.slots.len() <= 20, "{} slots", world.maps.slots.len());
        let highest = world.maps.lines.keys().max().copied().unwrap_or(0);
        prop_assert!(highest < 40 * 512, "line {highest}");
        let plan = world.plan(&DesiredState::default());
        world.go(&plan);
        prop_assert_eq!(&world.live, &KernelState::default());
        prop_assert_eq!(&world.names, &Names::default());
        prop_assert_eq!(&traced(&world.maps), &KernelState::default());
    }
}
