//! From a file that is written to the kernel that holds what it says.
//!
//! What is looked at is the pod's word in `POD_STATE`, which is mapped into memory: all that it leads to is written before
//! it is turned, so that from then on packets go by the new policy. Looking costs the agent nothing.

use std::{
    net::IpAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use egress_common::Addr;
use egress_userspace::{
    diff::MapReader as _,
    kernel::{Maps, Paths},
};

use super::{
    CHANGES, LOADS,
    manifests::{Policies, address},
    stage::Stage,
};
use crate::{
    measured::{Measured, Unit},
    progress::Progress,
};

/// The scenes of the gates.
pub(super) const LARGE: &str = "100 pods × 1000 prefixes";
pub(super) const MILLION: &str = "10 pods × 100k prefixes";

const CHANGE: &str = "file to kernel";
pub(super) const CHANGE_P99: &str = "file to kernel, 99 of 100";
pub(super) const LOAD: &str = "start to kernel";

/// How long the agent is left alone between changes.
const PAUSE: Duration = Duration::from_millis(200);
/// How often the kernel is looked at.
const LOOK: Duration = Duration::from_micros(100);

/// What there is, and how many of 100 changes are made of it.
struct Scene {
    name: &'static str,
    policies: Policies,
    share: u32,
}

const fn scene(
    name: &'static str,
    policies: u32,
    prefixes: u32,
    all_lead_out: bool,
    share: u32,
) -> Scene {
    Scene {
        name,
        policies: Policies {
            policies,
            prefixes,
            all_lead_out,
        },
        share,
    }
}

const SCENES: [Scene; 5] = [
    scene(LARGE, 100, 1000, true, 50),
    scene("1 pod × 100 prefixes", 1, 100, true, 15),
    scene("1 pod × 16,384 prefixes", 1, 16_384, false, 10),
    scene("1000 pods × 100 prefixes", 1000, 100, true, 15),
    scene(MILLION, 10, 100_000, false, 10),
];

/// Measures changes of one policy, for so long in all.
pub(super) fn changes(time: Duration, quick: bool, progress: &Progress) -> Result<Vec<Measured>> {
    let mut figures = Vec::new();
    let began = Instant::now();
    for scene in SCENES.iter().filter(|scene| !quick || scene.name == LARGE) {
        progress.making(scene.name);
        let mut stage = Stage::enter(scene.policies.policies, scene.policies)?;
        stage.start()?.ready()?;
        let share = if quick { 100 } else { scene.share };
        let until = Instant::now() + time * share / 100;
        let times = change(&mut stage, until, || {
            progress.measuring(CHANGES, figures.len(), began.elapsed());
        })
        .with_context(|| format!("cannot change {}", scene.name))?;
        let unit = Unit::Milliseconds;
        figures.push(Measured::of_samples(
            CHANGES, scene.name, CHANGE, unit, &times,
        ));
        let p99 = quantile(&times, 0.99);
        figures.push(Measured::exactly(
            CHANGES, scene.name, CHANGE_P99, unit, p99,
        ));
        let resident = stage.agent()?.resident()?;
        figures.push(Measured::exactly(
            CHANGES,
            scene.name,
            "resident",
            Unit::Bytes,
            resident,
        ));
    }
    Ok(figures)
}

/// Has the first pod's policy change to and fro, and says how many milliseconds each time took.
fn change(stage: &mut Stage, until: Instant, mut told: impl FnMut()) -> Result<Vec<f64>> {
    // What the first apply leaves to be done.
    sleep(PAUSE * 5);
    let maps = Maps::open(&Paths::new(stage.pins()))?;
    let first = Addr::from(IpAddr::from(address(0)));
    let pods = maps.pods()?;
    let slot = pods.iter().find(|(key, _)| key.addr == first);
    let (_, slot) = *slot.context("the first pod is not steered")?;
    let mut times = Vec::new();
    while times.len() < 3 || Instant::now() < until {
        let before = maps.slot(slot)?;
        let text = stage.policies.manifest(0, times.len() % 2 == 0);
        let began = Instant::now();
        stage.put("policy0.yaml", &text)?;
        let mut looked = began;
        while maps.slot(slot)? == before {
            sleep(LOOK);
            if looked.elapsed() > Duration::from_secs(1) {
                stage.agent()?.ensure_patience(began)?;
                looked = Instant::now();
            }
        }
        times.push(began.elapsed().as_secs_f64() * 1e3);
        told();
        sleep(PAUSE + began.elapsed() / 2);
    }
    Ok(times)
}

/// Measures how long it takes from the agent's start until all is in the kernel.
pub(super) fn loads(quick: bool, progress: &Progress) -> Result<Vec<Measured>> {
    let mut figures = Vec::new();
    let began = Instant::now();
    for scene in SCENES
        .iter()
        .filter(|scene| !quick || scene.name == MILLION)
    {
        progress.making(scene.name);
        // The kernel takes half a minute to attach to a thousand pods, whoever asks it.
        let rounds = if quick || scene.policies.policies >= 1000 {
            1
        } else {
            2
        };
        let mut times = Vec::new();
        for round in 0..rounds {
            progress.measuring(LOADS, round, began.elapsed());
            let mut stage = Stage::enter(scene.policies.policies, scene.policies)?;
            let began = Instant::now();
            stage.start()?.ready()?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        let unit = Unit::Milliseconds;
        figures.push(Measured::of_samples(LOADS, scene.name, LOAD, unit, &times));
    }
    Ok(figures)
}

/// The sample that so large a share of all is not above.
fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a length is not below zero, and not above the length"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    let last = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(last).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_few_samples_99_in_100_are_all() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for (samples, expected) in [
            (&hundred[..], 99.0),
            (&hundred[..50], 50.0),
            (&hundred[..1], 1.0),
        ] {
            assert!((quantile(samples, 0.99) - expected).abs() < 1e-9);
        }
        assert!(quantile(&[], 0.99).is_nan());
    }
}
