//! The only reader of the counters: sums over CPUs, at the moment of asking.

use std::ops::Range;

use anyhow::{Context, anyhow};
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use egress_common::{
    DropReason,
    counter::{
        Answer, Count, DIRECTIONS, Direction, PASS_KINDS, PassKind, drop_index, gateway_index,
        pass_index,
    },
    maps::{
        ANSWER_COUNTS, DROP_COUNTS, GATEWAY_COUNTS, GATEWAY_DROPS, MEMBER_COUNTS, PASS_COUNTS,
        TABLES,
    },
};

use super::{
    fault,
    maps::open,
    member_counts::MemberCounts,
    paths::Paths,
    sums::{Sums, runs},
    tables::FlowTable,
};
use crate::counters::{Numbers, Reading};

/// The counter maps.
pub struct CounterMaps {
    members: MemberCounts,
    drops: PerCpuArray<MapData, Count>,
    passes: PerCpuArray<MapData, Count>,
    translated: PerCpuArray<MapData, Count>,
    gateway_drops: PerCpuArray<MapData, Count>,
    answers: PerCpuArray<MapData, u64>,
    tables: Vec<FlowTable>,
    many: Many,
    cpus: usize,
}

impl CounterMaps {
    /// Opens the pinned maps.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        let tables = TABLES.iter().map(|(name, _)| FlowTable::open(paths, name));
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, error)| anyhow!("cannot count the CPUs ({what}): {error}"))?;
        Ok(Self {
            tables: tables.collect::<anyhow::Result<_>>()?,
            many: Many::open(paths, cpus)?,
            cpus,
            members: MemberCounts::open(paths)?,
            drops: open(paths, DROP_COUNTS)?.try_into()?,
            passes: open(paths, PASS_COUNTS)?.try_into()?,
            translated: open(paths, GATEWAY_COUNTS)?.try_into()?,
            gateway_drops: open(paths, GATEWAY_DROPS)?.try_into()?,
            answers: open(paths, ANSWER_COUNTS)?.try_into()?,
        })
    }

    /// A member's count.
    pub fn member(&self, counter: u32) -> anyhow::Result<Count> {
        self.members
            .get(counter)
            .with_context(|| format!("cannot read {MEMBER_COUNTS}[{counter}]"))
    }

    /// A policy's count of packets dropped for a reason.
    pub fn dropped(&self, policy: u32, reason: DropReason) -> anyhow::Result<Count> {
        let index = drop_index(policy, reason);
        sum(&self.drops, index).with_context(|| format!("cannot read {DROP_COUNTS}[{index}]"))
    }

    /// A policy's count of packets that the kernel routed.
    pub fn passed(&self, policy: u32, kind: PassKind) -> anyhow::Result<Count> {
        let index = pass_index(policy, kind);
        sum(&self.passes, index).with_context(|| format!("cannot read {PASS_COUNTS}[{index}]"))
    }

    /// A gateway's count of translated packets.
    pub fn translated(&self, gateway: u32, direction: Direction) -> anyhow::Result<Count> {
        let index = gateway_index(gateway, direction);
        sum(&self.translated, index)
            .with_context(|| format!("cannot read {GATEWAY_COUNTS}[{index}]"))
    }

    /// A gateway's count of packets dropped for a reason.
    pub fn gateway_dropped(&self, gateway: u32, reason: DropReason) -> anyhow::Result<Count> {
        let index = drop_index(gateway, reason);
        sum(&self.gateway_drops, index)
            .with_context(|| format!("cannot read {GATEWAY_DROPS}[{index}]"))
    }

    /// How many answers of a kind were sent.
    pub fn answered(&self, answer: Answer) -> anyhow::Result<u64> {
        let index = answer as u32;
        let counts = self
            .answers
            .get(&index, 0)
            .with_context(|| format!("cannot read {ANSWER_COUNTS}[{index}]"))?;
        Ok(counts.iter().fold(0, |sum, n| sum.wrapping_add(*n)))
    }

    /// Sets a member's count to zero, before its id is given to another.
    pub fn clear_member(&mut self, counter: u32) -> anyhow::Result<()> {
        fault::step("clear a member's count")?;
        self.members.clear(counter)
    }

    /// Sets all counts of a policy to zero, before its id is given to another.
    pub fn clear_policy(&mut self, policy: u32) -> anyhow::Result<()> {
        for reason in DropReason::ALL {
            let zeroes = self.zeroes()?;
            self.drops.set(drop_index(policy, *reason), zeroes, 0)?;
        }
        for kind in PassKind::ALL.iter().copied() {
            let zeroes = self.zeroes()?;
            self.passes.set(pass_index(policy, kind), zeroes, 0)?;
        }
        Ok(())
    }

    /// Sets all counts of a gateway to zero, before its id is given to another.
    pub fn clear_gateway(&mut self, gateway: u32) -> anyhow::Result<()> {
        for direction in Direction::ALL.iter().copied() {
            let zeroes = self.zeroes()?;
            self.translated
                .set(gateway_index(gateway, direction), zeroes, 0)?;
        }
        for reason in DropReason::ALL {
            let zeroes = self.zeroes()?;
            self.gateway_drops
                .set(drop_index(gateway, *reason), zeroes, 0)?;
        }
        Ok(())
    }

    /// The counters of these numbers.
    pub fn read(&self, numbers: &Numbers) -> anyhow::Result<Reading> {
        let mut reading = self.many.read(numbers)?;
        for &member in &numbers.members {
            reading.members.push((member, self.member(member)?));
        }
        for answer in Answer::ALL.iter().copied() {
            reading.answers.push((answer, self.answered(answer)?));
        }
        Ok(reading)
    }

    /// The tables of flows.
    #[must_use]
    pub fn tables(&self) -> &[FlowTable] {
        &self.tables
    }

    fn zeroes(&self) -> anyhow::Result<PerCpuValues<Count>> {
        Ok(vec![Count::default(); self.cpus].try_into()?)
    }
}

