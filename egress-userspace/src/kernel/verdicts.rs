//! `VERDICTS` and `SHORTCUTS`, mapped into memory, and the ways behind `MEMBERS`.

use std::sync::atomic::{AtomicU32, AtomicU64};

use anyhow::{Context, ensure};
use aya::maps::{Array, MapData};
use egress_common::{
    maps::{MEMBERS, SHORTCUTS, VERDICTS, capacity},
    verdict::{Decision, Member, Shortcut, Verdict},
};

use super::{
    maps::not_running,
    paths::Paths,
    ways::Ways,
    words::{Word, Words},
};

/// Words of a verdict.
const WORDS: usize = size_of::<Verdict>() / size_of::<u64>();

/// The mapped arrays, and who uses which way.
pub(super) struct Verdicts {
    verdicts: Words<AtomicU64>,
    shortcuts: Words<AtomicU32>,
    /// Where ways begin in `MEMBERS`.
    ways_from: u32,
    ways: Ways,
}

impl Verdicts {
    /// Maps what is pinned, and sees which ways are named.
    pub(super) fn open(paths: &Paths, members: &Array<MapData, Member>) -> anyhow::Result<Self> {
        let (verdicts, len) = map(paths, VERDICTS)?;
        let (shortcuts, shortcuts_len) = map(paths, SHORTCUTS)?;
        ensure!(
            len.div_ceil(2) == shortcuts_len,
            "{SHORTCUTS} has {shortcuts_len} entries of two, and {VERDICTS} {len}: restart the agent with `egress run`"
        );
        let ways_from = members
            .len()
            .checked_sub(capacity::WAYS)
            .with_context(|| format!("{MEMBERS} has no room for ways"))?;
        let mut users = vec![0_u32; capacity::WAYS as usize];
        for index in 0..len {
            let way = shortcuts.get(index).and_then(|word| Shortcut(word).way());
            if let Some(users) = way.and_then(|way| users.get_mut(way as usize)) {
                *users += 1;
            }
        }
        let places = (ways_from..).zip(users).map(|(id, users)| {
            // Only what is named has to be known.
            let way = match users {
                0 => Member::default(),
                _ => members.get(&id, 0)?,
            };
            Ok((way, users))
        });
        let places: Vec<_> = places
            .collect::<Result<_, aya::maps::MapError>>()
            .with_context(|| format!("cannot read the ways in {MEMBERS}"))?;
        Ok(Self {
            verdicts,
            shortcuts,
            ways_from,
            ways: Ways::new(places),
        })
    }

    /// A verdict.
    pub(super) fn get(&self, index: u32) -> anyhow::Result<Verdict> {
        let at = usize::try_from(index)? * WORDS;
        match (self.verdicts.get(at), self.verdicts.get(at + 1)) {
            (Some(first), Some(second)) => Ok(Verdict::from_words([first, second])),
            _ => anyhow::bail!("{VERDICTS} has no element {index}"),
        }
    }

    /// The member that a verdict's shortcut names, and what counts it.
    pub(super) fn shortcut(&self, index: u32) -> anyhow::Result<Option<(u32, u32)>> {
        let word = self.shortcuts.get(usize::try_from(index)?);
        let shortcut =
            Shortcut(word.with_context(|| format!("{SHORTCUTS} has no element {index}"))?);
        let way = shortcut.way();
        Ok(way.map(|way| (self.ways_from + way, shortcut.counter())))
    }

    /// Writes a verdict that no packet comes to, and what is known of its one member.
    ///
    /// The shortcut goes first and comes last: whatever breaks this off leaves none, and the verdict is asked.
    pub(super) fn set(
        &mut self,
        index: u32,
        verdict: &Verdict,
        members: &mut Array<MapData, Member>,
    ) -> anyhow::Result<()> {
        let place = usize::try_from(index)?;
        let before = self
            .shortcuts
            .get(place)
            .and_then(|word| Shortcut(word).way());
        self.shortcuts.set(place, Shortcut::NONE.0)?;
        if let Some(way) = before {
            self.ways.give_back(way);
        }
        for (at, word) in (place * WORDS..).zip(verdict.to_words()) {
            self.verdicts.set(at, word)?;
        }
        let Some(Decision::Member(id)) = verdict.decode() else {
            return Ok(());
        };
        let member = members
            .get(&id, 0)
            .with_context(|| format!("cannot read {MEMBERS}[{id}]"))?;
        let way = member.uncounted();
        let from = self.ways_from;
        let number = self
            .ways
            .take(&way, |number| members.set(from + number, way, 0))
            .with_context(|| format!("cannot write a way into {MEMBERS}"))?;
        let Some(number) = number else {
            return Ok(());
        };
        let shortcut = Shortcut::new(number, member.counter);
        if shortcut == Shortcut::NONE {
            // What counts it has too high a number, so nothing names the way.
            self.ways.give_back(number);
        }
        self.shortcuts.set(place, shortcut.0)
    }
}

/// Maps an array; with how many elements it has.
fn map<W: Word>(paths: &Paths, name: &str) -> anyhow::Result<(Words<W>, usize)> {
    let path = paths.map(name);
    let data = MapData::from_pin(&path).with_context(|| not_running(&path))?;
    let info = data.info()?;
    let len = usize::try_from(info.max_entries())?;
    let words = usize::try_from(info.value_size())? / size_of::<W>();
    let mapped =
        Words::map(&data, len * words).with_context(|| format!("cannot map {name} into memory"))?;
    Ok((mapped, len))
}
