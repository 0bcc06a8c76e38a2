//! The reference programs, with their tables filled.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, lpm_trie},
    programs::{SchedClassifier, TcAttachType},
};
use ipnet::IpNet;

use super::{OBJECT, POD, UPLINK, attach, load, taken};
use crate::world::{Target, World};

/// A program that ours is measured beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reference {
    Empty,
    Redirect,
    RedirectNeigh,
    Floor,
    FloorUncounted,
    LpmPolicy,
    LpmSource,
    Translate,
}

impl Reference {
    const ALL: [Self; 8] = [
        Self::Empty,
        Self::Redirect,
        Self::RedirectNeigh,
        Self::Floor,
        Self::FloorUncounted,
        Self::LpmPolicy,
        Self::LpmSource,
        Self::Translate,
    ];

    /// Its name in the object.
    const fn program(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Redirect => "redirect",
            Self::RedirectNeigh => "redirect_neigh",
            Self::Floor => "floor",
            Self::FloorUncounted => "floor_uncounted",
            Self::LpmPolicy => "lpm_policy",
            Self::LpmSource => "lpm_source",
            Self::Translate => "translate",
        }
    }

    /// Its name in tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Redirect => "redirect",
            Self::RedirectNeigh => "redirect_neigh",
            Self::Floor => "floor",
            Self::FloorUncounted => "floor, not counted",
            Self::LpmPolicy => "LPM {policy, destination}",
            Self::LpmSource => "LPM {source, destination}",
            Self::Translate => "one look-up and rewrite",
        }
    }
}

/// A translated connection: what the packets carry, and what their source becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) flow: crate::world::Flow,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// The programs.
pub(crate) struct References {
    ebpf: Ebpf,
    counts: PerCpuArray<MapData, [u64; 2]>,
}

/// What a trie has for what is local; gateways follow.
const LOCAL: u32 = 0;

impl References {
    /// Without any tables.
    pub(crate) fn empty() -> Result<Self> {
        Self::load(&[])
    }

    /// With the tables that this world needs; those of sources only if they are asked for.
    pub(crate) fn of(world: &World, by_source: bool) -> Result<Self> {
        let rules = |policy: usize| world.policies[policy].rules();
        let by_policy: usize = (0..world.policies.len())
            .map(|policy| rules(policy).count())
            .sum();
        let sources: usize = if by_source {
            world.pods.iter().map(|pod| rules(pod.policy).count()).sum()
        } else {
            1
        };
        let mut references = Self::load(&[
            ("PODS", world.pods.len()),
            ("COUNTS", world.pods.len().max(1024)),
            ("BY_POLICY", by_policy),
            ("BY_SOURCE", sources),
        ])?;
        let ebpf = &mut references.ebpf;
        let mut pods: HashMap<MapData, [u32; 2], [u32; 2]> = taken(ebpf, "PODS")?;
        let mut policies: lpm_trie::LpmTrie<MapData, [u32; 2], u32> = taken(ebpf, "BY_POLICY")?;
        let mut by_pod: lpm_trie::LpmTrie<MapData, [u32; 2], u32> = taken(ebpf, "BY_SOURCE")?;
        for policy in 0..world.policies.len() {
            let number = u32::try_from(policy)?;
            for (net, target) in rules(policy) {
                let key = key(number, &net)?;
                policies.insert(&key, verdict(target), 0)?;
            }
        }
        for (number, pod) in (0..).zip(&world.pods) {
            let source = word(pod.address)?;
            pods.insert([POD, source], [number, u32::try_from(pod.policy)?], 0)?;
            if by_source {
                for (net, target) in rules(pod.policy) {
                    by_pod.insert(&key(source, &net)?, verdict(target), 0)?;
                }
            }
        }
        Ok(references)
    }

    /// With these connections to translate.
    pub(crate) fn translating(connections: &[Connection]) -> Result<Self> {
        // An LRU map evicts before it is full.
        let mut references = Self::load(&[("CONNECTIONS", connections.len() * 2 + 1024)])?;
        let mut map: HashMap<MapData, [u32; 4], [u32; 2]> =
            taken(&mut references.ebpf, "CONNECTIONS")?;
        for connection in connections {
            let flow = connection.flow;
            let ports = u32::from(flow.source_port.to_be())
                | (u32::from(flow.destination_port.to_be()) << 16);
            let key = [word(flow.source)?, word(flow.destination)?, ports, 17];
            let value = [
                word(connection.address)?,
                u32::from(connection.port.to_be()),
            ];
            map.insert(key, value, 0)?;
        }
        Ok(references)
    }

    fn load(sizes: &[(&str, usize)]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global("UPLINK", &UPLINK, true);
        for (map, entries) in sizes {
            loader.map_max_entries(map, u32::try_from(*entries)?);
        }
        let mut ebpf = loader
            .load(OBJECT)
            .context("cannot load the reference programs")?;
        for reference in Reference::ALL {
            load(&mut ebpf, reference.program())?;
        }
        Ok(Self {
            counts: taken(&mut ebpf, "COUNTS")?,
            ebpf,
        })
    }

    /// One of them.
    pub(crate) fn program(&self, reference: Reference) -> Result<&SchedClassifier> {
        let program = self.ebpf.program(reference.program());
        Ok(program.context("no such program")?.try_into()?)
    }

    /// Attaches one of them to what comes in by an interface.
    pub(crate) fn attach(&mut self, reference: Reference, interface: &str) -> Result<()> {
        let program = self.ebpf.program_mut(reference.program());
        let program = program.context("no such program")?.try_into()?;
        attach(program, interface, TcAttachType::Ingress)
    }

    /// Packets that were counted at this place: a pod's, or a verdict's.
    pub(crate) fn counted(&self, at: u32) -> Result<u64> {
        let counts = self.counts.get(&at, 0)?;
        Ok(counts.iter().map(|count| count[0]).sum())
    }
}

/// Where a trie's answer is counted.
pub(crate) const fn verdict(target: Target) -> u32 {
    match target {
        Target::Local => LOCAL,
        Target::Gateway(number) => number + 1,
    }
}

/// A word that has to match wholly, before a prefix.
fn key(word: u32, net: &IpNet) -> Result<lpm_trie::Key<[u32; 2]>> {
    let length = 32 + u32::from(net.prefix_len());
    Ok(lpm_trie::Key::new(
        length,
        [word, self::word(net.network())?],
    ))
}

/// An IPv4 address as it is on the wire.
fn word(address: IpAddr) -> Result<u32> {
    match address {
        IpAddr::V4(address) => Ok(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => bail!("the reference programs know IPv4 alone, not {address}"),
    }
}
