//! The live maps: the only writer, and the reader that walks them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use aya::maps::{Array, HashMap, Map, MapData, MapError, lpm_trie::Key};
use egress_common::{
    cells::Line,
    keys::PodKey,
    maps::{LINES, MEMBERS, POD_STATE, PODS, VERDICTS},
    pod::PodFacts,
    trie::SEGMENT_UNITS,
    verdict::{Member, PodState, Verdict},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    fault, grace, paths::Paths, pods::PodMaps, segments::Segments, slots::Slots,
    translation::TranslationMaps, trie::TrieMaps, verdicts::Verdicts,
};
use crate::{
    diff::{Change, MapReader},
    translation,
    trie::{Store as _, Trie},
};

/// The maps that userspace writes, opened from where they are pinned.
pub struct Maps {
    pods: HashMap<MapData, PodKey, u32>,
    slots: Slots,
    trie: Trie<TrieMaps>,
    segments: Segments,
    verdicts: Verdicts,
    members: Array<MapData, Member>,
    beside: PodMaps,
    translation: TranslationMaps,
}

impl Maps {
    /// Opens the pinned maps.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        let state = MapData::from_pin(paths.map(POD_STATE))
            .with_context(|| not_running(&paths.map(POD_STATE)))?;
        let slots = Slots::map(&state, state.info()?.max_entries())?;
        let members = open(paths, MEMBERS)?.try_into()?;
        Ok(Self {
            pods: open(paths, PODS)?.try_into()?,
            slots,
            trie: Trie::new(TrieMaps::open(paths)?),
            segments: Segments::open(open(paths, LINES)?, paths)?,
            verdicts: Verdicts::open(paths, &members)?,
            members,
            beside: PodMaps::open(paths)?,
            translation: TranslationMaps::open(paths)?,
        })
    }

    /// Bytes of kernel memory that the line store takes.
    #[must_use]
    pub fn line_bytes(&self) -> u64 {
        self.segments.bytes()
    }

    /// Bytes of the prefix trie that are in use, and those of kernel memory that it takes.
    #[must_use]
    pub fn trie_bytes(&self) -> (u64, u64) {
        let bytes = size_of::<u64>() as u64;
        let segments = u64::from(self.trie.store().segments());
        (
            self.trie.units() * bytes,
            segments * u64::from(SEGMENT_UNITS) * bytes,
        )
    }

    /// The segments by where they are pinned, of the line store, of the prefix trie and of the list of its prefixes.
    pub(super) fn segment_pins(&self) -> BTreeMap<PathBuf, BorrowedFd<'_>> {
        self.segments
            .pins()
            .chain(self.trie.store().pins())
            .collect()
    }

    /// Mends what a crash in the middle of a write may have left.
    pub fn repair(&mut self) -> anyhow::Result<()> {
        self.segments.publish_all()?;
        self.trie.store_mut().publish_all()?;
        // What an earlier run has given back is free once its last packets have ended.
        self.grace()?;
        self.trie.mend()?;
        let pods = self.pods()?;
        let pods: Vec<_> = pods
            .into_iter()
            .map(|(key, slot)| Ok((key, slot, self.slots.get(slot)?)))
            .collect::<anyhow::Result<_>>()?;
        self.beside.repair(&pods)
    }

    /// Carries out changes of a plan, all of which [`Change::runs`] gives together.
    pub fn carry_out_run(&mut self, run: &[Change]) -> anyhow::Result<()> {
        let [first, _, ..] = run else {
            return run.iter().try_for_each(|change| self.carry_out(change));
        };
        for change in run {
            fault::step(change.name())?;
        }
        let context = || format!("cannot change {} prefixes", run.len());
        if matches!(first, Change::InsertPrefix { .. }) {
            let mut prefixes = Vec::with_capacity(run.len());
            for change in run {
                if let Change::InsertPrefix { prefix, class } = change {
                    prefixes.push((prefix.into(), *class));
                }
            }
            return self.trie.insert_all(&prefixes).with_context(context);
        }
        let mut prefixes = Vec::with_capacity(run.len());
        for change in run {
            if let Change::RemovePrefix { prefix } = change {
                prefixes.push(prefix.into());
            }
        }
        self.trie.remove_all(&prefixes).with_context(context)
    }

    /// Carries out one change of a plan.
    pub fn carry_out(&mut self, change: &Change) -> anyhow::Result<()> {
        // Turning a pod is a store to memory: it cannot fail, and nothing comes between those of one pod.
        if !matches!(change, Change::TurnPod { .. }) {
            fault::step(change.name())?;
        }
        match change {
            Change::WriteLines { first_line, lines } => self.write_lines(*first_line, lines),
            Change::WriteMember { id, member } => self.write_member(*id, member),
            Change::WriteVerdicts { base, verdicts } => self.write_verdicts(*base, verdicts),
            Change::InsertPrefix { prefix, class } => self.insert_prefix(prefix, *class),
            Change::TurnPod { slot, state } => self.turn_pod(*slot, *state),
            Change::InsertPod { key, slot } => self.insert_pod(*key, *slot),
            Change::RemovePod { key } => self.remove_pod(key),
            Change::RemovePrefix { prefix } => self.remove_prefix(prefix),
            Change::Grace => self.grace(),
        }
    }

    /// Writes lines of the line store.
    pub fn write_lines(&mut self, first: u32, lines: &[Line]) -> anyhow::Result<()> {
        self.segments.write(first, lines)
    }

    /// Writes a member.
    pub fn write_member(&mut self, id: u32, member: &Member) -> anyhow::Result<()> {
        self.members
            .set(id, member, 0)
            .with_context(|| format!("cannot write {MEMBERS}[{id}]"))
    }

    /// Writes a block of verdicts, each with what is known of its one member.
    pub fn write_verdicts(&mut self, base: u32, verdicts: &[Verdict]) -> anyhow::Result<()> {
        for (index, verdict) in (base..).zip(verdicts) {
            self.verdicts
                .set(index, verdict, &mut self.members)
                .with_context(|| format!("cannot write {VERDICTS}[{index}]"))?;
        }
        Ok(())
    }

    /// What a verdict's shortcut says, if it says anything: the way, and what counts it.
    pub fn shortcut(&self, index: u32) -> anyhow::Result<Option<(Member, u32)>> {
        let Some((id, counter)) = self.verdicts.shortcut(index)? else {
            return Ok(None);
        };
        Ok(Some((self.member(id)?, counter)))
    }

    /// Publishes a prefix.
    pub fn insert_prefix(&mut self, prefix: &IpNet, class: u32) -> anyhow::Result<()> {
        self.trie
            .insert(prefix.into(), class)
            .with_context(|| format!("cannot insert {prefix}"))
    }

    /// Withdraws a prefix; one that is not there is as good.
    pub fn remove_prefix(&mut self, prefix: &IpNet) -> anyhow::Result<()> {
        self.trie
            .remove(&prefix.into())
            .with_context(|| format!("cannot remove {prefix}"))
    }

    /// Turns a pod to another row and rule base.
    pub fn turn_pod(&mut self, slot: u32, state: PodState) -> anyhow::Result<()> {
        self.slots.set(slot, state)?;
        self.beside.turn(slot, state);
        Ok(())
    }

    /// Makes a pod known.
    pub fn insert_pod(&mut self, key: PodKey, slot: u32) -> anyhow::Result<()> {
        // What was learned of the pod that had the slot before is not this one's.
        self.beside.clear_notes(slot)?;
        fault::step("enter the pod")?;
        self.pods.insert(key, slot, 0).with_context(|| {
            format!(
                "cannot insert {} into {PODS}: raise --max-pods if the map is full",
                IpAddr::from(key.addr)
            )
        })?;
        fault::step("place the pod")?;
        self.beside.inserted(key, slot, self.slots.get(slot)?)
    }

    /// Forgets a pod; one that is not there is as good.
    pub fn remove_pod(&mut self, key: &PodKey) -> anyhow::Result<()> {
        self.beside.leaves(key);
        absent_is_fine(self.pods.remove(key))
            .with_context(|| format!("cannot remove {} from {PODS}", IpAddr::from(key.addr)))?;
        fault::step("place the pod no more")?;
        self.beside.removed(key)
    }

    /// Writes what is to be known of the pod with this slot, and says whether it differs from what was there.
    pub fn set_facts(&mut self, slot: u32, facts: PodFacts) -> anyhow::Result<bool> {
        self.beside.set_facts(slot, facts)
    }

    /// What the maps of egress addresses and other nodes say.
    pub fn translation(&self) -> anyhow::Result<translation::State> {
        self.translation.read()
    }

    /// How much those maps hold.
    #[must_use]
    pub fn translation_limits(&self) -> translation::Limits {
        self.translation.limits()
    }

    /// Carries out one change of a plan for those maps.
    pub fn translate(&mut self, change: &translation::Change) -> anyhow::Result<()> {
        if *change == translation::Change::Grace {
            return self.grace();
        }
        fault::step("change egress addresses or nodes")?;
        self.translation.carry_out(change)
    }

    /// Waits until no packet in flight can hold an id that was given back.
    pub fn grace(&mut self) -> anyhow::Result<()> {
        if let Err(error) = grace::wait() {
            // An update of a map of maps waits for a grace period as well.
            self.segments
                .touch()
                .with_context(|| format!("cannot wait for a grace period (membarrier: {error})"))?;
        }
        self.beside.settled();
        self.trie.settle()
    }
}

