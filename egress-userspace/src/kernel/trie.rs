//! The prefix trie in the kernel: its roots and segments, and the list of its prefixes, mapped into memory.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use aya::{
    Pod,
    maps::{Array, ArrayOfMaps, Map, MapData, MapError},
};
use egress_common::{
    Family,
    maps::{ROOTS, TRIE},
    trie::{
        MAX_SEGMENTS, ROOT_WORDS, SEGMENT_LINES, SEGMENT_SHIFT, SEGMENT_UNITS, lines::LINE_UNITS,
    },
};

use super::{fault, maps::open, paths::Paths, syscall, words::Words};
use crate::trie::{Place, Prefix, Store};

/// `BPF_F_MMAPABLE` of `linux/bpf.h`; kernels take such maps as inner maps since there are such maps (5.5).
const MMAPABLE: u32 = 1 << 10;
/// Prefixes in a segment of their list: 768 KiB.
const SEGMENT_CLASSES: u32 = 1 << 15;
/// Words of a prefix in its list: its bits, the first ones first, and what else there is of it, or 0 where there is none.
const CLASS_WORDS: usize = 3;
/// Of its third word: that it is IPv6, that there is one. Below is the length.
const IS_V6: u64 = 1 << 8;
const IS_THERE: u64 = 1 << 9;

/// An element of a segment of the trie.
type Line = [u64; LINE_UNITS as usize];
/// An element of the list.
type ClassEntry = [u64; CLASS_WORDS];

/// The mapped maps.
pub(super) struct TrieMaps {
    roots: Words,
    outer: ArrayOfMaps<MapData, Array<MapData, Line>>,
    /// The same, for what aya does not do.
    outer_fd: OwnedFd,
    segments: Vec<Segment<Line>>,
    classes: Vec<Segment<ClassEntry>>,
    /// How many prefixes each segment of the list has.
    filled: Vec<u32>,
    paths: Paths,
}

/// An array map, and its memory.
struct Segment<T: Pod> {
    map: Array<MapData, T>,
    words: Words,
    /// The same map, for whoever pins it again.
    fd: OwnedFd,
}

impl<T: Pod> Segment<T> {
    fn open(path: &Path, entries: u32) -> anyhow::Result<Self> {
        let cannot = || format!("cannot open the segment {}", path.display());
        let data = MapData::from_pin(path).with_context(cannot)?;
        let words = entries as usize * size_of::<T>() / size_of::<u64>();
        let words = Words::map(&data, words).with_context(cannot)?;
        let fd = data
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .with_context(cannot)?;
        let map = Array::try_from(Map::from_map_data(data)?).with_context(cannot)?;
        Ok(Self { map, words, fd })
    }

    /// Opens a segment, made unless it is there.
    fn pinned(path: &Path, entries: u32) -> anyhow::Result<Self> {
        make(path, || Array::<MapData, T>::create(entries, MMAPABLE))?;
        Self::open(path, entries)
    }

    /// Opens all segments of an earlier run: they are numbered without gaps.
    fn open_all(path: impl Fn(u32) -> PathBuf, entries: u32) -> anyhow::Result<Vec<Self>> {
        (0..)
            .map(path)
            .take_while(|path| path.exists())
            .map(|path| Self::open(&path, entries))
            .collect()
    }
}

impl TrieMaps {
    /// Opens what an earlier run left.
    pub(super) fn open(paths: &Paths) -> anyhow::Result<Self> {
        let roots = MapData::from_pin(paths.map(ROOTS))
            .with_context(|| super::maps::not_running(&paths.map(ROOTS)))?;
        let outer = ArrayOfMaps::try_from(open(paths, TRIE)?)
            .with_context(|| format!("{TRIE} is not what it was"))?;
        let outer_fd = syscall::open_pinned(&paths.map(TRIE))?;
        let mut maps = Self {
            outer_fd,
            roots: Words::map(&roots, ROOT_WORDS as usize)?,
            outer,
            segments: Segment::open_all(|index| paths.trie_segment(index), SEGMENT_LINES)?,
            classes: Segment::open_all(|index| paths.classes(index), SEGMENT_CLASSES)?,
            filled: Vec::new(),
            paths: paths.clone(),
        };
        for index in 0..maps.classes() / SEGMENT_CLASSES {
            let first = index * SEGMENT_CLASSES;
            let there =
                (first..first + SEGMENT_CLASSES).filter(|class| maps.class(*class).is_some());
            let count = u32::try_from(there.count())?;
            maps.filled.push(count);
        }
        Ok(maps)
    }

