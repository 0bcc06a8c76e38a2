//! From the embedded object to programs and pinned maps in the kernel.

mod demand;

use std::{collections::BTreeSet, fs::File};

use anyhow::{Context, anyhow, bail, ensure};
use aya::{Ebpf, EbpfLoader, maps::MapInfo, programs::SchedClassifier};
use aya_log::EbpfLogger;
use egress_common::{
    Addr, DropReason,
    counter::PASS_KINDS,
    gateway::GatewayId,
    keys::PodKey,
    maps::{self, capacity},
    table::{self, WAYS},
};
use nix::{
    fcntl::Flock,
    sys::{
        resource::{Resource, setrlimit},
        utsname::uname,
    },
};

pub(super) use demand::classifier;
use demand::named;

use super::{
    attach::{AttachMode, Attachments},
    generation::{self, Old},
    held::Held,
    maps::Maps,
    member_counts,
    object::{NAT_SWEEP, OBJECT, PROBE, Program},
    paths::Paths,
    segments, trie,
};

/// The largest array that the kernel is asked for: above it, sizes no longer fit its 32-bit arithmetic.
const LARGEST: u32 = 1 << 24;

/// The oldest kernel on which everything works: `bpf_redirect_neigh` came with it (kernel commit b4ab31414970).
const OLDEST_KERNEL: (u32, u32) = (5, 10);

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
    /// Elements of each map whose size can be chosen, with the flag that chooses it. Those of tables of flows are
    /// buckets.
    fn entries(&self) -> anyhow::Result<Vec<(&'static str, &'static str, u32)>> {
        let reasons = self.policies.checked_mul(DropReason::COUNT);
        let kinds = self.policies.checked_mul(PASS_KINDS);
        let (Some(reasons), Some(kinds)) = (reasons, kinds) else {
            bail!("--max-policies {} is too large", self.policies);
        };
        let fragments = table::buckets(self.fragments);
        let Some(counted) = self.members.checked_mul(member_counts::cpus()?) else {
            bail!("--max-members {} is too large", self.members);
        };
        let with_ways = self.members.saturating_add(capacity::WAYS);
        Ok(vec![
            (maps::PODS, "--max-pods", self.pods),
            (maps::POD_STATE, "--max-pods", self.pods),
            (maps::POD_PLACES, "--max-pods", self.pods),
            (maps::POD_NOTES, "--max-pods", self.pods),
            (maps::POD_FACTS, "--max-pods", self.pods),
            (maps::INTERFACES, "--max-pods", self.pods),
            (maps::LOCALS4, "--max-prefixes", self.prefixes),
            (maps::LOCALS6, "--max-prefixes", self.prefixes),
            (maps::VERDICTS, "--max-verdicts", self.verdicts),
            (maps::SHORTCUTS, "--max-verdicts", self.verdicts.div_ceil(2)),
            (maps::MEMBERS, "--max-members", with_ways),
            (maps::MEMBER_COUNTS, "--max-members", counted),
            (maps::DROP_COUNTS, "--max-policies", reasons),
            (maps::PASS_COUNTS, "--max-policies", kinds),
            (maps::REPLIES, "--max-replies", table::buckets(self.replies)),
            (maps::FRAGMENTS, "--max-fragments", fragments),
            (maps::REPLY_FRAGMENTS, "--max-fragments", fragments),
            (maps::NAT_FRAGMENTS, "--max-fragments", fragments),
            (maps::NAT_OUT, "--nat-connections", self.nat_connections),
            (maps::NAT_BACK, "--nat-connections", self.nat_connections),
            (maps::INBOUND, "--max-inbound", table::buckets(self.inbound)),
            (maps::FLOWS, "--max-flows", table::buckets(self.flows)),
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
    paths: Paths,
    /// The maps, however long their pins last.
    held: Held,
    /// The generation of maps whose programs are still at work.
    old: Option<Old>,
    /// Whoever else would pin in the same place, or remove what is pinned, has to wait.
    lock: Flock<File>,
}

impl Datapath {
    /// Loads the object and takes over the maps of an earlier run, or makes them.
    ///
    /// Nothing is attached yet; what an earlier run has attached keeps working. Of the programs that are attached the
    /// kernel verifies one, that of pods: the others once they are needed ([`Self::require`]).
    ///
    /// # Errors
    /// Something is missing that the programs need; where the kernel is older than any that has it all, the error
    /// says just that. Only what was tried decides: a release is no proof, since distributions add features to old ones.
    pub fn load(options: &LoadOptions) -> anyhow::Result<Self> {
        Self::try_load(options).map_err(|error| {
            let release = uname().map(|names| names.release().to_string_lossy().into_owned());
            match release.ok().as_deref().and_then(too_old) {
                Some(sentence) => {
                    tracing::debug!(error = format!("{error:#}"), "what this kernel lacks");
                    anyhow!(sentence)
                }
                None => error,
            }
        })
    }

    fn try_load(options: &LoadOptions) -> anyhow::Result<Self> {
        let lock = options.paths.prepare()?;
        let entries = options.capacities.entries()?;
        check_capacities(&options.paths, &entries)?;
        let old = generation::begin(&options.paths, &entries)?;
        raise_memlock_limit();
        segments::make_outer(&options.paths)?;
        trie::make_outer(&options.paths)?;
        let log = u8::from(options.debug_log);
        let mut loader = EbpfLoader::new();
        loader.override_global("LOG", &log, true);
        for (map, _, count) in &entries {
            loader.map_max_entries(map, *count);
            if let Some((_, constant)) = maps::TABLES.iter().find(|(table, _)| table == map) {
                loader.override_global(constant, count, true);
            }
        }
        loader.override_global("MEMBERS_COUNTED", &options.capacities.members, true);
        loader.override_global("WAYS_FROM", &options.capacities.members, true);
        for map in maps::ALL {
            loader.map_pin_path(map, options.paths.map(map));
        }
        let mut ebpf = loader.load(OBJECT).context(
            "cannot load the eBPF object: a kernel of 5.10 or later with CONFIG_BPF_SYSCALL and BTF, \
             and CAP_BPF with CAP_NET_ADMIN (or root), are needed",
        )?;
        // The largest of all, whose kernel takes the others as well: whoever starts on another is told at once.
        demand::load(&mut ebpf, &[Program::FromPod.name(), NAT_SWEEP, PROBE])?;
        let mut maps = Maps::open(&options.paths)?;
        maps.repair()?;
        let attachments = Attachments::new(options.paths.clone(), options.attach_mode)?;
        let mut held = Held::default();
        for map in maps::ALL {
            held.hold(&options.paths.map(map))?;
        }
        let mut datapath = Self {
            maps,
            attachments,
            ebpf,
            debug_log: options.debug_log,
            paths: options.paths.clone(),
            held,
            old,
            lock,
        };
        datapath.hold_segments()?;
        Ok(datapath)
    }

    /// Has the kernel verify those of these programs that it has not yet: several at a time, where there are several.
    ///
    /// What is attached needs no such call. It is for whoever may not wait between two that are attached.
    ///
    /// # Errors
    /// The kernel's verifier refuses one.
    pub fn require(&mut self, programs: impl IntoIterator<Item = Program>) -> anyhow::Result<()> {
        let programs: BTreeSet<Program> = programs.into_iter().collect();
        let names: Vec<_> = programs.into_iter().map(Program::name).collect();
        demand::load(&mut self.ebpf, &names)
    }

    /// A program, loaded.
    ///
    /// # Errors
    /// The kernel's verifier refuses it.
    pub fn program(&mut self, program: Program) -> anyhow::Result<&mut SchedClassifier> {
        classifier(&mut self.ebpf, program)
    }

    /// Holds the segments that are new, and lets go of those that were given back.
    ///
    /// # Errors
    /// One has lost its pin before it was held.
    pub fn hold_segments(&mut self) -> anyhow::Result<()> {
        let there = self.maps.segment_pins();
        self.held
            .retain(|path| !self.paths.is_segment(path) || there.contains_key(path));
        for (path, object) in there {
            // Something else may have removed the pin already.
            if !self.held.holds(&path) {
                self.held.hold_open(path, object)?;
            }
        }
        Ok(())
    }

    /// Whether programs of an earlier run are at work with maps of their own, until the new ones are filled.
    #[must_use]
    pub fn is_switching(&self) -> bool {
        self.old.is_some()
    }

    /// The pods of the programs that are still at work with maps of their own, if there are any.
    #[must_use]
    pub fn earlier_pods(&self) -> Option<Vec<(PodKey, u32)>> {
        self.old.as_ref().map(Old::pods)
    }

    /// The egress addresses of such programs.
    #[must_use]
    pub fn earlier_egress_addresses(&self) -> Vec<Addr> {
        self.old
            .as_ref()
            .map(Old::egress_addresses)
            .unwrap_or_default()
    }

    /// The gateways of this node that nothing gets out by, as such programs were told.
    #[must_use]
    pub fn earlier_down_gateways(&self) -> Vec<GatewayId> {
        self.old
            .as_ref()
            .map(Old::down_gateways)
            .unwrap_or_default()
    }

    /// Prepares the maps, which are filled, for programs that are swapped from now on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn begin_switch(&self) -> anyhow::Result<()> {
        let Some(old) = &self.old else {
            return Ok(());
        };
        old.carry_notes(&self.paths)?;
        old.begin_switch(&self.paths)
    }

    /// Lets go of the maps of programs that have been swapped; what these learned meanwhile is carried over.
    ///
    /// # Errors
    /// The kernel refuses: they are let go by the next start.
    pub fn end_switch(&mut self) -> anyhow::Result<()> {
        let Some(old) = self.old.take() else {
            return Ok(());
        };
        self.maps.grace()?;
        old.carry_notes(&self.paths)?;
        old.end_switch(&self.paths)
    }

    /// Pins again what something else has unpinned, maps and links alike, and says how many those were.
    ///
    /// # Errors
    /// The kernel refuses, or another agent has taken the place of the directory.
    pub fn restore_pins(&mut self) -> anyhow::Result<usize> {
        self.paths.make_again(&mut self.lock)?;
        let held = self.hold_segments();
        let restored = self.held.restore()? + self.attachments.restore_pins()?;
        held.map(|()| restored)
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

/// Lets this process have as many maps as it likes; the limit stays raised when the right to raise it is given up.
///
/// Before 5.11 maps are charged to it (kernel commit 755e5d55367a).
pub fn raise_memlock_limit() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX) {
        tracing::debug!(%error, "cannot raise RLIMIT_MEMLOCK; only kernels before 5.11 need it");
    }
}

/// What to say of a kernel that is older than the oldest on which everything works.
fn too_old(release: &str) -> Option<String> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().ok());
    let version = (numbers.next()??, numbers.next()??);
    (version < OLDEST_KERNEL).then(|| {
        let (major, minor) = OLDEST_KERNEL;
        format!(
            "this node's kernel is {release}, and the programs need Linux {major}.{minor} or later: boot a newer \
             kernel, or keep gateways and steered pods off this node"
        )
    })
}

