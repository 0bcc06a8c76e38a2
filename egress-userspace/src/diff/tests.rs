//! Plans carried out on plain maps: what every pod sees at every step, after a crash, and for slow packets.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
};

use egress_common::{
    Addr,
    cells::SLOTS,
    gateway::GatewayId,
    verdict::{Decision, NUMBER_UNMATCHED, Replies},
};
use proptest::prelude::*;

use super::*;
use crate::{
    compile::{
        candidates, compile,
        slots::Tables,
        tests::{arbitrary_resolved, net, probes, told},
    },
    state::{Extent, MemberSpec, Profile, Standing, VerdictSpec, Way},
};

/// Flows whose hashes land in different slots.
const FLOWS: [u32; 3] = [0, 7_777_777, 0xdead_beef];

fn arbitrary_state() -> impl Strategy<Value = DesiredState> {
    arbitrary_resolved().prop_map(|resolved| {
        compile(&resolved, &Limits::default()).unwrap_or_else(|e| unreachable!("{e}"))
    })
}

/// What a packet should see, from the desired state and the names alone.
fn expected(state: &DesiredState, names: &Names, pod: PodKey, to: IpAddr, flow: u32) -> Outcome {
    let Some(verdict) = told(state, pod, to) else {
        return Outcome::UnknownSource;
    };
    let policy = names.policies[&state.profiles[state.pods[&pod]].policy];
    match verdict {
        VerdictSpec::Unmatched => Outcome::Unmatched { policy },
        VerdictSpec::Local => Outcome::Local { policy },
        VerdictSpec::Drop(reason) => Outcome::Drop {
            policy,
            reason: *reason,
        },
        VerdictSpec::Gateways(specs) => {
            let spec = &specs[usize::from(slot_of(specs, flow))];
            let counter = names.members.iter().find(|(label, _)| *label == spec.label);
            Outcome::Out {
                policy,
                member: spec.value(counter.map_or(u32::MAX, |(_, id)| *id)),
            }
        }
    }
}

/// Which member of a group a flow takes; tables are slow to make without optimisation, so each is made once.
fn slot_of(specs: &[MemberSpec], flow: u32) -> u16 {
    thread_local! {
        static TABLES: RefCell<BTreeMap<Vec<MemberSpec>, Vec<u16>>> = const { RefCell::new(BTreeMap::new()) };
    }
    TABLES.with_borrow_mut(|tables| {
        let table = tables
            .entry(specs.to_vec())
            .or_insert_with(|| Tables::default().table(&candidates(specs)));
        table[(flow % SLOTS) as usize]
    })
}

/// The answers to every probe, for one pod.
type Answers = Vec<Outcome>;

fn answers(maps: &RawMaps, pod: PodKey) -> Answers {
    ask(|to, flow| maps.lookup(pod, to, flow))
}

fn ask(lookup: impl Fn(IpAddr, u32) -> Outcome) -> Answers {
    probes()
        .into_iter()
        .flat_map(|to| FLOWS.map(|flow| (to, flow)))
        .map(|(to, flow)| lookup(to, flow))
        .collect()
}

fn all_pods(states: &[&DesiredState]) -> BTreeSet<PodKey> {
    states.iter().flat_map(|s| s.pods.keys().copied()).collect()
}

fn assert_shows(maps: &RawMaps, state: &DesiredState, names: &Names) {
    for pod in all_pods(&[state]) {
        let wanted = ask(|to, flow| expected(state, names, pod, to, flow));
        assert_eq!(answers(maps, pod), wanted, "{pod:?}");
    }
}

/// A kernel with the names that go with it.
#[derive(Clone, Default)]
struct World {
    maps: RawMaps,
    live: KernelState,
    names: Names,
}

impl World {
    fn plan(&self, desired: &DesiredState) -> Plan {
        plan(&self.live, &self.names, desired, &Limits::default())
            .unwrap_or_else(|e| unreachable!("{e}"))
    }

    fn go(&mut self, plan: &Plan) {
        for change in &plan.changes {
            self.maps.apply(change);
        }
        self.live = plan.after.clone();
        self.names = plan.names.clone();
    }

    fn to(desired: &DesiredState) -> Self {
        let mut world = Self::default();
        let plan = world.plan(desired);
        world.go(&plan);
        world
    }
}

/// Without the headroom of rows, which the maps do not tell.
fn measured(mut live: KernelState) -> KernelState {
    let bound = live.prefixes.values().max().map_or(0, |class| class + 1);
    for row in live.rows.values_mut() {
        row.lines = Extent::lines_needed(bound);
    }
    live
}

fn traced(maps: &RawMaps) -> KernelState {
    match trace(maps) {
        Ok(live) => live,
        Err(never) => match never {},
    }
}

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
        prop_assert_eq!(world.maps.prefixes.keys().copied().collect::<Vec<_>>(), b.prefixes.clone());
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
    fn no_pod_ever_sees_a_mixture(a in arbitrary_state(), b in arbitrary_state(), c in arbitrary_state()) {
        let mut world = World::to(&a);
        let maps = world.maps.clone();
        let plans = [&b, &c].map(|next| {
            let plan = world.plan(next);
            world.go(&plan);
            plan
        });
        check_steps(&all_pods(&[&a, &b, &c]), &maps, &plans);
    }

    #[test]
    fn no_pod_ever_sees_a_mixture_in_maps_read_back(a in arbitrary_state(), b in arbitrary_state()) {
        let mut before = World::to(&a);
        before.live = traced(&before.maps);
        let plan = before.plan(&b);
        check_steps(&all_pods(&[&a, &b]), &before.maps, &[plan]);
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
fn steps(maps: &RawMaps, plans: &[Plan]) -> Vec<Step> {
    let probes = probes();
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
fn check_steps(pods: &BTreeSet<PodKey>, maps: &RawMaps, plans: &[Plan]) {
    let steps = steps(maps, plans);
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

// ---- single cases ----

fn spec(policy: &str, rule: &str, gateway: u8) -> MemberSpec {
    MemberSpec {
        gateway: GatewayId(u32::from(gateway)),
        label: MemberLabel {
            namespace: "gateways".to_owned(),
            gateway: format!("gw{gateway}"),
            policy: policy.to_owned(),
            rule: rule.to_owned(),
        },
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
        rows: vec![(0..rules).map(|rule| u16::from(rule) + 2).collect()],
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
            check_steps(&all_pods(&[&a]), &before, std::slice::from_ref(&plan));
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
        for host in 0..hosts {
            let [high, low] = host.to_be_bytes();
            state.prefixes.push(net(&format!("198.18.{high}.{low}/32")));
            state.rows[0].push(NUMBER_UNMATCHED);
        }
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
    check_steps(&all_pods(&[&a]), &world.maps, &[plan]);
}

#[test]
fn a_gateway_of_next_to_no_weight_does_not_make_plans_restless() {
    let mut state = one_policy_each(1, 1, 1);
    let light = spec("p0", "r0", 9);
    let mut heavy = spec("p0", "r0", 1);
    heavy.weight = NonZeroU32::MAX;
    state.profiles[0].verdicts[2] = VerdictSpec::Gateways(vec![heavy, light]);
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
    state.profiles[0].verdicts[2] = VerdictSpec::Gateways(group);
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
