//! The sweeper: a thread that rids the tables of connections of what has ended, and adds up the rest.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use egress_common::nat::{NatBackKey, NatOutKey};
use nix::time::{ClockId, clock_gettime};

use crate::{
    kernel::{NatMaps, NatSweep, SWEEP_KEYS},
    nat::{Found, OutHalves, SECOND, Statistics, Tally, Walk},
};

/// The pause between two walks.
const BETWEEN_WALKS: Duration = Duration::from_secs(3);
/// The pause after a walk that found nothing: looking at empty tables takes some milliseconds.
const WHILE_IDLE: Duration = Duration::from_secs(5);
/// The pause after each batch of a walk: with full tables of the default size a walk is half work, half pause.
const BETWEEN_BATCHES: Duration = Duration::from_millis(5);
/// How long all pauses of one walk may take; from then on it goes on without.
const PAUSES_OF_A_WALK: Duration = Duration::from_secs(5);

/// What the sweeper knows of connections, for whoever shows it.
pub type Published = Arc<ArcSwap<Statistics>>;

/// Walks the tables, again and again.
pub struct Sweeper {
    maps: NatMaps,
    program: NatSweep,
    halves: OutHalves,
    /// Whether the tables were empty the last time, with nothing that could have filled them meanwhile.
    empty: bool,
}

/// What a walk did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Connections that had ended and were removed.
    pub expired: u64,
    /// Halves that were alone and were removed or mended.
    pub orphans: u64,
    /// What is left.
    pub statistics: Statistics,
}

impl Swept {
    /// Whether there was nothing at all.
    fn is_idle(&self) -> bool {
        self.expired == 0 && self.is_empty()
    }

    /// Whether nothing is left.
    fn is_empty(&self) -> bool {
        self.statistics.out_entries + self.statistics.back_entries == 0
    }
}

impl Sweeper {
    /// A sweeper of these tables.
    #[must_use]
    pub fn new(maps: NatMaps, program: NatSweep) -> Self {
        Self {
            maps,
            program,
            halves: OutHalves::default(),
            empty: false,
        }
    }

    /// Walks over both tables once, at `now` in nanoseconds of `CLOCK_MONOTONIC`; `pause` is called between batches.
    ///
    /// # Errors
    /// A table cannot be read or written, or the program cannot be run.
    pub fn walk(&mut self, now: u64, mut pause: impl FnMut()) -> anyhow::Result<Swept> {
        let Some(timeouts) = self.maps.timeouts()? else {
            return Ok(Swept::default());
        };
        let ports = self.maps.ports()?;
        let mut swept = Swept::default();
        // Nothing makes connections where there is no egress address.
        if self.empty && ports.is_empty() {
            swept.statistics.capacity = self.maps.capacity().into();
            return Ok(swept);
        }
        self.halves.begin();
        for batch in self.maps.outs() {
            let batch = batch?;
            let full = !batch.is_empty();
            for (key, out) in batch {
                self.halves.learn(&key, &out);
            }
            if full {
                pause();
            }
        }
        let out_entries = self.halves.len() as u64;
        let mut walk = Walk::new(&mut self.halves, timeouts, now);
        let mut tally = Tally::new();
        let mut orphans: Vec<NatBackKey> = Vec::new();
        let mut ended = Ended::new(&self.program);
        for batch in self.maps.backs() {
            let batch = batch?;
            let full = !batch.is_empty();
            for (key, back) in batch {
                match walk.back(&key, &back) {
                    Found::Lives => tally.add(&key, &back),
                    Found::Expired => ended.push(key)?,
                    Found::Orphan => orphans.push(key),
                }
            }
            if full {
                pause();
            }
        }
        swept.expired = ended.finish()?;
        let alone = walk.finish();
        for key in orphans {
            swept.orphans += u64::from(self.maps.remove_orphaned_back(&key)?);
        }
        if !alone.is_empty() {
            let mut keys: Vec<NatOutKey> = Vec::new();
            for batch in self.maps.outs() {
                let batch = batch?.into_iter().map(|(key, _)| key);
                keys.extend(batch.filter(|key| alone.contains(key)));
            }
            for key in keys {
                swept.orphans += u64::from(self.maps.mend_orphaned_out(&key)?);
            }
        }
        swept.statistics = tally.finish(
            &self.maps.ports()?,
            self.maps.capacity().into(),
            out_entries,
        );
        self.empty = ports.is_empty() && swept.is_empty();
        Ok(swept)
    }
}

/// Keys on their way to the program.
struct Ended<'a> {
    program: &'a NatSweep,
    keys: Vec<NatBackKey>,
    removed: u64,
}

impl<'a> Ended<'a> {
    fn new(program: &'a NatSweep) -> Self {
        Self {
            program,
            keys: Vec::with_capacity(SWEEP_KEYS),
            removed: 0,
        }
    }

    fn push(&mut self, key: NatBackKey) -> anyhow::Result<()> {
        self.keys.push(key);
        if self.keys.len() == SWEEP_KEYS {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.removed += u64::from(self.program.sweep(&self.keys)?);
        self.keys.clear();
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<u64> {
        self.flush()?;
        Ok(self.removed)
    }
}

/// The thread of a sweeper; it ends with this.
#[derive(Debug)]
pub struct Sweeping {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeping {
    /// Starts it; what it finds it publishes.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub fn start(sweeper: Sweeper, published: Published) -> anyhow::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("sweep".to_owned())
            .spawn(move || sweep(sweeper, &published, &stopped))
            .context("cannot start the thread that sweeps the tables of connections")?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that sweeps the tables of connections has panicked");
        }
    }
}

fn sweep(mut sweeper: Sweeper, published: &Published, stopped: &mpsc::Receiver<()>) {
    let told_to_stop = |pause| {
        // Nobody ever sends: the other end goes when it is time.
        !matches!(
            stopped.recv_timeout(pause),
            Err(mpsc::RecvTimeoutError::Timeout)
        )
    };
    let mut failed = false;
    loop {
        let mut pause = BETWEEN_WALKS;
        let began = Instant::now();
        let mut paused = Duration::ZERO;
        let mut stop = false;
        let walked = now().and_then(|now| {
            sweeper.walk(now, || {
                if !stop && paused < PAUSES_OF_A_WALK {
                    let before = Instant::now();
                    stop = told_to_stop(BETWEEN_BATCHES);
                    paused += before.elapsed();
                }
            })
        });
        match walked {
            Ok(swept) => {
                failed = false;
                if swept.is_idle() {
                    pause = WHILE_IDLE;
                }
                tracing::debug!(
                    expired = swept.expired,
                    orphans = swept.orphans,
                    left = swept.statistics.back_entries,
                    milliseconds = began.elapsed().as_millis(),
                    "swept"
                );
                published.store(Arc::new(swept.statistics));
            }
            // Once, and not every few seconds.
            Err(error) if !failed => {
                failed = true;
                tracing::error!(
                    "connections that have ended stay in their tables, which fill up: {error:#}"
                );
            }
            Err(error) => tracing::debug!("still: {error:#}"),
        }
        if stop || told_to_stop(pause) {
            return;
        }
    }
}

/// The time of `CLOCK_MONOTONIC`, which is what programs stamp entries with.
///
/// # Errors
/// The kernel has no such clock.
pub fn now() -> anyhow::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let (seconds, rest) = (u64::try_from(now.tv_sec())?, u64::try_from(now.tv_nsec())?);
    Ok(seconds * SECOND + rest)
}
