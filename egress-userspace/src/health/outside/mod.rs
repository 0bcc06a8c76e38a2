//! Asking the outside from egress addresses of this node: `spec.probes` of a gateway.
//!
//! `asking` asks and judges for one gateway in one way, `echo` and `request` are the ways, and `line` is what they
//! have in common: sockets on an egress address, and the claim that makes the datapath leave their replies to the
//! kernel. All of it runs on one thread that waits for nothing but sockets and clocks.

mod asking;
mod echo;
mod line;
mod request;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use egress_common::{gateway::GatewayId, nat::NatBackKey};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::AbortHandle,
};

use self::{asking::Asking, echo::Echoes, line::Lines, request::Requests};
use super::{Board, Subject, Timing};
use crate::{
    kernel::OwnConnections,
    model::{ObjectName, Probe, ProbeKind, Probes},
};

/// How many addresses and URLs one node asks: each takes a few descriptors.
pub const MAX_TARGETS: usize = 128;

/// How long whoever gives an order waits until it is carried out.
const PATIENCE: Duration = Duration::from_secs(1);

/// A gateway of this node that asks the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Its number.
    pub id: GatewayId,
    /// Whom it asks.
    pub probes: Probes,
    /// From where: at least one, and one of each family at most.
    pub from: Vec<Source>,
}

/// An egress address as a socket has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub address: IpAddr,
    /// The name of its uplink: replies come in by it, or not at all.
    pub interface: String,
}

/// What makes replies of the node's own sockets come through.
pub trait Claims: Send + Sync + 'static {
    /// Takes a port until a time of `CLOCK_MONOTONIC`. Says whether it was free.
    ///
    /// # Errors
    /// There is no room.
    fn claim(&self, key: &NatBackKey, gateway: GatewayId, until: Duration) -> anyhow::Result<bool>;

    /// Changes until when it is taken.
    ///
    /// # Errors
    /// It is not taken any more.
    fn extend(&self, key: &NatBackKey, gateway: GatewayId, until: Duration) -> anyhow::Result<()>;
}

impl Claims for OwnConnections {
    fn claim(&self, key: &NatBackKey, gateway: GatewayId, until: Duration) -> anyhow::Result<bool> {
        Self::claim(self, key, gateway, until)
    }

    fn extend(&self, key: &NatBackKey, gateway: GatewayId, until: Duration) -> anyhow::Result<()> {
        Self::extend(self, key, gateway, until)
    }
}

/// Who is to ask, and whom to tell when the board has them.
type Order = (BTreeMap<ObjectName, Probed>, mpsc::SyncSender<()>);

/// The thread; it ends with this.
#[derive(Debug)]
pub struct Outside {
    orders: Option<UnboundedSender<Order>>,
    asked: BTreeMap<ObjectName, Probed>,
    thread: Option<JoinHandle<()>>,
}

impl Outside {
    /// Starts it; nobody is asked yet. Those of `were_down` count as down until they were heard for `up_after`.
    ///
    /// # Errors
    /// The kernel refuses a thread, or what it waits with.
    pub fn start(
        claims: Arc<dyn Claims>,
        board: Arc<Board>,
        up_after: Duration,
        were_down: BTreeSet<GatewayId>,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot wait for answers of the outside")?;
        let (orders, received) = unbounded_channel();
        let all = All {
            claims,
            board,
            up_after,
            were_down,
            asking: BTreeMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("probe outside".to_owned())
            .spawn(move || runtime.block_on(all.run(received)))
            .context("cannot start the thread that probes the outside")?;
        Ok(Self {
            orders: Some(orders),
            asked: BTreeMap::new(),
            thread: Some(thread),
        })
    }

    /// Has exactly these ask from now on. When it returns, the board says of each whether it was down before.
    pub fn watch(&mut self, probed: &BTreeMap<ObjectName, Probed>) {
        if *probed == self.asked {
            return;
        }
        self.asked.clone_from(probed);
        let (done, is_done) = mpsc::sync_channel(1);
        let orders = self.orders.as_ref();
        let told = orders.is_some_and(|orders| orders.send((probed.clone(), done)).is_ok());
        if !told {
            tracing::error!("the outside is not probed any more: start the agent again");
        } else if is_done.recv_timeout(PATIENCE).is_err() {
            tracing::warn!(
                "it takes long to begin probing the outside: gateways count as they did until then"
            );
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that probes the outside has panicked");
        }
    }
}

/// Every gateway that asks.
struct All {
    claims: Arc<dyn Claims>,
    board: Arc<Board>,
    up_after: Duration,
    were_down: BTreeSet<GatewayId>,
    asking: BTreeMap<ObjectName, (Probed, Vec<AbortHandle>)>,
}

impl All {
    async fn run(mut self, mut orders: UnboundedReceiver<Order>) {
        while let Some((probed, done)) = orders.recv().await {
            self.change(probed);
            // Whoever gave the order may have lost patience.
            let _gone = done.try_send(());
        }
    }

    fn change(&mut self, probed: BTreeMap<ObjectName, Probed>) {
        let known = self.board.faults();
        let gone: Vec<ObjectName> = self
            .asking
            .iter()
            .filter(|(name, (before, _))| probed.get(*name) != Some(before))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            let Some((before, tasks)) = self.asking.remove(&name) else {
                continue;
            };
            // On this thread, so none of them runs again.
            tasks.iter().for_each(AbortHandle::abort);
            for by in before.probes.kinds() {
                let name = name.clone();
                self.board.forget(&Subject::Outside { name, by });
            }
        }
        for (name, probed) in probed {
            if self.asking.contains_key(&name) {
                continue;
            }
            let was_down = self.were_down.remove(&probed.id);
            let tasks = self.begin(&name, &probed, |subject| {
                was_down || known.contains_key(subject)
            });
            self.asking.insert(name, (probed, tasks));
        }
    }

    fn begin(
        &self,
        name: &ObjectName,
        probed: &Probed,
        was_down: impl Fn(&Subject) -> bool,
    ) -> Vec<AbortHandle> {
        let lines = || Lines::new(Arc::clone(&self.claims), probed.id, probed.from.clone());
        let subject = |by| Subject::Outside {
            name: name.clone(),
            by,
        };
        let mut tasks = Vec::new();
        if let Some(probe) = &probed.probes.icmp {
            let way = Echoes::new(lines(), probe);
            let (subject, timing) = (subject(ProbeKind::Icmp), self.timing(probe));
            let asking = Asking::new(subject, way, timing, &self.board, &was_down);
            tasks.push(tokio::spawn(asking.go_on()).abort_handle());
        }
        if let Some(probe) = &probed.probes.http {
            let way = Requests::new(lines(), probe);
            let (subject, timing) = (subject(ProbeKind::Http), self.timing(probe));
            let asking = Asking::new(subject, way, timing, &self.board, &was_down);
            tasks.push(tokio::spawn(asking.go_on()).abort_handle());
        }
        tasks
    }

    const fn timing<T>(&self, probe: &Probe<T>) -> Timing {
        Timing {
            interval: probe.interval,
            timeout: probe.timeout,
            up_after: self.up_after,
        }
    }
}
