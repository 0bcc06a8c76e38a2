//! Interleaved rounds: what disturbs the machine for a while disturbs all that is compared.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{
    lab::{Action, Shim},
    measured::{Measured, Unit},
    progress::Progress,
    statistics,
};

/// Packets of one run: enough that most find what the same flow's packets before them left in the caches. With too few, a
/// program is measured by what the program before it has pushed out.
const PACKETS: u32 = 100_000;
/// Rounds that there are at least, however slow the machine is.
const FEWEST: usize = 15;

/// A program under test.
pub(crate) struct Subject {
    name: String,
    shim: Shim,
    /// What it returns for every packet.
    wanted: Action,
    samples: Vec<f64>,
}

/// Programs that are given the same flows, and the empty one first.
pub(crate) struct Bed {
    scene: String,
    empty: Subject,
    subjects: Vec<Subject>,
}

impl Bed {
    /// With the empty program, which is subtracted from all others.
    pub(crate) fn new(scene: impl Into<String>, empty: Shim) -> Self {
        Self {
            scene: scene.into(),
            empty: Subject::new("empty", empty, Action::Pass),
            subjects: Vec::new(),
        }
    }

    /// And another one.
    pub(crate) fn add(&mut self, name: impl Into<String>, shim: Shim, wanted: Action) {
        self.subjects.push(Subject::new(name, shim, wanted));
    }

    /// What the bed's world is called.
    pub(crate) fn scene(&self) -> &str {
        &self.scene
    }

    fn figures(&self, group: &str) -> Vec<Measured> {
        let empty = &self.empty.samples;
        let gross = Measured::of_samples(
            group,
            &self.scene,
            &self.empty.name,
            Unit::GrossNanoseconds,
            empty,
        );
        let net = self.subjects.iter().map(|subject| Measured {
            min: statistics::min(&subject.samples) - gross.min,
            median: statistics::median(&subject.samples) - gross.median,
            ..Measured::of_samples(
                group,
                &self.scene,
                &subject.name,
                Unit::Nanoseconds,
                &subject.samples,
            )
        });
        let net: Vec<_> = net.collect();
        [vec![gross], net].concat()
    }
}

impl Subject {
    fn new(name: impl Into<String>, shim: Shim, wanted: Action) -> Self {
        Self {
            name: name.into(),
            shim,
            wanted,
            samples: Vec::new(),
        }
    }

    fn sample(&mut self, scene: &str) -> Result<()> {
        let (action, took) = self.shim.many(PACKETS)?;
        ensure!(
            action == self.wanted,
            "{scene}, {}: the last packet's verdict is {action:?}, and must be {:?}",
            self.name,
            self.wanted
        );
        self.samples.push(took);
        Ok(())
    }
}

/// Measures all programs of all beds, one run of each after the other, until the time is over.
pub(crate) fn measure(
    group: &str,
    mut beds: Vec<Bed>,
    time: Duration,
    progress: &Progress,
) -> Result<Vec<Measured>> {
    // What is loaded last is no colder than what was loaded first.
    round(&mut beds)?;
    for subject in beds.iter_mut().flat_map(subjects) {
        subject.samples.clear();
    }
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < FEWEST || start.elapsed() < time {
        round(&mut beds)?;
        rounds += 1;
        progress.measuring(group, rounds, start.elapsed().min(time));
    }
    Ok(beds.iter().flat_map(|bed| bed.figures(group)).collect())
}

fn round(beds: &mut [Bed]) -> Result<()> {
    for bed in beds {
        let scene = bed.scene.clone();
        for subject in subjects(bed) {
            subject.sample(&scene)?;
        }
    }
    Ok(())
}

fn subjects(bed: &mut Bed) -> impl Iterator<Item = &mut Subject> {
    std::iter::once(&mut bed.empty).chain(&mut bed.subjects)
}
