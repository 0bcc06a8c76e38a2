//! Bytes of others: what fuzzing has kept still holds, and so do changes of it. `cargo xtask test --fuzz` looks further.

use std::time::Duration;

use anyhow::{Result, ensure};
use egress_tests::fuzz::{Target, corpus};

/// Changes of what is kept, and the time that they may take on a slow machine.
const CHANGES: usize = 1500;
const TIME: Duration = Duration::from_millis(1500);

fn check(target: Target) -> Result<()> {
    let kept = corpus::replay(target)?;
    let changes = corpus::change(target, CHANGES, TIME)?;
    println!("{kept} inputs are kept, {changes} changes were tried");
    ensure!(changes > 10, "only {changes} changes in {TIME:?}");
    Ok(())
}

#[test]
fn files_of_resources() -> Result<()> {
    check(Target::Yaml)
}

#[test]
fn selectors() -> Result<()> {
    check(Target::Selector)
}

#[test]
fn prefixes() -> Result<()> {
    check(Target::Cidr)
}

#[test]
fn configuration_arguments_and_keys() -> Result<()> {
    check(Target::Config)
}

#[test]
fn frames_from_pods() -> Result<()> {
    check(Target::PodPacket)
}

#[test]
fn frames_from_the_overlay() -> Result<()> {
    check(Target::OverlayFrame)
}

#[test]
fn frames_on_the_uplink() -> Result<()> {
    check(Target::UplinkPacket)
}
