//! The real programs in a network namespace of their own, one packet at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    panic,
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Pod, TestRun, TestRunOptions,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
    programs::{SchedClassifier, TcAttachType, tc},
};
use egress_common::{
    WireU16,
    counter::Answer,
    gateway::Settings,
    keys::{FragmentKey, PodKey, ReplyKey, ReplyPath},
    maps,
    pod::{Choice, FlowKey, Inbound, OwnFlow, OwnFlows, PodFacts, PodNote, UdpPorts},
};
use egress_userspace::{
    compile,
    diff::{self, Plan},
    kernel::{Capacities, CounterMaps, Datapath, LoadOptions, Paths, Program},
    resolve::Resolved,
    state::{KernelState, Limits, Names},
};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

use crate::client::Wire;

use super::{
    build::{HOST_MAC, hex},
    counts::{self, Counts, Slot},
    seed::{OTHER, POD, UPLINK},
};

/// Small maps, so that all of every counter map can be read after every packet.
const CAPACITIES: Capacities = Capacities {
    pods: 64,
    prefixes: 4096,
    verdicts: 4096,
    members: 1024,
    policies: 64,
    replies: 32_768,
    fragments: 256,
    nat_connections: 4096,
    inbound: 1024,
    flows: 1024,
};

/// Room for a frame: what the kernel takes is less than a page.
pub(super) const LARGEST: usize = 4096;

/// What a program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// `TC_ACT_UNSPEC`: the kernel goes on with the packet.
    Pass,
    /// `TC_ACT_SHOT`.
    Drop,
    /// `TC_ACT_REDIRECT`.
    Redirect,
    /// Anything else.
    Other(u32),
}

/// A packet with what the kernel keeps beside it.
#[derive(Clone, Debug)]
pub struct Input {
    /// Which program sees it.
    pub program: Program,
    /// The interface it comes in by.
    pub ifindex: u32,
    /// The frame.
    pub frame: Vec<u8>,
    /// `gso_size` and `gso_segs`.
    pub gso: (u32, u32),
    /// The mark that it carries.
    pub mark: u32,
}

impl Input {
    /// A frame from a pod.
    #[must_use]
    pub fn from_pod(frame: &[u8]) -> Self {
        Self {
            program: Program::FromPod,
            ifindex: POD,
            frame: frame.to_vec(),
            gso: (0, 0),
            mark: 0,
        }
    }

    /// A frame that the node hands to a pod.
    #[must_use]
    pub fn to_pod(frame: &[u8]) -> Self {
        Self {
            program: Program::ToPod,
            ..Self::from_pod(frame)
        }
    }

    /// The packet for a panic's message.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "{} on interface {}, gso {:?}, {} bytes: {}",
            self.program.name(),
            self.ifindex,
            self.gso,
            self.frame.len(),
            hex(&self.frame)
        )
    }
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What the program returned.
    pub action: Action,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The mark afterwards.
    pub mark: u32,
}

/// The programs, and what their maps should say.
pub struct Lab {
    paths: Paths,
    datapath: Datapath,
    counters: CounterMaps,
    replies: HashMap<MapData, ReplyKey, ReplyPath>,
    fragments: HashMap<MapData, FragmentKey, Choice>,
    reply_fragments: HashMap<MapData, FragmentKey, ReplyPath>,
    settings: Array<MapData, Settings>,
    answers: PerCpuArray<MapData, u64>,
    buckets: Array<MapData, u64>,
    flows: HashMap<MapData, FlowKey, Choice>,
    inbound: HashMap<MapData, ReplyKey, Inbound>,
    own_flows: Array<MapData, OwnFlows>,
    pod_notes: Array<MapData, PodNote>,
    pod_facts: Array<MapData, PodFacts>,
    last: Counts,
    limits: Limits,
    state: KernelState,
    names: Names,
    // Last, so that what is pinned goes when everything else has gone.
    _pins: Pins,
}

/// Runs `test` with a lab, on a thread whose network namespace nobody else is in.
pub fn with_lab(test: impl FnOnce(&mut Lab) + Send) {
    let outcome = thread::scope(|scope| {
        scope
            .spawn(|| {
                let mut lab =
                    Lab::new().unwrap_or_else(|error| panic!("no lab for packets: {error:#}"));
                test(&mut lab);
            })
            .join()
    });
    if let Err(panicked) = outcome {
        panic::resume_unwind(panicked);
    }
}

