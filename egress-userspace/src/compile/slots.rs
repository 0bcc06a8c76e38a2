//! Slot tables: which gateway of a group takes which share of the flows, by weighted rendezvous.
//!
//! A flow's hash names one of [`SLOTS`] slots. In every slot each gateway draws
//! `-ln(u) / weight`, where `u` is a number in (0, 1) made from the slot and the gateway's own name, and
//! the smallest draw takes the slot. The smallest of such exponential draws belongs to each gateway with a
//! probability in proportion to its weight (Efraimidis, Spirakis 2006), and no gateway's draw depends on the others: a gateway that
//! leaves gives up its own slots and moves no other; one that comes takes only what it needs. Neither
//! policy nor rule goes into the draw, so groups of the same gateways agree.
//!
//! Nodes must agree as well, whatever their processor. `f64::ln` may differ in the last bit between
//! platforms, so the logarithm below is made of additions, multiplications and divisions only: IEEE 754
//! rounds those the same everywhere, and Rust neither reorders nor fuses them.

use std::{collections::BTreeMap, num::NonZeroU32};

use egress_common::cells::SLOTS;

/// A gateway as its draws see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name within the namespace.
    pub name: &'a str,
    /// Its share.
    pub weight: NonZeroU32,
    /// Whether it takes no slot as long as another is there that does.
    pub draining: bool,
}

/// Makes slot tables, and remembers the draws of the gateways it has seen.
#[derive(Debug, Default)]
pub struct Tables<'a> {
    draws: BTreeMap<(&'a str, &'a str), Vec<f64>>,
}

impl<'a> Tables<'a> {
    /// The table of a group: for each slot the place in `group` of the gateway that takes it.
    ///
    /// # Panics
    /// If the group has more gateways than a cell can number; compilation refuses such groups.
    pub fn table(&mut self, group: &[Candidate<'a>]) -> Vec<u16> {
        let mut cells = vec![0; SLOTS as usize];
        let mut best = vec![f64::INFINITY; SLOTS as usize];
        // A tie goes to the first by name, wherever it stands in the group.
        let mut by_name: Vec<_> = group.iter().enumerate().collect();
        by_name.sort_by_key(|(_, gateway)| (gateway.namespace, gateway.name));
        if group.iter().any(|gateway| !gateway.draining) {
            by_name.retain(|(_, gateway)| !gateway.draining);
        }
        for (place, gateway) in by_name {
            #[expect(clippy::expect_used, reason = "compilation bounds the size of a group")]
            let place = u16::try_from(place).expect("a cell can number every gateway of a group");
            let draws = self
                .draws
                .entry((gateway.namespace, gateway.name))
                .or_insert_with(|| draws(gateway.namespace, gateway.name));
            let weight = f64::from(gateway.weight.get());
            for ((cell, best), draw) in cells.iter_mut().zip(&mut best).zip(draws.iter()) {
                let score = draw / weight;
                if score < *best {
                    *best = score;
                    *cell = place;
                }
            }
        }
        cells
    }
}

/// A gateway's draw in every slot, before its weight.
///
/// Its numbers `u` are spread evenly, one in each of as many strata as there are slots, and only their
/// order is random: shares then stray less from their weights than with independent numbers.
fn draws(namespace: &str, name: &str) -> Vec<f64> {
    let seed = name_hash(namespace, name);
    let mut hashed: Vec<(u64, usize)> = (0..SLOTS)
        .map(|slot| {
            let hash = mix(seed.wrapping_add(u64::from(slot).wrapping_mul(GOLDEN)));
            (hash, slot as usize)
        })
        .collect();
    hashed.sort_unstable();
    let mut draws = vec![0.0; SLOTS as usize];
    for (stratum, (hash, slot)) in (0_u32..).zip(hashed) {
        let u = (f64::from(stratum) + unit(mix(hash))) / f64::from(SLOTS);
        draws[slot] = minus_ln(u);
    }
    draws
}

/// FNV-1a over `namespace/name`; neither holds a slash.
fn name_hash(namespace: &str, name: &str) -> u64 {
    let bytes = namespace.bytes().chain([b'/']).chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// 2^64 divided by the golden ratio: the step of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in (0, 1) from the upper 32 bits, without rounding, also when it is scaled by `SLOTS`.
fn unit(hash: u64) -> f64 {
    let upper = (hash >> 32) as u32;
    (f64::from(upper) + 0.5) / 4_294_967_296.0
}

/// `-ln(x)` for a normal `x` in (0, 1).
fn minus_ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut exponent = f64::from((bits >> 52) as u32) - 1023.0;
    let mut m = f64::from_bits((bits & MANTISSA) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m /= 2.0;
        exponent += 1.0;
    }
    // ln(m) = 2 artanh(s), whose series has converged to 1e-12 after eight terms for |s| < 0.172.
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let series = [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0]
        .iter()
        .fold(0.0, |sum, odd| sum * square + 1.0 / odd);
    -(exponent * std::f64::consts::LN_2 + 2.0 * s * series)
}

#[cfg(test)]
mod tests {
    use egress_common::{Addr, WireU16, flow::Flow};
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 12] = [
        "red", "blue", "green", "black", "white", "amber", "teal", "pink", "grey", "cyan", "lime",
        "navy",
    ];

