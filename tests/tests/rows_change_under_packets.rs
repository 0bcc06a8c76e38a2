//! Packets that are classified while their row learns new prefixes, grows, moves and changes its form: what their policy says stays
//! the same all the while, and so do their verdicts.
#![expect(clippy::unwrap_used, reason = "a test fails where it is")]

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use egress_common::{DropReason, counter::PassKind};
use egress_tests::packets::{
    Action, Runner, Slot,
    random::Random,
    seed::{addresses, resolved, rule, via},
    stream::{Stream, run_until},
    with_lab,
};
use egress_userspace::{
    compile,
    diff::{self, Change},
    kernel::Program,
    resolve::{self, Fate, Resolved},
    state::Limits,
};

/// New sets of prefixes.
const CHANGES: usize = 40;

/// The pod whose policy never changes, the one that drops or does not, and the one that brings prefixes.
const KEPT: (&str, u8) = ("kept", 5);
const TURNED: (&str, u8) = ("turned", 6);
const CROWD: (&str, u8) = ("crowd", 7);

/// Prefixes of others: so many beside what is asked for, and so many within what is dropped.
#[derive(Clone, Copy)]
struct Crowd {
    beside: usize,
    within: usize,
}

/// Where packets go: to what is dropped, to what is local, and to what no rule matches.
const DROPPED: [&str; 4] = ["10.20.0.7", "10.20.1.200", "10.20.3.3", "10.20.200.1"];
const LOCAL: [&str; 2] = ["10.99.0.1", "10.16.0.1"];
const UNMATCHED: [&str; 2] = ["203.0.113.7", "192.0.2.20"];

#[test]
fn each_answer_is_that_of_the_policy() {
    with_lab(|lab| {
        let limits = Limits {
            sparse_from: 0,
            ..*lab.limits()
        };
        lab.bring_to(&world(
            Crowd {
                beside: 0,
                within: 0,
            },
            false,
        ));
        let runner = lab.runner(Program::FromPod).unwrap();
        let done = AtomicBool::new(false);
        let (mut forms, mut moves) = (BTreeSet::new(), 0);
        let [kept, turned] = thread::scope(|scope| {
            let readers = [
                scope.spawn(|| read(&runner, KEPT.1, true, &done)),
                scope.spawn(|| read(&runner, TURNED.1, false, &done)),
            ];
            let mut random = Random::new();
            let (mut state, mut names) = (lab.state().clone(), lab.names().clone());
            let maps = &mut lab.datapath().maps;
            let (mut drops, mut place) = (false, None);
            for _ in 0..CHANGES {
                let crowd = Crowd {
                    beside: [0, 300, 350, 700][random.below(4)],
                    within: [0, 6, 30, 60, 200][random.below(5)],
                };
                drops = random.once_in(3) != drops;
                let desired = compile::compile(&world(crowd, drops), &limits).unwrap();
                let plan = diff::plan(&state, &names, &desired, &limits).unwrap();
                for change in &plan.changes {
                    maps.carry_out(change).unwrap();
                    if let Change::WriteLines { .. } = change {
                        thread::yield_now();
                    }
                }
                (state, names) = (plan.after, plan.names);
                let slot = state
                    .pods
                    .iter()
                    .find(|(key, _)| addresses(KEPT.1).contains(&key.addr.into()));
                let row = state.slots[slot.unwrap().1].row();
                moves += usize::from(place.replace(row) != Some(row));
                forms.insert(row.is_sparse());
            }
            done.store(true, Ordering::Relaxed);
            readers.map(|reader| reader.join().unwrap())
        });
        let mut moved = lab.moved();
        let mut of = |policy: &str| {
            let drops = Slot::Drop(policy.to_owned(), DropReason::NoGateway);
            let passes = [PassKind::Local, PassKind::Unmatched];
            let [local, unmatched] = passes.map(|kind| Slot::Pass(policy.to_owned(), kind));
            [drops, local, unmatched].map(|slot| moved.remove(&slot).unwrap_or_default().0)
        };
        assert_eq!(of(KEPT.0), kept);
        let [drops, local, unmatched] = of(TURNED.0);
        assert_eq!(drops + local, turned[0] + turned[1]);
        assert!(
            drops > 0 && local > turned[1],
            "it was never turned: {drops}, {local}"
        );
        assert_eq!(unmatched, turned[2]);
        assert!(moved.is_empty(), "a third answer: {moved:?}");
        assert_eq!(forms.len(), 2, "the row has always had one form");
        println!("{kept:?} and {turned:?} packets, {moves} moves");
    });
}

/// What all say: two policies that nest, and prefixes of a third that have nothing to do with them.
fn world(crowd: Crowd, turned_drops: bool) -> Resolved {
    let local = || resolve::Action::Local;
    let drop = || via(vec![]);
    let within = (0..crowd.within).map(|n| format!("10.20.{}.{}/32", n / 50, n % 50 * 5));
    let beside = (0..crowd.beside).map(|n| format!("172.16.{}.{}/32", n / 200, n % 200));
    let asked = DROPPED
        .iter()
        .chain(&UNMATCHED)
        .map(|to| format!("{to}/32"));
    let crowd: BTreeSet<String> = match crowd.beside {
        0 => within.collect(),
        _ => within.chain(beside).chain(asked).collect(),
    };
    let fate = |mut rules: Vec<resolve::EffectiveRule>| {
        rules.sort();
        Fate::Rules(rules.into())
    };
    let two = |inner| {
        fate(vec![
            rule("10.20.0.0/16", inner),
            rule("10.0.0.0/8", local()),
        ])
    };
    let turned = if turned_drops { drop() } else { local() };
    let crowd = fate(crowd.iter().map(|prefix| rule(prefix, local())).collect());
    let [kept, turned] = [(KEPT, two(drop())), (TURNED, two(turned))]
        .map(|((name, last), fate)| (name, last, fate, name));
    resolved(&[], [kept, turned, (CROWD.0, CROWD.1, crowd, CROWD.0)])
}

/// Runs packets of a pod to all destinations, and says how many were to be dropped, local and unmatched.
fn read(runner: &Runner, pod: u8, drops: bool, done: &AtomicBool) -> [u64; 3] {
    let streams: [(&[&str], Option<Action>); 3] = [
        (&DROPPED, drops.then_some(Action::Drop)),
        (&LOCAL, Some(Action::Pass)),
        (&UNMATCHED, Some(Action::Pass)),
    ];
    let streams = streams.map(|(destinations, wanted)| Stream {
        pod,
        destinations,
        wanted,
    });
    run_until(runner, streams, done)
}
