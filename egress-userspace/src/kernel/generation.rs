//! Maps of another layout than this version's: they are made anew beside the old ones, filled, and switched to.
//!
//! The maps of one set of programs are a *generation*: a directory of pins. Where all pinned maps have the layout
//! that this version knows, its programs take them over. Else the directory is put aside as `old`, and a new one is
//! made: what has the same layout is shared, being the same map, pinned in both; what has not is made anew. All maps
//! that are filled from the desired state are made anew together, for they name places in each other.
//!
//! The old programs go on with the old maps until an apply has filled the new ones; then each hook's program is
//! swapped, which no packet can tell, and the old generation goes. The directory `switching` says that hooks may have
//! programs of the new generation. A start that finds `old` without it puts that back and begins anew; one that
//! finds both goes on with the new generation, which is whole then.
//!
//! A map whose pin is gone counts as one of another layout: the programs that still use it cannot be asked for it
//! without `CAP_SYS_ADMIN` (`BPF_MAP_GET_FD_BY_ID`).
//!
//! A map's layout is its type, the sizes of its keys and values, its capacity, its flags, and a number for what the
//! sizes do not tell (`egress_common::maps::layout`), which is part of the pin's name.

use std::{fs, io};

use anyhow::{Context, bail};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};
use aya_obj::Object;
use egress_common::{
    Addr,
    gateway::{EGRESS_DOWN, Egress, GatewayId},
    keys::PodKey,
    maps::{self, EGRESS, EGRESS_ADDRS, LINES, POD_NOTES, PODS},
    pod::PodNote,
};

use super::{
    object::OBJECT,
    paths::{Paths, remove_generation},
    syscall,
};
use crate::state_dir::remove_if_empty;

/// `BPF_MAP_TYPE_ARRAY_OF_MAPS` of `linux/bpf.h`.
const ARRAY_OF_MAPS: u32 = 12;

/// The generation that an earlier run left, while programs of it are still at work.
#[derive(Debug)]
pub(super) struct Old {
    paths: Paths,
    /// Whether the maps that are filled from the desired state are others now.
    refilled: bool,
}

impl Old {
    /// The pods that it steers, as far as this version can read them.
    pub(super) fn pods(&self) -> Vec<(PodKey, u32)> {
        readable(self.pods_map().map(|map| map.iter().collect()))
    }

    /// The egress addresses that it translates to, as far as this version can read them.
    pub(super) fn egress_addresses(&self) -> Vec<Addr> {
        let entries = open(&self.paths, EGRESS_ADDRS)
            .and_then(|map| Ok(HashMap::<_, Addr, u32>::try_from(map)?))
            .map(|map| map.keys().collect());
        readable(entries)
    }

    /// The gateways of this node that nothing gets out by, as far as this version can read them.
    pub(super) fn down_gateways(&self) -> Vec<GatewayId> {
        let read = || -> anyhow::Result<Vec<Egress>> {
            let addresses: HashMap<_, Addr, u32> = open(&self.paths, EGRESS_ADDRS)?.try_into()?;
            let egress: Array<_, Egress> = open(&self.paths, EGRESS)?.try_into()?;
            let indexes = addresses.iter().map(|entry| entry.map(|(_, index)| index));
            let elements = indexes.map(|index| egress.get(&index?, 0));
            Ok(elements.collect::<Result<_, _>>()?)
        };
        readable(read().map(Ok))
            .into_iter()
            .filter(|egress| egress.flags & EGRESS_DOWN != 0)
            .map(|egress| egress.gateway)
            .collect()
    }

