//! Settings of the agent: flags over the configuration file over defaults.

mod mark;
mod nat;
mod overlay;
mod probes;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use egress_common::{cells::MAX_SEGMENTS, maps::capacity};
use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    health::NextHopProbe,
    kernel::{AttachMode, Capacities, LoadOptions, Paths},
    node::Pattern,
    resolve::{self, PodGateways},
    resources::interface_fault,
    state::Limits,
};

pub use self::{
    mark::LocalMark,
    nat::{NatOptions, NatTimeout, PortRange},
    overlay::{OVERLAY_DEVICE, OVERLAY_PORT, OVERLAY_VNI, OverlayOptions},
    probes::{Milliseconds, ProbeOptions},
};

/// Where the agent pins by default.
pub const PIN_DIR: &str = "/sys/fs/bpf/egress";
const MIB: u64 = 1 << 20;
const MATRIX_MEMORY_MIB: u64 = 256;
const METRICS_PORT: u16 = 9464;

/// Where an agent's pins and files are: what every command that touches the kernel takes.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Places {
    /// Directory below /sys/fs/bpf where maps and links are pinned; one for each agent of a kernel
    /// [default: /sys/fs/bpf/egress]
    #[arg(long, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Directory for what outlives the agent: the last good version of every object, the names of counters
    /// [default: /run/egress/ and the pin directory's path]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

impl Places {
    /// The pin directory.
    #[must_use]
    pub fn paths(&self) -> Paths {
        Paths::new(
            self.pin_dir
                .clone()
                .unwrap_or_else(|| PathBuf::from(PIN_DIR)),
        )
    }

    /// The state directory, one for each pin directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| {
            let name = self
                .paths()
                .root()
                .to_string_lossy()
                .trim_matches('/')
                .replace('/', "-");
            Path::new("/run/egress").join(name)
        })
    }
}

