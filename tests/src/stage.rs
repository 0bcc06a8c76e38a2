//! A scene with its servers and a running agent: where most tests begin.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    Agent, Host, Scene,
    agent::Setup,
    client::{BY_HAND, Frame, Wire, send_datagrams, whoami},
    resources::Resources,
    scrape::Metrics,
    server::{Datagrams, ECHO_PORT, Echo, Whoami},
    topology::{Destination, ELSEWHERE, Gateway, NODE_V4, NODE_V6, Pod, Shape},
    wait,
};

/// A scene in which the agent is at work.
#[derive(Debug)]
pub struct Stage {
    /// The agent. None while a test has taken it.
    pub agent: Option<Agent>,
    /// How the agent is started.
    pub setup: Setup,
    /// What it reads.
    pub resources: Resources,
    /// Datagrams that reached the internet.
    pub internet: Datagrams,
    /// Datagrams that reached the internal host.
    pub internal: Datagrams,
    _servers: [Whoami; 2],
    _echoes: [Echo; 2],
    /// The hosts.
    pub scene: Scene,
}

/// Where packets should seem to come from.
#[derive(Clone, Copy, Debug)]
pub enum From<'a> {
    /// The pod itself: routed, not translated.
    Pod,
    /// The node: routed by its default route.
    Node,
    /// A gateway.
    Gateway(&'a str),
}

/// So many packets are sent where each is to be dropped.
const UNWANTED: usize = 5;

impl Stage {
    /// The usual scene with the repository's examples.
    pub fn of_examples() -> Result<Self> {
        let scene = Scene::new()?;
        let resources = Resources::of_examples(&scene)?;
        Self::start(scene, resources)
    }

    /// A scene of this shape with these resources, which may depend on the scene.
    pub fn new(shape: &Shape, resources: impl FnOnce(&Scene) -> Result<String>) -> Result<Self> {
        let scene = Scene::build(shape)?;
        let text = resources(&scene)?;
        let resources = Resources::empty(&scene)?;
        resources.write("all.yaml", &text)?;
        Self::start(scene, resources)
    }

    /// Starts servers and agent in a scene.
    pub fn start(scene: Scene, resources: Resources) -> Result<Self> {
        let setup = Setup::new(&scene, resources.directory())?;
        Self::start_with(scene, resources, setup)
    }

    /// Starts servers and agent in a scene, the agent in a way of its own.
    pub fn start_with(scene: Scene, resources: Resources, setup: Setup) -> Result<Self> {
        Ok(Self {
            agent: Some(setup.start()?),
            setup,
            resources,
            internet: Datagrams::start(&scene.internet)?,
            internal: Datagrams::start(&scene.internal)?,
            _servers: [
                Whoami::start(&scene.internet)?,
                Whoami::start(&scene.internal)?,
            ],
            _echoes: [Echo::start(&scene.internet)?, Echo::start(&scene.internal)?],
            scene,
        })
    }

