//! The counters and fill levels as the rest of userspace asks for them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use aya::maps::MapInfo;
use egress_common::{
    cells::{Line, SLOT_LINES},
    maps::{LINES, LOCALS4, LOCALS6, MEMBERS, POD_STATE, PODS, VERDICTS},
};
use ipnet::IpNet;

use super::{counters::CounterMaps, paths::Paths};
use crate::{
    counters::{CounterSource, MapUse, Numbers, Reading},
    state::KernelState,
};

/// What the prefixes of a family in the trie are called in metrics.
const PREFIXES4: &str = "PREFIXES4";
/// Likewise.
const PREFIXES6: &str = "PREFIXES6";

/// Reads the counter maps. How full the maps of policy are it is told after each apply; the tables of flows it counts when it
/// is told to.
pub struct CounterReader {
    maps: CounterMaps,
    paths: Paths,
    usage: Mutex<Vec<MapUse>>,
    tables: Mutex<BTreeMap<&'static str, MapUse>>,
}

impl CounterReader {
    /// Opens the pinned maps.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        let maps = CounterMaps::open(paths)?;
        Ok(Self {
            maps,
            paths: paths.clone(),
            usage: Mutex::default(),
            tables: Mutex::default(),
        })
    }

    /// Takes note of what the maps of policy hold, of which lines may take `line_bytes`.
    pub fn set_state(&self, state: &KernelState, line_bytes: u64) -> anyhow::Result<()> {
        let usage = usage(&self.paths, state, line_bytes)?;
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
        Ok(())
    }

    /// Counts the entries of the tables of flows, which takes a look at every place; `pause` is called between batches.
    ///
    /// # Errors
    /// A table cannot be read. Those before it are counted.
    pub fn count_tables(&self, mut pause: impl FnMut()) -> anyhow::Result<()> {
        for table in self.maps.tables() {
            let entries = table.alive(&mut pause)?;
            let counted = MapUse {
                name: table.name().to_owned(),
                entries,
                capacity: table.capacity(),
                counted: Some(Instant::now()),
            };
            self.tables().insert(table.name(), counted);
        }
        Ok(())
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<&'static str, MapUse>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CounterSource for CounterReader {
    fn read(&self, numbers: &Numbers) -> anyhow::Result<Reading> {
        self.maps.read(numbers)
    }

    fn map_use(&self) -> Vec<MapUse> {
        let usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let mut maps = usage.clone();
        drop(usage);
        maps.extend(self.tables().values().cloned());
        maps
    }
}

fn usage(paths: &Paths, state: &KernelState, line_bytes: u64) -> anyhow::Result<Vec<MapUse>> {
    let v4 = state
        .prefixes
        .keys()
        .filter(|net| matches!(net, IpNet::V4(_)))
        .count();
    let verdicts: usize = state.blocks.values().map(Vec::len).sum();
    let rows: u64 = state.rows.values().map(|row| u64::from(row.lines)).sum();
    let tables = state.slot_tables.len() as u64 * u64::from(SLOT_LINES);
    let mut maps = vec![MapUse {
        name: LINES.to_owned(),
        entries: rows + tables,
        capacity: line_bytes / size_of::<Line>() as u64,
        counted: None,
    }];
    // The prefix trie grows; how many prefixes it may have is told to the maps of local ones, too.
    for (name, entries, sized) in [
        (PODS, state.pods.len(), PODS),
        (POD_STATE, state.pods.len(), POD_STATE),
        (PREFIXES4, v4, LOCALS4),
        (PREFIXES6, state.prefixes.len() - v4, LOCALS6),
        (VERDICTS, verdicts, VERDICTS),
        (MEMBERS, state.members.len(), MEMBERS),
    ] {
        maps.push(MapUse {
            name: name.to_owned(),
            entries: entries as u64,
            capacity: MapInfo::from_pin(paths.map(sized))?.max_entries().into(),
            counted: None,
        });
    }
    Ok(maps)
}
