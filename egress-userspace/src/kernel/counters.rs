//! The only reader of the counters: sums over CPUs, at the moment of asking.

use anyhow::{Context, anyhow};
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use egress_common::{
    DropReason,
    counter::{Answer, Count, Direction, PassKind, drop_index, gateway_index, pass_index},
    maps::{
        ANSWER_COUNTS, DROP_COUNTS, GATEWAY_COUNTS, GATEWAY_DROPS, MEMBER_COUNTS, PASS_COUNTS,
        TABLES,
    },
};

use super::{fault, maps::open, member_counts::MemberCounts, paths::Paths, tables::FlowTable};

/// The counter maps.
pub struct CounterMaps {
    members: MemberCounts,
    drops: PerCpuArray<MapData, Count>,
    passes: PerCpuArray<MapData, Count>,
    translated: PerCpuArray<MapData, Count>,
    gateway_drops: PerCpuArray<MapData, Count>,
    answers: PerCpuArray<MapData, u64>,
    tables: Vec<FlowTable>,
    cpus: usize,
}

impl CounterMaps {
    /// Opens the pinned maps.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        let tables = TABLES.iter().map(|(name, _)| FlowTable::open(paths, name));
        Ok(Self {
            tables: tables.collect::<anyhow::Result<_>>()?,
            cpus: aya::util::nr_cpus()
                .map_err(|(what, error)| anyhow!("cannot count the CPUs ({what}): {error}"))?,
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

    /// How full the tables of flows are: name, entries that have not ended, capacity.
    pub fn tables(&self) -> anyhow::Result<Vec<(&'static str, u64, u64)>> {
        let fill = |table: &FlowTable| Ok((table.name(), table.alive()?, table.capacity()));
        self.tables.iter().map(fill).collect()
    }

    fn zeroes(&self) -> anyhow::Result<PerCpuValues<Count>> {
        Ok(vec![Count::default(); self.cpus].try_into()?)
    }
}

fn sum(map: &PerCpuArray<MapData, Count>, index: u32) -> anyhow::Result<Count> {
    let mut total = Count::default();
    for count in map.get(&index, 0)?.iter() {
        total.packets = total.packets.wrapping_add(count.packets);
        total.bytes = total.bytes.wrapping_add(count.bytes);
    }
    Ok(total)
}