    /// Publishes every segment: a crash between a pin and its publication leaves one that the programs do not see.
    pub(super) fn publish_all(&mut self) -> anyhow::Result<()> {
        for (index, segment) in (0..).zip(&self.segments) {
            self.outer
                .set(index, &segment.map, 0)
                .with_context(|| format!("cannot add segment {index} to {TRIE}"))?;
        }
        Ok(())
    }

    /// All that it is kept in, and where that is pinned, beside the maps that have names.
    pub(super) fn pins(&self) -> impl Iterator<Item = (PathBuf, BorrowedFd<'_>)> {
        let segments = (0..)
            .zip(&self.segments)
            .map(|(index, segment)| (self.paths.trie_segment(index), segment.fd.as_fd()));
        let classes = (0..)
            .zip(&self.classes)
            .map(|(index, segment)| (self.paths.classes(index), segment.fd.as_fd()));
        segments.chain(classes)
    }

    fn class_words(&self, class: u32) -> Option<(&Words, usize)> {
        let segment = self.classes.get((class / SEGMENT_CLASSES) as usize)?;
        let first = (class % SEGMENT_CLASSES) as usize * CLASS_WORDS;
        Some((&segment.words, first))
    }

    fn words(&self, at: Place) -> (Option<&Words>, usize) {
        match at {
            Place::Root(number) => (Some(&self.roots), number as usize),
            Place::Unit(unit) => {
                let segment = self.segments.get((unit >> SEGMENT_SHIFT) as usize);
                let index = (unit & (SEGMENT_UNITS - 1)) as usize;
                (segment.map(|segment| &segment.words), index)
            }
        }
    }
}

impl Store for TrieMaps {
    type Error = anyhow::Error;

    fn word(&self, at: Place) -> u64 {
        let (words, index) = self.words(at);
        words.and_then(|words| words.get(index)).unwrap_or(0)
    }

    fn set_word(&mut self, at: Place, word: u64) {
        let (words, index) = self.words(at);
        let written = words.map(|words| words.set(index, word));
        debug_assert!(matches!(written, Some(Ok(()))), "{at:?} is nowhere");
    }

    fn segments(&self) -> u32 {
        u32::try_from(self.segments.len()).unwrap_or(u32::MAX)
    }

    fn add_segment(&mut self) -> anyhow::Result<()> {
        let index = self.segments();
        ensure!(
            index < MAX_SEGMENTS,
            "{TRIE} cannot have more than {MAX_SEGMENTS} segments of 1 MiB: lower the number of prefixes"
        );
        let segment = Segment::pinned(&self.paths.trie_segment(index), SEGMENT_LINES)
            .with_context(|| format!("cannot add segment {index} (1 MiB) to {TRIE}"))?;
        fault::step("publish a segment of the trie")?;
        self.outer
            .set(index, &segment.map, 0)
            .with_context(|| format!("cannot add segment {index} to {TRIE}"))?;
        self.segments.push(segment);
        Ok(())
    }

    fn remove_segment(&mut self) -> anyhow::Result<()> {
        let Some(index) = self.segments().checked_sub(1) else {
            return Ok(());
        };
        fault::step("take a segment from the trie")?;
        withdraw(&self.paths.trie_segment(index))?;
        self.segments.pop();
        match syscall::remove_inner_map(self.outer_fd.as_fd(), index) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot take segment {index} from {TRIE}"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn classes(&self) -> u32 {
        u32::try_from(self.classes.len()).unwrap_or(u32::MAX) * SEGMENT_CLASSES
    }

