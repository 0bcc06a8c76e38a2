//! Our programs, filled by what fills them on a node: compiled, planned and carried out.

use std::{
    collections::HashMap,
    fs,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result};
use aya::{
    maps::MapData,
    programs::{SchedClassifier, TcAttachType},
};
use egress_common::{counter::Count, gateway::Settings, verdict::Replies};
use egress_userspace::{
    compile::compile,
    diff::{self, Change},
    gateway_id::gateway_id,
    kernel::{AttachMode, Capacities, CounterMaps, Datapath, LoadOptions, Paths, Program},
    model::ObjectName,
    resolve::{Action, EffectiveRule, Fate, Resolved, SourcePod, Standing, UsableGateway, Way},
    state::{KernelState, Limits, MemberLabel, Names},
    translation,
};

use super::POD;
use crate::world::{GATEWAYS, Target, World};

const NAMESPACE: &str = "bench";
/// What a datapath may take for the matrix, in bytes: what the benchmark has is far more than a node's default.
const MATRIX: u64 = 512 << 20;

/// What the names of the maps begin with that lead from destinations to classes: whatever they are.
const TRIE: &[&str] = &["PREFIXES", "ROOTS", "TRIE"];

/// How much one scene needs beside its world.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Capacity {
    /// Recorded connections.
    pub(crate) replies: u32,
    /// Translated connections.
    pub(crate) connections: u32,
}

/// A datapath.
pub(crate) struct Ours {
    datapath: Datapath,
    counters: CounterMaps,
    members: HashMap<Arc<MemberLabel>, u32>,
    /// Bytes of the matrix's lines.
    pub(crate) matrix: u64,
    /// Bytes of the maps that lead from destinations to classes.
    pub(crate) trie: u64,
}

impl Ours {
    /// Loads the programs and fills their maps; nothing stays pinned.
    pub(crate) fn load(
        resolved: &Resolved,
        settings: &Settings,
        capacity: Capacity,
    ) -> Result<Self> {
        let limits = limits(resolved);
        let pins = Pins::new();
        let paths = Paths::new(&pins.0);
        let mut datapath = Datapath::load(&LoadOptions {
            paths: paths.clone(),
            capacities: Capacities {
                pods: limits.pods,
                prefixes: limits.prefixes,
                verdicts: limits.verdicts,
                members: limits.members,
                policies: limits.policies,
                replies: capacity.replies.max(1024),
                nat_connections: capacity.connections.max(1024),
                fragments: 1024,
                inbound: 1024,
                flows: 1024,
            },
            // Nothing is attached.
            attach_mode: Some(AttachMode::Tcx),
            debug_log: false,
        })?;
        let maps = &mut datapath.maps;
        let desired = compile(resolved, &limits)?;
        let names = Names::default();
        let before = maps.translation()?;
        let room = maps.translation_limits();
        let nat = translation::plan(&before, &names, &desired.translation, settings, &room)?;
        for change in &nat.additions {
            maps.translate(change)?;
        }
        let plan = diff::plan(&KernelState::default(), &names, &desired, &limits)?;
        for run in Change::runs(&plan.changes) {
            maps.carry_out_run(run)?;
        }
        Ok(Self {
            counters: CounterMaps::open(&paths)?,
            members: plan.names.members.into_iter().collect(),
            matrix: datapath.maps.line_bytes(),
            trie: bytes_of(&paths, TRIE)?,
            datapath,
        })
    }

    /// One of its programs.
    pub(crate) fn program(&mut self, program: Program) -> Result<&SchedClassifier> {
        Ok(self.datapath.program(program)?)
    }

    /// Attaches one of them, where it belongs on that interface.
    pub(crate) fn attach(&mut self, program: Program, interface: &str) -> Result<()> {
        let direction = match program {
            Program::ToPod | Program::ToUplink => TcAttachType::Egress,
            Program::FromPod
            | Program::FromGateway
            | Program::FromOverlay
            | Program::FromUplink
            | Program::FromUnderlay => TcAttachType::Ingress,
        };
        super::attach(self.datapath.program(program)?, interface, direction)
    }

