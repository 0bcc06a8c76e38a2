//! From the embedded object to programs and pinned maps in the kernel.

use std::fs::File;

use anyhow::{Context, bail, ensure};
use aya::{Ebpf, EbpfLoader, maps::MapInfo, programs::SchedClassifier};
use aya_log::EbpfLogger;
use egress_common::{
    DropReason,
    counter::PASS_KINDS,
    maps::{self, capacity},
};
use nix::{
    fcntl::Flock,
    sys::resource::{Resource, setrlimit},
};

use super::{
    attach::{AttachMode, Attachments},
    maps::Maps,
    object::{NAT_SWEEP, OBJECT, PROBE, Program},
    paths::Paths,
    segments,
};

/// The largest array that the kernel is asked for: above it, sizes no longer fit its 32-bit arithmetic.
const LARGEST: u32 = 1 << 24;

/// Capacities of the maps, in entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Source pods, an entry for each address.
    pub pods: u32,
    /// Distinct prefixes of one family.
    pub prefixes: u32,
    /// Verdicts of all policies.
    pub verdicts: u32,
    /// Members of all groups.
    pub members: u32,
    /// Policies that are counted.
    pub policies: u32,
    /// Recorded connections.
    pub replies: u32,
    /// Datagrams in fragments.
    pub fragments: u32,
    /// Connections that this node translates.
    pub nat_connections: u32,
    /// Connections that came in to pods.
    pub inbound: u32,
    /// Flows that stay on the gateway of a group.
    pub flows: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            pods: capacity::PODS,
            prefixes: capacity::PREFIXES,
            verdicts: capacity::VERDICTS,
            members: capacity::MEMBERS,
            policies: capacity::POLICIES,
            replies: capacity::REPLIES,
            fragments: capacity::FRAGMENTS,
            nat_connections: capacity::NAT,
            inbound: capacity::INBOUND,
            flows: capacity::FLOWS,
        }
    }
}

impl Capacities {
    /// Entries of each map whose size can be chosen, with the flag that chooses it.
    fn entries(&self) -> anyhow::Result<Vec<(&'static str, &'static str, u32)>> {
        let reasons = self.policies.checked_mul(DropReason::COUNT);
        let kinds = self.policies.checked_mul(PASS_KINDS);
        let (Some(reasons), Some(kinds)) = (reasons, kinds) else {
            bail!("--max-policies {} is too large", self.policies);
        };
        Ok(vec![
            (maps::PODS, "--max-pods", self.pods),
            (maps::POD_STATE, "--max-pods", self.pods),
            (maps::POD_PLACES, "--max-pods", self.pods),
            (maps::POD_NOTES, "--max-pods", self.pods),
            (maps::POD_FACTS, "--max-pods", self.pods),
            (maps::PREFIXES4, "--max-prefixes", self.prefixes),
            (maps::PREFIXES6, "--max-prefixes", self.prefixes),
            (maps::VERDICTS, "--max-verdicts", self.verdicts),
            (maps::MEMBERS, "--max-members", self.members),
            (maps::MEMBER_COUNTS, "--max-members", self.members),
            (maps::DROP_COUNTS, "--max-policies", reasons),
            (maps::PASS_COUNTS, "--max-policies", kinds),
            (maps::REPLIES, "--max-replies", self.replies),
            (maps::FRAGMENTS, "--max-fragments", self.fragments),
            (maps::REPLY_FRAGMENTS, "--max-fragments", self.fragments),
            (maps::NAT_FRAGMENTS, "--max-fragments", self.fragments),
            (maps::NAT_OUT, "--nat-connections", self.nat_connections),
            (maps::NAT_BACK, "--nat-connections", self.nat_connections),
            (maps::INBOUND, "--max-inbound", self.inbound),
            (maps::FLOWS, "--max-flows", self.flows),
        ])
    }
}

/// What the programs log, as events of `tracing`.
pub type ProgramLog = EbpfLogger<&'static dyn log::Log>;

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where to pin.
    pub paths: Paths,
    /// Sizes of the maps.
    pub capacities: Capacities,
    /// By which mechanism to attach; none probes.
    pub attach_mode: Option<AttachMode>,
    /// Whether the programs log what they drop.
    pub debug_log: bool,
}

/// The programs and maps in the kernel.
pub struct Datapath {
    /// The live maps.
    pub maps: Maps,
    /// Which program is attached where.
    pub attachments: Attachments,
    ebpf: Ebpf,
    debug_log: bool,
    /// Whoever else would pin in the same place, or remove what is pinned, has to wait.
    _lock: Flock<File>,
}

