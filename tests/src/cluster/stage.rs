//! A cluster with servers outside, an agent on every node and a sniffer on every uplink.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;

use super::{
    BLUE, Cluster, ClusterShape, Egress, LOCAL_CIDRS, Node, RED,
    resources::{egress_gateway, node_resources, usual},
};
use crate::{
    Agent, Host,
    agent::Setup,
    client::{unanswered, whoami},
    resources::Resources,
    scrape::Metrics,
    server::{Datagrams, Echo, Whoami},
    sniffer::{Capture, Permit, Rules, Sniffer},
    topology::{Destination, Pod},
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

/// Servers of the outside: on the internet's host and on the internal service's.
#[derive(Debug)]
pub struct Outside {
    /// Who asked on the internet.
    pub internet: Whoami,
    /// Who asked the internal service.
    pub internal: Whoami,
    /// Datagrams that reached the internet.
    pub internet_datagrams: Datagrams,
    /// Datagrams that reached the internal service.
    pub internal_datagrams: Datagrams,
    _echoes: [Echo; 2],
}

impl Outside {
    /// Starts them.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            internet: Whoami::start(&cluster.internet)?,
            internal: Whoami::start(&cluster.internal)?,
            internet_datagrams: Datagrams::start(&cluster.internet)?,
            internal_datagrams: Datagrams::start(&cluster.internal)?,
            _echoes: [
                Echo::start(&cluster.internet)?,
                Echo::start(&cluster.internal)?,
            ],
        })
    }
}

/// The address of the internet's host that it talks from.
pub const INTERNET_HOST: Destination = Destination {
    name: "a host on the internet",
    v4: Ipv4Addr::new(100, 64, 0, 2),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 2),
};

