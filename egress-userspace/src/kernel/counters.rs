//! The only reader of the counters: sums over CPUs, at the moment of asking.

use anyhow::{Context, anyhow};
use aya::maps::{HashMap, MapData, MapError, MapInfo, PerCpuArray, PerCpuValues};
use egress_common::{
    DropReason,
    counter::{Answer, Count, Direction, PassKind, drop_index, gateway_index, pass_index},
    keys::{FragmentKey, ReplyKey, ReplyPath},
    maps::{
        ANSWER_COUNTS, DROP_COUNTS, FRAGMENTS, GATEWAY_COUNTS, GATEWAY_DROPS, MEMBER_COUNTS,
        PASS_COUNTS, REPLIES, REPLY_FRAGMENTS,
    },
    pod::Choice,
};

use super::{fault, maps::open, paths::Paths};

/// The counter maps.
pub struct CounterMaps {
    members: PerCpuArray<MapData, Count>,
    drops: PerCpuArray<MapData, Count>,
    passes: PerCpuArray<MapData, Count>,
    translated: PerCpuArray<MapData, Count>,
    gateway_drops: PerCpuArray<MapData, Count>,
    answers: PerCpuArray<MapData, u64>,
    replies: HashMap<MapData, ReplyKey, ReplyPath>,
    fragments: HashMap<MapData, FragmentKey, Choice>,
    reply_fragments: HashMap<MapData, FragmentKey, ReplyPath>,
    capacities: [u64; 3],
    cpus: usize,
}

impl CounterMaps {
    /// Opens the pinned maps.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        let capacity = |name| -> anyhow::Result<u64> {
            Ok(MapInfo::from_pin(paths.map(name))?.max_entries().into())
        };
        Ok(Self {
            capacities: [
                capacity(REPLIES)?,
                capacity(FRAGMENTS)?,
                capacity(REPLY_FRAGMENTS)?,
            ],
            cpus: aya::util::nr_cpus()
                .map_err(|(what, error)| anyhow!("cannot count the CPUs ({what}): {error}"))?,
            members: open(paths, MEMBER_COUNTS)?.try_into()?,
            drops: open(paths, DROP_COUNTS)?.try_into()?,
            passes: open(paths, PASS_COUNTS)?.try_into()?,
            translated: open(paths, GATEWAY_COUNTS)?.try_into()?,
            gateway_drops: open(paths, GATEWAY_DROPS)?.try_into()?,
            answers: open(paths, ANSWER_COUNTS)?.try_into()?,
            replies: open(paths, REPLIES)?.try_into()?,
            fragments: open(paths, FRAGMENTS)?.try_into()?,
            reply_fragments: open(paths, REPLY_FRAGMENTS)?.try_into()?,
        })
    }

    /// A member's count.
    pub fn member(&self, counter: u32) -> anyhow::Result<Count> {
        sum(&self.members, counter)
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
        let zeroes = self.zeroes()?;
        Ok(self.members.set(counter, zeroes, 0)?)
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

    /// How full the tables of flows are: name, entries, capacity.
    pub fn tables(&self) -> anyhow::Result<[(&'static str, u64, u64); 3]> {
        let [replies, fragments, reply_fragments] = self.capacities;
        Ok([
            (REPLIES, count(self.replies.keys())?, replies),
            (FRAGMENTS, count(self.fragments.keys())?, fragments),
            (
                REPLY_FRAGMENTS,
                count(self.reply_fragments.keys())?,
                reply_fragments,
            ),
        ])
    }

    fn zeroes(&self) -> anyhow::Result<PerCpuValues<Count>> {
        Ok(vec![Count::default(); self.cpus].try_into()?)
    }
}

/// Entries of a table that programs add to and evict from meanwhile.
fn count<K>(keys: impl Iterator<Item = Result<K, MapError>>) -> anyhow::Result<u64> {
    let mut entries = 0;
    for key in keys {
        key?;
        entries += 1;
    }
    Ok(entries)
}

fn sum(map: &PerCpuArray<MapData, Count>, index: u32) -> anyhow::Result<Count> {
    let mut total = Count::default();
    for count in map.get(&index, 0)?.iter() {
        total.packets = total.packets.wrapping_add(count.packets);
        total.bytes = total.bytes.wrapping_add(count.bytes);
    }
    Ok(total)
}
