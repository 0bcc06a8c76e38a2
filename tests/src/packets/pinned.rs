//! Maps, opened by their pins.

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use egress_userspace::kernel::Paths;

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
