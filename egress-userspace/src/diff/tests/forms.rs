//! Rows that are sparse, grow, and change their form.

use std::net::Ipv4Addr;

use egress_common::{DropReason, cells::RowPlace};
use ipnet::Ipv4Net;

use super::{steps::check_steps, *};
use crate::rows::Row;

/// Small rows may be sparse too.
fn soon() -> Limits {
    Limits {
        sparse_from: 0,
        ..Limits::default()
    }
}

/// Networks of 198.18.0.0/15 that nest: a /24 for each of the first half, and hosts within them.
fn pool(number: u16) -> IpNet {
    let [high, low] = (number / 2).to_be_bytes();
    let (addr, length) = if number.is_multiple_of(2) {
        (Ipv4Addr::new(198, 18 + high, low, 0), 24)
    } else {
        (Ipv4Addr::new(198, 18 + high, low, 7), 32)
    };
    Ipv4Net::new(addr, length).map_or_else(|e| unreachable!("{e}"), IpNet::V4)
}

/// Addresses of the pool and beyond.
fn asked() -> impl Iterator<Item = IpAddr> {
    let inside = (0..POOL / 2).step_by(7).flat_map(|number| {
        let [high, low] = number.to_be_bytes();
        [7, 9].map(|host| IpAddr::from([198, 18 + high, low, host]))
    });
    inside.chain([IpAddr::from([203, 0, 113, 1])])
}

/// Prefixes that there may be.
const POOL: u16 = 600;

/// What a policy says, prefix by prefix; 0 says nothing.
type Said = BTreeMap<IpNet, u16>;

/// Policies that say 0 to 3 of prefixes: wholly nothing, a few of their own, or nearly all.
fn arbitrary_said() -> impl Strategy<Value = Said> {
    let few = prop::collection::btree_map(0..POOL, 2_u16..4, 0..30);
    let some = prop::collection::btree_map(0..POOL, 2_u16..4, 0..150);
    let most = (0_u16..4).prop_map(|n| (0..POOL).map(|at| (at, (at + n) % 3 + 1)).collect());
    let default = prop::option::of(1_u16..4);
    let own = prop_oneof![4 => few, 2 => some, 1 => most];
    (own, default).prop_map(|(own, default): (BTreeMap<u16, u16>, _)| {
        let own = own.into_iter().map(|(at, number)| (pool(at), number));
        let default = default.map(|number| (net("0.0.0.0/0"), number));
        own.chain(default).collect()
    })
}

/// Three pods, each with a policy of its own.
fn arbitrary_forms() -> impl Strategy<Value = [Said; 3]> {
    [arbitrary_said(), arbitrary_said(), arbitrary_said()]
}

fn key(number: usize) -> PodKey {
    PodKey {
        ifindex: u32::try_from(number).unwrap_or(0) + 1,
        addr: Addr::v4([10, 0, 0, 1]),
    }
}

fn state(said: &[Said; 3]) -> DesiredState {
    let prefixes: BTreeSet<IpNet> = said.iter().flat_map(|said| said.keys().copied()).collect();
    let number = |said: &Said, net: &IpNet| {
        let around = said.iter().filter(|(outer, _)| outer.contains(net));
        let longest = around.max_by_key(|(outer, _)| outer.prefix_len());
        longest.map_or(NUMBER_UNMATCHED, |(_, number)| *number)
    };
    let verdicts = [
        VerdictSpec::Unmatched,
        VerdictSpec::Local,
        VerdictSpec::Drop(DropReason::NoGateway),
        VerdictSpec::Drop(DropReason::PolicyInvalid),
    ];
    let mut state = DesiredState {
        prefixes: prefixes.iter().copied().collect(),
        ..DesiredState::default()
    };
    for (at, said) in said.iter().enumerate() {
        let runs = (0..).zip(prefixes.iter().map(|net| number(said, net)));
        let places = u32::try_from(prefixes.len()).unwrap_or(u32::MAX);
        let row = Row::new(places, runs, &soon());
        let highest = usize::from(row.highest());
        state.pods.insert(key(at), at);
        state.profiles.push(Profile {
            policy: format!("p{at}"),
            row: at,
            verdicts: verdicts[..=highest].into(),
        });
        state.rows.push(Arc::new(row));
    }
    state
}

fn step(world: &World, said: &[Said; 3]) -> Plan {
    let desired = state(said);
    plan(&world.live, &world.names, &desired, &soon()).unwrap_or_else(|e| unreachable!("{e}"))
}

