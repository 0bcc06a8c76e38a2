#![expect(clippy::unwrap_used, reason = "a panic fails the test where it is")]

use proptest::prelude::*;

use super::*;

/// Counters as the kernel would hold them: they only ever grow, unless a test sets them to zero.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) kernel: Mutex<Kernel>,
}

#[derive(Default)]
pub(crate) struct Kernel {
    pub(crate) members: BTreeMap<u32, Count>,
    pub(crate) drops: BTreeMap<(u32, DropReason), Count>,
    pub(crate) passes: BTreeMap<(u32, PassKind), Count>,
    pub(crate) translated: BTreeMap<(u32, Direction), Count>,
    pub(crate) gateway_drops: BTreeMap<(u32, DropReason), Count>,
    pub(crate) answers: BTreeMap<Answer, u64>,
    pub(crate) maps: Vec<MapUse>,
    pub(crate) broken: bool,
}

impl Fake {
    fn with(&self, change: impl FnOnce(&mut Kernel)) {
        change(&mut self.kernel.lock().unwrap());
    }

    fn send(&self, member: u32, packets: u64) {
        self.with(|k| {
            let count = k.members.entry(member).or_default();
            count.packets += packets;
            count.bytes += packets * 100;
        });
    }

    fn refuse(&self, policy: u32, reason: DropReason, packets: u64) {
        self.with(|k| k.drops.entry((policy, reason)).or_default().packets += packets);
    }
}

impl CounterSource for Fake {
    fn read(&self, numbers: &Numbers) -> anyhow::Result<Reading> {
        let kernel = self.kernel.lock().unwrap();
        anyhow::ensure!(!kernel.broken, "MEMBER_COUNTS: Bad file descriptor");
        Ok(Reading {
            members: numbers
                .members
                .iter()
                .map(|id| (*id, kernel.members.get(id).copied().unwrap_or_default()))
                .collect(),
            drops: kernel
                .drops
                .iter()
                .filter(|((id, _), _)| numbers.policies.contains(id))
                .map(|((id, reason), count)| (*id, *reason, *count))
                .collect(),
            passes: kernel
                .passes
                .iter()
                .filter(|((id, _), _)| numbers.policies.contains(id))
                .map(|((id, kind), count)| (*id, *kind, *count))
                .collect(),
            translated: kernel
                .translated
                .iter()
                .filter(|((id, _), _)| numbers.gateways.contains(id))
                .map(|((id, direction), count)| (*id, *direction, *count))
                .collect(),
            gateway_drops: kernel
                .gateway_drops
                .iter()
                .filter(|((id, _), _)| numbers.gateways.contains(id))
                .map(|((id, reason), count)| (*id, *reason, *count))
                .collect(),
            answers: kernel.answers.iter().map(|(a, n)| (*a, *n)).collect(),
        })
    }

    fn map_use(&self) -> Vec<MapUse> {
        self.kernel.lock().unwrap().maps.clone()
    }
}

pub(crate) fn label(gateway: &str) -> MemberLabel {
    MemberLabel {
        namespace: "edge".to_owned(),
        gateway: gateway.to_owned(),
        policy: "to-partners".to_owned(),
        rule: "192.0.2.0/24".to_owned(),
    }
}

fn names(members: &[(&str, u32)], policies: &[(&str, u32)]) -> Names {
    Names {
        policies: policies
            .iter()
            .map(|(p, id)| ((*p).to_owned(), *id))
            .collect(),
        members: members
            .iter()
            .map(|(g, id)| (Arc::new(label(g)), *id))
            .collect(),
        ..Names::default()
    }
}

fn packets(counters: &Counters, gateway: &str) -> Option<u64> {
    let (series, _) = counters.read().unwrap();
    series.members.get(&label(gateway)).map(|c| c.packets)
}

fn start(names: &Names) -> (Arc<Fake>, Counters) {
    let fake = Arc::new(Fake::default());
    let counters = Counters::taking_over(Arc::clone(&fake) as Arc<dyn CounterSource>, names);
    (fake, counters)
}

#[test]
fn an_agent_goes_on_where_the_one_before_it_stopped() {
    let fake = Arc::new(Fake::default());
    fake.send(1, 7);
    fake.refuse(4, DropReason::NoGateway, 2);
    let counters = Counters::taking_over(
        Arc::clone(&fake) as Arc<dyn CounterSource>,
        &names(&[("red", 1)], &[("to-partners", 4)]),
    );
    assert_eq!(packets(&counters, "red"), Some(7));
    let (series, _) = counters.read().unwrap();
    let key = ("to-partners".to_owned(), DropReason::NoGateway);
    assert_eq!(series.drops.get(&key).map(|c| c.packets), Some(2));
}