    /// What was counted for a rule of a policy that led to a gateway.
    pub(crate) fn counted(&self, policy: usize, rule: &str, gateway: u32) -> Result<Count> {
        let label = MemberLabel {
            namespace: NAMESPACE.to_owned(),
            gateway: gateway_name(gateway).name,
            policy: policy_name(policy),
            rule: rule.to_owned(),
        };
        let id = self
            .members
            .get(&label)
            .with_context(|| format!("nothing counts {label:?}"))?;
        self.counters.member(*id)
    }
}

/// What a node would have resolved of this world, where each gateway has the way that `way` says.
pub(crate) fn resolved(world: &World, way: impl Fn(u32) -> Way) -> Resolved {
    let gateways: Vec<Arc<[UsableGateway]>> = (0..GATEWAYS)
        .map(|number| {
            let name = gateway_name(number);
            Arc::from(vec![UsableGateway {
                id: gateway_id(&name),
                name,
                weight: NonZeroU32::MIN,
                standing: Standing::Serving,
                ways: vec![way(number)],
            }])
        })
        .collect();
    let fates: Vec<Fate> = world
        .policies
        .iter()
        .map(|policy| {
            let rules = policy.rules().map(|(net, target)| EffectiveRule {
                label: net.to_string(),
                destination: Some(net),
                action: match target {
                    Target::Local => Action::Local,
                    Target::Gateway(number) => {
                        Action::Gateways(Arc::clone(&gateways[number as usize]))
                    }
                },
            });
            Fate::Rules(rules.collect())
        })
        .collect();
    let pods = world.pods.iter().enumerate().map(|(number, pod)| {
        let resolved = SourcePod {
            ifindex: POD,
            interface: "pod".to_owned(),
            mtu: 1500,
            addresses: vec![pod.address],
            policy: policy_name(pod.policy),
            fate: fates[pod.policy].clone(),
            network_policies: Vec::new(),
            udp_ports: Vec::new(),
        };
        (ObjectName::new(NAMESPACE, format!("pod{number}")), resolved)
    });
    Resolved {
        pods: pods.collect(),
        ..Resolved::default()
    }
}

/// The name of a gateway.
pub(crate) fn gateway_name(number: u32) -> ObjectName {
    ObjectName::new(NAMESPACE, format!("gateway{number}"))
}

fn policy_name(number: usize) -> String {
    format!("policy{number}")
}

/// Who brings replies back, to the next hop of a gateway.
pub(crate) fn next_hop(number: u32, v6: bool, replies: Replies) -> Way {
    let next_hop = if v6 {
        std::net::Ipv6Addr::from((0xfd00_0019_u128 << 96) + u128::from(number) + 2).into()
    } else {
        std::net::Ipv4Addr::from(0xc633_6402 + number).into()
    };
    Way::NextHop {
        next_hop,
        ifindex: super::UPLINK,
        mtu: 1500,
        replies,
    }
}

/// Room for just this, as an operator would give it.
fn limits(resolved: &Resolved) -> Limits {
    let mut policies: HashMap<&str, usize> = HashMap::new();
    for pod in resolved.pods.values() {
        if let Fate::Rules(rules) = &pod.fate {
            policies.insert(&pod.policy, rules.len());
        }
    }
    let rules: usize = policies.values().sum();
    let room = |needed: usize| u32::try_from(needed.next_power_of_two()).unwrap_or(u32::MAX);
    Limits {
        matrix_memory: MATRIX,
        pods: room(resolved.pods.len() + 1).max(64),
        prefixes: room(rules + 1).max(1024),
        verdicts: room(rules + 3 * policies.len()).clamp(1024, 1 << 18),
        members: room(rules + 1).clamp(1024, 1 << 18),
        policies: room(policies.len() + 2),
        ..Limits::default()
    }
}

/// Bytes that the kernel says these maps take.
fn bytes_of(paths: &Paths, names: &[&str]) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(paths.maps())? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if !names.iter().any(|name| file.starts_with(name)) {
            continue;
        }
        let map = MapData::from_pin(&path)?;
        let info = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let text = fs::read_to_string(&info).with_context(|| format!("cannot read {info}"))?;
        let memory = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        bytes += memory
            .and_then(|memory| memory.trim().parse::<u64>().ok())
            .with_context(|| format!("{info} does not tell how much memory the map takes"))?;
    }
    Ok(bytes)
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A pin directory, of which nothing is left.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("/sys/fs/bpf/egress-bench-{}-{number}", process::id()).into())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // What was never made need not be removed.
        drop(fs::remove_dir_all(&self.0));
    }
}
