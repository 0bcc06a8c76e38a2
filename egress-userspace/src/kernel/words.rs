//! An array map, mapped into memory, of which each word is written by one store.

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, ensure};
use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};

/// The mapped array, word by word.
#[derive(Debug)]
pub(super) struct Words {
    memory: MmapRaw,
    len: usize,
}

impl Words {
    /// Maps the first `len` words of a map that was made with `BPF_F_MMAPABLE`.
    pub(super) fn map(data: &MapData, len: usize) -> anyhow::Result<Self> {
        let bytes = len
            .checked_mul(size_of::<u64>())
            .context("the capacity of a map does not fit memory")?;
        let memory = MmapOptions::new()
            .len(bytes)
            .map_raw(data.fd().as_fd().as_raw_fd())
            .context("cannot map a BPF map into memory")?;
        Ok(Self { memory, len })
    }

    /// A word, after what was written before it; none beyond the map.
    pub(super) fn get(&self, index: usize) -> Option<u64> {
        Some(self.word(index)?.load(Ordering::Acquire))
    }

    /// Writes a word. Everything written before is seen by whoever sees this.
    pub(super) fn set(&self, index: usize, word: u64) -> anyhow::Result<()> {
        let place = self.word(index);
        ensure!(
            place.is_some(),
            "word {index} is beyond a map's {}",
            self.len
        );
        if let Some(place) = place {
            place.store(word, Ordering::Release);
        }
        Ok(())
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.len {
            return None;
        }
        let word = self.memory.as_mut_ptr().cast::<u64>().wrapping_add(index);
        // SAFETY: within the mapping, which `self` keeps; page-aligned plus a multiple of 8; the kernel
        // only reads it, and we only touch it through atomics.
        Some(unsafe { AtomicU64::from_ptr(word) })
    }
}