#[test]
fn a_number_given_to_another_member_does_not_carry_its_packets_along() {
    let (fake, counters) = start(&names(&[("red", 1)], &[]));
    fake.send(1, 10);
    counters.retain(&names(&[], &[])).unwrap();
    counters.adopt(&names(&[("blue", 1)], &[])).unwrap();
    assert_eq!(packets(&counters, "blue"), Some(0));
    fake.send(1, 3);
    assert_eq!(packets(&counters, "blue"), Some(3));
    assert_eq!(packets(&counters, "red"), Some(10));
}

#[test]
fn packets_after_retirement_belong_to_nobody() {
    let (fake, counters) = start(&names(&[("red", 1)], &[]));
    fake.send(1, 10);
    counters.retain(&names(&[], &[])).unwrap();
    fake.send(1, 5);
    counters.adopt(&names(&[("blue", 1)], &[])).unwrap();
    assert_eq!(packets(&counters, "blue"), Some(0));
    assert_eq!(packets(&counters, "red"), Some(10));
}

#[test]
fn a_label_that_comes_back_under_another_number_goes_on() {
    let (fake, counters) = start(&names(&[("red", 1)], &[]));
    fake.send(1, 10);
    counters.retain(&names(&[], &[])).unwrap();
    assert_eq!(packets(&counters, "red"), Some(10), "while it is gone");
    counters.adopt(&names(&[("red", 9)], &[])).unwrap();
    fake.send(9, 4);
    assert_eq!(packets(&counters, "red"), Some(14));
}

#[test]
fn both_numbers_count_while_a_label_moves() {
    let (fake, counters) = start(&names(&[("red", 1)], &[("p", 1)]));
    counters.adopt(&names(&[("red", 2)], &[("p", 2)])).unwrap();
    fake.send(1, 1);
    fake.send(2, 2);
    fake.refuse(1, DropReason::TooBig, 10);
    fake.refuse(2, DropReason::TooBig, 20);
    assert_eq!(packets(&counters, "red"), Some(3));
    let (series, _) = counters.read().unwrap();
    let key = ("p".to_owned(), DropReason::TooBig);
    assert_eq!(series.drops.get(&key).map(|c| c.packets), Some(30));
    counters.retain(&names(&[("red", 2)], &[("p", 2)])).unwrap();
    fake.send(1, 100);
    assert_eq!(packets(&counters, "red"), Some(3));
}

#[test]
fn a_number_that_changes_hands_at_once_is_split_at_that_moment() {
    let (fake, counters) = start(&names(&[("red", 1)], &[]));
    fake.send(1, 10);
    counters.adopt(&names(&[("blue", 1)], &[])).unwrap();
    fake.send(1, 1);
    assert_eq!(packets(&counters, "red"), Some(10));
    assert_eq!(packets(&counters, "blue"), Some(1));
}

#[test]
fn a_counter_set_to_zero_does_not_take_its_series_along() {
    let (fake, counters) = start(&names(&[("red", 1)], &[]));
    fake.send(1, 10);
    assert_eq!(packets(&counters, "red"), Some(10));
    fake.with(|k| {
        k.members.insert(1, Count::default());
    });
    fake.send(1, 2);
    assert_eq!(packets(&counters, "red"), Some(12));
}

#[test]
fn a_policy_that_is_removed_keeps_what_it_counted_and_loses_its_zeroes() {
    let (fake, counters) = start(&names(&[], &[("p", 3)]));
    fake.refuse(3, DropReason::NoGateway, 5);
    counters.retain(&names(&[], &[])).unwrap();
    let (series, _) = counters.read().unwrap();
    let of = |reason| series.drops.get(&("p".to_owned(), reason)).copied();
    assert_eq!(of(DropReason::NoGateway).map(|c| c.packets), Some(5));
    assert_eq!(of(DropReason::PolicyMissing), None);
    assert_eq!(
        series.passes.get(&("p".to_owned(), PassKind::Local)),
        None,
        "it never counted anything"
    );
}

