//! Maps, opened by their pins.

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use egress_common::table::{Bucket, PROTOCOL_BITS, PROTOCOL_WORD, Record};
use egress_userspace::kernel::{FlowTable, Paths};

/// A table of flows.
pub(crate) struct Table {
    read: FlowTable,
    write: Array<MapData, Bucket>,
}

impl Table {
    /// Opens a table that is pinned.
    pub(crate) fn open(paths: &Paths, name: &'static str) -> Result<Self> {
        Ok(Self {
            read: FlowTable::open(paths, name)?,
            write: open(paths, name)?,
        })
    }

    /// All entries, with their states.
    pub(super) fn entries(&self) -> Vec<(Record, u8)> {
        let mut entries = Vec::new();
        let see = |_, bucket: &Bucket| {
            let states = bucket.states;
            entries.extend(bucket.entries().map(|(way, record)| (*record, states[way])));
        };
        self.read.for_each(see).unwrap();
        entries
    }

    /// How many of its entries have not ended.
    pub(super) fn alive(&self) -> u64 {
        self.read.alive(|| ()).unwrap()
    }

    /// Removes all that it has.
    pub(crate) fn clear(&mut self) {
        self.change(|bucket| *bucket = Bucket::default());
    }

    /// Lets so many seconds pass for all that it has.
    pub(super) fn age(&mut self, seconds: u32) {
        self.change(|bucket| {
            for until in &mut bucket.untils {
                *until = until.saturating_sub(seconds);
            }
            for record in &mut bucket.records {
                record.key[PROTOCOL_WORD] &= PROTOCOL_BITS;
            }
        });
    }

    fn change(&mut self, change: impl Fn(&mut Bucket)) {
        let mut changed = Vec::new();
        let see = |index, bucket: &Bucket| {
            if bucket.entries().next().is_some() {
                changed.push((index, *bucket));
            }
        };
        self.read.for_each(see).unwrap();
        for (index, mut bucket) in changed {
            change(&mut bucket);
            self.write.set(index, bucket, 0).unwrap();
        }
    }
}

/// Opens a map that is pinned, as what it is.
pub(crate) fn open<T>(paths: &Paths, name: &str) -> Result<T>
where
    T: TryFrom<Map, Error: std::error::Error + Send + Sync + 'static>,
{
    let data = MapData::from_pin(paths.map(name));
    let map = Map::from_map_data(data.with_context(|| format!("cannot open the map {name}"))?)?;
    T::try_from(map).with_context(|| format!("the map {name} is of another kind"))
}

/// Removes all that a map has.
pub(crate) fn clear<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = map.keys().map(|key| key.unwrap()).collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}
