//! What a packet costs in the programs, as the kernel's test-run measures it, in nanoseconds.
//!
//! `cargo run -p egress-tests --example packet-costs [leaving|routes|tables|translation]…`, as root.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a measurement may fail loudly, and random bits have no value to lose"
)]

mod leaving;
mod routes;
mod tables;
mod translation;

use std::{env, process::ExitCode};

/// What can be measured.
const ALL: [(&str, fn()); 4] = [
    ("leaving", leaving::measure),
    ("routes", routes::measure),
    ("tables", tables::measure),
    ("translation", translation::measure),
];

#[expect(clippy::print_stderr, reason = "errors go where errors belong")]
fn main() -> ExitCode {
    let wanted: Vec<String> = env::args().skip(1).collect();
    if let Some(unknown) = wanted
        .iter()
        .find(|name| !ALL.iter().any(|(known, _)| known == name))
    {
        let known = ALL.map(|(name, _)| name).join(", ");
        eprintln!("{unknown} is nothing that can be measured: {known}");
        return ExitCode::FAILURE;
    }
    for (name, measure) in ALL {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            measure();
        }
    }
    ExitCode::SUCCESS
}
