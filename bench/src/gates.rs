//! What has to hold: ratios and differences of smallest samples, all of one run.

use std::fmt;

use crate::{
    measured::{Measured, Unit},
    program::{PREFIXES, STEERING, TRANSLATING},
};

/// How much wider loose gates are: for machines that do other things meanwhile, and short runs.
const SLACK: f64 = 1.5;

/// How strictly gates are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Strictness {
    /// As they stand in docs/performance.md
    Strict,
    /// Half as much again, for short runs on machines that do other things meanwhile
    Loose,
}

/// A figure of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) group: &'static str,
    pub(crate) scene: &'static str,
    pub(crate) subject: &'static str,
    /// Whether what the empty program costs in the same scene is part of it.
    pub(crate) gross: bool,
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    /// The first in units of the second.
    Ratio(Figure, Figure),
    /// How much more the first is.
    Difference(Figure, Figure),
}

/// What it must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// Something that has to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    /// In words.
    pub(crate) what: &'static str,
    pub(crate) value: Value,
    pub(crate) bound: Bound,
}

/// How a gate came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// It holds, with this value.
    Holds(f64),
    /// It does not.
    Fails(f64),
    /// Its group was measured, and one of its figures was not.
    Missing,
    /// Its group was not measured.
    NotAsked,
}

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
const OURS: &str = "ours";
const BY_SOURCE: &str = "LPM {source, destination}";

/// The gates of the program alone.
pub(crate) const PROGRAM: &[Gate] = &[
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

impl Gate {
    /// How it comes out.
    pub(crate) fn judge(&self, figures: &[Measured], strictness: Strictness) -> Outcome {
        let (Value::Ratio(first, second) | Value::Difference(first, second)) = self.value;
        let asked = |figure: &Figure| figures.iter().any(|known| known.group == figure.group);
        if !asked(&first) || !asked(&second) {
            return Outcome::NotAsked;
        }
        let Some(value) = self.value(figures) else {
            return Outcome::Missing;
        };
        // What is not a number holds nowhere.
        if self.bound.loosened(strictness).admits(value) {
            Outcome::Holds(value)
        } else {
            Outcome::Fails(value)
        }
    }

    fn value(&self, figures: &[Measured]) -> Option<f64> {
        match self.value {
            Value::Ratio(a, b) => {
                let (a, b) = (a.min(figures)?, b.min(figures)?);
                // What costs nothing, as far as can be measured, says nothing about anything else.
                (a > 0.0 && b > 0.0).then_some(a / b)
            }
            Value::Difference(a, b) => Some(a.min(figures)? - b.min(figures)?),
        }
    }
}

impl Figure {
    fn min(&self, figures: &[Measured]) -> Option<f64> {
        let mut figures = figures.iter();
        let own = figures
            .clone()
            .find(|known| known.is(self.group, self.scene, self.subject));
        let min = own?.min;
        if !self.gross {
            return Some(min);
        }
        let empty = figures.find(|known| {
            known.is(self.group, self.scene, "empty") && known.unit == Unit::GrossNanoseconds
        });
        Some(min + empty?.min)
    }
}

impl Bound {
    fn loosened(self, strictness: Strictness) -> Self {
        match (strictness, self) {
            (Strictness::Strict, _) => self,
            (Strictness::Loose, Self::AtMost(most)) => Self::AtMost(most * SLACK),
            (Strictness::Loose, Self::AtLeast(least)) => Self::AtLeast(least / SLACK),
        }
    }

    fn admits(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most:.2}"),
            Self::AtLeast(least) => write!(f, "≥ {least:.2}"),
        }
    }
}

/// A gate's line: what it is, what was wanted, what there was, and by how much it was missed.
pub(crate) fn line(gate: &Gate, outcome: Outcome, strictness: Strictness) -> [String; 4] {
    let bound = gate.bound.loosened(strictness);
    let (value, verdict) = match outcome {
        Outcome::Holds(value) => (format!("{value:.2}"), "holds".to_owned()),
        Outcome::Fails(value) => {
            let missed = match bound {
                Bound::AtMost(most) => format!("{:.2} too much", value - most),
                Bound::AtLeast(least) => format!("{:.2} too little", least - value),
            };
            (format!("{value:.2}"), format!("FAILS: {missed}"))
        }
        Outcome::Missing => ("-".to_owned(), "FAILS: not measured".to_owned()),
        Outcome::NotAsked => ("-".to_owned(), "not asked for".to_owned()),
    };
    [gate.what.to_owned(), bound.to_string(), value, verdict]
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn first(gate: &Gate) -> Figure {
        let (Value::Ratio(first, _) | Value::Difference(first, _)) = gate.value;
        first
    }

    #[test]
    fn each_gate_can_hold_and_fail() {
        for gate in PROGRAM {
            let mut figures = passing();
            let outcome = gate.judge(&figures, Strictness::Strict);
            assert!(
                matches!(outcome, Outcome::Holds(_)),
                "{}: {outcome:?}",
                gate.what
            );
            let worse = match gate.bound {
                Bound::AtMost(_) => 20.0,
                Bound::AtLeast(_) => 1.0 / 20.0,
            };
            for figure in &mut figures {
                let looked = first(gate);
                if figure.is(looked.group, looked.scene, looked.subject) {
                    figure.min *= worse;
                }
            }
            for strictness in [Strictness::Strict, Strictness::Loose] {
                let outcome = gate.judge(&figures, strictness);
                assert!(
                    matches!(outcome, Outcome::Fails(_)),
                    "{}: {outcome:?}",
                    gate.what
                );
                let said = line(gate, outcome, strictness).join(" ");
                assert!(said.contains("FAILS") && said.contains("too"), "{said}");
            }
        }
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        for gate in PROGRAM {
            let looked = first(gate);
            let mut figures = passing();
            figures.retain(|figure| !figure.is(looked.group, looked.scene, looked.subject));
            assert_eq!(
                gate.judge(&figures, Strictness::Strict),
                Outcome::Missing,
                "{}",
                gate.what
            );
            figures.retain(|figure| figure.group != looked.group);
            assert_eq!(
                gate.judge(&figures, Strictness::Strict),
                Outcome::NotAsked,
                "{}",
                gate.what
            );
        }
    }

    #[test]
    fn what_is_no_number_does_not_hold() {
        for bound in [Bound::AtMost(1.0), Bound::AtLeast(1.0)] {
            assert!(!bound.admits(f64::NAN), "{bound}");
        }
        let mut figures = passing();
        figures[4].min = 0.0;
        assert_eq!(
            PROGRAM[0].judge(&figures, Strictness::Strict),
            Outcome::Missing
        );
    }

    #[test]
    fn loose_gates_are_wider() {
        let mut figures = passing();
        // 2.5 × 23 is 57.5.
        figures[4].min = 70.0;
        assert!(matches!(
            PROGRAM[0].judge(&figures, Strictness::Strict),
            Outcome::Fails(_)
        ));
        assert!(matches!(
            PROGRAM[0].judge(&figures, Strictness::Loose),
            Outcome::Holds(_)
        ));
    }
}
