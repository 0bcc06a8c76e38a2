//! Tables of flows: arrays of buckets that the programs fill, read in batches.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::Context;
use egress_common::table::{Bucket, WAYS};
use nix::time::{ClockId, clock_gettime};

use super::{maps::not_running, paths::Paths, syscall};

/// Buckets of a batch: 320 KiB.
const BATCH: usize = 512;

/// A table, opened from where it is pinned.
pub struct FlowTable {
    name: &'static str,
    fd: OwnedFd,
    buckets: u32,
}

impl FlowTable {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(paths: &Paths, name: &'static str) -> anyhow::Result<Self> {
        let path = paths.map(name);
        let fd = syscall::open_pinned(&path).with_context(|| not_running(&path))?;
        let info = aya::maps::MapInfo::from_pin(&path).with_context(|| not_running(&path))?;
        Ok(Self {
            name,
            fd,
            buckets: info.max_entries(),
        })
    }

    /// The map's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Entries that there is room for.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        u64::from(self.buckets) * WAYS as u64
    }

    /// How many entries have not ended, each when it was looked at; `pause` is called between batches.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn alive(&self, pause: impl FnMut()) -> anyhow::Result<u64> {
        let now = second()?;
        let mut alive = 0;
        self.walk(|_, bucket| alive += bucket.alive(now) as u64, pause)?;
        Ok(alive)
    }

    /// Shows each bucket, with its index.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn for_each(&self, see: impl FnMut(u32, &Bucket)) -> anyhow::Result<()> {
        self.walk(see, || ())
    }

    fn walk(
        &self,
        mut see: impl FnMut(u32, &Bucket),
        mut pause: impl FnMut(),
    ) -> anyhow::Result<()> {
        let mut place = syscall::Bucket::default();
        loop {
            let (buckets, last) =
                syscall::lookup_batch::<u32, Bucket>(self.fd.as_fd(), BATCH, &mut place)
                    .with_context(|| format!("cannot read {}", self.name))?;
            for (index, bucket) in &buckets {
                see(*index, bucket);
            }
            if last {
                return Ok(());
            }
            pause();
        }
    }
}

/// Now, in seconds of the clock that programs use.
fn second() -> anyhow::Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(io::Error::from)?;
    Ok(u32::try_from(now.tv_sec())?)
}
