//! `MEMBER_COUNTS`, mapped into memory: the counts of each CPU, one CPU's after another's.
//!
//! Only parts that somebody asks for are mapped, since all that is mapped counts as memory of the process.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
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

/// Elements of a part: 64 KiB, which is a whole number of pages everywhere.
const PART: usize = 4096;

/// The array, of which parts are mapped.
pub(super) struct MemberCounts {
    map: MapData,
    parts: Box<[OnceLock<MmapRaw>]>,
    cpus: u32,
    members: u32,
}

impl MemberCounts {
    pub(super) fn open(paths: &Paths) -> anyhow::Result<Self> {
        let path = paths.map(MEMBER_COUNTS);
        let data = MapData::from_pin(&path).with_context(|| not_running(&path))?;
        let elements = data.info()?.max_entries();
        let cpus = cpus()?;
        let parts = usize::try_from(elements)?.div_ceil(PART);
        Ok(Self {
            map: data,
            parts: (0..parts).map(|_| OnceLock::new()).collect(),
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
        let element = usize::try_from(cpu * self.members + member)?;
        let at = self
            .part(element / PART)?
            .as_mut_ptr()
            .cast::<[u64; 2]>()
            .wrapping_add(element % PART)
            .cast::<u64>();
        // SAFETY: within the part's mapping, which `self` keeps; page-aligned plus a multiple of 8; we only touch it through
        // atomics, and the programs write each word at once.
        Ok([0, 1].map(|word| unsafe { AtomicU64::from_ptr(at.wrapping_add(word)) }))
    }

    fn part(&self, number: usize) -> anyhow::Result<&MmapRaw> {
        let beyond = || format!("part {number} is beyond {MEMBER_COUNTS}");
        let part = self.parts.get(number).with_context(beyond)?;
        if let Some(mapped) = part.get() {
            return Ok(mapped);
        }
        let elements = usize::try_from(self.cpus * self.members)?;
        let bytes = |elements: usize| elements * size_of::<Count>();
        let mapped = MmapOptions::new()
            .offset(u64::try_from(bytes(number * PART))?)
            .len(bytes(PART.min(elements - number * PART)))
            .map_raw(self.map.fd().as_fd().as_raw_fd())
            .with_context(|| format!("cannot map {MEMBER_COUNTS} into memory"))?;
        // Whoever was faster has mapped the same.
        Ok(part.get_or_init(|| mapped))
    }
}