impl Lab {
    fn new() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "this loads eBPF programs and makes a network namespace: run it as root"
        );
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let host_mac = mac(HOST_MAC);
        for (name, index, peer, peer_index) in [
            ("pod", POD, "other", OTHER),
            ("uplink", UPLINK, "far", UPLINK + 10),
        ] {
            ip(&format!(
                "link add {name} index {index} address {host_mac} type veth peer name {peer} index {peer_index}"
            ))?;
        }
        let pins = Pins::new();
        let paths = Paths::new(&pins.0);
        let datapath = Datapath::load(&LoadOptions {
            paths: paths.clone(),
            capacities: CAPACITIES,
            attach_mode: None,
            debug_log: false,
        })?;
        Ok(Self {
            counters: CounterMaps::open(&paths)?,
            replies: open(&paths, maps::REPLIES)?,
            fragments: open(&paths, maps::FRAGMENTS)?,
            reply_fragments: open(&paths, maps::REPLY_FRAGMENTS)?,
            settings: open_map(&paths, maps::SETTINGS)?.try_into()?,
            answers: open_map(&paths, maps::ANSWER_COUNTS)?.try_into()?,
            buckets: open_map(&paths, maps::ANSWER_BUCKETS)?.try_into()?,
            flows: open(&paths, maps::FLOWS)?,
            inbound: open(&paths, maps::INBOUND)?,
            own_flows: open_array(&paths, maps::OWN_FLOWS)?,
            pod_notes: open_array(&paths, maps::POD_NOTES)?,
            pod_facts: open_array(&paths, maps::POD_FACTS)?,
            last: Counts::new(),
            paths,
            datapath,
            limits: Limits {
                pods: CAPACITIES.pods,
                prefixes: CAPACITIES.prefixes,
                verdicts: CAPACITIES.verdicts,
                members: CAPACITIES.members,
                policies: CAPACITIES.policies,
                ..Limits::default()
            },
            state: KernelState::default(),
            names: Names::default(),
            _pins: pins,
        })
    }

    /// Where the maps are pinned.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The programs and maps in the kernel.
    pub fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// Brings the live maps to what was resolved, change by change; `between` runs before each change.
    pub fn bring_to_stepwise(
        &mut self,
        resolved: &Resolved,
        mut between: impl FnMut(&mut Self, &Plan),
    ) {
        let desired = compile::compile(resolved, &self.limits)
            .unwrap_or_else(|error| panic!("cannot compile {resolved:#?}: {error}"));
        let plan = diff::plan(&self.state, &self.names, &desired, &self.limits)
            .unwrap_or_else(|error| panic!("cannot plan {resolved:#?}: {error}"));
        for change in &plan.changes {
            between(self, &plan);
            self.datapath
                .maps
                .carry_out(change)
                .unwrap_or_else(|error| panic!("cannot carry out {change:?}: {error:#}"));
        }
        self.names = plan.names;
        self.state = plan.after;
        for (_, id) in &plan.retired_members {
            self.counters.clear_member(*id).unwrap();
        }
        for (_, id) in &plan.retired_policies {
            self.counters.clear_policy(*id).unwrap();
        }
        let live = diff::trace(&self.datapath.maps).unwrap();
        assert!(
            same(&live, &self.state),
            "the live maps are not what was planned for {resolved:#?}"
        );
        self.last = self.read();
    }

    /// Brings the live maps to what was resolved.
    pub fn bring_to(&mut self, resolved: &Resolved) {
        self.bring_to_stepwise(resolved, |_, _| {});
    }

    /// What the live maps say, as last traced.
    #[must_use]
    pub fn state(&self) -> &KernelState {
        &self.state
    }

    /// What their numbers are called.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Has a program see what really arrives on the uplink, and gives the wire's other end.
    pub fn connect_uplink(&mut self, program: Program) -> Result<Wire> {
        for name in ["pod", "other", "uplink", "far"] {
            ip(&format!("link set {name} up"))?;
        }
        tc::qdisc_add_clsact("uplink")?;
        let program: &mut SchedClassifier = self
            .datapath
            .ebpf()
            .program_mut(program.name())
            .context("no such program")?
            .try_into()?;
        program.attach("uplink", TcAttachType::Ingress)?;
        Wire::open_here("far")
    }

    /// Runs one packet.
    pub fn run(&mut self, input: &Input) -> Result<Seen> {
        Ok(self.run_often(input, 1)?.0)
    }

    /// Runs one packet so often, each time as the run before left it, and tells how long a run took.
    pub fn run_often(&mut self, input: &Input, repeat: u32) -> Result<(Seen, Duration)> {
        let mut context = [0_u8; CONTEXT];
        for (offset, value) in [
            (MARK, input.mark),
            (IFINDEX, input.ifindex),
            (GSO_SIZE, input.gso.0),
            (GSO_SEGS, input.gso.1),
        ] {
            context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut out = vec![0; LARGEST];
        let mut context_out = [0_u8; CONTEXT];
        let program: &mut SchedClassifier = self
            .datapath
            .ebpf()
            .program_mut(input.program.name())
            .context("no such program")?
            .try_into()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(&input.frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            repeat,
            ..TestRunOptions::default()
        })?;
        out.truncate(usize::try_from(result.data_size_out)?);
        let seen = Seen {
            action: match result.return_value {
                u32::MAX => Action::Pass,
                2 => Action::Drop,
                7 => Action::Redirect,
                other => Action::Other(other),
            },
            frame: out,
            mark: u32::from_ne_bytes(context_out[MARK..MARK + 4].try_into()?),
        };
        Ok((seen, result.duration))
    }

    /// Every counter that moved since the last call.
    pub fn moved(&mut self) -> Counts {
        let now = self.read();
        let added = counts::added(&self.last, &now);
        self.last = now;
        added
    }

    fn read(&self) -> Counts {
        // Ids are given out from below, so what is beyond the known ones by some is beyond all.
        let members = self.names.members.iter().map(|(_, id)| *id).max();
        let policies = self.names.policies.values().copied().max();
        let mut counts = counts::read(
            &self.counters,
            &self.names,
            (members.unwrap_or(0) + 4).min(CAPACITIES.members),
            (policies.unwrap_or(0) + 4).min(CAPACITIES.policies),
        );
        for answer in Answer::ALL.iter().copied() {
            let sent = self.answers.get(&(answer as u32), 0).unwrap().iter().sum();
            if sent != 0 {
                counts.insert(Slot::Answer(answer), (sent, 0));
            }
        }
        counts
    }

    /// What the node is told.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings.get(&0, 0).unwrap()
    }

    /// Tells the node.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings.set(0, settings, 0).unwrap();
    }

    /// The recorded connections.
    #[must_use]
    pub fn replies(&self) -> BTreeMap<ReplyKey, ReplyPath> {
        self.replies.iter().map(|entry| entry.unwrap()).collect()
    }

    /// How many datagrams are remembered for their fragments: from pods, and of replies.
    #[must_use]
    pub fn fragments(&self) -> (usize, usize) {
        (
            self.fragments.keys().count(),
            self.reply_fragments.keys().count(),
        )
    }

    /// The connections that came in, and whether each is answered.
    #[must_use]
    pub fn inbound(&self) -> BTreeMap<ReplyKey, bool> {
        let entries = self.inbound.iter().map(|entry| entry.unwrap());
        entries
            .map(|(key, entry)| (key, entry.answered != 0))
            .collect()
    }

    /// The flows that stay on their gateway.
    #[must_use]
    pub fn flows(&self) -> BTreeMap<FlowKey, Choice> {
        self.flows.iter().map(|entry| entry.unwrap()).collect()
    }

    /// Forgets all flows of groups, as a full table would some.
    pub fn forget_flows(&mut self) {
        clear(&mut self.flows);
    }

    /// Forgets the connections that came in, as a full table would some.
    pub fn forget_inbound(&mut self) {
        clear(&mut self.inbound);
    }

    /// Names UDP ports on which connections may come in to the pod with this address.
    pub fn name_udp_ports(&mut self, address: IpAddr, ports: &[u16]) {
        let mut udp = UdpPorts {
            count: ports.len().try_into().unwrap(),
            ..UdpPorts::default()
        };
        for (place, port) in udp.ports.iter_mut().zip(ports) {
            *place = WireU16::new(*port);
        }
        self.set_facts(address, |facts| facts.udp = udp);
    }

    /// Says how large a packet the interface of the pod with this address takes, in bytes of IP.
    pub fn set_pod_mtu(&mut self, address: IpAddr, mtu: u32) {
        self.set_facts(address, |facts| facts.mtu = mtu);
    }

    fn set_facts(&mut self, address: IpAddr, set: impl FnOnce(&mut PodFacts)) {
        let slot = self.slot(address);
        let mut facts = self.pod_facts.get(&slot, 0).unwrap();
        set(&mut facts);
        self.pod_facts.set(slot, facts, 0).unwrap();
    }

    /// Whether a connection ever came in to the pod with this address.
    #[must_use]
    pub fn has_inbound(&self, address: IpAddr) -> bool {
        let slot = self.slot(address);
        self.pod_notes.get(&slot, 0).unwrap().inbound != 0
    }

    fn slot(&self, address: IpAddr) -> u32 {
        let pod = PodKey {
            ifindex: POD,
            addr: address.into(),
        };
        self.state.pods[&pod]
    }

    /// Lets so many seconds pass for every connection that came in, and for the flows that pods started, as far
    /// as `own` has them, with their buckets.
    pub fn age(&mut self, seconds: u32, own: &[ReplyKey]) {
        let nanoseconds = u64::from(seconds) * 1_000_000_000;
        let keys: Vec<ReplyKey> = self.inbound.keys().map(|key| key.unwrap()).collect();
        for key in keys {
            let mut entry = self.inbound.get(&key, 0).unwrap();
            entry.last_seen = entry.last_seen.saturating_sub(nanoseconds);
            self.inbound.insert(key, entry, 0).unwrap();
        }
        let mut aged = BTreeSet::new();
        for key in own {
            let flow = OwnFlow::new(key);
            let mut known = self.own_flows.get(&flow.bucket, 0).unwrap();
            if aged.insert(flow.bucket) {
                known.crowded = known.crowded.saturating_sub(seconds.into());
            }
            for word in known.flows.iter_mut().filter(|word| flow.is(**word)) {
                let [second, _] = halves(*word);
                *word = flow.word(second.wrapping_sub(seconds));
            }
            self.own_flows.set(flow.bucket, known, 0).unwrap();
        }
    }

    /// Forgets connections, fragments, how many answers anybody had, and what is known of pods; but not
    /// the flows that pods started, of which nobody has a list.
    pub fn forget(&mut self) {
        for bucket in 0..self.buckets.len() {
            if self.buckets.get(&bucket, 0).unwrap() != 0 {
                self.buckets.set(bucket, 0, 0).unwrap();
            }
        }
        clear(&mut self.replies);
        clear(&mut self.fragments);
        clear(&mut self.reply_fragments);
        clear(&mut self.flows);
        clear(&mut self.inbound);
        for slot in 0..CAPACITIES.pods {
            self.pod_notes.set(slot, PodNote::default(), 0).unwrap();
            self.pod_facts.set(slot, PodFacts::default(), 0).unwrap();
        }
    }
}

