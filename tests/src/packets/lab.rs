//! The real programs in a network namespace of their own, one packet at a time.

mod pins;
mod shared;
mod tables;

use std::{collections::BTreeMap, fs, panic, process::Command, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    maps::{Array, MapData, PerCpuArray},
    programs::{
        SchedClassifier, TcAttachType,
        tc::{self, SchedClassifierLinkId},
    },
};
use egress_common::{
    counter::Answer,
    gateway::Settings,
    maps,
    nat::{NAT_RECENT, NatOutKey, recent_lines, recent_sum},
    pod::{OwnFlows, PodFacts, PodNote},
    verdict::{Decision, Member},
};
use egress_userspace::{
    compile,
    diff::{self, Plan},
    kernel::{Capacities, CounterMaps, Datapath, LoadOptions, Paths, Program},
    resolve::Resolved,
    state::{KernelState, Limits, Local, Names},
    translation,
};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

use crate::{client::Wire, machine};

use self::pins::Pins;
use super::{
    build::HOST_MAC,
    counts::{self, Counts, Slot},
    pinned::{Table, open},
    seed::{OTHER, POD, UPLINK, net},
    test_run::{Input, Seen, test_run, test_run_summed},
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
    inbound: 4096,
    flows: 8192,
};

/// The programs, and what their maps should say.
pub struct Lab {
    paths: Paths,
    datapath: Datapath,
    counters: CounterMaps,
    replies: Table,
    fragments: Table,
    reply_fragments: Table,
    settings: Array<MapData, Settings>,
    answers: PerCpuArray<MapData, u64>,
    buckets: Array<MapData, u64>,
    flows: Table,
    inbound: Table,
    own_flows: Array<MapData, OwnFlows>,
    pod_notes: Array<MapData, PodNote>,
    pod_facts: Array<MapData, PodFacts>,
    answers_forgotten: Vec<u64>,
    last: Counts,
    limits: Limits,
    state: KernelState,
    names: Names,
    /// What is attached to an interface.
    connected: BTreeMap<&'static str, (Program, SchedClassifierLinkId)>,
    // Last, so that what is pinned goes when everything else has gone.
    pins: Pins,
}