/// How a pod is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// With an egress address.
    As(Egress),
    /// With its node's address.
    AsNode,
    /// With its own address.
    AsPod,
    /// Not at all: refused on the way.
    Refused,
}

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
        let cluster = Cluster::build(shape)?;
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
        let patience = wait::PATIENCE * 12;
        for (name, setup) in &stage.setups {
            stage.agents.insert(name, setup.spawn()?);
        }
        for agent in stage.agents.values_mut() {
            agent.wait_until_ready_within(patience)?;
        }
        Ok(stage)
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
        let before = self.applies()?;
        self.write_keys(keys)?;
        wait::until("every agent has taken the keys", || {
            for (name, count) in self.applies()? {
                ensure!(count > before[name], "{name} has not");
            }
            Ok(())
        })
    }

    /// How often each agent has brought the kernel up to date.
    fn applies(&self) -> Result<BTreeMap<&'static str, u64>> {
        let count = |(name, agent): (&&'static str, &Agent)| {
            let metrics = agent.metrics()?;
            Ok((
                *name,
                metrics.sum("egress_apply_duration_seconds_count", &[]),
            ))
        };
        self.agents.iter().map(count).collect()
    }

    /// Does what the test does, and then checks that not one packet left an uplink that should not have.
    pub fn play(mut self, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        test(&mut self)?;
        self.verify()
    }

    /// Checks that not one packet left an uplink so far that should not have.
    pub fn verify(&self) -> Result<()> {
        self.sniffed()?.verify(&self.cluster.rules(&self.permits))
    }

    /// What left the uplinks so far.
    pub fn sniffed(&self) -> Result<Capture> {
        self.sniffer.so_far()
    }

    /// Ends every agent and removes everything of theirs from the kernel.
    pub fn leave(mut self) -> Result<()> {
        for (name, agent) in std::mem::take(&mut self.agents) {
            agent.terminate().with_context(|| format!("on {name}"))?;
        }
        for setup in self.setups.values() {
            setup.detach()?;
        }
        Ok(())
    }

    /// Listens anew, keeping apart what services on these ports answer.
    pub fn sniff_services(&mut self, ports: &[u16]) -> Result<()> {
        self.verify()?;
        self.sniffer = self.cluster.sniff(ports)?;
        Ok(())
    }

    /// Lets a node's uplink send to these with an egress address.
    pub fn permit_at(&mut self, node: &str, egress: Egress, destinations: &[Destination]) {
        for destination in destinations {
            for address in destination.addresses() {
                self.permits.push(Permit {
                    node: node.to_owned(),
                    source: egress.like(address),
                    destination: address.into(),
                    service: None,
                });
            }
        }
    }

    /// Lets the usual gateway node send to these with an egress address.
    pub fn permit(&mut self, egress: Egress, destinations: &[Destination]) {
        self.permit_at(GATEWAY_NODE, egress, destinations);
    }

    /// Lets a node send to these with its own address: for pods that are not steered.
    pub fn permit_node(&mut self, name: &str, destinations: &[Destination]) -> Result<()> {
        let node = self.node(name)?.clone();
        for destination in destinations {
            for address in destination.addresses() {
                self.permit_exactly(name, node.address_like(address), address.into(), None);
            }
        }
        Ok(())
    }

    /// Lets a node send with this source to this destination, from the port of this service or any.
    pub fn permit_exactly(
        &mut self,
        node: &str,
        source: IpAddr,
        destination: IpNet,
        service: Option<u16>,
    ) {
        self.permits.push(Permit {
            node: node.to_owned(),
            source,
            destination,
            service,
        });
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

    /// Packets that a node's agent counts as dropped for this reason.
    pub fn dropped(&self, node: &str, reason: &str) -> Result<u64> {
        Ok(self.metrics(node)?.dropped_anywhere(reason))
    }

    /// Waits until a node has dropped so many packets for this reason since the test began.
    pub fn wait_for_drops(&self, node: &str, reason: &str, count: u64) -> Result<()> {
        self.agent(node)?
            .wait_for_metrics(&format!("{node} counts {reason}"), |metrics| {
                let found = metrics.dropped_anywhere(reason);
                ensure!(
                    found >= count,
                    "{found} of {count}; all drops: {:?}",
                    metrics.drops_anywhere()
                );
                Ok(())
            })?;
        Ok(())
    }

    /// Checks that no node has dropped anything.
    pub fn expect_no_drops(&self) -> Result<()> {
        for (name, agent) in &self.agents {
            let dropped = agent.metrics()?.drops_anywhere();
            ensure!(dropped.is_empty(), "{name} dropped {dropped:?}");
        }
        Ok(())
    }

    /// What each node has dropped and sent so far, for who looks for a reason.
    #[must_use]
    pub fn traces(&self) -> String {
        let mut text = String::from("drops so far:");
        for (name, agent) in &self.agents {
            let dropped = agent.metrics().map(|metrics| metrics.drops_anywhere());
            text.push_str(&format!(" {name} {dropped:?}"));
        }
        text.push_str("; what left the uplinks:");
        for (sent, count) in self.sniffed().unwrap_or_default().sent {
            text.push_str(&format!("\n{count} × {sent}"));
        }
        text
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

    /// Checks how a destination sees a pod, in both families, and lets exactly that be sniffed.
    pub fn expect(&mut self, pod: &str, destination: Destination, seen: Seen) -> Result<()> {
        match seen {
            Seen::As(egress) => self.permit(egress, &[destination]),
            Seen::AsNode => {
                let node = self.pod(pod)?.node;
                self.permit_node(node, &[destination])?;
            }
            Seen::AsPod | Seen::Refused => {}
        }
        for address in destination.addresses() {
            self.expect_at(pod, address, seen)?;
        }
        Ok(())
    }

    /// Checks how one address sees a pod.
    pub fn expect_at(&self, pod: &str, address: IpAddr, seen: Seen) -> Result<()> {
        let pod = self.pod(pod)?;
        let answer = whoami(&pod.host, address)
            .with_context(|| format!("{} asked {address}; {}", pod.name, self.traces()));
        let expected = match seen {
            Seen::As(egress) => egress.like(address),
            Seen::AsNode => self.node(pod.node)?.address_like(address),
            Seen::AsPod => pod.address_like(address),
            Seen::Refused => match answer {
                Ok(answer) => bail!("{address} answered {}, and saw it as {answer}", pod.name),
                Err(_) => return Ok(()),
            },
        };
        let answer = answer?;
        ensure!(
            answer == expected,
            "{address} saw {} as {answer}, not as {expected} ({seen:?})",
            pod.name
        );
        Ok(())
    }

    /// Waits until an address sees a pod so.
    pub fn wait_until_seen(&self, pod: &str, address: IpAddr, seen: Seen) -> Result<()> {
        wait::until("the change is in the kernel", || {
            self.expect_at(pod, address, seen)
        })
    }

    /// Waits until nothing that a pod sends to a destination is answered any more.
    pub fn wait_until_gone(&self, pod: &str, destination: Destination) -> Result<()> {
        for address in destination.addresses() {
            wait::until("the destination is out of reach", || {
                unanswered(self.host(pod)?, address)
            })?;
        }
        Ok(())
    }

    /// The addresses that a node has on its uplink.
    pub fn uplink_addresses(&self, node: &str) -> Result<Vec<IpAddr>> {
        self.node(node)?.uplink_addresses()
    }
}

impl Node {
    /// The addresses that the node has on its uplink.
    pub fn uplink_addresses(&self) -> Result<Vec<IpAddr>> {
        let listing: serde_json::Value = serde_json::from_str(
            &self
                .host
                .run(&["ip", "-j", "addr", "show", "dev", "eth0"])?,
        )?;
        let addresses = listing[0]["addr_info"].as_array().context("no addresses")?;
        addresses
            .iter()
            .map(|address| {
                let text = address["local"].as_str().context("no address")?;
                Ok(text.parse()?)
            })
            .collect()
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

impl Cluster {
    /// Begins to listen on every node's uplink.
    pub fn sniff(&self, services: &[u16]) -> Result<Sniffer> {
        Sniffer::start(
            self.nodes.iter().map(|node| (node.name, &node.host)),
            "eth0",
            services,
            OVERLAY_PORT,
        )
    }

    /// The rules of what leaves uplinks, with these permits.
    #[must_use]
    pub fn rules(&self, permits: &[Permit]) -> Rules {
        let prefix = |text: String| text.parse().ok();
        Rules {
            inside: LOCAL_CIDRS
                .iter()
                .filter_map(|cidr| prefix((*cidr).to_owned()))
                .collect(),
            nodes: self
                .nodes
                .iter()
                .map(|node| {
                    let pods = [
                        prefix(format!("10.65.{}.0/24", node.number)),
                        prefix(format!("fd00:65:0:{}::/64", node.number)),
                    ];
                    (
                        node.name.to_owned(),
                        vec![node.v4.into(), node.v6.into()],
                        pods.into_iter().flatten().collect(),
                    )
                })
                .collect(),
            permits: permits.to_vec(),
        }
    }
}

/// Connects to a port and reads a line, or says that nobody answers within a second.
pub fn greeted(host: &Host, to: SocketAddr) -> Result<bool> {
    use std::io::Read;
    host.enter(|| {
        let Ok(mut stream) =
            std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(1))
        else {
            return Ok(false);
        };
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        Ok(stream.read(&mut [0; 16])? > 0)
    })
}
