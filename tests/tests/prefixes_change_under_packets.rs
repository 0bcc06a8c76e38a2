//! Packets that are classified while prefixes come and go around their destinations: each sees an answer that some
//! order of the changes has, and never that of a trie in between.
#![expect(clippy::unwrap_used, reason = "a test fails where it is")]

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use egress_common::{DropReason, counter::PassKind};
use egress_tests::packets::{
    Action, Runner, Slot,
    random::Random,
    seed::{net, resolved, rule, via},
    stream::{Stream, run_until},
    with_lab,
};
use egress_userspace::{diff::Change, kernel::Program, resolve::Fate};

/// Changes of one prefix each, half of them removals.
const CHANGES: usize = 2000;

/// What is always there, and dropped; what contains it, and is local; what comes and goes within, around and beside.
struct Place {
    dropped: &'static str,
    local: &'static str,
    toggled: &'static [&'static str],
    /// Of `dropped`, of `local` and of nothing that comes and goes, and of what does.
    always_dropped: &'static [&'static str],
    always_local: &'static [&'static str],
    either: &'static [&'static str],
}

const V4: Place = Place {
    dropped: "10.20.30.0/24",
    local: "10.0.0.0/8",
    toggled: &[
        "10.16.0.0/12",
        "10.20.0.0/16",
        "10.20.0.0/17",
        "10.20.16.0/20",
        "10.20.28.0/22",
        "10.20.30.0/23",
        "10.20.30.0/25",
        "10.20.30.40/32",
        "10.20.30.41/32",
        "10.20.30.40/31",
        "10.20.30.64/27",
        "10.20.31.0/24",
        "10.20.32.0/20",
        "10.20.200.0/24",
        "10.20.200.7/32",
    ],
    always_dropped: &["10.20.30.40", "10.20.30.41", "10.20.30.200", "10.20.30.65"],
    always_local: &["10.99.0.1", "10.32.0.1"],
    either: &["10.20.31.1", "10.20.200.7", "10.20.17.1", "10.17.0.1"],
};

const V6: Place = Place {
    dropped: "2001:db8:7:8::/64",
    local: "2001:db8::/32",
    toggled: &[
        "2001:db8::/33",
        "2001:db8:7::/48",
        "2001:db8:6::/47",
        "2001:db8:7::/56",
        "2001:db8:7:8::/61",
        "2001:db8:7:9::/64",
        "2001:db8:7:8::/65",
        "2001:db8:7:8::1/128",
        "2001:db8:7:8::2/128",
        "2001:db8:7:8:4000::/66",
        "2001:db8:7:8:1:2:3:0/112",
        "2001:db8:7:8::1:0/120",
        "2001:db8:7f00::/40",
        "2001:db8:7fff:1::/64",
    ],
    always_dropped: &[
        "2001:db8:7:8::1",
        "2001:db8:7:8::2",
        "2001:db8:7:8:1:2:3:4",
        "2001:db8:7:8:ffff::",
    ],
    always_local: &["2001:db8:8000::1", "2001:db8:ffff::1"],
    either: &["2001:db8:7:9::1", "2001:db8:7fff:1::1", "2001:db8:6::1"],
};

/// Whose packets go where, so that the counters of its policy tell: to what is dropped, what is local, and either.
const PODS: [(&str, u8); 3] = [("dropped", 5), ("local", 6), ("either", 7)];

#[test]
fn each_answer_is_old_or_new() {
    with_lab(|lab| {
        let rules = [&V4, &V6].into_iter().flat_map(|place| {
            let of = |prefix: &&str| rule(prefix, via(vec![]));
            let local = rule(place.local, egress_userspace::resolve::Action::Local);
            place
                .toggled
                .iter()
                .chain([&place.dropped])
                .map(of)
                .chain([local])
        });
        let mut rules: Vec<_> = rules.collect();
        rules.sort();
        let fate = Fate::Rules(rules.into());
        let pods = PODS.map(|(name, last)| (name, last, fate.clone(), name));
        lab.bring_to(&resolved(&[], pods));
        let runner = lab.runner(Program::FromPod).unwrap();
        let done = AtomicBool::new(false);
        let sent = thread::scope(|scope| {
            let readers: Vec<_> = [&V4, &V6]
                .into_iter()
                .map(|place| scope.spawn(|| read(&runner, place, &done)))
                .collect();
            let classes = lab.state().prefixes.clone();
            let mut random = Random::new();
            let mut toggled: Vec<_> = [&V4, &V6]
                .iter()
                .flat_map(|place| place.toggled)
                .map(|prefix| (net(prefix), true))
                .collect();
            let maps = &mut lab.datapath().maps;
            for number in 0..CHANGES {
                let place = random.below(toggled.len());
                let (prefix, is_there) = &mut toggled[place];
                let change = if *is_there {
                    Change::RemovePrefix { prefix: *prefix }
                } else {
                    Change::InsertPrefix {
                        prefix: *prefix,
                        class: classes[prefix],
                    }
                };
                *is_there = !*is_there;
                maps.carry_out(&change).unwrap();
                if number % 8 == 0 {
                    maps.carry_out(&Change::Grace).unwrap();
                }
            }
            done.store(true, Ordering::Relaxed);
            let sent = readers.into_iter().map(|reader| reader.join().unwrap());
            sent.fold([0; 3], |sum, sent| {
                [sum[0] + sent[0], sum[1] + sent[1], sum[2] + sent[2]]
            })
        });
        let mut moved = lab.moved();
        let [dropped, local, either] = PODS.map(|(policy, _)| {
            let drops = Slot::Drop(policy.to_owned(), DropReason::NoGateway);
            let locals = Slot::Pass(policy.to_owned(), PassKind::Local);
            [drops, locals].map(|slot| moved.remove(&slot).unwrap_or_default().0)
        });
        assert!(moved.is_empty(), "a third answer: {moved:?}");
        assert_eq!(dropped, [sent[0], 0], "what is always there was not seen");
        assert_eq!(local, [0, sent[1]], "what was never there was seen");
        assert_eq!(either[0] + either[1], sent[2]);
        assert!(
            either.iter().all(|count| *count > 0),
            "nothing changed: {either:?}"
        );
        println!("{sent:?} packets, {CHANGES} changes");
    });
}

/// Runs packets to all of a place's destinations, and says how many of each kind.
fn read(runner: &Runner, place: &Place, done: &AtomicBool) -> [u64; 3] {
    let [dropped, local, either] = PODS.map(|(_, pod)| pod);
    let streams = [
        (dropped, place.always_dropped, Some(Action::Drop)),
        (local, place.always_local, Some(Action::Pass)),
        (either, place.either, None),
    ];
    let streams = streams.map(|(pod, destinations, wanted)| Stream {
        pod,
        destinations,
        wanted,
    });
    run_until(runner, streams, done)
}