#[test]
fn stale_drops_of_a_reused_policy_number_are_not_the_new_policys() {
    let (fake, counters) = start(&names(&[], &[]));
    fake.refuse(3, DropReason::TooBig, 50);
    counters.adopt(&names(&[], &[("p", 3)])).unwrap();
    fake.refuse(3, DropReason::TooBig, 1);
    fake.refuse(3, DropReason::TtlExceeded, 2);
    let (series, _) = counters.read().unwrap();
    let of = |reason| series.drops.get(&("p".to_owned(), reason)).copied();
    assert_eq!(of(DropReason::TooBig).map(|c| c.packets), Some(1));
    assert_eq!(of(DropReason::TtlExceeded).map(|c| c.packets), Some(2));
}

#[test]
fn a_known_policy_exports_the_reasons_worth_an_alert_from_zero_on() {
    let (_fake, counters) = start(&names(&[], &[("p", 3)]));
    let (series, _) = counters.read().unwrap();
    let zeroes: Vec<_> = series
        .drops
        .keys()
        .map(|(p, r)| (p.as_str(), r.name()))
        .collect();
    assert_eq!(
        zeroes,
        [
            ("", "SpoofedSource"),
            ("", "NotPlainIp"),
            ("", "Malformed"),
            ("", "StateMissing"),
            ("", "RedirectFailed"),
            ("p", "PolicyMissing"),
            ("p", "NoGateway"),
        ]
    );
}

#[test]
fn gateways_counters_survive_what_members_do() {
    let named = |id| Names {
        gateways: BTreeMap::from([(ObjectName::new("edge", "red"), id)]),
        ..Names::default()
    };
    let fake = Arc::new(Fake::default());
    let translate = |id, packets| {
        fake.with(|k| {
            let count = k.translated.entry((id, Direction::Out)).or_default();
            count.packets += packets;
            let drops = k.gateway_drops.entry((id, DropReason::NatExhausted));
            drops.or_default().packets += packets * 2;
        });
    };
    translate(4, 7);
    let source = Arc::clone(&fake) as Arc<dyn CounterSource>;
    let counters = Counters::taking_over(source, &named(4));
    let seen = || {
        let (series, _) = counters.read().unwrap();
        let red = ObjectName::new("edge", "red");
        let count = |direction| series.translated[&(red.clone(), direction)].packets;
        let drops = &series.gateway_drops;
        (
            count(Direction::Out),
            count(Direction::Back),
            drops[&(red.clone(), DropReason::NatExhausted)].packets,
            drops[&(red.clone(), DropReason::SourceQuota)].packets,
        )
    };
    assert_eq!(seen(), (7, 0, 14, 0), "of the agent before");
    counters.retain(&Names::default()).unwrap();
    translate(4, 100);
    translate(5, 100);
    counters.adopt(&named(5)).unwrap();
    translate(5, 1);
    assert_eq!(seen(), (8, 0, 16, 0), "under another number");
}

#[test]
fn answers_are_what_the_kernel_says() {
    let (fake, counters) = start(&Names::default());
    fake.with(|k| k.answers = BTreeMap::from([(Answer::TooBig, 3)]));
    let (series, _) = counters.read().unwrap();
    assert_eq!(series.answers, BTreeMap::from([(Answer::TooBig, 3)]));
}

#[test]
fn a_failing_read_is_an_error_and_loses_nothing() {
    let (fake, counters) = start(&names(&[("red", 1)], &[]));
    fake.send(1, 10);
    fake.with(|k| k.broken = true);
    assert!(counters.read().is_err());
    assert!(counters.adopt(&names(&[("blue", 2)], &[])).is_err());
    fake.send(2, 9);
    fake.with(|k| k.broken = false);
    assert_eq!(packets(&counters, "red"), Some(10));
    assert_eq!(
        packets(&counters, "blue"),
        Some(0),
        "nobody knows whose those were"
    );
    fake.send(2, 1);
    assert_eq!(packets(&counters, "blue"), Some(1));
}

