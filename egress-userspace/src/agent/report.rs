//! What the log says of the sources: each thing once, when it appears and when it is gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    diagnostic::{Diagnostic, Severity},
    model::ObjectName,
    resolve::GatewayStatus,
    snapshot::Degraded,
    sources::files::Loaded,
};

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
        for diagnostic in diagnostics {
            if self.diagnostics.contains(&line(diagnostic)) {
                continue;
            }
            match diagnostic.severity {
                Severity::Error => tracing::error!("{}", diagnostic.render(false)),
                Severity::Warning => tracing::warn!("{}", line(diagnostic)),
            }
        }
        for gone in self.diagnostics.difference(&now) {
            tracing::info!("no longer: {gone}");
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

/// Files of which some or all could not be read.
pub(super) fn unreadable(loaded: &Loaded) -> Vec<String> {
    errors(loaded)
        .filter(|diagnostic| diagnostic.object.is_none())
        .map(line)
        .collect()
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
