//! `egress validate`: what is wrong with resources, before an agent reads them.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    diagnostic::{Diagnostic, Severity},
    lint::lint,
    sources::files::{Loaded, Loader},
};

/// Check resources and say what is wrong, where, and what to do.
#[derive(Args, Clone, Debug)]
pub struct ValidateArgs {
    /// Files and directories with resources.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: ValidateOutput,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ValidateOutput {
    /// For people, with snippets.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Prints what is wrong; the exit code is 1 if there is an error.
pub fn validate(args: ValidateArgs) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let accepted = report(args, &mut out, colour).context("cannot print the result")?;
    Ok(if accepted {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Writes the report; gives whether there is no error.
fn report(args: ValidateArgs, out: &mut impl Write, colour: bool) -> anyhow::Result<bool> {
    let mut loaded = Loader::new(args.paths).load();
    let mut diagnostics = std::mem::take(&mut loaded.diagnostics);
    diagnostics.extend(warnings(&loaded));
    diagnostics.sort_by(|one, other| {
        let place =
            |diagnostic: &Diagnostic| (diagnostic.file.clone(), diagnostic.position.clone());
        place(one).cmp(&place(other))
    });
    let summary = Summary::new(&loaded, &diagnostics);
    match args.output {
        ValidateOutput::Text => {
            for diagnostic in &diagnostics {
                writeln!(out, "{}", diagnostic.render(colour))?;
            }
            writeln!(out, "{summary}")?;
        }
        ValidateOutput::Json => {
            let report = JsonReport {
                diagnostics: &diagnostics,
                summary: &summary,
            };
            serde_json::to_writer_pretty(&mut *out, &report)?;
            writeln!(out)?;
        }
    }
    Ok(summary.errors == 0)
}

fn warnings(loaded: &Loaded) -> Vec<Diagnostic> {
    lint(&loaded.model, &loaded.places, &loaded.refused)
        .into_iter()
        .filter_map(|finding| {
            let source = loaded.sources.get(&*finding.place.file)?;
            let diagnostic = Diagnostic::at(source, finding.place.position.span, finding.message)
                .with_severity(Severity::Warning)
                .with_object(finding.object.to_string())
                .with_help(finding.help);
            Some(diagnostic)
        })
        .collect()
}

#[derive(Serialize)]
struct JsonReport<'a> {
    diagnostics: &'a [Diagnostic],
    summary: &'a Summary,
}

#[derive(Debug, Serialize)]
struct Summary {
    policies: usize,
    gateways: usize,
    pods: usize,
    namespaces: usize,
    errors: usize,
    warnings: usize,
    skipped: BTreeMap<String, usize>,
}

impl Summary {
    fn new(loaded: &Loaded, diagnostics: &[Diagnostic]) -> Self {
        let errors = diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.severity == Severity::Error)
            .count();
        Self {
            policies: loaded.model.policies.len(),
            gateways: loaded.model.gateways.len(),
            pods: loaded.model.pods.len(),
            namespaces: loaded.model.namespaces.len(),
            errors,
            warnings: diagnostics.len() - errors,
            skipped: loaded.skipped.clone(),
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (kind, count) in &self.skipped {
            writeln!(f, "skipped: {count} × {kind}")?;
        }
        write!(
            f,
            "{}, {}, {}: {}, {}",
            counted(self.policies, "policy", "policies"),
            counted(self.gateways, "gateway", "gateways"),
            counted(self.pods, "pod", "pods"),
            counted(self.errors, "error", "errors"),
            counted(self.warnings, "warning", "warnings"),
        )
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
