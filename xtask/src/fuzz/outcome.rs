//! What libFuzzer says, and the table that is made of it.

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

/// How far a run is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    executions: u64,
    coverage: u64,
    features: u64,
    inputs: u64,
    new: u64,
    /// The input that something was found with.
    pub(super) artifact: Option<String>,
}

impl Progress {
    /// Reads a line, such as `#512 NEW cov: 80 ft: 120 corp: 9/2Kb exec/s: 99 rss: 40Mb`.
    pub(super) fn read(&mut self, line: &str) {
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.artifact = Some(path.trim().to_owned());
            return;
        }
        let stat = |name: &str| -> Option<u64> {
            line.strip_prefix("stat::")?
                .strip_prefix(name)?
                .trim()
                .parse()
                .ok()
        };
        if let Some(executions) = stat("number_of_executed_units:") {
            self.executions = executions;
            return;
        }
        if let Some(new) = stat("new_units_added:") {
            self.new = new;
            return;
        }
        let Some(rest) = line.strip_prefix('#') else {
            return;
        };
        let mut words = rest.split_whitespace();
        if let Some(executions) = words.next().and_then(|word| word.parse().ok()) {
            self.executions = executions;
        }
        while let Some(word) = words.next() {
            let place = match word {
                "cov:" => &mut self.coverage,
                "ft:" => &mut self.features,
                "corp:" => &mut self.inputs,
                _ => continue,
            };
            let number = words
                .next()
                .and_then(|word| word.split('/').next()?.parse().ok());
            *place = number.unwrap_or(*place);
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} executions, {} branches, {} features, {} inputs",
            self.executions, self.coverage, self.features, self.inputs
        )
    }
}

/// Something was found.
#[derive(Debug)]
pub(super) struct Crash {
    /// How to see it again.
    pub(super) replay: String,
    /// How to keep it.
    pub(super) keep: Option<String>,
    /// What was said.
    pub(super) log: PathBuf,
}

/// A run that has ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) target: String,
    pub(super) seconds: u64,
    pub(super) progress: Progress,
    pub(super) crash: Option<Crash>,
}

impl Outcome {
    /// What was found, and what to do about it.
    pub(super) fn told_crash(&self) -> Option<String> {
        let crash = self.crash.as_ref()?;
        let keep = crash.keep.as_ref().map_or_else(String::new, |keep| {
            format!("\n  and once it is mended, with a name that says what it was:\n  {keep}")
        });
        Some(format!(
            "{}: something was found: {}\n  see it again with\n  {}{keep}",
            self.target,
            crash.log.display(),
            crash.replay,
        ))
    }
}

/// The runs, a line each.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "\ntarget          seconds  executions  branches  features  new inputs  found\n",
    );
    for outcome in outcomes {
        let progress = &outcome.progress;
        // Writing into a string cannot fail.
        let _cannot_fail = writeln!(
            text,
            "{:15} {:7} {:11} {:9} {:9} {:11}  {}",
            outcome.target,
            outcome.seconds,
            progress.executions,
            progress.coverage,
            progress.features,
            progress.new,
            if outcome.crash.is_some() {
                "something"
            } else {
                "nothing"
            }
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let mut progress = Progress::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 60 ft: 61 corp: 1/1b exec/s: 0 rss: 40Mb",
            "#512\tNEW    cov: 80 ft: 120 corp: 9/2Kb lim: 4 exec/s: 99 rss: 40Mb L: 9/9 MS: 1 -",
            "#1024\tpulse  cov: 80 ft: 121 corp: 9/2Kb",
        ] {
            progress.read(line);
        }
        assert_eq!(
            progress.to_string(),
            "1024 executions, 80 branches, 121 features, 9 inputs"
        );
        for line in [
            "stat::number_of_executed_units: 1500",
            "stat::new_units_added:          8",
            "artifact_prefix='/w/'; Test unit written to /w/crash-1",
        ] {
            progress.read(line);
        }
        assert_eq!(
            (
                progress.executions,
                progress.new,
                progress.artifact.as_deref()
            ),
            (1500, 8, Some("/w/crash-1"))
        );
    }
}