/// Runs `test` with a lab, on a thread whose network namespace nobody else is in.
pub fn with_lab(test: impl FnOnce(&mut Lab) + Send) {
    if machine::report().is_some() {
        return shared::with_lab(test);
    }
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
    /// Loads the programs, in a network namespace that the calling thread is in from now on.
    pub(crate) fn new() -> Result<Self> {
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
        let paths = Paths::new(pins.path());
        let datapath = Datapath::load(&LoadOptions {
            paths: paths.clone(),
            capacities: CAPACITIES,
            attach_mode: None,
            debug_log: false,
        })?;
        Ok(Self {
            connected: BTreeMap::new(),
            counters: CounterMaps::open(&paths)?,
            replies: Table::open(&paths, maps::REPLIES)?,
            fragments: Table::open(&paths, maps::FRAGMENTS)?,
            reply_fragments: Table::open(&paths, maps::REPLY_FRAGMENTS)?,
            settings: open(&paths, maps::SETTINGS)?,
            answers: open(&paths, maps::ANSWER_COUNTS)?,
            buckets: open(&paths, maps::ANSWER_BUCKETS)?,
            flows: Table::open(&paths, maps::FLOWS)?,
            inbound: Table::open(&paths, maps::INBOUND)?,
            own_flows: open(&paths, maps::OWN_FLOWS)?,
            pod_notes: open(&paths, maps::POD_NOTES)?,
            pod_facts: open(&paths, maps::POD_FACTS)?,
            answers_forgotten: Vec::new(),
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
            pins,
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

    /// Has the programs forget what packets of these connections became a moment ago: they are changed by hand.
    pub fn forget_recent(&mut self, keys: impl IntoIterator<Item = NatOutKey>) -> Result<()> {
        let map = self.datapath.ebpf().map_mut(NAT_RECENT);
        let map = map.context("no map of recent packets")?;
        let mut lines: Array<&mut MapData, [u64; 8]> = map.try_into()?;
        for key in keys {
            for line in recent_lines(recent_sum(&key.recent())) {
                lines.set(line, [0; 8], 0)?;
            }
        }
        Ok(())
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
        self.check_shortcuts().unwrap();
        self.last = self.read();
    }

    /// Looks whether shortcuts say what verdicts and members say.
    fn check_shortcuts(&self) -> Result<()> {
        for (base, block) in &self.state.blocks {
            for (index, verdict) in (*base..).zip(block) {
                let wanted = match verdict.decode() {
                    Some(Decision::Member(id)) => self
                        .state
                        .members
                        .get(&id)
                        .map(|member| (member.uncounted(), member.counter)),
                    _ => None,
                };
                let found = self.datapath.maps.shortcut(index)?;
                ensure!(
                    found == wanted,
                    "the shortcut of {index} says {found:?}, and its verdict {verdict:?} {wanted:?}"
                );
            }
        }
        Ok(())
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

    /// Writes a member in place, and what verdicts say of it.
    ///
    /// # Errors
    /// If the maps cannot be written.
    pub fn write_member(&mut self, id: u32, member: &Member) -> Result<()> {
        let maps = &mut self.datapath.maps;
        maps.write_member(id, member)?;
        for (base, block) in &self.state.blocks {
            for (index, verdict) in (*base..).zip(block) {
                if verdict.decode() == Some(Decision::Member(id)) {
                    maps.write_verdicts(index, &[*verdict])?;
                }
            }
        }
        Ok(())
    }

    /// What there is room for.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Has rows be sparse that would take so many lines as dense ones.
    pub const fn sparse_from(&mut self, lines: u32) {
        self.limits.sparse_from = lines;
    }

    /// What their numbers are called.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Has a program see what really arrives on the uplink, and gives the wire's other end.
    pub fn connect_uplink(&mut self, program: Program) -> Result<Wire> {
        self.connect(program, "uplink", "far")
    }

    /// Has `egress_from_pod` see what really arrives from pods, and gives the wire's other end.
    pub fn connect_pod(&mut self) -> Result<Wire> {
        self.connect(Program::FromPod, "pod", "other")
    }

    fn connect(
        &mut self,
        program: Program,
        interface: &'static str,
        end: &'static str,
    ) -> Result<Wire> {
        for name in ["pod", "other", "uplink", "far"] {
            ip(&format!("link set {name} up"))?;
        }
        match self.connected.remove(interface) {
            // By a test before, where all share one lab.
            Some((before, link)) => self.program_mut(before)?.detach(link)?,
            None => tc::qdisc_add_clsact(interface)?,
        }
        let link = self
            .program_mut(program)?
            .attach(interface, TcAttachType::Ingress)?;
        self.connected.insert(interface, (program, link));
        Wire::open_here(end)
    }

    fn program_mut(&mut self, program: Program) -> Result<&mut SchedClassifier> {
        self.datapath.program(program)
    }

    /// Has the uplink forward, so that the kernel's routes are asked.
    pub fn forward(&mut self) -> Result<()> {
        for name in ["uplink", "far"] {
            ip(&format!("link set {name} up"))?;
        }
        for family in ["ipv4", "ipv6"] {
            let path = format!("/proc/sys/net/{family}/conf/uplink/forwarding");
            fs::write(&path, "1").with_context(|| format!("cannot write {path}"))?;
        }
        // Without any address there is no router for IPv4 either.
        ip("addr replace 198.51.100.254/32 dev uplink")
    }

    /// Runs `ip` with these words, where the programs run.
    pub fn ip(&mut self, arguments: &str) -> Result<()> {
        ip(arguments)
    }

    /// Runs one packet.
    pub fn run(&mut self, input: &Input) -> Result<Seen> {
        Ok(self.run_often(input, 1)?.0)
    }

    /// Runs one packet whose sum a device has computed, if the kernel can, and fails if that is not kept right.
    ///
    /// Not for what is answered: who cuts a packet (`bpf_skb_change_tail`) takes its sum off, and the kernel compares it
    /// nevertheless.
    pub fn run_summed(&mut self, input: &Input) -> Result<Seen> {
        let program = self.program(input.program)?;
        test_run_summed(program, &input.frame, &input.context())
    }

    /// Runs one packet so often, each time as the run before left it, and tells how long a run took.
    pub fn run_often(&mut self, input: &Input, repeat: u32) -> Result<(Seen, Duration)> {
        let program = self.program(input.program)?;
        test_run(program, &input.frame, &input.context(), repeat)
    }

    fn program(&mut self, program: Program) -> Result<&SchedClassifier> {
        Ok(self.datapath.program(program)?)
    }

    /// A program that another thread may run, in the network namespace that it has from this one.
    pub fn runner(&mut self, program: Program) -> Result<Runner> {
        let path = self.paths.root().join("runner");
        self.program_mut(program)?.pin(&path)?;
        let runner = SchedClassifier::from_pin(&path)?;
        fs::remove_file(&path)?;
        Ok(Runner(runner))
    }

    /// Removes all pins: what is open stays, and nothing else can be opened any more.
    pub(crate) fn unpin(&mut self) {
        self.pins.remove();
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
        for (answer, sent) in Answer::ALL.iter().copied().zip(self.answers_sent()) {
            if sent != 0 {
                counts.insert(Slot::Answer(answer), (sent, 0));
            }
        }
        counts
    }

    /// How many answers were sent, by kind.
    fn answers_sent(&self) -> Vec<u64> {
        let sent = |answer: &Answer| {
            let counts = self.answers.get(&(*answer as u32), 0).unwrap();
            counts.iter().sum()
        };
        Answer::ALL.iter().map(sent).collect()
    }

    /// Makes prefixes local whatever a policy says.
    pub fn make_local(&mut self, locals: &[(&str, Local)]) {
        for (prefix, why) in locals {
            let change = translation::Change::InsertLocal {
                prefix: net(prefix),
                why: why.value(),
            };
            self.datapath.maps.translate(&change).unwrap();
        }
    }

    /// Whether the kernel's test-run can say where a packet that leaves was received: since 5.19 (kernel commit
    /// b238290b96f7).
    pub fn tells_receivers(&mut self) -> bool {
        let mut input = Input::from_pod(&[0; 64]);
        input.program = Program::ToUplink;
        input.received_by = POD;
        self.run(&input).is_ok()
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
}

/// A program, apart from the lab that it is of.
pub struct Runner(SchedClassifier);

impl Runner {
    /// Runs one packet so often.
    pub fn run_often(&self, input: &Input, repeat: u32) -> Result<Seen> {
        Ok(test_run(&self.0, &input.frame, &input.context(), repeat)?.0)
    }
}

/// Whether two states say the same. How much room a row was given beyond what it needs cannot be read back.
fn same(a: &KernelState, b: &KernelState) -> bool {
    let cells = |state: &KernelState| -> BTreeMap<_, _> {
        let rows = state.rows.iter();
        rows.map(|(place, row)| (*place, row.cells.clone()))
            .collect()
    };
    a.pods == b.pods
        && a.slots == b.slots
        && a.prefixes == b.prefixes
        && a.blocks == b.blocks
        && a.members == b.members
        && a.slot_tables == b.slot_tables
        && cells(a) == cells(b)
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