/// The maps of which many elements are read at a time.
struct Many {
    drops: Sums,
    passes: Sums,
    translated: Sums,
    gateway_drops: Sums,
}

impl Many {
    fn open(paths: &Paths, cpus: usize) -> anyhow::Result<Self> {
        let open = |name| Sums::open(paths, name, cpus);
        Ok(Self {
            drops: open(DROP_COUNTS)?,
            passes: open(PASS_COUNTS)?,
            translated: open(GATEWAY_COUNTS)?,
            gateway_drops: open(GATEWAY_DROPS)?,
        })
    }

    fn read(&self, numbers: &Numbers) -> anyhow::Result<Reading> {
        let mut reading = Reading::default();
        for run in runs(numbers.policies.iter().copied()) {
            let read = |map: &Sums, each| map.read(each_of(&run, each));
            let (drops, passes) = (
                read(&self.drops, DropReason::COUNT)?,
                read(&self.passes, PASS_KINDS)?,
            );
            for policy in run.clone() {
                let nth = policy - run.start;
                reading.drops.extend(DropReason::ALL.iter().map(|reason| {
                    let count = drops[drop_index(nth, *reason) as usize];
                    (policy, *reason, count)
                }));
                reading.passes.extend(PassKind::ALL.iter().map(|kind| {
                    let count = passes[pass_index(nth, *kind) as usize];
                    (policy, *kind, count)
                }));
            }
        }
        for run in runs(numbers.gateways.iter().copied()) {
            let read = |map: &Sums, each| map.read(each_of(&run, each));
            let (translated, drops) = (
                read(&self.translated, DIRECTIONS)?,
                read(&self.gateway_drops, DropReason::COUNT)?,
            );
            for gateway in run.clone() {
                let nth = gateway - run.start;
                reading
                    .translated
                    .extend(Direction::ALL.iter().map(|direction| {
                        let count = translated[gateway_index(nth, *direction) as usize];
                        (gateway, *direction, count)
                    }));
                reading
                    .gateway_drops
                    .extend(DropReason::ALL.iter().map(|reason| {
                        let count = drops[drop_index(nth, *reason) as usize];
                        (gateway, *reason, count)
                    }));
            }
        }
        Ok(reading)
    }
}

/// The indexes of numbers that have so many each.
fn each_of(numbers: &Range<u32>, each: u32) -> Range<u32> {
    numbers.start.saturating_mul(each)..numbers.end.saturating_mul(each)
}

fn sum(map: &PerCpuArray<MapData, Count>, index: u32) -> anyhow::Result<Count> {
    let mut total = Count::default();
    for count in map.get(&index, 0)?.iter() {
        total.packets = total.packets.wrapping_add(count.packets);
        total.bytes = total.bytes.wrapping_add(count.bytes);
    }
    Ok(total)
}
