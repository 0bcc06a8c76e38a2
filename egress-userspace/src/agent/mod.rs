//! The loop: sources → resolve → compile → diff → apply, and what wakes it.
//!
//! The one place that knows the order of the pipeline.

pub mod addresses;
mod apply;
mod hooks;
mod report;
pub mod sweep;
mod takeover;

use std::{collections::BTreeSet, net::IpAddr, os::fd::AsFd, sync::Arc, time::Duration};

use anyhow::Context;
use arc_swap::ArcSwap;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use self::{addresses::Addresses, apply::Kernel, report::Report, sweep::Sweeping};
use crate::{
    compile::compile,
    counters::Counters,
    http::{self, Pages},
    kernel::{Hook, Program, ProgramLog},
    metrics::Metrics,
    node::{self, Netlink, NodeView},
    resolve::resolve,
    settings::Settings,
    snapshot::{Apply, Snapshot},
    sources::files::{self, Loaded, Loader},
    state_dir::StateDir,
};

pub(crate) use apply::describe;
pub(crate) use hooks::wanted as wanted_hooks;

/// The pauses after failed applies: doubled each time, between these.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How often hooks are looked at: what something else removes is back within a second.
const LOOK_AT_HOOKS: Duration = Duration::from_millis(500);
/// The pause before a neighbour that did not answer is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Runs until it is told to stop, and leaves everything in the kernel as it is then.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let listener = TcpListener::bind(settings.metrics_listen)
        .await
        .with_context(|| {
            format!(
                "cannot listen on {}: choose another address with --metrics-listen",
                settings.metrics_listen
            )
        })?;
    let state_dir = StateDir::open(&settings.state_dir)?;
    let addresses = Addresses::taking_over(state_dir.address_book())?;
    let mut kernel = tokio::task::block_in_place(|| Kernel::load(&settings, state_dir))?;
    if let Some(log) = kernel.log()? {
        std::thread::spawn(move || follow(log));
    }

    let (changed, mut files_changed) = mpsc::channel(1);
    let _watching = files::watch(settings.resources.clone(), changed)
        .context("cannot watch the resources for changes")?;
    let mut node_changed = node::watch()
        .await
        .context("cannot follow the node's network")?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let snapshot = Arc::new(ArcSwap::default());
    let counters = kernel.counters();
    let connections = sweep::Published::default();
    let metrics = Arc::new(
        Metrics::new(Arc::clone(&snapshot), Arc::clone(&counters))
            .with_connections(Arc::clone(&connections)),
    );
    let _sweeping = Sweeping::start(kernel.sweeper()?, connections)?;
    let pages = Pages {
        snapshot: Arc::clone(&snapshot),
        metrics: Arc::clone(&metrics),
        maps: Some(kernel.reading_maps()),
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(http::serve(listener, pages, async {
        // An error means that the agent is gone: as good as being told.
        let _stopped = stopped.await;
    }));
    tracing::info!(
        listen = %settings.metrics_listen,
        node = settings.resolve.node_name,
        attach = kernel.attach_mode(),
        "started"
    );

    let mut agent = Agent::new(settings, kernel, addresses, counters, metrics, snapshot);
    agent.read_files();
    loop {
        let view = Arc::clone(&node_changed.borrow_and_update());
        tokio::task::block_in_place(|| agent.sync(&view));
        if agent.is_ready() {
            tell_supervisor();
        }
        let retry = agent.retry_at();
        let ask_again = solicit(&agent.snapshot.resolved.to_solicit).await;
        tokio::select! {
            told = files_changed.recv() => {
                told.context("the resources are not watched any more: start the agent again")?;
                agent.read_files();
            }
            Some(()) = hangup.recv() => agent.read_files(),
            told = node_changed.changed() => {
                told.context("the node's network is not watched any more: start the agent again")?;
            }
            () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
            () = sleep(ASK_AGAIN), if ask_again => {}
            () = agent.hook_lost() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("stopping; programs and maps stay in the kernel and keep working");
    // The server may have ended by itself; there is nothing to tell it then.
    let _ended = stop.send(());
    server.await.context("the HTTP server failed")?;
    Ok(())
}

/// Lets the kernel ask for neighbours that bridges have forgotten: a silent pod is found by its answer.
///
/// Says whether there is anybody to ask for.
async fn solicit(neighbours: &BTreeSet<(u32, IpAddr)>) -> bool {
    for (ifindex, address) in neighbours {
        let asked = match Netlink::connect() {
            Ok(netlink) => netlink.solicit(*ifindex, *address).await,
            Err(error) => Err(error),
        };
        if let Err(error) = asked {
            tracing::warn!("cannot ask for the neighbour {address}: {error:#}");
        }
    }
    !neighbours.is_empty()
}

/// Passes on what the programs log, for as long as the process lives.
fn follow(mut log: ProgramLog) {
    loop {
        let readable = poll(
            &mut [PollFd::new(log.as_fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        );
        match readable {
            Ok(_) | Err(Errno::EINTR) => log.flush(),
            Err(error) => {
                tracing::error!("the programs' log cannot be followed any more: {error}");
                return;
            }
        }
    }
}

fn tell_supervisor() {
    // Without a supervisor there is no socket, and nobody to tell.
    let _nobody = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// The state of the loop.
struct Agent {
    settings: Settings,
    kernel: Kernel,
    addresses: Addresses,
    counters: Arc<Counters>,
    metrics: Arc<Metrics>,
    published: Arc<ArcSwap<Snapshot>>,
    loader: Loader,
    loaded: Loaded,
    report: Report,
    snapshot: Snapshot,
    /// The hooks that were wanted last.
    hooks: BTreeSet<Hook>,
    failures: u32,
    /// When hooks are looked at next, however often something else wakes the loop.
    look_at: Instant,
}

impl Agent {
    fn new(
        settings: Settings,
        kernel: Kernel,
        addresses: Addresses,
        counters: Arc<Counters>,
        metrics: Arc<Metrics>,
        published: Arc<ArcSwap<Snapshot>>,
    ) -> Self {
        let snapshot = Snapshot {
            node: settings.resolve.node_name.clone(),
            ..Snapshot::default()
        };
        Self {
            loader: Loader::new(settings.resources.clone()),
            settings,
            kernel,
            addresses,
            counters,
            metrics,
            published,
            loaded: Loaded::default(),
            report: Report::default(),
            snapshot,
            hooks: BTreeSet::new(),
            failures: 0,
            look_at: Instant::now() + LOOK_AT_HOOKS,
        }
    }

    fn is_ready(&self) -> bool {
        self.snapshot.is_ready()
    }

    fn retry_at(&self) -> Option<Instant> {
        let doublings = self.failures.checked_sub(1)?.min(16);
        Some(Instant::now() + (FIRST_RETRY * 2_u32.pow(doublings)).min(LAST_RETRY))
    }

    /// Waits until something else has taken a program off its hook.
    ///
    /// The hooks are looked at again and again: a TCX link tells nobody when it goes.
    async fn hook_lost(&mut self) {
        loop {
            sleep_until(self.look_at).await;
            self.look_at = Instant::now() + LOOK_AT_HOOKS;
            match tokio::task::block_in_place(|| self.kernel.forget_lost_hooks()) {
                Ok(0) => {}
                Ok(lost) => {
                    self.snapshot.reattached += lost as u64;
                    return;
                }
                Err(error) => tracing::warn!("cannot look at the hooks: {error:#}"),
            }
        }
    }

    fn read_files(&mut self) {
        self.loaded = tokio::task::block_in_place(|| self.loader.load());
        self.report.diagnostics(&self.loaded.diagnostics);
    }

    /// Brings the kernel to what files and node say now, or says why not and changes nothing.
    fn sync(&mut self, view: &NodeView) {
        let began = std::time::Instant::now();
        let result = self.try_sync(view);
        let duration = began.elapsed();
        let finished = std::time::SystemTime::now();
        let (changes, error) = match result {
            Ok(changes) => {
                self.failures = 0;
                self.snapshot.synced |= report::unreadable(&self.loaded).is_empty();
                self.snapshot.last_success = Some(finished);
                (changes, None)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                tracing::error!("apply failed, the last good state stays: {error:#}");
                (0, Some(format!("{error:#}")))
            }
        };
        if changes > 0 {
            tracing::info!(
                changes,
                pods = self.snapshot.resolved.pods.len(),
                milliseconds = duration.as_millis(),
                "applied"
            );
        }
        self.metrics.observe_apply(duration);
        self.snapshot.generation += 1;
        self.snapshot.last_apply = Some(Apply {
            finished,
            duration,
            changes,
            error,
        });
        self.snapshot.resource_errors = self.loaded.errors_by_file.clone();
        self.snapshot.skipped = self
            .loaded
            .skipped
            .iter()
            .map(|(kind, n)| (kind.clone(), *n as u64))
            .collect();
        self.snapshot.degraded = report::degraded(&self.loaded);
        self.snapshot.kernel = self.kernel.state();
        self.snapshot.names = self.kernel.names();
        self.snapshot.interfaces = Arc::new(
            view.links
                .iter()
                .map(|(index, link)| (*index, link.name.clone()))
                .collect(),
        );
        self.published.store(Arc::new(self.snapshot.clone()));
    }

    fn try_sync(&mut self, view: &NodeView) -> anyhow::Result<usize> {
        let before = self.kernel.state();
        let resolved = resolve(
            &self.loaded.model,
            view,
            &self.settings.resolve,
            &before.held(),
        );
        self.report.warnings(&resolved.warnings);
        if self.kernel.took_over() {
            takeover::refuse_to_forget(&before, &self.loaded, &resolved, view)?;
        }
        let desired = match compile(&resolved, &self.settings.limits) {
            Ok(desired) => desired,
            Err(error) => {
                // Where replies arrive is not known then: what was wanted last still is.
                self.hooks.retain(|hook| hook.program != Program::FromPod);
                self.hooks.extend(hooks::of_pods(&resolved));
                self.snapshot.programs = self.kernel.programs(&self.hooks);
                return Err(error.into());
            }
        };
        self.hooks = hooks::wanted(&resolved, &desired, view);
        // An egress address is on its uplink only while the datapath knows it: nothing else may answer there.
        let taken_off = self.addresses.take_off(&desired.translation, view);
        let brought = self.kernel.bring_to(&desired, &self.hooks, &self.counters);
        self.snapshot.programs = self.kernel.programs(&self.hooks);
        let brought = brought?;
        let put_on = self.addresses.bring_to(&desired.translation, view);
        self.snapshot.egress = self.addresses.lines(&desired.translation);
        self.snapshot.addresses_restored = self.addresses.restored();
        for pod in takeover::let_go(&before, &self.kernel.state(), view) {
            tracing::warn!("no longer steered, though its interface is still there: {pod}");
        }
        self.snapshot.resolved = Arc::new(resolved);
        Ok(brought.in_full()? + taken_off.in_full()? + put_on.in_full()?)
    }
}