/// The lower and the upper half of a word.
fn halves(word: u64) -> [u32; 2] {
    let b = word.to_le_bytes();
    [
        u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    ]
}

/// Whether two states say the same. How much room a row was given beyond what it needs cannot be read back.
fn same(a: &KernelState, b: &KernelState) -> bool {
    let cells = |state: &KernelState| -> BTreeMap<u32, _> {
        let rows = state.rows.iter();
        rows.map(|(line, row)| (*line, row.cells.clone())).collect()
    };
    a.pods == b.pods
        && a.slots == b.slots
        && a.prefixes == b.prefixes
        && a.blocks == b.blocks
        && a.members == b.members
        && a.slot_tables == b.slot_tables
        && cells(a) == cells(b)
}

/// Offsets within `struct __sk_buff`, and its length (`linux/bpf.h`).
const MARK: usize = 8;
pub(super) const IFINDEX: usize = 40;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;
pub(super) const CONTEXT: usize = 192;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A pin directory that is removed whatever happens.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("/sys/fs/bpf/egress-test-{}-{number}", process::id()).into())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // What was never made need not be removed.
        drop(fs::remove_dir_all(&self.0));
    }
}

fn open<K: Pod, V: Pod>(paths: &Paths, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(open_map(paths, name)?.try_into()?)
}

fn open_map(paths: &Paths, name: &str) -> Result<Map> {
    Ok(Map::from_map_data(MapData::from_pin(paths.map(name))?)?)
}

fn open_array<V: Pod>(paths: &Paths, name: &str) -> Result<Array<MapData, V>> {
    Ok(open_map(paths, name)?.try_into()?)
}

fn clear<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = map.keys().map(|key| key.unwrap()).collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}

/// Runs `ip` in the calling thread's namespace.
fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("cannot run ip: install iproute2")?;
    if !output.status.success() {
        bail!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
