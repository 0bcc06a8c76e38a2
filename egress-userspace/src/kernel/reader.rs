//! The counters and fill levels as the rest of userspace asks for them.

use std::sync::{Mutex, PoisonError};

use aya::maps::MapInfo;
use egress_common::{
    DropReason,
    cells::{Line, SLOT_LINES},
    counter::{Answer, Direction, PassKind},
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

/// Reads the counter maps; how full the other maps are it is told after each apply.
pub struct CounterReader {
    maps: CounterMaps,
    paths: Paths,
    usage: Mutex<Vec<MapUse>>,
}

impl CounterReader {
    /// Opens the pinned maps.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        let maps = CounterMaps::open(paths)?;
        Ok(Self {
            maps,
            paths: paths.clone(),
            usage: Mutex::default(),
        })
    }

    /// Takes note of what the maps of policy hold, of which lines may take `line_bytes`.
    pub fn set_state(&self, state: &KernelState, line_bytes: u64) -> anyhow::Result<()> {
        let usage = usage(&self.paths, state, line_bytes)?;
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
        Ok(())
    }
}

impl CounterSource for CounterReader {
    fn read(&self, numbers: &Numbers) -> anyhow::Result<Reading> {
        let mut reading = Reading::default();
        for member in &numbers.members {
            reading.members.push((*member, self.maps.member(*member)?));
        }
        for policy in &numbers.policies {
            for reason in DropReason::ALL {
                reading
                    .drops
                    .push((*policy, *reason, self.maps.dropped(*policy, *reason)?));
            }
            for kind in PassKind::ALL.iter().copied() {
                reading
                    .passes
                    .push((*policy, kind, self.maps.passed(*policy, kind)?));
            }
        }
        for gateway in &numbers.gateways {
            for direction in Direction::ALL.iter().copied() {
                let count = self.maps.translated(*gateway, direction)?;
                reading.translated.push((*gateway, direction, count));
            }
            for reason in DropReason::ALL {
                let count = self.maps.gateway_dropped(*gateway, *reason)?;
                reading.gateway_drops.push((*gateway, *reason, count));
            }
        }
        for answer in Answer::ALL.iter().copied() {
            reading.answers.push((answer, self.maps.answered(answer)?));
        }
        Ok(reading)
    }

    fn map_use(&self) -> anyhow::Result<Vec<MapUse>> {
        let usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let mut maps = usage.clone();
        drop(usage);
        for (name, entries, capacity) in self.maps.tables()? {
            maps.push(MapUse {
                name: name.to_owned(),
                entries,
                capacity,
            });
        }
        Ok(maps)
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
        });
    }
    Ok(maps)
}
