//! What has to hold of the program alone.

use super::{OURS, PREFIXES, STEERING, TRANSLATING};
use crate::gates::{Bound, Figure, Gate, Value};

const fn net(group: &'static str, scene: &'static str, subject: &'static str) -> Figure {
    Figure {
        group,
        scene,
        subject,
        gross: false,
    }
}

const fn steering(scene: &'static str, subject: &'static str) -> Figure {
    net(STEERING, scene, subject)
}

const LARGE: &str = "1000 × 100";
const DISTINCT: &str = "1000 × 100 distinct";
const BY_SOURCE: &str = "LPM {source, destination}";

/// The gates.
pub(super) const GATES: &[Gate] = &[
    Gate {
        what: "1000 pods with a policy each over 100 common prefixes, beside the floor",
        value: Value::Ratio(steering(LARGE, OURS), steering(LARGE, "floor")),
        bound: Bound::AtMost(2.5),
    },
    Gate {
        what: "the same, LPM {source, destination} beside it",
        value: Value::Ratio(steering(LARGE, BY_SOURCE), steering(LARGE, OURS)),
        bound: Bound::AtLeast(8.0),
    },
    Gate {
        what: "100 prefixes of its own for each policy, LPM {source, destination} beside it",
        value: Value::Ratio(steering(DISTINCT, BY_SOURCE), steering(DISTINCT, OURS)),
        bound: Bound::AtLeast(3.0),
    },
    Gate {
        what: "recorded replies with 10k flows, beside the run without",
        value: Value::Ratio(
            steering(LARGE, "ours, replies recorded"),
            steering(LARGE, OURS),
        ),
        bound: Bound::AtMost(1.6),
    },
    Gate {
        what: "1000 × 100 beside 1 × 100, gross",
        value: Value::Ratio(
            Figure {
                gross: true,
                ..steering(LARGE, OURS)
            },
            Figure {
                gross: true,
                ..steering("1 × 100", OURS)
            },
        ),
        bound: Bound::AtMost(1.4),
    },
    Gate {
        what: "1 policy of 1M prefixes, LPM {policy, destination} beside it",
        value: Value::Ratio(
            net(PREFIXES, "1 × 1M", "LPM {policy, destination}"),
            net(PREFIXES, "1 × 1M", OURS),
        ),
        bound: Bound::AtLeast(3.0),
    },
    Gate {
        what: "IPv6 beside IPv4",
        value: Value::Ratio(steering("1000 × 100, IPv6", OURS), steering(LARGE, OURS)),
        bound: Bound::AtMost(1.5),
    },
    Gate {
        what: "a gateway node's NAT of 50k flows, beside one look-up and rewrite",
        value: Value::Ratio(
            net(
                TRANSLATING,
                "50k flows, from the overlay",
                "ours, from the overlay",
            ),
            net(TRANSLATING, "50k flows", "one look-up and rewrite"),
        ),
        bound: Bound::AtMost(2.0),
    },
    Gate {
        what: "a counter of a packet's own, in nanoseconds",
        value: Value::Difference(
            steering(LARGE, "floor"),
            steering(LARGE, "floor, not counted"),
        ),
        bound: Bound::AtMost(5.0),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gates,
        measured::{Measured, Unit},
    };

    /// Every figure that the gates look at, with values at which all hold.
    fn passing() -> Vec<Measured> {
        let figure = |group: &str, scene: &str, subject: &str, unit, min| {
            Measured::of_samples(group, scene, subject, unit, &[min])
        };
        let ns = Unit::Nanoseconds;
        let gross = Unit::GrossNanoseconds;
        vec![
            figure(STEERING, LARGE, "empty", gross, 100.0),
            figure(STEERING, LARGE, "floor", ns, 23.0),
            figure(STEERING, LARGE, "floor, not counted", ns, 20.0),
            figure(STEERING, LARGE, BY_SOURCE, ns, 570.0),
            figure(STEERING, LARGE, OURS, ns, 50.0),
            figure(STEERING, LARGE, "ours, replies recorded", ns, 70.0),
            figure(STEERING, "1 × 100", "empty", gross, 90.0),
            figure(STEERING, "1 × 100", OURS, ns, 40.0),
            figure(STEERING, DISTINCT, BY_SOURCE, ns, 1100.0),
            figure(STEERING, DISTINCT, OURS, ns, 200.0),
            figure(STEERING, "1000 × 100, IPv6", OURS, ns, 60.0),
            figure(PREFIXES, "1 × 1M", "LPM {policy, destination}", ns, 1400.0),
            figure(PREFIXES, "1 × 1M", OURS, ns, 300.0),
            figure(
                TRANSLATING,
                "50k flows, from the overlay",
                "ours, from the overlay",
                ns,
                300.0,
            ),
            figure(
                TRANSLATING,
                "50k flows",
                "one look-up and rewrite",
                ns,
                160.0,
            ),
        ]
    }

    #[test]
    fn each_gate_can_hold_and_fail() {
        gates::tests::can_hold_and_fail(GATES, &passing());
    }
}
