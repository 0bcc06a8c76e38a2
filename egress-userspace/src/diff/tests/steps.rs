//! What pods see between the changes of a plan.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_pod_ever_sees_a_mixture(a in arbitrary_state(), b in arbitrary_state(), c in arbitrary_state()) {
        let mut world = World::to(&a);
        let maps = world.maps.clone();
        let plans = [&b, &c].map(|next| {
            let plan = world.plan(next);
            world.go(&plan);
            plan
        });
        check_steps(&all_pods(&[&a, &b, &c]), &maps, &plans, &probes());
    }

    #[test]
    fn no_pod_ever_sees_a_mixture_in_maps_read_back(a in arbitrary_state(), b in arbitrary_state()) {
        let mut before = World::to(&a);
        before.live = traced(&before.maps);
        let plan = before.plan(&b);
        check_steps(&all_pods(&[&a, &b]), &before.maps, &[plan], &probes());
    }
}

/// The maps at one point of some plans, and the classes that the probes have there.
struct Step {
    maps: RawMaps,
    classes: Vec<Option<u32>>,
    /// Whether a plan ends here, or the first begins.
    whole: bool,
    /// Whether a grace led here.
    graced: bool,
}

/// The maps before the plans and after each of their changes that a probe could notice.
fn steps(maps: &RawMaps, plans: &[Plan], probes: &[IpAddr]) -> Vec<Step> {
    let mut maps = maps.clone();
    let mut classes: Vec<_> = probes.iter().map(|to| maps.class_of(*to)).collect();
    let mut steps = vec![Step {
        maps: maps.clone(),
        classes: classes.clone(),
        whole: true,
        graced: false,
    }];
    for plan in plans {
        for (place, change) in (1..).zip(&plan.changes) {
            maps.apply(change);
            let whole = place == plan.changes.len();
            if let Change::InsertPrefix { prefix, .. } | Change::RemovePrefix { prefix } = change {
                let mut touched = whole;
                for (to, class) in probes.iter().zip(&mut classes) {
                    if prefix.contains(to) {
                        *class = maps.class_of(*to);
                        touched = true;
                    }
                }
                if !touched {
                    continue;
                }
            }
            steps.push(Step {
                maps: maps.clone(),
                classes: classes.clone(),
                whole,
                graced: *change == Change::Grace,
            });
        }
    }
    steps
}

impl Step {
    fn answers(&self, pod: PodKey) -> Answers {
        let Some(state) = self.maps.state_of(pod) else {
            return vec![Outcome::UnknownSource; self.classes.len() * FLOWS.len()];
        };
        self.outcomes(state, &self.classes)
    }

    fn outcomes(&self, state: PodState, classes: &[Option<u32>]) -> Answers {
        classes
            .iter()
            .flat_map(|class| FLOWS.map(|flow| self.maps.outcome(state, *class, flow)))
            .collect()
    }
}

/// At each step a pod answers as one of the plans leaves it, in their order; and so does a packet that
/// reads in different steps, unless a grace lies between.
pub(super) fn check_steps(
    pods: &BTreeSet<PodKey>,
    maps: &RawMaps,
    plans: &[Plan],
    probes: &[IpAddr],
) {
    let steps = steps(maps, plans, probes);
    for pod in pods.iter().copied() {
        let whole: Vec<Answers> = steps
            .iter()
            .filter(|step| step.whole)
            .map(|step| step.answers(pod))
            .collect();
        let mut reached = 0;
        for (at, step) in steps.iter().enumerate() {
            let now = step.answers(pod);
            let policy = (reached..whole.len()).find(|policy| whole[*policy] == now);
            assert!(
                policy.is_some(),
                "step {at}: {pod:?} sees a mixture: {plans:#?}"
            );
            reached = policy.unwrap_or(reached);
        }
        for (early, began) in steps.iter().enumerate() {
            let Some(state) = began.maps.state_of(pod) else {
                continue;
            };
            // A packet that began a step earlier and read the same has been looked at.
            let seen = early > 0
                && !began.graced
                && steps[early - 1].maps.state_of(pod) == Some(state)
                && steps[early - 1].classes == began.classes;
            if seen {
                continue;
            }
            for (late, ends) in steps.iter().enumerate().skip(early + 1) {
                if ends.graced {
                    break;
                }
                for classes in [&began.classes, &ends.classes] {
                    for (place, seen) in ends.outcomes(state, classes).iter().enumerate() {
                        assert!(
                            whole.iter().any(|answers| answers[place] == *seen),
                            "{pod:?}, probe {place}, begun at step {early}, ended at {late}: {seen:?}: {plans:#?}"
                        );
                    }
                }
            }
        }
    }
}