/// What `egress run` takes as flags, and as keys of the same names in the file that `--config` names.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Flags {
    /// YAML file, or directory of them, with resources; may be given several times
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub resources: Vec<PathBuf>,
    /// Name of this node, as pods' spec.nodeName has it [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Address to serve /metrics, /livez, /readyz and /status on [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Prefix that stays local unless a rule is at least as specific; may be given several times
    #[arg(long, value_name = "CIDR", num_args = 1..)]
    pub local_cidr: Vec<IpNet>,
    /// Directory below /sys/fs/bpf where maps and links are pinned; one for each agent of a kernel
    /// [default: /sys/fs/bpf/egress]
    #[arg(long, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Directory for what outlives the agent: the last good version of every object, the names of counters
    /// [default: /run/egress/ and the pin directory's path]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Whether a pod's own annotations count, or only its namespace's [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub per_pod_policies: Option<bool>,
    /// Redirect also what pods send that an egress network policy selects (Kubernetes' or Calico's, among the
    /// resources), past that policy; without this it is dropped
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub accept_networkpolicy_bypass: Option<bool>,
    /// How programs are attached [default: what the kernel has]
    #[arg(long, value_name = "MODE")]
    #[serde(default)]
    pub attach_mode: Option<AttachMode>,
    /// Most kernel memory for the policy matrix, in MiB [default: 256]
    #[arg(long, value_name = "MIB")]
    pub matrix_memory: Option<u64>,
    /// Most source pods, an entry for each address [default: 4096]
    #[arg(long, value_name = "N")]
    pub max_pods: Option<u32>,
    /// Most distinct prefixes of one family [default: 1048576]
    #[arg(long, value_name = "N")]
    pub max_prefixes: Option<u32>,
    /// Most verdicts of all policies [default: 262144]
    #[arg(long, value_name = "N")]
    pub max_verdicts: Option<u32>,
    /// Most (rule, gateway) pairs of all policies [default: 131072]
    #[arg(long, value_name = "N")]
    pub max_members: Option<u32>,
    /// Most policies that are counted [default: 2048]
    #[arg(long, value_name = "N")]
    pub max_policies: Option<u32>,
    /// Connections whose replies are recorded [default: 131072]
    #[arg(long, value_name = "N")]
    pub max_replies: Option<u32>,
    /// Datagrams whose fragments are remembered [default: 8192]
    #[arg(long, value_name = "N")]
    pub max_fragments: Option<u32>,
    /// Flows of groups that stay on their gateway [default: 131072]
    #[arg(long, value_name = "N")]
    pub max_flows: Option<u32>,
    /// Connections that came in to pods [default: 65536]
    #[arg(long, value_name = "N")]
    pub max_inbound: Option<u32>,
    /// Interface that leads to the outside; may be given several times [default: the devices of the default routes]
    #[arg(long, value_name = "IFACE", num_args = 1..)]
    pub uplink: Vec<String>,
    /// What a gateway pod is: the holder of an egress address, or a next hop that translates by itself
    /// [default: translate]
    #[arg(long, value_name = "MEANING")]
    pub pod_gateways: Option<PodGateways>,
    /// File with the key that the nodes share, or two during a rotation, one a line; without it there is no overlay,
    /// and gateways on other nodes are down
    #[arg(long, value_name = "FILE")]
    pub overlay_key_file: Option<PathBuf>,
    /// Name of the overlay's VXLAN device, which the agent makes [default: egress.vxlan]
    #[arg(long, value_name = "IFACE")]
    pub overlay_device: Option<String>,
    /// UDP port of the overlay, the same on every node [default: 4790]
    #[arg(long, value_name = "PORT")]
    pub overlay_port: Option<u16>,
    /// VXLAN network identifier of the overlay, the same on every node [default: 4097]
    #[arg(long, value_name = "N")]
    pub overlay_vni: Option<u32>,
    /// Whether plain frames of the overlay go past the kernel's own stack, straight between pods' interfaces and the wire;
    /// without, all of them take the VXLAN device [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub overlay_fast_path: Option<bool>,
    /// Most translated connections [default: 262144]
    #[arg(long, value_name = "N")]
    pub nat_connections: Option<u32>,
    /// Most translated connections of one source address [default: a sixteenth of --nat-connections]
    #[arg(long, value_name = "N")]
    pub nat_source_quota: Option<u32>,
    /// Ports that translated connections may be given; narrows every gateway's own range [default: 1024-65535]
    #[arg(long, value_name = "FIRST-LAST")]
    pub nat_port_range: Option<PortRange>,
    /// Seconds without a packet after which a translated connection in that state ends, such as udp-stream=180; may
    /// be given several times [default: as Linux conntrack has them]
    #[arg(long, value_name = "STATE=SECONDS", num_args = 1..)]
    pub nat_timeout: Vec<NatTimeout>,
    /// Pause between two probes of a gateway, such as 300ms or 1s [default: 300ms]
    #[arg(long, value_name = "TIME")]
    pub probe_interval: Option<Milliseconds>,
    /// Time without a reply after which a gateway is down [default: 900ms]
    #[arg(long, value_name = "TIME")]
    pub probe_timeout: Option<Milliseconds>,
    /// How long a gateway that was down must answer before it is up again [default: 2s]
    #[arg(long, value_name = "TIME")]
    pub probe_up_after: Option<Milliseconds>,
    /// How next hops are probed [default: arp]
    #[arg(long, value_name = "HOW")]
    pub next_hop_probe: Option<NextHopProbe>,
    /// How long connections of a gateway that is drained may stay, unless its drainTimeout says it [default: 10m]
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<Milliseconds>,
    /// Interfaces that are closed until their pods' policies are in the kernel, by nftables: a name, or its beginning
    /// and *, such as 'cali*'; may be given several times
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    pub hold_interfaces: Vec<String>,
    /// One bit of the packets' mark, for what is let through as the cluster's own: an address to which something
    /// translates such a packet outside the cluster is not reached; or off [default: 0x1000]
    #[arg(long, value_name = "BIT")]
    pub mark: Option<LocalMark>,
    /// Let the programs log each packet that they drop: for debugging, not for production
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub debug_log: Option<bool>,
}

