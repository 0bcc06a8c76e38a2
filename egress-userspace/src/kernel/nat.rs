//! The tables of translated connections: read in batches, and rid of what has ended by a program of ours.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, ensure};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, MapInfo},
    programs::SchedClassifier,
};
use egress_common::{
    Addr,
    gateway::{Egress, Settings},
    maps::{EGRESS, EGRESS_ADDRS, NAT_BACK, NAT_OUT, NODE_STATE, SETTINGS},
    nat::{NatBack, NatBackKey, NatOut, NatOutKey},
    overlay::NodeState,
};

use super::{
    maps::not_running,
    object::NAT_SWEEP,
    paths::Paths,
    syscall::{self, Bucket},
};
use crate::nat::{Ports, Timeouts, back_key, out_key};

/// Entries of a batch: enough that the system call costs next to nothing, few enough that it ends soon.
const BATCH: usize = 1024;
/// The largest batch that a crowded bucket may call for.
const LARGEST_BATCH: usize = 1 << 16;
/// `BPF_NOEXIST` of `linux/bpf.h`.
const NOEXIST: u64 = 1;

/// The tables, opened from where they are pinned.
pub struct NatMaps {
    out: Table<NatOutKey, NatOut>,
    back: Table<NatBackKey, NatBack>,
    addresses: HashMap<MapData, Addr, u32>,
    egress: Array<MapData, Egress>,
    nodes: Array<MapData, NodeState>,
    settings: Array<MapData, Settings>,
    capacity: u32,
}

