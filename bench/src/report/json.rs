//! `results.json`: the figures with what they were measured on.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use crate::measured::Measured;

/// The file's content.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Results {
    machine: Machine,
    figures: Vec<Measured>,
}

/// What the figures are of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Machine {
    kernel: String,
    architecture: String,
    /// As the kernel names it.
    processor: String,
    cores: usize,
}

impl Machine {
    fn this() -> Self {
        let names = uname().ok();
        let text = |value: Option<&std::ffi::OsStr>| {
            value.map_or_else(String::new, |value| value.to_string_lossy().into_owned())
        };
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processors
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map(|(_, name)| name.trim().to_owned());
        Self {
            kernel: text(names.as_ref().map(|names| names.release())),
            architecture: text(names.as_ref().map(|names| names.machine())),
            processor: processor.unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        }
    }
}

/// Writes the file.
pub(crate) fn write(path: &Path, figures: &[Measured]) -> Result<()> {
    let text = text(Machine::this(), figures)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn text(machine: Machine, figures: &[Measured]) -> Result<String> {
    let results = Results {
        machine,
        figures: figures.to_vec(),
    };
    let mut text = serde_json::to_string_pretty(&results)?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measured::Unit;

    #[test]
    fn the_file_says_what_was_measured_where() -> Result<()> {
        let machine = Machine {
            kernel: "6.18.15".to_owned(),
            architecture: "x86_64".to_owned(),
            processor: "A processor".to_owned(),
            cores: 2,
        };
        let figures = [
            Measured::of_samples(
                "pods × prefixes",
                "1 × 1",
                "ours",
                Unit::Nanoseconds,
                &[40.25, 38.5, 39.0],
            ),
            Measured::exactly(
                "pods × prefixes",
                "1 × 1",
                "ours, matrix",
                Unit::Bytes,
                64.0,
            ),
        ];
        let text = text(machine, &figures)?;
        insta::assert_snapshot!(text);
        let read: Results = serde_json::from_str(&text)?;
        assert_eq!(read.figures, figures);
        Ok(())
    }
}
