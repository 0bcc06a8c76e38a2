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
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        watch,
    },
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

/// Who is to ask.
struct Order {
    probed: BTreeMap<ObjectName, Probed>,
    /// How often it was said that all is ready when this was ordered: new ones wait until it is said again.
    ready: u64,
    /// Whom to tell when the board has them.
    done: mpsc::SyncSender<()>,
}

/// The thread; it ends with this.
#[derive(Debug)]
pub struct Outside {
    orders: Option<UnboundedSender<Order>>,
    asked: BTreeMap<ObjectName, Probed>,
    /// How often what there is to ask from was made ready.
    ready: watch::Sender<u64>,
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
        let (ready, when_ready) = watch::channel(0);
        let all = All {
            ready: when_ready,
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
            ready,
            thread: Some(thread),
        })
    }

    /// Has exactly these ask, new ones as soon as [`Outside::ready`] says so. When it returns, the board says of each
    /// whether it was down before.
    pub fn watch(&mut self, probed: &BTreeMap<ObjectName, Probed>) {
        if *probed == self.asked {
            return;
        }
        self.asked.clone_from(probed);
        let (done, is_done) = mpsc::sync_channel(1);
        let orders = self.orders.as_ref();
        let order = Order {
            probed: probed.clone(),
            ready: *self.ready.borrow(),
            done,
        };
        let told = orders.is_some_and(|orders| orders.send(order).is_ok());
        if !told {
            tracing::error!("the outside is not probed any more: start the agent again");
        } else if is_done.recv_timeout(PATIENCE).is_err() {
            tracing::warn!(
                "it takes long to begin probing the outside: gateways count as they did until then"
            );
        }
    }

    /// Says that all that are to ask have the addresses that they ask from, or will not have them soon: who asked while they
    /// are being put would hear nothing, and seem to be down.
    pub fn ready(&self) {
        self.ready.send_modify(|times| *times += 1);
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
    /// See [`Outside::ready`].
    ready: watch::Receiver<u64>,
    asking: BTreeMap<ObjectName, (Probed, Vec<AbortHandle>)>,
}

impl All {
    async fn run(mut self, mut orders: UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            self.change(order.probed, order.ready);
            // Whoever gave the order may have lost patience.
            let _gone = order.done.try_send(());
        }
    }

    fn change(&mut self, probed: BTreeMap<ObjectName, Probed>, ready: u64) {
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
            let tasks = self.begin(&name, &probed, ready, |subject| {
                was_down || known.contains_key(subject)
            });
            self.asking.insert(name, (probed, tasks));
        }
    }

    fn begin(
        &self,
        name: &ObjectName,
        probed: &Probed,
        ready: u64,
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
            tasks.push(self.spawn(asking.go_on(), ready));
        }
        if let Some(probe) = &probed.probes.http {
            let way = Requests::new(lines(), probe);
            let (subject, timing) = (subject(ProbeKind::Http), self.timing(probe));
            let asking = Asking::new(subject, way, timing, &self.board, &was_down);
            tasks.push(self.spawn(asking.go_on(), ready));
        }
        tasks
    }

    /// Has it ask once it was said again that all is ready.
    fn spawn(&self, asking: impl Future<Output = ()> + Send + 'static, before: u64) -> AbortHandle {
        let mut ready = self.ready.clone();
        let asked = async move {
            // If nobody can say so any more, this thread ends, too.
            if ready.wait_for(|times| *times > before).await.is_ok() {
                asking.await;
            }
        };
        tokio::spawn(asked).abort_handle()
    }

    const fn timing<T>(&self, probe: &Probe<T>) -> Timing {
        Timing {
            interval: probe.interval,
            timeout: probe.timeout,
            up_after: self.up_after,
        }
    }
}