    /// The running agent.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the test has taken the agent")
    }

    /// Scrapes the agent.
    pub fn metrics(&self) -> Result<Metrics> {
        self.agent()?.metrics()
    }

    /// A pod by name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.scene.pod(name)
    }

    /// A gateway by name.
    pub fn gateway(&self, name: &str) -> Result<&Gateway> {
        self.scene.gateway(name)
    }

    /// Checks what a destination sees of a pod, in both families.
    pub fn expect(&self, pod: &str, destination: Destination, from: From<'_>) -> Result<()> {
        for address in destination.addresses() {
            self.expect_at(pod, address, from)?;
        }
        Ok(())
    }

    /// Checks what one address sees of a pod.
    pub fn expect_at(&self, pod: &str, address: IpAddr, from: From<'_>) -> Result<()> {
        let pod = self.pod(pod)?;
        let expected = self.source(pod, address, from)?;
        let seen =
            whoami(&pod.host, address).with_context(|| format!("{} asked {address}", pod.name))?;
        ensure!(
            seen == expected,
            "{address} saw {} as {seen}, not as {expected} ({from:?})",
            pod.name
        );
        Ok(())
    }

    /// Waits until an address sees a pod so.
    pub fn wait_until_seen(&self, pod: &str, address: IpAddr, from: From<'_>) -> Result<()> {
        wait::until("the change is in the kernel", || {
            self.expect_at(pod, address, from)
        })
    }

    /// The address that a pod is seen with.
    pub fn source(&self, pod: &Pod, like: IpAddr, from: From<'_>) -> Result<IpAddr> {
        Ok(match (from, like) {
            (From::Pod, _) => pod.address_like(like),
            (From::Node, IpAddr::V4(_)) => NODE_V4.into(),
            (From::Node, IpAddr::V6(_)) => NODE_V6.into(),
            (From::Gateway(name), _) => self.gateway(name)?.egress_like(like),
        })
    }

    /// Checks that what a pod sends to an address is dropped for `reason`: every packet, exactly once, and
    /// nothing of it arrives anywhere.
    pub fn expect_dropped(&self, pod: &str, address: IpAddr, reason: &str) -> Result<()> {
        // Frames rather than a socket: a pod that is told to be silent cannot ask for its gateway's
        // hardware address from its own IPv6 address, and each such question would count too.
        let frame = Frame::from_pod(self.pod(pod)?, &self.scene.node, address)?.bytes()?;
        self.expect_frames_dropped(pod, &vec![frame; UNWANTED], reason)
            .with_context(|| format!("{pod} sent to {address}"))
    }

    /// Checks that frames from a pod are dropped for `reason`, each exactly once, and arrive nowhere.
    pub fn expect_frames_dropped(&self, pod: &str, frames: &[Vec<u8>], reason: &str) -> Result<()> {
        let wire = Wire::open(&self.pod(pod)?.host, "eth0")?;
        self.expect_drops(reason, frames.len().try_into()?, || {
            frames.iter().try_for_each(|frame| wire.send(frame))
        })
    }

    fn expect_drops(
        &self,
        reason: &str,
        count: u64,
        send: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let before = self.metrics()?;
        let reached = self.reached()?;
        send()?;
        let after = self
            .agent()?
            .wait_for_metrics(&format!("{reason} counts"), |now| {
                let more = now.dropped(reason) - before.dropped(reason);
                ensure!(
                    more >= count,
                    "{more} of {count} packets were counted as {reason}; all drops: {:?}, before: {:?}",
                    now.all_dropped(),
                    before.all_dropped()
                );
                Ok(())
            })?;
        let mut expected = before.all_dropped();
        *expected.entry(reason.to_owned()).or_default() += count;
        ensure!(
            after.all_dropped() == expected,
            "drops are {:?}, not {expected:?}",
            after.all_dropped()
        );
        self.fence()?;
        ensure!(
            self.reached()? == reached,
            "packets that were counted as dropped reached a gateway, or came by the node"
        );
        let arrived = [self.internet.seen(), self.internal.seen()].concat();
        ensure!(
            arrived.iter().all(|datagram| datagram.payload != BY_HAND),
            "packets that were counted as dropped arrived: {arrived:?}"
        );
        Ok(())
    }

    /// Waits until as many packets of pods are counted as gateways saw.
    pub fn wait_until_counted(&self) -> Result<()> {
        let what = "what arrived is what was counted";
        let agree = self.agent()?.wait_for_metrics(what, |metrics| {
            for (gateway, seen) in self.scene.gateways.iter().zip(self.reached()?) {
                let counted = metrics.through(gateway.name);
                ensure!(
                    seen == counted,
                    "{} saw {seen}, counted are {counted}",
                    gateway.name
                );
            }
            Ok(())
        });
        agree.map(drop)
    }

    /// What gateways saw of pods: leaks of dropped packets would show here.
    fn reached(&self) -> Result<Vec<u64>> {
        self.scene
            .gateways
            .iter()
            .map(|gateway| Ok(gateway.host.counter("from_pods")?.packets))
            .collect()
    }

    /// Waits until a datagram by plain routing has arrived: whatever leaked before it has arrived too.
    fn fence(&self) -> Result<()> {
        let Ok(plain) = self.pod("plain") else {
            bail!("the scene needs a pod that is not steered to compare with")
        };
        for address in ELSEWHERE.addresses() {
            self.fence_through(&plain.host, address)?;
        }
        Ok(())
    }

    fn fence_through(&self, host: &Host, address: IpAddr) -> Result<()> {
        let before = self.internet.seen().len();
        send_datagrams(host, SocketAddr::new(address, ECHO_PORT), 1, 4)?;
        wait::until("a datagram by plain routing arrives", || {
            ensure!(self.internet.seen().len() > before);
            Ok(())
        })
    }
}
