//! The line store: an array of maps whose inner maps are made as they are needed.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context, ensure};
use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use egress_common::{
    cells::{Line, MAX_SEGMENTS, SEGMENT_LINES, SEGMENT_SHIFT},
    maps::LINES,
};

use super::{fault, paths::Paths, syscall};

/// `BPF_F_MMAPABLE` of `linux/bpf.h`, though nobody maps them: their memory begins at a page, and so each line is one of the
/// processor's, where it would lie across two.
const MMAPABLE: u32 = 1 << 10;
/// Lines that are written by one call at most.
const MOST_AT_ONCE: usize = 4096;

/// The open segments.
pub(super) struct Segments {
    outer: ArrayOfMaps<MapData, Array<MapData, Line>>,
    open: BTreeMap<u32, Segment>,
    paths: Paths,
}

/// A segment.
struct Segment {
    map: Array<MapData, Line>,
    /// The same, for what aya does not do, and for whoever pins it again.
    fd: OwnedFd,
}

impl Segment {
    fn of(data: MapData) -> anyhow::Result<Self> {
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        let map = Array::try_from(Map::from_map_data(data)?)?;
        Ok(Self { map, fd })
    }
}

impl Segments {
    /// Opens the segments of an earlier run.
    pub(super) fn open(outer: Map, paths: &Paths) -> anyhow::Result<Self> {
        let outer =
            ArrayOfMaps::try_from(outer).with_context(|| format!("{LINES} is not what it was"))?;
        let mut open = BTreeMap::new();
        for index in 0..MAX_SEGMENTS {
            let path = paths.segment(index);
            if !path.exists() {
                break;
            }
            let data = MapData::from_pin(&path)
                .with_context(|| format!("cannot open the segment {}", path.display()))?;
            open.insert(index, Segment::of(data)?);
        }
        Ok(Self {
            outer,
            open,
            paths: paths.clone(),
        })
    }

    /// Publishes every segment: a crash between a pin and its publication leaves one that the programs
    /// do not see.
    pub(super) fn publish_all(&mut self) -> anyhow::Result<()> {
        for index in self.open.keys().copied().collect::<Vec<_>>() {
            self.publish(index)?;
        }
        Ok(())
    }

    /// How many there are: they are numbered without gaps.
    fn count(&self) -> u32 {
        self.open.last_key_value().map_or(0, |(last, _)| last + 1)
    }

    /// The segments, and where they are pinned.
    pub(super) fn pins(&self) -> impl Iterator<Item = (PathBuf, BorrowedFd<'_>)> {
        let open = self.open.iter();
        open.map(|(index, segment)| (self.paths.segment(*index), segment.fd.as_fd()))
    }

    /// Bytes of kernel memory that the segments take.
    pub(super) fn bytes(&self) -> u64 {
        self.open.len() as u64 * u64::from(SEGMENT_LINES) * size_of::<Line>() as u64
    }

    pub(super) fn read(&self, first: u32, count: u32) -> anyhow::Result<Vec<Line>> {
        (first..first.saturating_add(count))
            .map(|line| {
                let (segment, index) = place(line);
                match self.open.get(&segment) {
                    Some(segment) => Ok(segment.map.get(&index, 0)?),
                    None => Ok(Line::ZERO),
                }
            })
            .collect()
    }

    pub(super) fn write(&mut self, first: u32, lines: &[Line]) -> anyhow::Result<()> {
        let (mut line, mut rest) = (first, lines);
        while !rest.is_empty() {
            let (segment, index) = place(line);
            let room = usize::try_from(SEGMENT_LINES - index)?.min(MOST_AT_ONCE);
            let (now, later) = rest.split_at(room.min(rest.len()));
            let fd = self.segment(segment)?.fd.as_fd();
            syscall::update_range(fd, index, now).with_context(|| {
                format!("cannot write {} lines from {line} of {LINES}", now.len())
            })?;
            line += u32::try_from(now.len())?;
            rest = later;
        }
        Ok(())
    }

    fn segment(&mut self, index: u32) -> anyhow::Result<&mut Segment> {
        ensure!(
            index < MAX_SEGMENTS,
            "{LINES} cannot have more than {MAX_SEGMENTS} segments: lower --matrix-memory"
        );
        // Segments are found again at the next start by counting up, so there must be no gap.
        for missing in self.count()..=index {
            self.add(missing)?;
        }
        self.open
            .get_mut(&index)
            .context("a segment that was just made is not there")
    }

    fn add(&mut self, index: u32) -> anyhow::Result<()> {
        let segment = Segment::of(pinned(&self.paths, index)?)?;
        fault::step("publish a segment")?;
        self.outer
            .set(index, &segment.map, 0)
            .with_context(|| format!("cannot add segment {index} to {LINES}"))?;
        self.open.insert(index, segment);
        Ok(())
    }

    /// Publishes a segment again, which changes nothing and waits for a grace period.
    pub(super) fn touch(&mut self) -> anyhow::Result<()> {
        self.segment(0)?;
        self.publish(0)
    }

    fn publish(&mut self, index: u32) -> anyhow::Result<()> {
        let segment = self
            .open
            .get(&index)
            .context("the segment to publish is not open")?;
        self.outer
            .set(index, &segment.map, 0)
            .with_context(|| format!("cannot add segment {index} to {LINES}"))
    }
}

/// Makes and pins the outer map, unless an earlier run has.
///
/// aya would give the inner map's template the object's type information, which the segments made here
/// do not have; kernels from 5.15 to 6.2 then refuse them, for an unlike place of timers in the value.
pub(super) fn make_outer(paths: &Paths) -> anyhow::Result<()> {
    let path = paths.map(LINES);
    if path.exists() {
        return Ok(());
    }
    let template = pinned(paths, 0)?;
    let outer = syscall::create_array_of_maps(LINES, MAX_SEGMENTS, template.fd().as_fd())
        .with_context(|| format!("cannot make the map {LINES}"))?;
    MapData::from_fd(outer)?
        .pin(&path)
        .with_context(|| format!("cannot pin {}", path.display()))
}

/// A segment, made unless it is there: an earlier try may have pinned it and failed to publish it.
fn pinned(paths: &Paths, index: u32) -> anyhow::Result<MapData> {
    let path = paths.segment(index);
    if !path.exists() {
        fault::step("make a segment")?;
        Array::<MapData, Line>::create(SEGMENT_LINES, MMAPABLE)
            .with_context(|| format!("cannot make segment {index} of {LINES} (1 MiB)"))?
            .pin(&path)
            .with_context(|| format!("cannot pin {}", path.display()))?;
    }
    MapData::from_pin(&path).with_context(|| format!("cannot open the segment {}", path.display()))
}

const fn place(line: u32) -> (u32, u32) {
    (line >> SEGMENT_SHIFT, line & (SEGMENT_LINES - 1))
}