/// The settings in force.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Files and directories with resources.
    pub resources: Vec<PathBuf>,
    /// Where HTTP is served.
    pub metrics_listen: SocketAddr,
    /// The state directory.
    pub state_dir: PathBuf,
    /// What `resolve` needs to know.
    pub resolve: resolve::Settings,
    /// What `compile` and `diff` must keep to.
    pub limits: Limits,
    /// How to load.
    pub load: LoadOptions,
    /// The overlay between nodes; without a key there is none.
    pub overlay: Option<OverlayOptions>,
    /// Source NAT on this node.
    pub nat: NatOptions,
    /// How gateways are probed.
    pub probes: ProbeOptions,
    /// Interfaces that are closed until their pods' verdicts are in the kernel.
    pub hold_interfaces: Vec<Pattern>,
    /// The mark of what is let through as the cluster's own.
    pub mark: LocalMark,
}

impl Flags {
    /// Reads the configuration file, and lets these flags win over it.
    pub fn settings(self, config: Option<&Path>) -> anyhow::Result<Settings> {
        let config = config.map(read).transpose()?.unwrap_or_default();
        self.over(config).check()
    }

    fn over(self, config: Self) -> Self {
        Self {
            resources: either(self.resources, config.resources),
            node: self.node.or(config.node),
            metrics_listen: self.metrics_listen.or(config.metrics_listen),
            local_cidr: either(self.local_cidr, config.local_cidr),
            pin_dir: self.pin_dir.or(config.pin_dir),
            state_dir: self.state_dir.or(config.state_dir),
            per_pod_policies: self.per_pod_policies.or(config.per_pod_policies),
            accept_networkpolicy_bypass: self
                .accept_networkpolicy_bypass
                .or(config.accept_networkpolicy_bypass),
            attach_mode: self.attach_mode.or(config.attach_mode),
            matrix_memory: self.matrix_memory.or(config.matrix_memory),
            max_pods: self.max_pods.or(config.max_pods),
            max_prefixes: self.max_prefixes.or(config.max_prefixes),
            max_verdicts: self.max_verdicts.or(config.max_verdicts),
            max_members: self.max_members.or(config.max_members),
            max_policies: self.max_policies.or(config.max_policies),
            max_replies: self.max_replies.or(config.max_replies),
            max_fragments: self.max_fragments.or(config.max_fragments),
            max_flows: self.max_flows.or(config.max_flows),
            max_inbound: self.max_inbound.or(config.max_inbound),
            uplink: either(self.uplink, config.uplink),
            pod_gateways: self.pod_gateways.or(config.pod_gateways),
            overlay_key_file: self.overlay_key_file.or(config.overlay_key_file),
            overlay_device: self.overlay_device.or(config.overlay_device),
            overlay_port: self.overlay_port.or(config.overlay_port),
            overlay_vni: self.overlay_vni.or(config.overlay_vni),
            overlay_fast_path: self.overlay_fast_path.or(config.overlay_fast_path),
            nat_connections: self.nat_connections.or(config.nat_connections),
            nat_source_quota: self.nat_source_quota.or(config.nat_source_quota),
            nat_port_range: self.nat_port_range.or(config.nat_port_range),
            nat_timeout: either(self.nat_timeout, config.nat_timeout),
            probe_interval: self.probe_interval.or(config.probe_interval),
            probe_timeout: self.probe_timeout.or(config.probe_timeout),
            probe_up_after: self.probe_up_after.or(config.probe_up_after),
            drain_timeout: self.drain_timeout.or(config.drain_timeout),
            next_hop_probe: self.next_hop_probe.or(config.next_hop_probe),
            hold_interfaces: either(self.hold_interfaces, config.hold_interfaces),
            mark: self.mark.or(config.mark),
            debug_log: self.debug_log.or(config.debug_log),
        }
    }