fn check_capacities(paths: &Paths, entries: &[(&str, &str, u32)]) -> anyhow::Result<()> {
    for (map, flag, count) in entries {
        ensure!(
            (1..=LARGEST).contains(count),
            "{flag} makes {count} entries of the map {map}: it must have between 1 and {LARGEST}"
        );
        let path = paths.map(map);
        // What is filled from the desired state can be filled anew in another size.
        if !path.exists() || maps::FILLED.contains(map) {
            continue;
        }
        let is_table = maps::TABLES.iter().any(|(table, _)| table == map);
        let ways = if is_table { WAYS } else { 1 };
        let cpus = if *map == maps::MEMBER_COUNTS {
            member_counts::cpus()? as usize
        } else {
            1
        };
        let pinned = MapInfo::from_pin(&path)
            .with_context(|| format!("cannot look at the pinned map {}", path.display()))?
            .max_entries() as usize;
        let count = *count as usize;
        ensure!(
            pinned == count,
            "the map {map} is in the kernel with {} entries, and {flag} asks for {}: keep \
             the old size, or remove the maps with `egress detach --pin-dir {}` first (traffic is \
             not steered until the next start)",
            pinned * ways / cpus,
            count * ways / cpus,
            paths.root().display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_too_old_is_told_in_one_sentence() {
        for (release, expected) in [
            ("4.19.0-27-amd64", true),
            ("5.4.0-216-generic", true),
            ("5.9", true),
            ("5.10.0-46-cloud-amd64", false),
            ("6.1.0-41-amd64", false),
            ("10.0.0", false),
            ("unreadable", false),
        ] {
            let said = too_old(release);
            assert_eq!(said.is_some(), expected, "{release}: {said:?}");
            assert!(
                said.is_none_or(|said| said.contains(release) && said.contains("5.10")),
                "{release}"
            );
        }
    }
}
