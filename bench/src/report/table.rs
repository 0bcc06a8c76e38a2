//! The tables on the terminal.

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::{
    gates::{Gate, Outcome, Strictness, line},
    measured::{Measured, Unit},
    program::OURS,
};

/// All figures, aligned, each beside what ours has in the same scene.
pub(crate) fn figures(figures: &[Measured]) -> String {
    let mut table = empty(&[
        "benchmark",
        "scene",
        "subject",
        "min",
        "median",
        "",
        "× ours",
    ]);
    let mut last = (String::new(), String::new());
    for figure in figures {
        let shown = |text: &str, before: &str| {
            if text == before {
                String::new()
            } else {
                text.to_owned()
            }
        };
        let same_group = figure.group == last.0;
        let scene = if same_group { last.1.as_str() } else { "" };
        table.add_row([
            Cell::new(shown(&figure.group, &last.0)),
            Cell::new(shown(&figure.scene, scene)),
            Cell::new(&figure.subject),
            number(figure.min, figure.unit),
            number(figure.median, figure.unit),
            Cell::new(unit(figure.unit)),
            ratio(figure, figures),
        ]);
        last = (figure.group.clone(), figure.scene.clone());
    }
    table.to_string()
}

/// How each gate came out.
pub(crate) fn gates(judged: &[(&Gate, Outcome)], strictness: Strictness) -> String {
    let mut table = empty(&["gate", "must be", "is", ""]);
    for (gate, outcome) in judged {
        let [what, bound, value, verdict] = line(gate, *outcome, strictness);
        table.add_row([
            Cell::new(what),
            right(bound),
            right(value),
            Cell::new(verdict),
        ]);
    }
    table.to_string()
}

fn empty(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn number(value: f64, unit: Unit) -> Cell {
    right(match unit {
        Unit::Bytes => format!("{:.2}", value / f64::from(1 << 20)),
        Unit::PacketsPerSecond | Unit::BitsPerSecond => format!("{:.3}", value / 1e6),
        Unit::Nanoseconds
        | Unit::GrossNanoseconds
        | Unit::Microseconds
        | Unit::Milliseconds
        | Unit::PercentOfCore
        | Unit::PodsPerSecond => {
            format!("{value:.1}")
        }
    })
}

fn unit(unit: Unit) -> String {
    match unit {
        Unit::Bytes => "MiB".to_owned(),
        Unit::PacketsPerSecond => "million packets/s".to_owned(),
        Unit::BitsPerSecond => "Mbit/s".to_owned(),
        Unit::GrossNanoseconds => "ns, gross".to_owned(),
        Unit::Nanoseconds
        | Unit::Microseconds
        | Unit::Milliseconds
        | Unit::PercentOfCore
        | Unit::PodsPerSecond => unit.to_string(),
    }
}

/// How it stands to what is called just "ours" in the same scene.
fn ratio(figure: &Measured, figures: &[Measured]) -> Cell {
    let ours = figures
        .iter()
        .find(|other| other.is(&figure.group, &figure.scene, OURS) && other.unit == figure.unit);
    right(match ours {
        Some(ours) if figure.subject != OURS && ours.min > 0.0 => {
            format!("{:.2}", figure.min / ours.min)
        }
        Some(_) | None => String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gates::{Bound, Figure, Value};

    fn some() -> Vec<Measured> {
        let of = Measured::of_samples;
        let scene = "1000 × 100";
        let group = "pods × prefixes";
        vec![
            of(
                group,
                scene,
                "empty",
                Unit::GrossNanoseconds,
                &[101.0, 99.5],
            ),
            of(
                group,
                scene,
                "floor",
                Unit::Nanoseconds,
                &[23.0, 25.0, 24.0],
            ),
            of(group, scene, "ours", Unit::Nanoseconds, &[50.0, 56.0, 52.0]),
            of(group, "1 × 1", "ours", Unit::Nanoseconds, &[40.0]),
            Measured::exactly(group, "1 × 1", "ours, matrix", Unit::Bytes, 2_097_152.0),
            of(
                "forwarding",
                "1 × 1",
                "ours",
                Unit::PacketsPerSecond,
                &[2_100_000.0],
            ),
        ]
    }

    #[test]
    fn figures_stand_below_each_other() {
        insta::assert_snapshot!(figures(&some()));
    }

    #[test]
    fn a_gate_that_fails_says_by_how_much() {
        let figure = Figure {
            group: "pods × prefixes",
            scene: "1000 × 100",
            subject: "ours",
            gross: false,
        };
        let floor = Figure {
            subject: "floor",
            ..figure
        };
        let none = Figure {
            subject: "nobody",
            ..figure
        };
        let gate = |what, value, bound| Gate { what, value, bound };
        let list = [
            gate("holds", Value::Ratio(figure, floor), Bound::AtMost(2.5)),
            gate("too much", Value::Ratio(figure, floor), Bound::AtMost(2.0)),
            gate(
                "too little",
                Value::Ratio(figure, floor),
                Bound::AtLeast(90.0),
            ),
            gate(
                "missing",
                Value::Difference(figure, none),
                Bound::AtMost(1.0),
            ),
        ];
        let figures = some();
        let strict = Strictness::Strict;
        let judged: Vec<_> = list
            .iter()
            .map(|gate| (gate, gate.judge(&figures, strict)))
            .collect();
        insta::assert_snapshot!(gates(&judged, strict));
    }
}
