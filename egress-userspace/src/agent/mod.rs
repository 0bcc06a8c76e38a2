//! The loop: sources → resolve → compile → diff → apply, and what wakes it.
//!
//! The one place that knows the order of the pipeline.

pub mod addresses;
mod apply;
mod drain;
mod health;
mod hooks;
mod overlay;
mod report;
mod sources;
pub mod sweep;
mod takeover;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use self::{
    addresses::{Addresses, Moved, answered},
    apply::Kernel,
    drain::Drains,
    health::Health,
    hooks::Outside,
    overlay::Overlay,
    report::Report,
    sources::Sources,
    sweep::Sweeping,
};
use crate::{
    compile::compile,
    counters::Counters,
    health::Faults,
    http::{self, Pages},
    kernel::{Hook, Program, ProgramLog},
    metrics::Metrics,
    node::{self, Netlink, NodeView},
    resolve::resolve,
    settings::Settings,
    snapshot::{Apply, Snapshot},
    sources::files::{self, Loaded, Loader},
    state::OtherNode,
    state_dir::StateDir,
    translation,
};

pub(crate) use apply::describe;
pub(crate) use hooks::{Outside as OutsideLinks, wanted as wanted_hooks};
pub(crate) use overlay::remove_recorded as remove_overlay_device;

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
    let mut settings = settings;
    settings.resolve.local_ports = node::local_ports()?;
    if let Some(overlay) = &settings.overlay {
        settings.resolve.overlay = Some(overlay.with_keys()?);
    }
    let addresses = Addresses::taking_over(state_dir.address_book())?;
    let mut overlay = Overlay::new(settings.overlay.clone(), state_dir.overlay_file());
    let mut kernel = tokio::task::block_in_place(|| Kernel::load(&settings, state_dir))?;
    if let Some(log) = kernel.log()? {
        std::thread::spawn(move || follow(log));
    }

    // Gateways on other nodes are usable from the first apply on only if the device is there and open. What
    // keeps it from being so is said by that apply.
    if let Err(error) = begin_overlay(&mut overlay, &mut kernel).await {
        tracing::debug!("no overlay yet: {error:#}");
    }

    let (changed, mut files_changed) = mpsc::channel(1);
    let keys = settings.overlay.iter().map(|overlay| &overlay.key_file);
    let watched = settings.resources.iter().chain(keys).cloned().collect();
    let _watching = files::watch(watched, changed)
        .context("cannot watch the resources and the overlay's keys for changes")?;
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
    let health = Health::start(&mut kernel, &settings.probes)?;
    metrics.show_probes(health.board());
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

    let mut agent = Agent::new(
        settings, kernel, overlay, addresses, health, counters, metrics, snapshot,
    );
    agent.read_files();
    let health_changed = agent.health.board();
    loop {
        let view = node_changed.view();
        tokio::task::block_in_place(|| agent.sync(&view));
        if std::mem::take(&mut agent.touched_node) {
            node_changed.read_again();
        }
        if agent.is_ready() {
            tell_supervisor();
        }
        let retry = agent.retry_at();
        let drained = agent
            .drains
            .next(std::time::Instant::now())
            .map(Instant::from_std);
        let ask_again = solicit(&agent.snapshot.resolved.to_solicit).await;
        tokio::select! {
            told = files_changed.recv() => {
                told.context("the resources are not watched any more: start the agent again")?;
                agent.read_files();
            }
            Some(()) = hangup.recv() => agent.read_files(),
            told = node_changed.changed() => told?,
            () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
            () = sleep(ASK_AGAIN), if ask_again => {}
            () = health_changed.changed() => {}
            () = sleep_until(drained.unwrap_or_else(Instant::now)), if drained.is_some() => {}
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

/// Makes the overlay device, attaches its program, and opens it.
async fn begin_overlay(overlay: &mut Overlay, kernel: &mut Kernel) -> anyhow::Result<()> {
    let has_pin = |ifindex| kernel.has_pin(Program::FromOverlay, ifindex);
    let Some(ifindex) = overlay.ensure(has_pin).await? else {
        return Ok(());
    };
    let interface = overlay.options().map_or("", |(name, _)| name).to_owned();
    tokio::task::block_in_place(|| {
        kernel.attach(Hook {
            program: Program::FromOverlay,
            ifindex,
            interface,
        })
    })?;
    overlay.settle(true).await?;
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
    overlay: Overlay,
    addresses: Addresses,
    health: Health,
    drains: Drains,
    sources: Sources,
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
    /// Whether devices or addresses of the node were changed since it was read.
    touched_node: bool,
    /// When hooks are looked at next, however often something else wakes the loop.
    look_at: Instant,
}

impl Agent {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is made once, in the one place that calls this"
    )]
    fn new(
        settings: Settings,
        kernel: Kernel,
        overlay: Overlay,
        addresses: Addresses,
        health: Health,
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
            drains: Drains::new(settings.probes.drain_timeout),
            settings,
            kernel,
            overlay,
            addresses,
            health,
            sources: Sources::default(),
            counters,
            metrics,
            published,
            loaded: Loaded::default(),
            report: Report::default(),
            snapshot,
            hooks: BTreeSet::new(),
            failures: 0,
            touched_node: false,
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
        if let Some(options) = &self.settings.overlay {
            match options.with_keys() {
                Ok(overlay) => self.settings.resolve.overlay = Some(overlay),
                Err(error) => tracing::error!("the overlay's last good keys stay: {error}"),
            }
        }
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
        let (held, assigned) = (before.held(), self.addresses.assigned());
        let resolve_with = |faults: &Faults| {
            let settings = &self.settings.resolve;
            resolve(&self.loaded.model, view, settings, &held, &assigned, faults)
        };
        let now = std::time::Instant::now();
        let mut faults = self.health.faults();
        self.drains.add_faults(now, &mut faults);
        let mut resolved = resolve_with(&faults);
        self.health.watch(&resolved.subjects, &self.kernel.names());
        self.drains.note(&resolved.draining, now);
        let mut known = self.health.faults();
        self.drains.add_faults(now, &mut known);
        if known != faults {
            resolved = resolve_with(&known);
        }
        let uplinks = view.uplinks(&self.settings.uplinks);
        if self.kernel.took_over()
            && let Err(refusal) = takeover::refuse_to_forget(
                &takeover::Earlier {
                    pods: &before,
                    egress: &self.kernel.egress_addresses(),
                },
                &self.loaded,
                &resolved,
                view,
                &self.settings.resolve.node_name,
            )
        {
            self.report.warnings(&resolved.warnings);
            return Err(refusal);
        }
        let desired = match compile(&resolved, &self.settings.limits) {
            Ok(desired) => desired,
            Err(error) => {
                self.report.warnings(&resolved.warnings);
                // Where replies arrive is not known then: what was wanted last still is.
                self.hooks
                    .retain(|hook| !hooks::OF_PODS.contains(&hook.program));
                self.hooks.extend(hooks::of_pods(&resolved));
                self.snapshot.programs = self.kernel.programs(&self.hooks);
                return Err(error.into());
            }
        };
        let mut warnings = resolved.warnings.clone();
        if !desired.translation.addresses.is_empty() || !self.settings.uplinks.is_empty() {
            warnings.extend(uplinks.warnings);
        }
        let (overlay, mut errors) = self.ensure_overlay(view);
        self.hooks = hooks::wanted(
            &resolved,
            &desired,
            view,
            &Outside {
                uplinks: uplinks.links,
                overlay: self.named_overlay(overlay),
            },
        );
        let vni = self.overlay.options().map(|(_, vni)| vni);
        let settings =
            translation::settings(&desired.translation, overlay.zip(vni), &self.settings.nat);
        // Where the datapath does not know an egress address, or sees nothing of its uplink, whatever listens on
        // all addresses of the node would answer on it: it is off before the maps forget it, which they do not
        // while it is on, and on after the program of its uplink.
        let (mut taken_off, mut put_on) = (0, Moved::default());
        let brought = self.kernel.plan(&desired, &settings).and_then(|plans| {
            let taken = self.addresses.take_off(&desired.translation, view);
            self.touched_node |= taken.changes > 0;
            taken_off = taken.in_full().context(
                "nothing is changed while an egress address that is let go cannot be taken off",
            )?;
            let kernel = &mut self.kernel;
            let brought = kernel.bring_to(plans, &desired, &self.hooks, &self.counters)?;
            let answered = answered(&desired.translation, |ifindex| {
                kernel.is_attached(Program::FromUplink, ifindex)
            });
            put_on = self.addresses.bring_to(&answered, view);
            self.touched_node |= put_on.changes > 0;
            Ok(brought)
        });
        self.snapshot.programs = self.kernel.programs(&self.hooks);
        self.snapshot.egress = self.addresses.lines(&desired.translation);
        self.snapshot.addresses_restored = self.addresses.restored();
        errors.extend(self.settle_overlay(overlay));
        errors.extend(self.check_sources(&desired.translation.nodes, view));
        warnings.extend(self.sources.problems().iter().cloned());
        self.report.warnings(&warnings);
        let brought = brought?.but(errors);
        self.health.watch(&resolved.subjects, &self.kernel.names());
        self.report.gateways(&resolved.gateways);
        for pod in takeover::let_go(&before, &self.kernel.state(), view) {
            tracing::warn!("no longer steered, though its interface is still there: {pod}");
        }
        self.snapshot.resolved = Arc::new(resolved);
        Ok(brought.in_full()? + taken_off + put_on.in_full()?)
    }

    /// Has the overlay device made if it is missing; what was known of it holds while the kernel cannot tell.
    fn ensure_overlay(&mut self, view: &NodeView) -> (Option<u32>, Vec<anyhow::Error>) {
        let kernel = &self.kernel;
        let has_pin = |ifindex| kernel.has_pin(Program::FromOverlay, ifindex);
        match Handle::current().block_on(self.overlay.ensure(has_pin)) {
            Ok(ifindex) => (ifindex, Vec::new()),
            Err(error) => (self.overlay.index_in(view), vec![error]),
        }
    }

    fn named_overlay(&self, ifindex: Option<u32>) -> Option<(u32, String)> {
        let (name, _) = self.overlay.options()?;
        Some((ifindex?, name.to_owned()))
    }

    fn settle_overlay(&mut self, ifindex: Option<u32>) -> Option<anyhow::Error> {
        let attached =
            ifindex.is_some_and(|index| self.kernel.is_attached(Program::FromOverlay, index));
        match Handle::current().block_on(self.overlay.settle(attached)) {
            Ok(touched) => {
                self.touched_node |= touched;
                None
            }
            Err(error) => Some(error),
        }
    }

    fn check_sources(
        &mut self,
        nodes: &BTreeMap<String, OtherNode>,
        view: &NodeView,
    ) -> Option<anyhow::Error> {
        let name = &self.settings.resolve.node_name;
        let own = self.loaded.model.nodes.get(name);
        let own = own.map(|node| node.addresses.iter().copied().collect());
        let nodes = nodes
            .iter()
            .map(|(name, node)| (name.clone(), node.address))
            .collect();
        let check = self
            .sources
            .check(name, own.unwrap_or_default(), nodes, view);
        let checked = Handle::current().block_on(check);
        self.snapshot.unreachable = self.sources.problems().clone();
        checked.err()
    }
}
