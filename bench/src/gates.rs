//! What has to hold: ratios and differences of smallest samples, all of one run.

use std::fmt;

use crate::measured::{Measured, Unit};

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
    /// A figure by itself, in units of so much.
    Alone(Figure, f64),
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

impl Gate {
    /// Whether one of its figures is of this group.
    #[cfg(test)]
    pub(crate) fn looks_at(&self, group: &str) -> bool {
        match self.value {
            Value::Ratio(first, second) | Value::Difference(first, second) => {
                first.group == group || second.group == group
            }
            Value::Alone(figure, _) => figure.group == group,
        }
    }

    /// How it comes out.
    pub(crate) fn judge(&self, figures: &[Measured], strictness: Strictness) -> Outcome {
        let asked = |figure: &Figure| figures.iter().any(|known| known.group == figure.group);
        let all_asked = match &self.value {
            Value::Ratio(first, second) | Value::Difference(first, second) => {
                asked(first) && asked(second)
            }
            Value::Alone(figure, _) => asked(figure),
        };
        if !all_asked {
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
            Value::Alone(figure, unit) => Some(figure.min(figures)? / unit),
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
pub(crate) mod tests {
    use super::*;

    /// Each gate holds with `passing` figures, fails where its first figure is far worse, and does not hold where that
    /// was not measured.
    pub(crate) fn can_hold_and_fail(gates: &[Gate], passing: &[Measured]) {
        for gate in gates {
            let outcome = gate.judge(passing, Strictness::Strict);
            assert!(
                matches!(outcome, Outcome::Holds(_)),
                "{}: {outcome:?}",
                gate.what
            );
            fails_where_it_is_worse(gate, passing);
            let first = first(gate);
            let mut figures = passing.to_vec();
            figures.retain(|figure| !figure.is(first.group, first.scene, first.subject));
            let outcome = gate.judge(&figures, Strictness::Strict);
            let is_alone = figures.iter().all(|figure| figure.group != first.group);
            if !is_alone {
                assert_eq!(outcome, Outcome::Missing, "{}", gate.what);
            }
            figures.retain(|figure| figure.group != first.group);
            let outcome = gate.judge(&figures, Strictness::Strict);
            assert_eq!(outcome, Outcome::NotAsked, "{}", gate.what);
        }
    }

    fn fails_where_it_is_worse(gate: &Gate, passing: &[Measured]) {
        let worse = match gate.bound {
            Bound::AtMost(_) => 20.0,
            Bound::AtLeast(_) => 1.0 / 20.0,
        };
        let first = first(gate);
        let mut figures = passing.to_vec();
        for figure in &mut figures {
            if figure.is(first.group, first.scene, first.subject) {
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

    fn first(gate: &Gate) -> Figure {
        match gate.value {
            Value::Ratio(first, _) | Value::Difference(first, _) | Value::Alone(first, _) => first,
        }
    }

    const OURS: Figure = Figure {
        group: "a group",
        scene: "a scene",
        subject: "ours",
        gross: false,
    };
    const FLOOR: Figure = Figure {
        subject: "floor",
        ..OURS
    };
    const GATE: Gate = Gate {
        what: "ours beside the floor",
        value: Value::Ratio(OURS, FLOOR),
        bound: Bound::AtMost(2.5),
    };

    fn measured(ours: f64, floor: f64) -> [Measured; 2] {
        [(OURS, ours), (FLOOR, floor)].map(|(figure, min)| {
            Measured::of_samples(
                figure.group,
                figure.scene,
                figure.subject,
                Unit::Nanoseconds,
                &[min],
            )
        })
    }

    #[test]
    fn a_gate_can_hold_and_fail() {
        can_hold_and_fail(&[GATE], &measured(50.0, 23.0));
    }

    #[test]
    fn what_is_no_number_does_not_hold() {
        for bound in [Bound::AtMost(1.0), Bound::AtLeast(1.0)] {
            assert!(!bound.admits(f64::NAN), "{bound}");
        }
        for figures in [measured(0.0, 23.0), measured(50.0, 0.0)] {
            let outcome = GATE.judge(&figures, Strictness::Strict);
            assert_eq!(outcome, Outcome::Missing, "{figures:?}");
        }
    }

    #[test]
    fn loose_gates_are_wider() {
        // 2.5 × 23 is 57.5.
        let figures = measured(70.0, 23.0);
        assert!(matches!(
            GATE.judge(&figures, Strictness::Strict),
            Outcome::Fails(_)
        ));
        assert!(matches!(
            GATE.judge(&figures, Strictness::Loose),
            Outcome::Holds(_)
        ));
    }
}
