//! An array map, mapped into memory, of which each word is written by one store.

use std::{
    fmt,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use anyhow::{Context, ensure};
use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};

/// What is read and written at once.
pub(super) trait Word {
    type Value: Copy + fmt::Debug;

    /// Reads it, after what was written before it.
    fn read(&self) -> Self::Value;

    /// Writes it, after what was written before it.
    fn write(&self, value: Self::Value);
}

macro_rules! word {
    ($atomic:ty, $value:ty) => {
        impl Word for $atomic {
            type Value = $value;

            fn read(&self) -> $value {
                self.load(Ordering::Acquire)
            }

            fn write(&self, value: $value) {
                self.store(value, Ordering::Release);
            }
        }
    };
}
word!(AtomicU32, u32);
word!(AtomicU64, u64);

/// The mapped array, word by word.
#[derive(Debug)]
pub(super) struct Words<W = AtomicU64> {
    memory: MmapRaw,
    len: usize,
    word: PhantomData<W>,
}

impl<W: Word> Words<W> {
    /// Maps the first `len` words of a map that was made with `BPF_F_MMAPABLE`.
    pub(super) fn map(data: &MapData, len: usize) -> anyhow::Result<Self> {
        let bytes = len
            .checked_mul(size_of::<W>())
            .context("the capacity of a map does not fit memory")?;
        let memory = MmapOptions::new()
            .len(bytes)
            .map_raw(data.fd().as_fd().as_raw_fd())
            .context("cannot map a BPF map into memory")?;
        Ok(Self {
            memory,
            len,
            word: PhantomData,
        })
    }

    /// A word, after what was written before it; none beyond the map.
    pub(super) fn get(&self, index: usize) -> Option<W::Value> {
        Some(self.word(index)?.read())
    }

    /// Writes a word. Everything written before is seen by whoever sees this.
    pub(super) fn set(&self, index: usize, word: W::Value) -> anyhow::Result<()> {
        let place = self.word(index);
        ensure!(
            place.is_some(),
            "word {index} is beyond a map's {}",
            self.len
        );
        if let Some(place) = place {
            place.write(word);
        }
        Ok(())
    }

    fn word(&self, index: usize) -> Option<&W> {
        if index >= self.len {
            return None;
        }
        let word = self.memory.as_mut_ptr().cast::<W>().wrapping_add(index);
        // SAFETY: within the mapping, which `self` keeps; page-aligned plus a multiple of its size; the kernel
        // only reads it, and we only touch it through atomics, which have the layout of what they hold.
        Some(unsafe { &*word })
    }
}