impl MapReader for Maps {
    type Error = anyhow::Error;

    fn pods(&self) -> anyhow::Result<Vec<(PodKey, u32)>> {
        let pods: Result<_, _> = self.pods.iter().collect();
        pods.with_context(|| format!("cannot read {PODS}"))
    }

    fn slot(&self, slot: u32) -> anyhow::Result<PodState> {
        self.slots.get(slot)
    }

    fn prefixes(&self) -> anyhow::Result<Vec<(IpNet, u32)>> {
        self.trie
            .prefixes()
            .map(|(prefix, class)| {
                let net = prefix.net();
                Ok((net.context("the list of prefixes cannot be read")?, class))
            })
            .collect()
    }

    fn lines(&self, first: u32, count: u32) -> anyhow::Result<Vec<Line>> {
        self.segments.read(first, count)
    }

    fn verdict(&self, index: u32) -> anyhow::Result<Verdict> {
        self.verdicts
            .get(index)
            .with_context(|| format!("cannot read {VERDICTS}[{index}]"))
    }

    fn member(&self, id: u32) -> anyhow::Result<Member> {
        self.members
            .get(&id, 0)
            .with_context(|| format!("cannot read {MEMBERS}[{id}]"))
    }
}

/// Opens a pinned map.
pub(super) fn open(paths: &Paths, name: &str) -> anyhow::Result<Map> {
    let path = paths.map(name);
    let data = MapData::from_pin(&path).with_context(|| not_running(&path))?;
    Ok(Map::from_map_data(data)?)
}

pub(super) fn not_running(path: &Path) -> String {
    format!(
        "cannot open the pinned map {}: has `egress run` been started with this --pin-dir, and are you \
         root?",
        path.display()
    )
}

pub(super) fn absent_is_fine(result: Result<(), MapError>) -> anyhow::Result<()> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        Err(error) => Err(anyhow!(error)),
    }
}

pub(super) fn key4(net: &Ipv4Net) -> Key<[u8; 4]> {
    Key::new(net.prefix_len().into(), net.network().octets())
}

pub(super) fn key6(net: &Ipv6Net) -> Key<[u8; 16]> {
    Key::new(net.prefix_len().into(), net.network().octets())
}