impl Datapath {
    /// Loads the programs and takes over the maps of an earlier run, or makes them.
    ///
    /// Nothing is attached yet; what an earlier run has attached keeps working.
    pub fn load(options: &LoadOptions) -> anyhow::Result<Self> {
        let lock = options.paths.prepare()?;
        let entries = options.capacities.entries()?;
        check_capacities(&options.paths, &entries)?;
        // Before 5.11 maps are charged to this limit (kernel commit 755e5d55367a).
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX) {
            tracing::debug!(%error, "cannot raise RLIMIT_MEMLOCK; only kernels before 5.11 need it");
        }
        segments::make_outer(&options.paths)?;
        let log = u8::from(options.debug_log);
        let mut loader = EbpfLoader::new();
        loader.override_global("LOG", &log, true);
        for (map, _, count) in &entries {
            loader.map_max_entries(map, *count);
        }
        for map in maps::ALL {
            loader.map_pin_path(map, options.paths.map(map));
        }
        let mut ebpf = loader.load(OBJECT).context(
            "cannot load the eBPF object: a kernel of 5.10 or later with CONFIG_BPF_SYSCALL and BTF, \
             and CAP_BPF with CAP_NET_ADMIN (or root), are needed",
        )?;
        let attached = Program::ALL.iter().map(|program| program.name());
        for name in attached.chain([NAT_SWEEP, PROBE]) {
            named(&mut ebpf, name)?
                .load()
                .with_context(|| format!("the kernel's verifier refuses the program {name}"))?;
        }
        let mut maps = Maps::open(&options.paths)?;
        maps.repair()?;
        let attachments = Attachments::new(&mut ebpf, options.paths.clone(), options.attach_mode)?;
        Ok(Self {
            maps,
            attachments,
            ebpf,
            debug_log: options.debug_log,
            _lock: lock,
        })
    }

    /// The log of the programs, if they were loaded to write one.
    ///
    /// Whoever has it flushes it when its descriptor is readable; each message becomes an event at info.
    pub fn log(&mut self) -> anyhow::Result<Option<ProgramLog>> {
        if !self.debug_log {
            return Ok(None);
        }
        let logger = EbpfLogger::init(&mut self.ebpf).context("cannot open the programs' log")?;
        Ok(Some(logger))
    }

    /// The loaded object, for tests that run its programs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// The program that removes ended connections, to be run with keys of `NAT_BACK`.
    ///
    /// # Errors
    /// The embedded object has none: it is not this version's.
    pub fn nat_sweep(&mut self) -> anyhow::Result<&mut SchedClassifier> {
        named(&mut self.ebpf, NAT_SWEEP)
    }

    /// The program that probes gateways on other nodes, to be run with a frame for each.
    ///
    /// # Errors
    /// The embedded object has none: it is not this version's.
    pub fn probe(&mut self) -> anyhow::Result<&mut SchedClassifier> {
        named(&mut self.ebpf, PROBE)
    }

    /// The attachments, together with the programs that they attach.
    pub fn attaching(&mut self) -> (&mut Attachments, &mut Ebpf) {
        (&mut self.attachments, &mut self.ebpf)
    }
}

/// The loaded program of that name.
pub(super) fn classifier(
    ebpf: &mut Ebpf,
    program: Program,
) -> anyhow::Result<&mut SchedClassifier> {
    named(ebpf, program.name())
}

fn named<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut SchedClassifier> {
    ebpf.program_mut(name)
        .with_context(|| format!("the embedded object has no program {name}"))?
        .try_into()
        .with_context(|| format!("{name} is not a TC program"))
}

fn check_capacities(paths: &Paths, entries: &[(&str, &str, u32)]) -> anyhow::Result<()> {
    for (map, flag, count) in entries {
        ensure!(
            (1..=LARGEST).contains(count),
            "{flag} makes {count} entries of the map {map}: it must have between 1 and {LARGEST}"
        );
        let path = paths.map(map);
        if !path.exists() {
            continue;
        }
        let pinned = MapInfo::from_pin(&path)
            .with_context(|| format!("cannot look at the pinned map {}", path.display()))?
            .max_entries();
        ensure!(
            pinned == *count,
            "the map {map} is in the kernel with {pinned} entries, and {flag} asks for {count}: keep \
             the old size, or remove the maps with `egress detach --pin-dir {}` first (traffic is \
             not steered until the next start)",
            paths.root().display()
        );
    }
    Ok(())
}
