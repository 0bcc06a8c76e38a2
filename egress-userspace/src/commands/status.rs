//! `egress status`: the node at a glance, as the agent sees it.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Context as _;

use super::{AGENT, Output, columns};
use crate::http::{client, status::Status};

/// Arguments of `egress status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Where the agent listens
    #[arg(long, value_name = "ADDR", default_value = AGENT)]
    pub agent: String,
    /// How to print the status
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Prints the agent's status, and fails where the node is not ready.
///
/// # Errors
/// When the agent cannot be asked.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let status: Status = serde_json::from_str(&client::get(&args.agent, "/status")?)
        .context("the agent's answer cannot be read: is it of another version?")?;
    super::print(&args.output.render(&status, table)?)?;
    Ok(if status.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn table(status: &Status) -> String {
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = head(&mut out, status);
    let dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let mut section = |title: &str, empty: bool, table: String| {
        if !empty {
            let _ = write!(out, "\n{title}\n{table}");
        }
    };
    section(
        "Pods",
        status.pods.is_empty(),
        columns(
            ["POD", "STATE", "POLICY", "INTERFACE", "ADDRESSES"],
            status.pods.iter().map(|p| {
                let addresses: Vec<String> = p.addresses.iter().map(ToString::to_string).collect();
                [
                    p.pod.clone(),
                    p.state.clone(),
                    dash(&p.policy),
                    dash(&p.interface),
                    addresses.join(" "),
                ]
            }),
        ),
    );
    section(
        "Gateways",
        status.gateways.is_empty(),
        columns(
            ["GATEWAY", "UP", "REACHED BY"],
            status.gateways.iter().map(|g| {
                let how = g.reason.clone().unwrap_or_else(|| g.ways.join(", "));
                [g.gateway.clone(), yes_no(g.up), how]
            }),
        ),
    );
    section(
        "Egress addresses of this node",
        status.egress.is_empty(),
        columns(
            [
                "ADDRESS",
                "GATEWAY",
                "INTERFACE",
                "PORTS",
                "HELD BY",
                "IN PLACE",
            ],
            status.egress.iter().map(|e| {
                [
                    e.address.to_string(),
                    format!("{}/{}", e.namespace, e.gateway),
                    e.interface.clone(),
                    format!("{}-{}", e.ports.0, e.ports.1),
                    e.holder.clone(),
                    yes_no(e.in_place),
                ]
            }),
        ),
    );
    section(
        "Programs",
        status.programs.is_empty(),
        columns(
            ["INTERFACE", "PROGRAM", "ATTACHED", "MODE"],
            status.programs.iter().map(|p| {
                [
                    p.interface.clone(),
                    p.program.clone(),
                    yes_no(p.attached),
                    p.mode.clone(),
                ]
            }),
        ),
    );
    section(
        "Held interfaces",
        status.held.is_empty(),
        columns(["INTERFACE"], status.held.iter().map(|name| [name.clone()])),
    );
    section(
        "Refused objects",
        status.degraded.is_empty(),
        columns(
            ["KIND", "OBJECT", "LAST GOOD VERSION", "ERROR"],
            status.degraded.iter().map(|d| {
                let object = if d.namespace.is_empty() {
                    d.name.clone()
                } else {
                    format!("{}/{}", d.namespace, d.name)
                };
                let in_force = if d.last_good { "in force" } else { "none" };
                [d.kind.clone(), object, in_force.to_owned(), d.error.clone()]
            }),
        ),
    );
    section(
        "Files with errors",
        status.resource_errors.is_empty(),
        columns(
            ["FILE", "ERRORS"],
            status
                .resource_errors
                .iter()
                .map(|(f, n)| [f.clone(), n.to_string()]),
        ),
    );
    section(
        "Warnings",
        status.warnings.is_empty(),
        status.warnings.iter().map(|w| format!("{w}\n")).collect(),
    );
    out
}

fn head(out: &mut String, status: &Status) -> std::fmt::Result {
    writeln!(out, "Node        {}", status.node)?;
    writeln!(out, "Agent       {}", status.version)?;
    match &status.not_ready_because {
        None => writeln!(out, "Ready       yes")?,
        Some(reason) => writeln!(out, "Ready       NO: {reason}")?,
    }
    match &status.last_apply {
        None => writeln!(out, "Last apply  none yet"),
        Some(apply) => {
            let took = apply.duration_seconds * 1000.0;
            let number = status.generation;
            match &apply.error {
                None => writeln!(
                    out,
                    "Last apply  number {number}: {} changes in {took:.1} ms",
                    apply.changes
                ),
                Some(error) => writeln!(out, "Last apply  number {number} FAILED: {error}"),
            }
        }
    }
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "NO" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{explain, metrics, state::Names};

    #[test]
    fn a_table_for_people() {
        let troubled = Status::of(&metrics::tests::snapshot(Names::default()));
        let healthy = Status::of(&explain::tests::node());
        insta::assert_snapshot!(format!("{}\n----\n{}", table(&troubled), table(&healthy)));
    }

    #[test]
    fn yaml_and_json_carry_the_same() -> anyhow::Result<()> {
        let status = Status::of(&metrics::tests::snapshot(Names::default()));
        let json: Status = serde_json::from_str(&Output::Json.render(&status, table)?)?;
        let yaml: Status = serde_saphyr::from_str(&Output::Yaml.render(&status, table)?)
            .map_err(|e| anyhow::anyhow!("{e}"))?;
        assert_eq!(json, status);
        assert_eq!(yaml, status);
        Ok(())
    }
}