    fn class(&self, class: u32) -> Option<Prefix> {
        let (words, first) = self.class_words(class)?;
        let about = words.get(first + 2).filter(|about| about & IS_THERE != 0)?;
        let family = if about & IS_V6 == 0 {
            Family::V4
        } else {
            Family::V6
        };
        let bits = u128::from(words.get(first)?) << 64 | u128::from(words.get(first + 1)?);
        let length = u32::try_from(about & 0xff).ok()?;
        let longest = if family == Family::V4 { 32 } else { 128 };
        (length <= longest).then(|| Prefix::new(family, bits, length))
    }

    fn set_class(&mut self, class: u32, prefix: Prefix) -> anyhow::Result<()> {
        let was_there = self.class(class).is_some();
        let segment = class / SEGMENT_CLASSES;
        while self.classes() / SEGMENT_CLASSES <= segment {
            let index = self.classes() / SEGMENT_CLASSES;
            let added = Segment::pinned(&self.paths.classes(index), SEGMENT_CLASSES)
                .with_context(|| format!("cannot add segment {index} to the list of prefixes"))?;
            self.classes.push(added);
            self.filled.push(0);
        }
        let (words, first) = self
            .class_words(class)
            .context("a segment that was just made is not there")?;
        let bits = prefix.bits();
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let lower = bits as u64;
        let family = match prefix.family() {
            Family::V4 => 0,
            Family::V6 => IS_V6,
        };
        words.set(first, (bits >> 64) as u64)?;
        words.set(first + 1, lower)?;
        words.set(first + 2, IS_THERE | family | u64::from(prefix.length()))?;
        if !was_there && let Some(filled) = self.filled.get_mut(segment as usize) {
            *filled += 1;
        }
        Ok(())
    }

    fn clear_class(&mut self, class: u32) -> anyhow::Result<()> {
        if self.class(class).is_none() {
            return Ok(());
        }
        if let Some((words, first)) = self.class_words(class) {
            words.set(first + 2, 0)?;
        }
        if let Some(filled) = self.filled.get_mut((class / SEGMENT_CLASSES) as usize) {
            *filled -= 1;
        }
        // One that is empty stays: most changes take prefixes that others had before.
        while let [.., 0, 0] = self.filled[..] {
            let index = u32::try_from(self.filled.len() - 1)?;
            withdraw(&self.paths.classes(index))?;
            self.classes.pop();
            self.filled.pop();
        }
        Ok(())
    }
}

/// Makes and pins the outer map, unless an earlier run has. As for the line store, aya would give the template type
/// information that segments do not have.
pub(super) fn make_outer(paths: &Paths) -> anyhow::Result<()> {
    let path = paths.map(TRIE);
    if path.exists() {
        return Ok(());
    }
    let template = paths.trie_segment(0);
    make(&template, || {
        Array::<MapData, Line>::create(SEGMENT_LINES, MMAPABLE)
    })?;
    let template = syscall::open_pinned(&template)
        .with_context(|| format!("cannot open the segment {}", template.display()))?;
    let outer = syscall::create_array_of_maps(TRIE, MAX_SEGMENTS, template.as_fd())
        .with_context(|| format!("cannot make the map {TRIE}"))?;
    MapData::from_fd(outer)?
        .pin(&path)
        .with_context(|| format!("cannot pin {}", path.display()))
}

fn make<T: Pod>(
    path: &Path,
    create: impl FnOnce() -> Result<Array<MapData, T>, MapError>,
) -> anyhow::Result<()> {
    if !path.exists() {
        fault::step("make a segment of the trie")?;
        create()
            .with_context(|| format!("cannot make the segment {}", path.display()))?
            .pin(path)
            .with_context(|| format!("cannot pin {}", path.display()))?;
    }
    Ok(())
}

/// Removes a pin; something else may have.
fn withdraw(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