fn assert_says(world: &World, said: &[Said; 3]) {
    for (at, said) in said.iter().enumerate() {
        for to in asked() {
            let around = said.iter().filter(|(net, _)| net.contains(&to));
            let longest = around.max_by_key(|(net, _)| net.prefix_len());
            let policy = world.names.policies[&format!("p{at}")];
            let wanted = match longest.map_or(0, |(_, number)| *number) {
                0 => Outcome::Unmatched { policy },
                1 => Outcome::Local { policy },
                2 => Outcome::Drop {
                    policy,
                    reason: DropReason::NoGateway,
                },
                _ => Outcome::Drop {
                    policy,
                    reason: DropReason::PolicyInvalid,
                },
            };
            assert_eq!(world.maps.lookup(key(at), to, 0), wanted, "p{at}: {to}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn rows_of_both_forms_lead_to_what_is_desired(all in prop::collection::vec(arbitrary_forms(), 1..4)) {
        let mut world = World::default();
        for said in &all {
            let plan = step(&world, said);
            world.go(&plan);
            assert_says(&world, said);
            prop_assert_eq!(&traced(&world.maps), &measured(world.live.clone()));
            prop_assert_eq!(step(&world, said).changes, vec![]);
        }
    }

    #[test]
    fn what_broke_off_is_completed_in_either_form(
        a in arbitrary_forms(),
        b in arbitrary_forms(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut world = World::default();
        let plan = step(&world, &a);
        world.go(&plan);
        let plan = step(&world, &b);
        if !plan.changes.is_empty() {
            for change in &plan.changes[..at.index(plan.changes.len())] {
                world.maps.apply(change);
            }
        }
        for next in [&b, &a] {
            let mut world = world.clone();
            world.live = traced(&world.maps);
            let plan = step(&world, next);
            world.go(&plan);
            assert_says(&world, next);
            prop_assert_eq!(step(&world, next).changes, vec![]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn no_pod_sees_a_mixture_of_forms(a in arbitrary_forms(), b in arbitrary_forms(), c in arbitrary_forms()) {
        let mut world = World::default();
        let plan = step(&world, &a);
        world.go(&plan);
        let maps = world.maps.clone();
        let plans = [&b, &c].map(|next| {
            let plan = step(&world, next);
            world.go(&plan);
            plan
        });
        let pods = (0..3).map(key).collect();
        let some: Vec<IpAddr> = asked().step_by(9).collect();
        check_steps(&pods, &maps, &plans, &some);
    }
}

/// A policy of a few prefixes among many of another's.
fn few_among(many: u16) -> [Said; 3] {
    let few = (0..5).map(|at| (pool(at * 2), 2)).collect();
    let of_other = (0..many).map(|at| (pool(at), 3)).collect();
    [few, of_other, Said::new()]
}

fn place_of(world: &World, pod: usize) -> RowPlace {
    let state = world.maps.state_of(key(pod));
    state.map_or_else(|| unreachable!("it has no row"), PodState::row)
}

#[test]
fn a_row_learns_what_it_says_anyway_without_a_write() {
    let mut world = World::default();
    let plan = step(&world, &few_among(300));
    world.go(&plan);
    let before = place_of(&world, 0);
    assert!(before.is_sparse());
    let plan = step(&world, &few_among(400));
    let written: Vec<u32> = plan
        .changes
        .iter()
        .filter_map(|change| {
            if let Change::WriteLines { first_line, .. } = change {
                return Some(*first_line);
            }
            None
        })
        .collect();
    assert!(!written.contains(&before.first_line()), "{written:?}");
    world.go(&plan);
    assert_says(&world, &few_among(400));
    assert_eq!(place_of(&world, 0), before);
}

#[test]
fn a_row_grows_in_place_and_moves_once_a_line_is_full() {
    let mut world = World::default();
    // Nearly all that is new is within what the first policy has.
    let with = |inner: u8| -> [Said; 3] {
        let [mut few, other, none] = few_among(300);
        few.insert(net("10.0.0.0/8"), 3);
        let hosts = (0..inner).map(|host| (net(&format!("10.0.0.{host}/32")), 2));
        [few, other.into_iter().chain(hosts).collect(), none]
    };
    let plan = step(&world, &with(0));
    world.go(&plan);
    let mut places = vec![place_of(&world, 0)];
    for inner in 1..60 {
        let plan = step(&world, &with(inner));
        check_steps(
            &[key(0)].into(),
            &world.maps,
            std::slice::from_ref(&plan),
            &[IpAddr::from([10, 0, 0, 3]), IpAddr::from([198, 18, 0, 1])],
        );
        world.go(&plan);
        assert_says(&world, &with(inner));
        let place = place_of(&world, 0);
        if places.last() != Some(&place) {
            places.push(place);
        }
    }
    let shifts: Vec<_> = places.iter().map(|place| place.shift()).collect();
    assert!(shifts.len() > 1 && shifts.len() < 8, "{shifts:?}");
    assert!(shifts.windows(2).all(|two| two[0] < two[1]), "{shifts:?}");
}