    fn check(self) -> anyhow::Result<Settings> {
        if self.resources.is_empty() {
            bail!("no resources: name files or directories with --resources PATH, or in --config");
        }
        let overlay = self.overlay()?;
        let nat = self.nat()?;
        let probes = self.probes()?;
        for name in &self.uplink {
            if let Some(fault) = interface_fault(name) {
                bail!("--uplink: {name:?} {fault}");
            }
        }
        let hold_interfaces = self
            .hold_interfaces
            .iter()
            .map(|text| match Pattern::new(text) {
                Ok(pattern) => Ok(pattern),
                Err(fault) => bail!("--hold-interfaces: {text:?} {fault}"),
            })
            .collect::<anyhow::Result<_>>()?;
        let places = Places {
            pin_dir: self.pin_dir,
            state_dir: self.state_dir,
        };
        let matrix_memory = self
            .matrix_memory
            .unwrap_or(MATRIX_MEMORY_MIB)
            .checked_mul(MIB)
            .context("--matrix-memory is in MiB, and too large")?;
        let most = u64::from(MAX_SEGMENTS) * MIB;
        if matrix_memory > most {
            bail!("--matrix-memory can be at most {} MiB", most / MIB);
        }
        let capacities = Capacities {
            pods: self.max_pods.unwrap_or(capacity::PODS),
            prefixes: self.max_prefixes.unwrap_or(capacity::PREFIXES),
            verdicts: self.max_verdicts.unwrap_or(capacity::VERDICTS),
            members: self.max_members.unwrap_or(capacity::MEMBERS),
            policies: self.max_policies.unwrap_or(capacity::POLICIES),
            replies: self.max_replies.unwrap_or(capacity::REPLIES),
            fragments: self.max_fragments.unwrap_or(capacity::FRAGMENTS),
            nat_connections: nat.connections,
            inbound: at_least_one("--max-inbound", self.max_inbound, capacity::INBOUND)?,
            flows: at_least_one("--max-flows", self.max_flows, capacity::FLOWS)?,
        };
        let node_name = match self.node {
            Some(name) => name,
            None => nix::unistd::gethostname()
                .context("cannot read the host name: give --node NAME")?
                .to_string_lossy()
                .into_owned(),
        };
        Ok(Settings {
            resources: self.resources,
            metrics_listen: self
                .metrics_listen
                .unwrap_or_else(|| (Ipv4Addr::LOCALHOST, METRICS_PORT).into()),
            state_dir: places.state_dir(),
            resolve: resolve::Settings {
                node_name,
                local_cidrs: self.local_cidr,
                per_pod_policies: self.per_pod_policies.unwrap_or(true),
                accept_networkpolicy_bypass: self.accept_networkpolicy_bypass.unwrap_or(false),
                pod_gateways: self.pod_gateways.unwrap_or_default(),
                uplinks: self.uplink,
                overlay: None,
                nat_ports: nat.ports,
                // What the kernel says of them may change; whoever resolves asks it.
                local_ports: resolve::LOCAL_PORTS,
            },
            limits: Limits {
                matrix_memory,
                pods: capacities.pods,
                prefixes: capacities.prefixes,
                verdicts: capacities.verdicts,
                members: capacities.members,
                policies: capacities.policies,
                ..Limits::default()
            },
            load: LoadOptions {
                paths: places.paths(),
                capacities,
                attach_mode: self.attach_mode,
                debug_log: self.debug_log.unwrap_or(false),
            },
            overlay,
            nat,
            probes,
            hold_interfaces,
            mark: self.mark.unwrap_or_default(),
        })
    }
}

/// What a flag says, or else its default; zero is refused.
fn at_least_one(flag: &str, value: Option<u32>, default: u32) -> anyhow::Result<u32> {
    let value = value.unwrap_or(default);
    ensure!(value > 0, "{flag} is 0: there must be room for one");
    Ok(value)
}

/// What the flags say, or else what the file says.
fn either<T>(flags: Vec<T>, config: Vec<T>) -> Vec<T> {
    if flags.is_empty() { config } else { flags }
}

fn read(path: &Path) -> anyhow::Result<Flags> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    serde_saphyr::from_str(&text)
        .with_context(|| format!("the configuration {} is not valid", path.display()))
}

#[cfg(test)]
mod tests;