    fn group(weights: &[u32]) -> Vec<Candidate<'static>> {
        NAMES
            .iter()
            .zip(weights)
            .map(|(name, weight)| Candidate {
                namespace: "default",
                name,
                weight: NonZeroU32::new(*weight).unwrap_or(NonZeroU32::MIN),
                draining: false,
            })
            .collect()
    }

    fn table(group: &[Candidate<'static>]) -> Vec<u16> {
        Tables::default().table(group)
    }

    /// Who owns each slot, by name.
    fn owners(group: &[Candidate<'static>]) -> Vec<&'static str> {
        table(group)
            .iter()
            .map(|cell| group[usize::from(*cell)].name)
            .collect()
    }

    #[test]
    fn who_is_draining_takes_no_slot_and_moves_no_other() {
        let mut group = group(&[1, 2, 3]);
        let before = Tables::default().table(&group);
        group[1].draining = true;
        let after = Tables::default().table(&group);
        for (before, after) in before.iter().zip(&after) {
            assert_ne!(*after, 1);
            assert!(*before == 1 || before == after);
        }
        for gateway in &mut group {
            gateway.draining = true;
        }
        assert_eq!(Tables::default().table(&group), before);
    }

    #[test]
    fn logarithm_is_that_of_the_standard_library() {
        for hash in (0..100_000_u64).map(|i| mix(i.wrapping_mul(GOLDEN))) {
            let x = unit(hash);
            let (ours, theirs) = (minus_ln(x), -x.ln());
            assert!(
                (ours - theirs).abs() <= 1e-11 * theirs.max(1e-3),
                "{x}: {ours} {theirs}"
            );
        }
        assert!(minus_ln(unit(0)) > 22.0 && minus_ln(unit(u64::MAX)) > 0.0);
    }

    #[test]
    fn every_node_draws_the_same() {
        let cells = table(&group(&[1, 2, 3, 4, 5]));
        let sum = cells.iter().fold(0_u64, |hash, cell| {
            (hash ^ u64::from(*cell)).wrapping_mul(0x0100_0000_01b3)
        });
        // A change here moves flows between gateways while nodes of two versions work side by side.
        insta::assert_snapshot!(format!("{:?} {sum:016x}", &cells[..24]));
    }

    /// Flows as a pod makes them: many source ports, some destinations.
    fn flows(count: u32) -> impl Iterator<Item = u32> {
        (0..count).map(|i| {
            let random = mix(u64::from(i).wrapping_mul(GOLDEN)).to_be_bytes();
            Flow {
                source: Addr::v4([10, 1, 0, random[0]]),
                destination: Addr::v4([192, 0, 2, random[1]]),
                source_port: WireU16([random[2], random[3]]),
                destination_port: WireU16([random[4] % 4, 80]),
                protocol: if random[5] & 1 == 0 { 6 } else { 17 },
            }
            .hash()
        })
    }

    /// The largest relative distance of a gateway's flows from its weight.
    fn worst(weights: &[u32], count: u32) -> f64 {
        let cells = table(&group(weights));
        let mut counts = vec![0_u32; weights.len()];
        for hash in flows(count) {
            counts[usize::from(cells[(hash % SLOTS) as usize])] += 1;
        }
        let total = f64::from(weights.iter().sum::<u32>());
        counts
            .iter()
            .zip(weights)
            .map(|(count_of, weight)| {
                let wanted = f64::from(count) * f64::from(*weight) / total;
                (f64::from(*count_of) - wanted).abs() / wanted
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn ten_thousand_flows_respect_the_weights_within_five_percent() {
        let groups: [&[u32]; 5] = [&[1, 1], &[1, 2], &[3, 1], &[1, 1, 1], &[2, 1, 1]];
        for weights in groups {
            let worst = worst(weights, 10_000);
            assert!(worst <= 0.05, "{weights:?}: {worst}");
        }
    }

    #[test]
    fn small_shares_are_within_five_percent_once_chance_is_averaged_out() {
        // Ten thousand flows of a quarter stray by 1.7 % (standard deviation) even from a perfect table.
        let groups: [&[u32]; 4] = [&[1; 4], &[1; 6], &[1; 8], &[5, 4, 3, 2, 1]];
        for weights in groups {
            let worst = worst(weights, 100_000);
            assert!(worst <= 0.05, "{weights:?}: {worst}");
        }
    }

    #[test]
    fn shares_of_slots_follow_the_weights() {
        let groups: [&[u32]; 6] = [
            &[1, 1],
            &[1, 9],
            &[1, 1, 1, 1, 1, 1, 1, 1],
            &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            &[1000, 1000, 1],
            &[1; 12],
        ];
        for weights in groups {
            let cells = table(&group(weights));
            let total = f64::from(weights.iter().sum::<u32>());
            for (place, weight) in weights.iter().enumerate() {
                let share = f64::from(*weight) / total;
                let slots = f64::from(SLOTS);
                let wanted = share * slots;
                let deviation = (wanted * (1.0 - share)).sqrt();
                let count = cells
                    .iter()
                    .filter(|cell| usize::from(**cell) == place)
                    .count();
                let off = (f64::from(u32::try_from(count).unwrap_or(u32::MAX)) - wanted).abs();
                assert!(
                    off <= 4.0 * deviation,
                    "{weights:?}[{place}]: {count}, wanted {wanted}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn who_leaves_moves_only_its_own_slots(
            weights in prop::collection::vec(1_u32..20, 2..8),
            leaves in any::<prop::sample::Index>(),
        ) {
            let all = group(&weights);
            let leaver = leaves.get(&all).name;
            let rest: Vec<_> = all.iter().copied().filter(|g| g.name != leaver).collect();
            for (before, after) in owners(&all).iter().zip(owners(&rest)) {
                prop_assert!(*before == after || *before == leaver);
                prop_assert_ne!(after, leaver);
            }
        }

        #[test]
        fn who_gains_weight_takes_and_never_gives(
            weights in prop::collection::vec(1_u32..20, 2..8),
            gains in any::<prop::sample::Index>(),
            by in 1_u32..20,
        ) {
            let before = group(&weights);
            let place = gains.index(weights.len());
            let mut heavier = weights;
            heavier[place] += by;
            let gainer = before[place].name;
            for (before, after) in owners(&before).iter().zip(owners(&group(&heavier))) {
                prop_assert!(*before == after || after == gainer);
            }
        }

        #[test]
        fn groups_of_the_same_gateways_agree(weights in prop::collection::vec(1_u32..20, 1..6)) {
            let one = group(&weights);
            let mut other = one.clone();
            other.reverse();
            prop_assert_eq!(owners(&one), owners(&other));
        }
    }
}
