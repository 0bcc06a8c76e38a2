//! Interleaved rounds over roads: every way has its turn, over and over.

use std::{
    any::Any,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{core::Core, host::Host, laid::Laid, road::Road};
use crate::{
    measured::{Measured, Unit},
    progress::Progress,
    world::{Flow, World},
};

/// Nanoseconds that a way's turn takes, about: short enough to have the core alone now and then.
const TURN: f64 = 4e7;
/// Turns at once, to see that their time is counted.
const TURNS: u32 = 5;
/// Frames of a turn, at least and at most.
const LEAST: u32 = 1024;
const MOST: u32 = 131_072;
/// How often each flow is sent before a turn, about, unless that takes longer than the turn: caches are as in life then,
/// and not as the way before has left them.
const WARM: usize = 2;
/// Rounds that there are at least, however slow the machine is.
const FEWEST: usize = 15;
/// How many of a hundred frames may be lost: what is lost has cost less than what arrives.
const LOST: f64 = 1.0;

/// A way that frames go, with the samples of its turns.
pub(super) struct Way {
    scene: String,
    subject: &'static str,
    road: Road,
    frames: u32,
    warm: u32,
    samples: Vec<f64>,
    _node: Host,
    _keeps: Vec<Box<dyn Any>>,
}

impl Way {
    /// One whose frames have arrived as they should.
    pub(super) fn new(
        scene: &str,
        subject: &'static str,
        laid: Laid,
        world: &World,
        flows: &[Flow],
        core: &Core,
    ) -> Result<Self> {
        let road = Road::new(laid.pod, &laid.node, laid.sink, flows)?;
        let checked = laid.right.check(world, flows, &road);
        checked.with_context(|| format!("{scene}, {subject}: it does not do what it should"))?;
        let mut way = Self {
            scene: scene.to_owned(),
            subject,
            road,
            frames: LEAST,
            warm: u32::try_from(WARM * flows.len())?,
            samples: Vec::new(),
            _node: laid.node,
            _keeps: laid.keeps,
        };
        way.road.run(core, way.warm)?;
        let each = way.turn(core)?;
        way.frames = frames(each);
        Ok(way)
    }

    /// Sees that what packets cost can be told, over so many turns at once that what a turn begins with does not count.
    pub(super) fn is_counted(&self, core: &Core) -> Result<()> {
        self.road.is_counted(core, TURNS * self.frames)
    }

    /// One turn: nanoseconds of a packet.
    #[expect(
        clippy::cast_precision_loss,
        reason = "nobody sends so many that it would matter"
    )]
    fn turn(&self, core: &Core) -> Result<f64> {
        self.road.run(core, self.warm.min(self.frames))?;
        let run = self.road.run(core, self.frames)?;
        let lost = f64::from(run.sent) - run.arrived as f64;
        ensure!(
            lost * 100.0 <= LOST * f64::from(run.sent),
            "{}, {}: of {} packets, {} arrived: what loses more than {LOST} % cannot be compared",
            self.scene,
            self.subject,
            run.sent,
            run.arrived
        );
        Ok(run.each)
    }

    /// How long each packet takes; the largest number of packets a second goes with the smallest of these.
    pub(super) fn figure(&self, group: &str) -> Measured {
        let (scene, subject) = (&self.scene, self.subject);
        Measured::of_samples(group, scene, subject, Unit::GrossNanoseconds, &self.samples)
    }
}

/// Frames that take as long as a turn.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is between two numbers that fit"
)]
fn frames(each: f64) -> u32 {
    (TURN / each).clamp(f64::from(LEAST), f64::from(MOST)) as u32
}

/// Every way in its turn, until the time is over.
pub(super) fn measure(
    group: &str,
    ways: &mut [Way],
    core: &Core,
    time: Duration,
    progress: &Progress,
) -> Result<Vec<Measured>> {
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < FEWEST || start.elapsed() < time {
        for way in &mut *ways {
            let sample = way.turn(core)?;
            way.samples.push(sample);
        }
        rounds += 1;
        progress.measuring(group, rounds, start.elapsed().min(time));
    }
    Ok(ways.iter().map(|way| way.figure(group)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_about_as_long() {
        for (each, expected) in [
            (400.0, 100_000),
            (11_000.0, 3636),
            (1.0, MOST),
            (f64::INFINITY, LEAST),
        ] {
            assert_eq!(frames(each), expected, "{each}");
        }
    }
}
