//! `POD_STATE`, mapped into memory, so that a pod is turned by one store.

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, ensure};
use aya::maps::MapData;
use egress_common::{maps::POD_STATE, verdict::PodState};
use memmap2::{MmapOptions, MmapRaw};

/// The mapped array.
pub(super) struct Slots {
    memory: MmapRaw,
    len: u32,
}

impl Slots {
    pub(super) fn map(data: &MapData, len: u32) -> anyhow::Result<Self> {
        let bytes = usize::try_from(len)?
            .checked_mul(size_of::<u64>())
            .context("the capacity of POD_STATE does not fit memory")?;
        let memory = MmapOptions::new()
            .len(bytes)
            .map_raw(data.fd().as_fd().as_raw_fd())
            .with_context(|| format!("cannot map {POD_STATE} into memory"))?;
        Ok(Self { memory, len })
    }

    pub(super) fn get(&self, slot: u32) -> anyhow::Result<PodState> {
        Ok(PodState(self.word(slot)?.load(Ordering::Acquire)))
    }

    /// Turns a pod. Everything written before is seen by a packet that sees this.
    pub(super) fn set(&self, slot: u32, state: PodState) -> anyhow::Result<()> {
        self.word(slot)?.store(state.0, Ordering::Release);
        Ok(())
    }

    fn word(&self, slot: u32) -> anyhow::Result<&AtomicU64> {
        ensure!(
            slot < self.len,
            "slot {slot} is beyond {POD_STATE}'s {} entries",
            self.len
        );
        let word = self
            .memory
            .as_mut_ptr()
            .cast::<u64>()
            .wrapping_add(usize::try_from(slot)?);
        // SAFETY: within the mapping, which `self` keeps; page-aligned plus a multiple of 8; the kernel
        // only reads it, and we only touch it through atomics.
        Ok(unsafe { AtomicU64::from_ptr(word) })
    }
}
