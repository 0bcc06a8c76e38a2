//! What the log says of the sources: each thing once, when it appears and when it is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    diagnostic::{Diagnostic, Severity},
    model::ObjectName,
    resolve::GatewayStatus,
    snapshot::Degraded,
    sources::files::Loaded,
};

/// What is said of one reading of the files: a broken generator can make thousands of faults.
const MAX_LINES: usize = 100;

/// What has been said.
#[derive(Debug, Default)]
pub(super) struct Report {
    diagnostics: BTreeSet<String>,
    warnings: BTreeSet<String>,
    /// Why each gateway is down, of those that are.
    down: BTreeMap<ObjectName, String>,
}

impl Report {
    /// Says which gateways can be used no longer, and why, and which can be used again.
    pub(super) fn gateways(&mut self, gateways: &BTreeMap<ObjectName, GatewayStatus>) {
        let mut down = BTreeMap::new();
        for (name, status) in gateways {
            match (status, self.down.get(name)) {
                (GatewayStatus::Down(reason), before) => {
                    if before != Some(reason) {
                        tracing::warn!(gateway = %name, "gateway is down: {reason}");
                    }
                    down.insert(name.clone(), reason.clone());
                }
                (GatewayStatus::Up(_), Some(reason)) => {
                    tracing::info!(gateway = %name, "gateway is up again; it was down: {reason}");
                }
                (GatewayStatus::Up(_), None) => {}
            }
        }
        self.down = down;
    }

    /// Says what is newly wrong in the files, and what no longer is.
    pub(super) fn diagnostics(&mut self, diagnostics: &[Diagnostic]) {
        let now: BTreeSet<String> = diagnostics.iter().map(line).collect();
        let mut new = diagnostics
            .iter()
            .filter(|diagnostic| !self.diagnostics.contains(&line(diagnostic)));
        for diagnostic in new.by_ref().take(MAX_LINES) {
            match diagnostic.severity {
                Severity::Error => tracing::error!("{}", diagnostic.render(false)),
                Severity::Warning => tracing::warn!("{}", line(diagnostic)),
            }
        }
        let more = new.count();
        if more > 0 {
            tracing::error!("and {more} more; `egress validate` shows them");
        }
        let mut gone = self.diagnostics.difference(&now);
        for gone in gone.by_ref().take(MAX_LINES) {
            tracing::info!("no longer: {gone}");
        }
        let more = gone.count();
        if more > 0 {
            tracing::info!("and {more} more are gone");
        }
        self.diagnostics = now;
    }

    /// Says what is new in what the operator should know.
    pub(super) fn warnings(&mut self, warnings: &BTreeSet<String>) {
        for warning in warnings.difference(&self.warnings) {
            tracing::warn!("{warning}");
        }
        self.warnings.clone_from(warnings);
    }
}

/// Objects whose newest version is refused.
pub(super) fn degraded(loaded: &Loaded) -> BTreeSet<Degraded> {
    let mut refused = BTreeSet::new();
    for diagnostic in errors(loaded) {
        let Some(object) = &diagnostic.object else {
            continue;
        };
        let (kind, name) = object.split_once(' ').unwrap_or(("", object));
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        refused.insert(Degraded {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            last_good: loaded.degraded.contains(object),
            error: line(diagnostic),
        });
    }
    refused
}

/// What may hold any object, since it could not be read in full, ever; with the first thing that is wrong with it.
pub(super) fn unknown(loaded: &Loaded) -> Vec<String> {
    let fault = |path: &Path| {
        let is_of_it =
            |file: &Path| std::path::absolute(file).is_ok_and(|file| file.starts_with(path));
        errors(loaded)
            .find(|diagnostic| is_of_it(&diagnostic.file))
            .map_or_else(|| path.display().to_string(), line)
    };
    loaded.unknown.iter().map(|path| fault(path)).collect()
}

/// What is in force only because the last run kept it: a sentence for each file.
pub(super) fn restored(loaded: &Loaded) -> impl Iterator<Item = String> {
    const SHOWN: usize = 5;
    loaded.restored.iter().map(|(file, objects)| {
        let shown: Vec<&str> = objects.iter().take(SHOWN).map(String::as_str).collect();
        let more = match objects.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "{}: what the last run read there is in force, since what is there now cannot be read or is refused: {}{more}",
            file.display(),
            shown.join(", ")
        )
    })
}

fn errors(loaded: &Loaded) -> impl Iterator<Item = &Diagnostic> {
    loaded
        .diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == Severity::Error)
}

fn line(diagnostic: &Diagnostic) -> String {
    let place = diagnostic
        .position
        .as_ref()
        .map_or_else(String::new, |at| format!(":{}:{}", at.line, at.column));
    let object = diagnostic
        .object
        .as_deref()
        .map_or_else(String::new, |o| format!("{o}: "));
    let help = diagnostic
        .help
        .as_deref()
        .map_or_else(String::new, |h| format!(" ({h})"));
    format!(
        "{}{place}: {object}{}{help}",
        diagnostic.file.display(),
        diagnostic.message
    )
}
