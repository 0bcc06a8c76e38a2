//! What became of a kernel, as a table and in the README.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

/// The steps of a machine.
const STEPS: [&str; 2] = ["packets", "end-to-end"];
/// The programs, in the order of the table's columns.
const PROGRAMS: [&str; 7] = [
    "egress_from_pod",
    "egress_to_pod",
    "egress_from_gateway",
    "egress_from_overlay",
    "egress_from_uplink",
    "egress_to_uplink",
    "egress_nat_sweep",
];
/// What is around the README's table.
const BEGIN: &str = "<!-- written by `cargo xtask test --kernels --record` -->\n";
const END: &str = "<!-- end of what is written -->\n";

/// How a kernel fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Everything was as it should be.
    Passed,
    /// Something was not.
    Failed,
    /// It could not be had.
    Skipped,
}

impl Fate {
    const fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

/// What a machine's run has shown.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// The kernel's version, or the series of one that could not be had.
    pub(super) kernel: String,
    /// The series.
    series: String,
    /// How it fared.
    pub(super) fate: Fate,
    /// What went wrong.
    pub(super) why: Option<String>,
    /// What the machine measured, by name.
    measured: BTreeMap<String, String>,
    /// Instructions that the verifier looked at, by program.
    verified: BTreeMap<String, u64>,
    /// How long it took from power to the end.
    seconds: u64,
}

impl Outcome {
    /// A kernel that could not be had.
    pub(super) fn skipped(series: &str) -> Self {
        Self {
            fate: Fate::Skipped,
            ..Self::failed(series, series)
        }
    }

    /// A kernel that could not even be tried.
    pub(super) fn failed(series: &str, version: &str) -> Self {
        Self {
            kernel: version.to_owned(),
            series: series.to_owned(),
            fate: Fate::Failed,
            why: None,
            measured: BTreeMap::new(),
            verified: BTreeMap::new(),
            seconds: 0,
        }
    }

    /// A kernel on which everything was as it should be.
    #[cfg(test)]
    pub(super) fn passed(series: &str, version: &str) -> Self {
        Self {
            fate: Fate::Passed,
            ..Self::failed(series, version)
        }
    }

    /// What a machine's console says.
    pub(super) fn read(series: &str, version: &str, console: &str, seconds: u64) -> Self {
        let mut outcome = Self::failed(series, version);
        outcome.seconds = seconds;
        let mut ended = BTreeMap::new();
        for line in console.lines() {
            if let Some(rest) = line.strip_prefix("VM-MEASURED ") {
                outcome.measure(rest);
            } else if let Some(rest) = line.strip_prefix("VM-STEP ") {
                let mut words = rest.split(' ');
                ended.insert(words.next().unwrap_or_default(), words.next());
            }
        }
        let wrong: Vec<String> = STEPS
            .iter()
            .filter_map(|step| match ended.get(step) {
                Some(Some("0")) => None,
                Some(_) => Some(format!("{step} failed")),
                None => Some(format!("{step} did not end")),
            })
            .collect();
        if wrong.is_empty() {
            outcome.fate = Fate::Passed;
        } else {
            outcome.why = Some(wrong.join(", "));
        }
        outcome
    }

    fn measure(&mut self, line: &str) {
        let Some((what, value)) = line.split_once(' ') else {
            return;
        };
        let verified = value
            .split_once(' ')
            .and_then(|(name, count)| Some((name, count.parse().ok()?)));
        match verified {
            Some((name, count)) if what == "verified" => {
                self.verified.insert(name.to_owned(), count);
            }
            Some(_) | None => {
                self.measured.insert(what.to_owned(), value.to_owned());
            }
        }
    }

    /// A measure, or a dash where there is none.
    fn value(&self, what: &str) -> &str {
        self.measured.get(what).map_or("-", String::as_str)
    }

    fn attached(&self) -> String {
        match self.measured.get("attached") {
            Some(both) => both.replace('+', ", "),
            None => self.value("attach").to_owned(),
        }
    }
}

/// The table for whoever ran it.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let mut header = vec!["kernel".to_owned(), "attached by".to_owned()];
    header.extend(PROGRAMS.map(|name| name.trim_start_matches("egress_").to_owned()));
    header.extend(
        [
            "load s",
            "packets",
            "ready s",
            "end to end",
            "all s",
            "result",
        ]
        .map(str::to_owned),
    );
    let mut rows = vec![header];
    for outcome in outcomes {
        let mut row = vec![outcome.kernel.clone(), outcome.attached()];
        row.extend(PROGRAMS.map(|name| match outcome.verified.get(name) {
            Some(count) => count.to_string(),
            None => "-".to_owned(),
        }));
        row.extend(
            ["load-seconds", "packets", "ready-seconds", "end-to-end"]
                .map(|what| outcome.value(what).to_owned()),
        );
        row.push(outcome.seconds.to_string());
        row.push(match &outcome.why {
            Some(why) => format!("{}: {why}", outcome.fate.word()),
            None => outcome.fate.word().to_owned(),
        });
        rows.push(row);
    }
    aligned(&rows)
}