/// A source during whose reading something happens, once.
struct Interrupted {
    fake: Arc<Fake>,
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl CounterSource for Interrupted {
    fn read(&self, numbers: &Numbers) -> anyhow::Result<Reading> {
        let reading = self.fake.read(numbers);
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        reading
    }

    fn map_use(&self) -> Vec<MapUse> {
        self.fake.map_use()
    }
}

#[test]
fn names_change_while_all_is_read_and_what_was_read_before_says_nothing_of_them() {
    let fake = Arc::new(Fake::default());
    let source = Arc::new(Interrupted {
        fake: Arc::clone(&fake),
        meanwhile: Mutex::default(),
    });
    let before = names(&[("red", 1), ("green", 2), ("white", 3)], &[("p", 4)]);
    let counters = Arc::new(Counters::taking_over(
        Arc::clone(&source) as Arc<dyn CounterSource>,
        &before,
    ));
    for member in [1, 2, 3] {
        fake.send(member, 10);
    }
    fake.refuse(4, DropReason::TooBig, 10);
    let (changing, kernel) = (Arc::clone(&counters), Arc::clone(&fake));
    *source.meanwhile.lock().unwrap() = Some(Box::new(move || {
        for member in [1, 2, 3] {
            kernel.send(member, 5);
        }
        kernel.refuse(4, DropReason::TooBig, 5);
        // Red goes and blue gets its number, green's goes from hand to hand, white stays.
        let rest = names(&[("green", 2), ("white", 3)], &[]);
        changing.retain(&rest).unwrap();
        let after = names(&[("blue", 1), ("black", 2), ("white", 3)], &[("q", 4)]);
        changing.adopt(&after).unwrap();
        kernel.send(1, 1);
    }));
    let seen = |gateways: &[&str]| {
        let (series, _) = counters.read().unwrap();
        let count = |gateway: &&str| series.members[&label(gateway)].packets;
        let drops = |policy: &str| {
            let key = (policy.to_owned(), DropReason::TooBig);
            series.drops.get(&key).map_or(0, |count| count.packets)
        };
        (
            gateways.iter().map(count).collect::<Vec<_>>(),
            drops("p"),
            drops("q"),
        )
    };
    let all = ["red", "blue", "green", "black", "white"];
    assert_eq!(seen(&all), (vec![15, 0, 15, 0, 10], 15, 0));
    fake.send(2, 3);
    fake.refuse(4, DropReason::TooBig, 2);
    assert_eq!(seen(&all), (vec![15, 1, 15, 3, 15], 15, 2));
}

#[test]
fn what_changes_no_name_reads_nothing() {
    let (fake, counters) = start(&names(&[("red", 1)], &[("p", 4)]));
    fake.with(|k| k.broken = true);
    let same = names(&[("red", 1)], &[("p", 4)]);
    counters.adopt(&same).unwrap();
    counters.retain(&same).unwrap();
}

/// One step: who has which number next, and what is sent before and after.
type Step = (BTreeMap<u32, u8>, Vec<(u32, u64)>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever numbers change hands: each label has what was sent while a number was its, and is shown while it is
    /// named or if it has anything.
    #[test]
    fn series_are_what_was_sent(
        steps in prop::collection::vec(
            (
                prop::collection::btree_map(0_u32..6, 0_u8..6, 0..5),
                prop::collection::vec((0_u32..6, 1_u64..5), 0..4),
            ),
            1..8,
        ),
    ) {
        let steps: Vec<Step> = steps;
        let fake = Arc::new(Fake::default());
        let counters = Counters::taking_over(Arc::clone(&fake) as Arc<dyn CounterSource>, &Names::default());
        let mut sent: BTreeMap<MemberLabel, u64> = BTreeMap::new();
        let mut before: BTreeMap<u32, u8> = BTreeMap::new();
        for (wanted, traffic) in steps {
            // A label has one number, and a number that was another's is retired first.
            let mut seen = BTreeSet::new();
            let after: BTreeMap<u32, u8> = wanted
                .into_iter()
                .filter(|(_, label)| seen.insert(*label))
                .filter(|(id, label)| before.get(id).is_none_or(|old| old == label))
                .filter(|(id, label)| before.iter().all(|(i, l)| l != label || i == id))
                .collect();
            let both: BTreeMap<u32, u8> = before.iter().chain(&after).map(|(i, l)| (*i, *l)).collect();
            counters.adopt(&of_numbers(&both)).unwrap();
            for (id, packets) in traffic {
                if let Some(label) = both.get(&id) {
                    fake.send(id, packets);
                    *sent.entry(self::label(&label.to_string())).or_default() += packets;
                }
            }
            counters.retain(&of_numbers(&after)).unwrap();
            let (series, _) = counters.read().unwrap();
            let shown: BTreeMap<MemberLabel, u64> = series
                .members
                .iter()
                .map(|(label, count)| (MemberLabel::clone(label), count.packets))
                .collect();
            let mut expected = sent.clone();
            for label in after.values() {
                expected.entry(self::label(&label.to_string())).or_default();
            }
            prop_assert_eq!(shown, expected);
            before = after;
        }
    }
}

fn of_numbers(numbers: &BTreeMap<u32, u8>) -> Names {
    Names {
        members: numbers
            .iter()
            .map(|(id, gateway)| (Arc::new(label(&gateway.to_string())), *id))
            .collect(),
        ..Names::default()
    }
}
