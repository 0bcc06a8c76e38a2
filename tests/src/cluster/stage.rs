//! A cluster with servers outside, an agent on every node and a sniffer on every uplink.

mod expectations;
mod permits;

use std::{collections::BTreeMap, fs, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use egress_common::{gateway::GatewayId, maps::PROBES, overlay::Tag, probe::Probe};
use egress_userspace::{
    diff::trace,
    kernel::{Maps, Paths},
    overlay_keys::OverlayKeys,
};

pub use self::expectations::Seen;
use super::{
    BLUE, Cluster, ClusterShape, LOCAL_CIDRS, Node, Outside, RED,
    resources::{egress_gateway, node_resources, usual},
};
use crate::{
    Agent, Host,
    agent::Setup,
    resources::Resources,
    scrape::Metrics,
    sniffer::{Forged, Permit, Sniffer},
    topology::Pod,
    wait,
};

/// The overlay's UDP port.
pub const OVERLAY_PORT: u16 = 4790;
/// The overlay's network identifier.
pub const OVERLAY_VNI: u32 = 4097;
/// The node with the egress addresses of the usual resources.
pub const GATEWAY_NODE: &str = "gw-1";
/// The key that agents start with.
pub const KEY: &str = "a key for tests, the first one";

/// How long agents may take that start all at once.
const START: Duration = Duration::from_secs(60);

/// A cluster in which the agents are at work.
#[derive(Debug)]
pub struct ClusterStage {
    agents: BTreeMap<&'static str, Agent>,
    /// How each node's agent is started.
    pub setups: BTreeMap<&'static str, Setup>,
    /// What the agents read.
    pub resources: Resources,
    /// Servers outside.
    pub outside: Outside,
    /// What may leave the uplinks.
    permits: Vec<Permit>,
    /// What the test forges.
    forged: Vec<Forged>,
    /// Egress addresses that come and go.
    gone: Vec<IpAddr>,
    /// What each node had dropped before all gateways were up: what a pod sends by itself meanwhile.
    dropped: BTreeMap<&'static str, BTreeMap<String, u64>>,
    sniffer: Sniffer,
    /// The hosts.
    pub cluster: Cluster,
}

impl ClusterStage {
    /// The usual cluster with the usual resources.
    pub fn usual() -> Result<Self> {
        Self::of(&ClusterShape::default())
    }

    /// A cluster of this shape with the usual resources and gateways.
    pub fn of(shape: &ClusterShape) -> Result<Self> {
        Self::new(
            shape,
            |cluster| Ok(usual(cluster) + &usual_gateways()),
            |_| {},
        )
    }

    /// A cluster of this shape with these resources beside its nodes', and agents that are set up further.
    pub fn new(
        shape: &ClusterShape,
        resources: impl FnOnce(&Cluster) -> Result<String>,
        further: impl Fn(&mut NodeSetup<'_>),
    ) -> Result<Self> {
        Self::on(Cluster::build(shape)?, resources, further)
    }

    /// The same in a cluster that is there.
    pub fn on(
        cluster: Cluster,
        resources: impl FnOnce(&Cluster) -> Result<String>,
        further: impl Fn(&mut NodeSetup<'_>),
    ) -> Result<Self> {
        let text = resources(&cluster)?;
        let resources = Resources::below(&cluster.files())?;
        resources.write("nodes.yaml", &node_resources(&cluster))?;
        resources.write("all.yaml", &text)?;
        let outside = Outside::start(&cluster)?;
        let sniffer = cluster.sniff(&[])?;
        let mut stage = Self {
            agents: BTreeMap::new(),
            setups: BTreeMap::new(),
            resources,
            outside,
            permits: Vec::new(),
            forged: Vec::new(),
            gone: Vec::new(),
            dropped: BTreeMap::new(),
            sniffer,
            cluster,
        };
        stage.write_keys(&[KEY])?;
        for node in stage.cluster.nodes.clone() {
            let mut setup = stage.setup(&node)?;
            further(&mut NodeSetup {
                node: node.name,
                setup: &mut setup,
            });
            stage.setups.insert(node.name, setup);
        }
        // All at once: none of them waits for another, but all for the processors.
        for (name, setup) in &stage.setups {
            stage.agents.insert(name, setup.spawn()?);
        }
        stage.wait_until_ready()?;
        // Those that were ready first have probed gateways whose nodes had no programs yet. Who has not been heard of
        // is up until it has been silent for long enough, and would be down for a moment then.
        for (name, agent) in &stage.agents {
            wait::until(&format!("{name} has heard from all gateways"), || {
                let asked = stage.gateways_asked(name)?;
                let metrics = agent.metrics()?;
                let by = [("probe", "overlay")];
                let heard = metrics.matching("egress_gateway_probe_seconds", &by);
                let heard = heard.count();
                ensure!(heard >= asked, "{heard} of {asked} gateways were heard of");
                let (_, status) = agent.get("/status")?;
                ensure!(!status.contains("has not answered probes"), "{status}");
                Ok(())
            })?;
        }
        for (name, agent) in &stage.agents {
            stage
                .dropped
                .insert(name, agent.metrics()?.drops_anywhere());
        }
        Ok(stage)
    }

    /// How many gateways on other nodes a node probes.
    fn gateways_asked(&self, node: &str) -> Result<usize> {
        let setup = self.setups.get(node).context("no such node")?;
        let pin = Paths::new(setup.pin_dir()).map(PROBES);
        let map = Map::from_map_data(MapData::from_pin(pin)?)?;
        let probes: HashMap<_, GatewayId, Probe> = map.try_into()?;
        let known: Result<Vec<_>, _> = probes.keys().collect();
        Ok(known?.len())
    }

    /// Ends a node's agent as the kernel would, and leaves what is in the kernel.
    pub fn kill_agent(&mut self, node: &str) -> Result<()> {
        let agent = self.agents.remove(node);
        agent
            .with_context(|| format!("there is no agent on {node}"))?
            .kill()
    }

    /// Starts a node's agent again.
    pub fn start_agent(&mut self, node: &str) -> Result<()> {
        let (name, setup) = self.setups.get_key_value(node).context("no such node")?;
        self.agents.insert(name, setup.start()?);
        Ok(())
    }

    fn setup(&self, node: &Node) -> Result<Setup> {
        let files = self.cluster.files().join(node.name);
        fs::create_dir_all(&files)?;
        let bpffs = self.cluster.bpffs().join(node.name);
        fs::create_dir(&bpffs)?;
        let mut setup = Setup::on(
            &node.host,
            node.name,
            files,
            self.resources.directory().to_owned(),
        )?;
        setup.bpffs = bpffs;
        setup.local_cidrs = LOCAL_CIDRS.map(str::to_owned).to_vec();
        setup.arguments = vec![
            "--overlay-key-file".to_owned(),
            self.key_file().display().to_string(),
        ];
        Ok(setup)
    }

    fn key_file(&self) -> PathBuf {
        self.cluster.files().join("overlay-key")
    }

    /// Replaces the keys that every agent reads, the one to send with first.
    pub fn write_keys(&self, keys: &[&str]) -> Result<()> {
        let file = self.key_file();
        let whole = file.with_extension("next");
        fs::write(&whole, keys.join("\n") + "\n")?;
        Ok(fs::rename(&whole, &file)?)
    }

    /// Replaces the keys, and waits until every agent has taken them.
    pub fn change_keys(&self, keys: &[&str]) -> Result<()> {
        self.write_keys(keys)?;
        let keys = OverlayKeys::parse(keys.join("\n").as_bytes())?;
        wait::until("every agent has taken the keys", || {
            let mut nodes = self.cluster.nodes.iter();
            nodes.try_for_each(|node| self.has_taken(node, &keys))
        })
    }

    /// Whether a node sends and takes frames by these keys: what its maps say, for an agent that has brought the
    /// kernel up to date may have done it for something else.
    fn has_taken(&self, node: &Node, keys: &OverlayKeys) -> Result<()> {
        let setup = self.setups.get(node.name).context("no such node")?;
        let maps = Maps::open(&Paths::new(setup.pin_dir()))?;
        let nodes = maps.translation()?;
        let mut tags = vec![Tag::ZERO];
        for other in &self.cluster.nodes {
            if other.name == node.name {
                continue;
            }
            let index = nodes.nodes.get(&IpAddr::from(other.v6).into());
            let state = index.and_then(|index| nodes.node_state.get(index));
            let state = state.with_context(|| format!("{} knows no {}", node.name, other.name))?;
            let send = keys.tag(OVERLAY_VNI, node.name, other.name);
            let accept = keys.accepted(OVERLAY_VNI, other.name, node.name);
            ensure!(
                (state.send, state.accept) == (send, accept),
                "{} has other keys for {}",
                node.name,
                other.name
            );
            tags.push(send);
        }
        for member in trace(&maps)?.members.values() {
            ensure!(tags.contains(&member.tag), "{} sends {member:?}", node.name);
        }
        Ok(())
    }

    /// Does what the test does, and then checks that not one packet left an uplink that should not have.
    pub fn play(mut self, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        test(&mut self)?;
        self.verify()
    }

    /// Kills a node's agent without a chance to do anything.
    pub fn kill(&mut self, node: &'static str) -> Result<()> {
        let agent = self.agents.remove(node);
        agent
            .with_context(|| format!("there is no agent on {node}"))?
            .kill()
    }

    /// Whether a node's agent was killed, by whomever.
    pub fn was_killed(&mut self, node: &'static str) -> Result<bool> {
        let agent = self.agents.get_mut(node);
        agent
            .with_context(|| format!("there is no agent on {node}"))?
            .was_killed()
    }

    /// Starts a node's agent, and does not wait for it.
    pub fn spawn(&mut self, node: &'static str) -> Result<()> {
        let setup = self.setups.get(node).context("no such node")?;
        self.agents.insert(node, setup.spawn()?);
        Ok(())
    }

    /// Waits until every agent that was started is ready.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        self.agents
            .values_mut()
            .try_for_each(|agent| agent.wait_until_ready_within(START))
    }

    /// Everything that agents could have left on the nodes, and their pins.
    pub fn inventory(&self) -> Result<Vec<String>> {
        self.cluster.inventory()
    }

    /// Ends every agent, which leaves everything in the kernel.
    pub fn terminate(&mut self) -> Result<()> {
        for (name, agent) in std::mem::take(&mut self.agents) {
            agent.terminate().with_context(|| format!("on {name}"))?;
        }
        Ok(())
    }

    /// Ends every agent and removes everything of theirs from the kernel.
    pub fn leave(&mut self) -> Result<()> {
        self.terminate()?;
        self.detach()
    }

    /// Removes everything of the agents from the kernel.
    pub fn detach(&self) -> Result<()> {
        for setup in self.setups.values() {
            setup.detach()?;
        }
        Ok(())
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.cluster.node(name)
    }

    /// A pod by name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.cluster.pod(name)
    }

    /// A pod's host by name.
    pub fn host(&self, pod: &str) -> Result<&Host> {
        Ok(&self.pod(pod)?.host)
    }

    /// A node's agent.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        let agent = self.agents.get(node);
        agent.with_context(|| format!("there is no agent on {node}"))
    }

    /// Scrapes a node's agent.
    pub fn metrics(&self, node: &str) -> Result<Metrics> {
        self.agent(node)?.metrics()
    }

    /// Runs a command of the binary against a node's pins.
    pub fn command(&self, node: &str, words: &[&str]) -> Result<String> {
        let setup = self.setups.get(node).context("no such node")?;
        let (pins, state) = (
            setup.pin_dir().display().to_string(),
            setup.state_dir().display().to_string(),
        );
        let places = ["--pin-dir", &pins, "--state-dir", &state];
        setup.command(&[words, &places].concat())
    }

    /// The addresses that a node has on its uplink.
    pub fn uplink_addresses(&self, node: &str) -> Result<Vec<IpAddr>> {
        self.node(node)?.uplink_addresses()
    }
}

/// One node's agent, before it starts.
#[derive(Debug)]
pub struct NodeSetup<'a> {
    /// The node.
    pub node: &'static str,
    /// How its agent will be started.
    pub setup: &'a mut Setup,
}

impl NodeSetup<'_> {
    /// Adds arguments on every node.
    pub fn arguments(&mut self, arguments: &[&str]) {
        let more = arguments.iter().map(|&argument| argument.to_owned());
        self.setup.arguments.extend(more);
    }

    /// Adds arguments on one node.
    pub fn arguments_on(&mut self, node: &str, arguments: &[&str]) {
        if self.node == node {
            self.arguments(arguments);
        }
    }
}

/// Red and blue on the usual gateway node.
#[must_use]
pub fn usual_gateways() -> String {
    egress_gateway(RED, GATEWAY_NODE, "") + &egress_gateway(BLUE, GATEWAY_NODE, "")
}