/// Columns as wide as their widest cell.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Writes the table of kernels that passed into the README.
pub(super) fn record(readme: &Path, outcomes: &[Outcome]) -> Result<()> {
    let text =
        fs::read_to_string(readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let recorded = recorded(&text, outcomes).with_context(|| {
        format!(
            "{} has no place for the table: the lines {BEGIN:?} and {END:?}",
            readme.display()
        )
    })?;
    fs::write(readme, recorded).with_context(|| format!("cannot write {}", readme.display()))
}

/// The README with these outcomes; kernels of other series keep their lines.
fn recorded(readme: &str, outcomes: &[Outcome]) -> Option<String> {
    let (before, rest) = readme.split_once(BEGIN)?;
    let (old, after) = rest.split_once(END)?;
    let header = "| kernel | attached by | largest program, verified instructions | packets through the programs | three nodes |\n\
                  | --- | --- | --- | --- | --- |\n";
    let passed: Vec<&Outcome> = outcomes
        .iter()
        .filter(|outcome| outcome.fate == Fate::Passed)
        .collect();
    let mut lines: Vec<String> = old
        .lines()
        .skip(2)
        .filter(|line| {
            let of = |outcome: &&Outcome| numbers(line) == numbers(&outcome.series);
            !passed.iter().any(of)
        })
        .map(str::to_owned)
        .collect();
    for outcome in passed {
        let largest = outcome.verified.values().max();
        lines.push(format!(
            "| {} | {} | {} | {} | {} |",
            outcome.kernel,
            outcome.attached(),
            largest.map_or_else(|| "not told".to_owned(), |count| count.to_string()),
            outcome.value("packets"),
            outcome.value("end-to-end"),
        ));
    }
    lines.sort_by_key(|line| numbers(line));
    let mut text = format!("{before}{BEGIN}{header}");
    for line in lines {
        let _infallible = writeln!(text, "{line}");
    }
    Some(text + END + after)
}

/// The first two numbers of a line: a kernel's series.
fn numbers(line: &str) -> Vec<u64> {
    line.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .take(2)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "insmod\nVM-START packets\nrunning 3 tests\nVM-MEASURED load-seconds 12.5\n\
        VM-MEASURED attach tcx\nVM-MEASURED verified egress_from_pod 138877\n\
        VM-MEASURED packets 10\nVM-MEASURED packets 8034\nVM-STEP packets 0 60.1\n\
        VM-MEASURED attached tcx+clsact\nVM-MEASURED end-to-end ok\n";

    #[test]
    fn a_machine_passes_only_if_every_step_did() {
        for (last, why) in [
            ("VM-STEP end-to-end 0 90.2\n", None),
            ("VM-STEP end-to-end 101 90.2\n", Some("end-to-end failed")),
            ("Kernel panic\n", Some("end-to-end did not end")),
        ] {
            let outcome = Outcome::read("6.12", "6.12.9", &format!("{CONSOLE}{last}"), 95);
            assert_eq!(outcome.why.as_deref(), why);
            assert_eq!(outcome.fate == Fate::Passed, why.is_none());
            assert_eq!(outcome.value("packets"), "8034");
            assert_eq!(outcome.verified["egress_from_pod"], 138_877);
            assert_eq!(outcome.attached(), "tcx, clsact");
        }
    }

    #[test]
    fn the_readme_keeps_the_lines_of_other_kernels() {
        let console = format!("{CONSOLE}VM-STEP end-to-end 0 9\n");
        let outcomes = [
            Outcome::read("6.1", "6.1.0-41", &console, 90),
            Outcome::skipped("5.10"),
        ];
        let readme = format!(
            "before\n{BEGIN}| a |\n| --- |\n| 6.12.9 | old |\n| 6.1.0-9 | old |\n| 5.10.0-1 | old |\n{END}after\n"
        );
        let written = recorded(&readme, &outcomes).unwrap_or_default();
        let lines: Vec<&str> = written.lines().collect();
        assert_eq!(lines[0], "before");
        assert_eq!(
            &lines[4..7],
            [
                "| 5.10.0-1 | old |",
                "| 6.1.0-41 | tcx, clsact | 138877 | 8034 | ok |",
                "| 6.12.9 | old |",
            ]
        );
        assert_eq!(lines.last(), Some(&"after"));
        assert_eq!(recorded("no place", &outcomes), None);
    }
}