impl NatMaps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// A map is not there, or not of the shape that this version knows.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        Ok(Self {
            out: Table::open(paths, NAT_OUT)?,
            back: Table::open(paths, NAT_BACK)?,
            addresses: super::maps::open(paths, EGRESS_ADDRS)?.try_into()?,
            egress: super::maps::open(paths, EGRESS)?.try_into()?,
            nodes: super::maps::open(paths, NODE_STATE)?.try_into()?,
            settings: super::maps::open(paths, SETTINGS)?.try_into()?,
            capacity: MapInfo::from_pin(paths.map(NAT_BACK))?.max_entries(),
        })
    }

    /// Connections that there is room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The timeouts that the datapath goes by; none before it was told.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn timeouts(&self) -> anyhow::Result<Option<Timeouts>> {
        let settings = self
            .settings
            .get(&0, 0)
            .with_context(|| format!("cannot read {SETTINGS}"))?;
        Ok(Timeouts::of(settings.timeouts))
    }

    /// The egress addresses of this node, as the datapath has them.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn egress(&self) -> anyhow::Result<BTreeMap<Addr, Egress>> {
        let mut all = BTreeMap::new();
        for entry in self.addresses.iter() {
            let (address, index) = entry.with_context(|| format!("cannot read {EGRESS_ADDRS}"))?;
            let egress = self
                .egress
                .get(&index, 0)
                .with_context(|| format!("cannot read {EGRESS}[{index}]"))?;
            all.insert(address, egress);
        }
        Ok(all)
    }

    /// The ports that each egress address of this node may use.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn ports(&self) -> anyhow::Result<BTreeMap<Addr, Ports>> {
        let ports = |egress: Egress| Ports {
            first: egress.first_port,
            last: egress.last_port,
        };
        let egress = self.egress()?.into_iter();
        Ok(egress.map(|(address, e)| (address, ports(e))).collect())
    }

    /// Where frames for another node go; all zero where none was ever written.
    ///
    /// # Errors
    /// The map cannot be read, or has no such index.
    pub fn node(&self, origin: u32) -> anyhow::Result<Addr> {
        let node = self.nodes.get(&origin, 0);
        Ok(node
            .with_context(|| format!("cannot read {NODE_STATE}[{origin}]"))?
            .address)
    }

    /// The entries of pods' packets, a batch at a time.
    pub fn outs(&self) -> Batches<'_, NatOutKey, NatOut> {
        self.out.batches()
    }

    /// The entries of replies, a batch at a time.
    pub fn backs(&self) -> Batches<'_, NatBackKey, NatBack> {
        self.back.batches()
    }

    /// The entry of a pod's packets.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn out(&self, key: &NatOutKey) -> anyhow::Result<Option<NatOut>> {
        self.out.get(key)
    }

    /// The entry of replies.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn back(&self, key: &NatBackKey) -> anyhow::Result<Option<NatBack>> {
        self.back.get(key)
    }

    /// Writes the entry of replies unless there is one: what the datapath does first.
    ///
    /// # Errors
    /// The map is full.
    pub fn insert_back(&mut self, key: &NatBackKey, back: &NatBack) -> anyhow::Result<()> {
        self.back.insert(key, back)
    }

    /// Writes the entry of a pod's packets unless there is one: what the datapath does then.
    ///
    /// # Errors
    /// The map is full.
    pub fn insert_out(&mut self, key: &NatOutKey, out: &NatOut) -> anyhow::Result<()> {
        self.out.insert(key, out)
    }

    /// Removes a reply's entry that has no other half. Says whether it was there and alone.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn remove_orphaned_back(&mut self, key: &NatBackKey) -> anyhow::Result<bool> {
        let Some(back) = self.back.get(key)? else {
            return Ok(false);
        };
        let other = out_key(key, &back);
        if let Some(out) = self.out.get(&other)?
            && back_key(&other, &out) == *key
        {
            return Ok(false);
        }
        self.back.remove(key)?;
        Ok(true)
    }

    /// Gives a pod's entry that has lost its other half a new one, so that it ends as others do; where another
    /// connection has its port meanwhile, removes it. Says whether it was there and alone.
    ///
    /// The datapath counts a source's connections by their pods' halves: one that is removed here stays in the
    /// count, so giving it back its other half comes first.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn mend_orphaned_out(&mut self, key: &NatOutKey) -> anyhow::Result<bool> {
        let Some(out) = self.out.get(key)? else {
            return Ok(false);
        };
        let other = back_key(key, &out);
        match self.back.get(&other)? {
            Some(back) if out_key(&other, &back) == *key => return Ok(false),
            Some(_) => self.out.remove(key)?,
            None => {
                let back = NatBack {
                    last_seen: out.last_seen,
                    pod: key.pod,
                    origin: out.origin,
                    gateway: key.gateway,
                    pod_port: key.pod_port,
                    state: out.state,
                    pad: [0; 5],
                };
                self.back.insert(&other, &back)?;
            }
        }
        Ok(true)
    }
}

/// A hash map, to be read by key and in batches.
struct Table<K, V> {
    name: &'static str,
    entries: HashMap<MapData, K, V>,
    /// The same map, which is of these types' sizes, for what aya does not wrap.
    fd: OwnedFd,
}

impl<K: Pod, V: Pod> Table<K, V> {
    fn open(paths: &Paths, name: &'static str) -> anyhow::Result<Self> {
        let path = paths.map(name);
        let data = MapData::from_pin(&path).with_context(|| not_running(&path))?;
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        Ok(Self {
            name,
            // This refuses other sizes of keys and values.
            entries: Map::from_map_data(data)?.try_into()?,
            fd,
        })
    }

    fn get(&self, key: &K) -> anyhow::Result<Option<V>> {
        match self.entries.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.name)),
        }
    }

    /// Inserts what is not there yet; what another has made meanwhile stays.
    fn insert(&mut self, key: &K, value: &V) -> anyhow::Result<()> {
        match self.entries.insert(key, value, NOEXIST) {
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            result => result.with_context(|| {
                format!(
                    "cannot write {}: raise --nat-connections if it is full",
                    self.name
                )
            }),
        }
    }

    fn remove(&mut self, key: &K) -> anyhow::Result<()> {
        super::maps::absent_is_fine(self.entries.remove(key))
            .with_context(|| format!("cannot remove from {}", self.name))
    }

    fn batches(&self) -> Batches<'_, K, V> {
        Batches {
            table: self,
            bucket: Bucket::default(),
            room: BATCH,
            last: false,
        }
    }
}