    /// Gives the pods of the new generation what the old one has learned of them, unless it was learned anew.
    pub(super) fn carry_notes(&self, new: &Paths) -> anyhow::Result<()> {
        if !self.refilled {
            return Ok(());
        }
        let Ok(old_notes) = self.notes_map() else {
            tracing::warn!(
                "what was learned of pods is of another layout: each is learned again from its next packet"
            );
            return Ok(());
        };
        let pods: HashMap<MapData, PodKey, u32> = open(new, PODS)?.try_into()?;
        let mut notes: Array<MapData, PodNote> = open(new, POD_NOTES)?.try_into()?;
        for (key, old_slot) in self.pods() {
            let Ok(slot) = pods.get(&key, 0) else {
                continue;
            };
            let (old, now) = (old_notes.get(&old_slot, 0)?, notes.get(&slot, 0)?);
            let merged = PodNote {
                pod_mac: first(now.pod_mac, old.pod_mac),
                host_mac: first(now.host_mac, old.host_mac),
                inbound: now.inbound | old.inbound,
                pad: 0,
            };
            if merged != now {
                notes.set(slot, merged, 0)?;
            }
        }
        Ok(())
    }

    /// Says that hooks may have programs of the new generation from now on.
    pub(super) fn begin_switch(&self, new: &Paths) -> anyhow::Result<()> {
        let mark = new.switching();
        match fs::create_dir(&mark) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("cannot make {}", mark.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes the old generation, which no hook has programs of any more.
    pub(super) fn end_switch(&self, new: &Paths) -> anyhow::Result<()> {
        remove_generation(&self.paths)?;
        remove_if_empty(&new.switching())?;
        Ok(())
    }

    fn pods_map(&self) -> anyhow::Result<HashMap<MapData, PodKey, u32>> {
        Ok(open(&self.paths, PODS)?.try_into()?)
    }

    fn notes_map(&self) -> anyhow::Result<Array<MapData, PodNote>> {
        Ok(open(&self.paths, POD_NOTES)?.try_into()?)
    }
}

const fn first(now: u64, before: u64) -> u64 {
    if now == 0 { before } else { now }
}

/// What cannot be read says nothing: pods are known from the resources too.
fn readable<T>(entries: anyhow::Result<Result<Vec<T>, MapError>>) -> Vec<T> {
    match entries.map(|entries| entries.map_err(anyhow::Error::from)) {
        Ok(Ok(entries)) => entries,
        Ok(Err(error)) | Err(error) => {
            tracing::warn!("of the maps of the last run this cannot be read: {error:#}");
            Vec::new()
        }
    }
}

/// Opens a map of a generation, under the name that this version's layout has.
fn open(paths: &Paths, name: &str) -> anyhow::Result<Map> {
    let path = paths.map(name);
    let data =
        MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Map::from_map_data(data)?)
}

/// Puts the generation of an earlier run aside if this version's maps are others, and shares what is not.
///
/// `entries` are the capacities that flags choose. What an earlier switch left unfinished is finished or undone.
pub(super) fn begin(paths: &Paths, entries: &[(&str, &str, u32)]) -> anyhow::Result<Option<Old>> {
    settle(paths)?;
    if !paths.has_maps() {
        return Ok(None);
    }
    let object = Object::parse(OBJECT).context("cannot read the embedded eBPF object")?;
    let mut other = Vec::new();
    for name in maps::ALL {
        if let Some(why) = differs(paths, &object, entries, name)? {
            tracing::info!("the map {name} is made anew: {why}");
            other.push(*name);
        }
    }
    if other.is_empty() {
        return Ok(None);
    }
    let refilled = other.iter().any(|name| maps::FILLED.contains(name));
    let lost: Vec<&str> = other
        .iter()
        .copied()
        .filter(|name| !maps::FILLED.contains(name))
        .collect();
    if !lost.is_empty() {
        tracing::warn!(
            "what the last run kept in these maps cannot be carried over and begins anew: {}",
            lost.join(", ")
        );
    }
    let old = paths.old();
    fs::rename(paths.maps(), old.maps())
        .with_context(|| format!("cannot put {} aside", paths.maps().display()))?;
    paths.make_maps()?;
    for name in maps::ALL {
        let made_anew = other.contains(name) || (refilled && maps::FILLED.contains(name));
        if !made_anew {
            share(&old.map(name), &paths.map(name))?;
        }
    }
    if !refilled {
        for place in [Paths::segment, Paths::trie_segment, Paths::classes] {
            for index in 0.. {
                let segment = place(&old, index);
                if !segment.exists() {
                    break;
                }
                share(&segment, &place(paths, index))?;
            }
        }
    }
    Ok(Some(Old {
        paths: old,
        refilled,
    }))
}

fn share(from: &std::path::Path, to: &std::path::Path) -> anyhow::Result<()> {
    let object = syscall::open_pinned(from)
        .with_context(|| format!("cannot open the pin {}", from.display()))?;
    syscall::pin(std::os::fd::AsFd::as_fd(&object), to)
        .with_context(|| format!("cannot pin {}", to.display()))
}

/// Finishes or undoes a switch that an earlier run did not live to finish.
fn settle(paths: &Paths) -> anyhow::Result<()> {
    let old = paths.old();
    let there = old.maps().exists();
    if there && paths.switching().exists() {
        remove_generation(&old)?;
    } else if there {
        remove_generation(paths)?;
        fs::rename(old.maps(), paths.maps())
            .with_context(|| format!("cannot put {} back", old.maps().display()))?;
    }
    remove_if_empty(&paths.switching())?;
    Ok(())
}

/// How a pinned map's layout differs from what the object asks for, if it does.
///
/// # Errors
/// The kernel does not tell. That says nothing of the map: what it holds is not given up for want of memory.
fn differs(
    paths: &Paths,
    object: &Object,
    entries: &[(&str, &str, u32)],
    name: &str,
) -> anyhow::Result<Option<String>> {
    let path = paths.map(name);
    if !path.exists() {
        return Ok(Some(format!("there is no pin {}", path.display())));
    }
    let Some(wanted) = object.maps.get(name) else {
        bail!("the embedded object does not describe the map {name}");
    };
    let pinned = match MapInfo::from_pin(&path) {
        Ok(info) => info,
        Err(error) if is_no_map(&error) => return Ok(Some(format!("its pin is no map: {error}"))),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", path.display()));
        }
    };
    let chosen = entries.iter().find(|(map, _, _)| *map == name);
    let capacity = chosen.map_or(wanted.max_entries(), |(_, _, count)| *count);
    let Ok(kind) = pinned.map_type().map(|kind| kind as u32) else {
        return Ok(Some("its type is unknown".to_owned()));
    };
    if kind != wanted.map_type() {
        return Ok(Some(format!(
            "its type is {kind}, not {}",
            wanted.map_type()
        )));
    }
    // Its template's value is what the inner maps have.
    if name == LINES || kind == ARRAY_OF_MAPS {
        return Ok(None);
    }
    let facts = [
        ("keys have", pinned.key_size(), wanted.key_size()),
        ("values have", pinned.value_size(), wanted.value_size()),
        ("capacity is", pinned.max_entries(), capacity),
        ("flags are", pinned.map_flags(), wanted.map_flags()),
    ];
    let other = facts.iter().find(|(_, is, wanted)| is != wanted);
    Ok(other.map(|(what, is, wanted)| format!("its {what} {is}, not {wanted}")))
}

/// Whether what cannot be opened is there, and is something else: a program's pin, or a file.
fn is_no_map(error: &MapError) -> bool {
    let MapError::SyscallError(error) = error else {
        return false;
    };
    matches!(
        error.io_error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOENT)
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn what_the_kernel_cannot_tell_for_want_of_memory_is_not_given_up() {
        for (errno, no_map) in [
            (libc::ENOMEM, false),
            (libc::EMFILE, false),
            (libc::EINTR, false),
            (libc::EPERM, false),
            (libc::EINVAL, true),
        ] {
            let error = MapError::SyscallError(SyscallError {
                call: "BPF_OBJ_GET",
                io_error: io::Error::from_raw_os_error(errno),
            });
            assert_eq!(is_no_map(&error), no_map, "{error}");
        }
    }
}
