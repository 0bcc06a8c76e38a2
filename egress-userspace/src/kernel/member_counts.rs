//! `MEMBER_COUNTS`, mapped into memory: the counts of each CPU, one CPU's after another's.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, ensure};
use aya::maps::MapData;
use egress_common::{counter::Count, maps::MEMBER_COUNTS};
use memmap2::{MmapOptions, MmapRaw};

use super::{maps::not_running, paths::Paths};

/// The numbers that CPUs may have, such as `0-3,8-11`, in ascending order.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// How many CPUs may count: one more than the highest number that a CPU can have.
pub(super) fn cpus() -> anyhow::Result<u32> {
    let text = fs::read_to_string(POSSIBLE).with_context(|| format!("cannot read {POSSIBLE}"))?;
    let highest = text.trim().rsplit([',', '-']).next().unwrap_or_default();
    let highest: u32 = highest
        .parse()
        .with_context(|| format!("{POSSIBLE} says {text:?}"))?;
    Ok(highest + 1)
}

/// The mapped array.
pub(super) struct MemberCounts {
    memory: MmapRaw,
    cpus: u32,
    members: u32,
}

impl MemberCounts {
    pub(super) fn open(paths: &Paths) -> anyhow::Result<Self> {
        let path = paths.map(MEMBER_COUNTS);
        let data = MapData::from_pin(&path).with_context(|| not_running(&path))?;
        let elements = data.info()?.max_entries();
        let cpus = cpus()?;
        let memory = MmapOptions::new()
            .len(usize::try_from(elements)? * size_of::<Count>())
            .map_raw(data.fd().as_fd().as_raw_fd())
            .with_context(|| format!("cannot map {MEMBER_COUNTS} into memory"))?;
        Ok(Self {
            memory,
            cpus,
            members: elements / cpus,
        })
    }

    /// The sum over all CPUs.
    pub(super) fn get(&self, member: u32) -> anyhow::Result<Count> {
        let mut total = Count::default();
        for cpu in 0..self.cpus {
            let [packets, bytes] = self.words(cpu, member)?;
            total.packets = total.packets.wrapping_add(packets.load(Ordering::Relaxed));
            total.bytes = total.bytes.wrapping_add(bytes.load(Ordering::Relaxed));
        }
        Ok(total)
    }

    /// Sets the counts of all CPUs to zero; nothing may count there meanwhile.
    pub(super) fn clear(&self, member: u32) -> anyhow::Result<()> {
        for cpu in 0..self.cpus {
            for word in self.words(cpu, member)? {
                word.store(0, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn words(&self, cpu: u32, member: u32) -> anyhow::Result<[&AtomicU64; 2]> {
        ensure!(
            cpu < self.cpus && member < self.members,
            "{member} is beyond {MEMBER_COUNTS}'s {} members",
            self.members
        );
        let at = self
            .memory
            .as_mut_ptr()
            .cast::<[u64; 2]>()
            .wrapping_add(usize::try_from(cpu * self.members + member)?)
            .cast::<u64>();
        // SAFETY: within the mapping, which `self` keeps; page-aligned plus a multiple of 8; we only touch it through
        // atomics, and the programs write each word at once.
        Ok([0, 1].map(|word| unsafe { AtomicU64::from_ptr(at.wrapping_add(word)) }))
    }
}