/// The entries of a table that changes meanwhile, each at least once if it is there all the time.
///
/// A batch is of whole buckets, and the place to go on from is a bucket too: nothing that is added or removed
/// meanwhile makes it begin again.
pub struct Batches<'a, K, V> {
    table: &'a Table<K, V>,
    bucket: Bucket,
    room: usize,
    last: bool,
}

impl<K: Pod, V: Pod> Iterator for Batches<'_, K, V> {
    type Item = anyhow::Result<Vec<(K, V)>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.last {
            return None;
        }
        let batch = self.read();
        self.last |= batch.is_err();
        Some(batch.with_context(|| format!("cannot read {}", self.table.name)))
    }
}

impl<K: Pod, V: Pod> Batches<'_, K, V> {
    fn read(&mut self) -> io::Result<Vec<(K, V)>> {
        loop {
            match syscall::lookup_batch(self.table.fd.as_fd(), self.room, &mut self.bucket) {
                Ok((entries, last)) => {
                    self.last = last;
                    return Ok(entries);
                }
                Err(error)
                    if error.raw_os_error() == Some(libc::ENOSPC) && self.room < LARGEST_BATCH =>
                {
                    self.room *= 2;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The program that removes connections that have ended, and keeps the counts of sources right.
#[derive(Debug)]
pub struct NatSweep {
    program: OwnedFd,
}

/// Keys that the program takes at once.
pub const SWEEP_KEYS: usize = 32;

impl NatSweep {
    /// The program, which is loaded.
    ///
    /// # Errors
    /// It is not.
    pub fn new(program: &SchedClassifier) -> anyhow::Result<Self> {
        Ok(Self {
            program: program.fd()?.as_fd().try_clone_to_owned()?,
        })
    }

    /// Removes those of at most [`SWEEP_KEYS`] connections that have ended by now. Gives their number.
    ///
    /// # Errors
    /// There are more keys, or the kernel does not run the program.
    pub fn sweep(&self, keys: &[NatBackKey]) -> anyhow::Result<u32> {
        ensure!(
            keys.len() <= SWEEP_KEYS,
            "{} takes {SWEEP_KEYS} keys at once, not {}",
            NAT_SWEEP,
            keys.len()
        );
        if keys.is_empty() {
            return Ok(0);
        }
        syscall::run_classifier(&self.program, &frame(keys))
            .with_context(|| format!("cannot run the program {NAT_SWEEP}"))
    }
}

/// A frame of the ethertype that is nobody's (IEEE 802, local experiments), with the keys behind its header.
fn frame(keys: &[NatBackKey]) -> Vec<u8> {
    const HEADER: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0xb5];
    let mut frame = HEADER.to_vec();
    for key in keys {
        frame.extend(key.egress.0);
        frame.extend(key.remote.0);
        frame.extend(key.egress_port.0);
        frame.extend(key.remote_port.0);
        frame.push(key.protocol);
        frame.extend(key.pad);
    }
    frame
}

#[cfg(test)]
mod tests {
    use egress_common::WireU16;

    use super::*;

    #[test]
    fn keys_stand_behind_the_header_as_they_lie_in_the_map() {
        let key = NatBackKey {
            egress: Addr::v4([203, 0, 113, 1]),
            remote: Addr::v4([192, 0, 2, 80]),
            egress_port: WireU16::new(4000),
            remote_port: WireU16::new(443),
            protocol: 6,
            pad: [0; 3],
        };
        let frame = frame(&[key, key]);
        assert_eq!(frame.len(), 14 + 2 * size_of::<NatBackKey>());
        assert_eq!(frame[24..30], [0xff, 0xff, 203, 0, 113, 1]);
        assert_eq!(frame[46..54], [0x0f, 0xa0, 0x01, 0xbb, 6, 0, 0, 0]);
        assert_eq!(frame[14..54], frame[54..]);
    }
}
