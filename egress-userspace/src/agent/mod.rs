//! The loop: sources → resolve → compile → diff → apply, and what wakes it.
//!
//! The one place that knows the order of the pipeline.

pub mod addresses;
mod apply;
mod drain;
mod fill;
mod health;
mod hold;
mod hooks;
mod overlay;
mod reading;
mod report;
mod said;
mod sources;
pub mod sweep;
mod sync;
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
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use self::{
    addresses::Addresses,
    apply::Kernel,
    fill::Counting,
    health::Health,
    hold::Hold,
    overlay::Overlay,
    reading::Reading,
    sweep::Sweeping,
    sync::{Agent, Cause},
};
use crate::{
    http::{self, Pages},
    kernel::{Hook, Program, ProgramLog},
    metrics::Metrics,
    node::{self, Netlink},
    settings::Settings,
    sources::files,
    state_dir::StateDir,
};

pub(crate) use apply::describe;
pub(crate) use hooks::{Outside as OutsideLinks, wanted as wanted_hooks};
pub(crate) use overlay::remove_recorded as remove_overlay_device;

/// What ends the agent, since it would not hear of anything any more.
const UNWATCHED: &str = "the resources are not watched any more: start the agent again";
/// The pause before a neighbour that did not answer is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// From one apply's beginning to the next one's, at least: what comes with a pod comes by several ways, and pods come one after
/// another. What comes first after a while waits for nothing, nor do gateways that are silent.
const PACE: Duration = Duration::from_millis(40);
/// How long a supervisor waits for the node to be ready. systemd stops a service that has not started after 90 s, and starts it
/// anew; what is broken is not mended by that, and who is ordered after the agent (the kubelet) would wait for it.
pub(crate) const SUPERVISOR_WAITS: Duration = Duration::from_secs(60);

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
    state_dir.set_aside_broken();
    let faults = state_dir.faults();
    let keeper = files::Keeper::new(state_dir.objects(), faults.clone());
    let loader = files::Loader::keeping(settings.resources.clone(), keeper);
    let mut settings = settings;
    settings.resolve.local_ports = node::local_ports()?;
    if let Some(overlay) = &settings.overlay {
        settings.resolve.overlay = Some(overlay.with_keys()?);
    }
    if settings.load.paths.root().exists() {
        // Whose the pins are, theirs is the table that closes interfaces; who has them says so here.
        drop(settings.load.paths.lock()?);
    }
    let hold = Hold::begin(&settings).await?;
    let (changed, mut files_changed) = mpsc::channel(1);
    let keys = settings.overlay.iter().map(|overlay| &overlay.key_file);
    let watched = settings.resources.iter().chain(keys).cloned().collect();
    let _watching = files::watch(watched, changed)
        .context("cannot watch the resources and the overlay's keys for changes")?;
    // The kernel takes a second to look at the programs; files are read meanwhile.
    let mut reading = Reading::by(loader);
    reading.begin();
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

    let mut node_changed = node::watch()
        .await
        .context("cannot follow the node's network")?;
    let mut ipsec_changed = node::watch_ipsec().await.unwrap_or_else(|error| {
        tracing::warn!(
            "cannot tell whether IPsec encrypts what leaves this node, so all frames of the overlay take its device, which \
             is slower: {error:#}"
        );
        watch::channel(true).1
    });
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let snapshot = Arc::new(ArcSwap::default());
    let counters = kernel.counters();
    let connections = sweep::Published::default();
    let mut metrics = Metrics::new(Arc::clone(&snapshot), Arc::clone(&counters))
        .with_connections(Arc::clone(&connections))
        .with_state_faults(faults);
    if let Some(counter) = hold.counter() {
        metrics = metrics.with_held(counter);
    }
    let metrics = Arc::new(metrics);
    let _sweeping = Sweeping::start(kernel.sweeper()?, connections)?;
    let _counting = Counting::start(kernel.reader())?;
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
        settings, kernel, hold, overlay, addresses, health, counters, metrics, snapshot,
    );
    agent.take(reading.finished().await?);
    let health_changed = agent.health.board();
    let mut unasked = BTreeSet::new();
    let mut cause = Cause::Anything;
    let mut told = false;
    let tell_at = Instant::now() + SUPERVISOR_WAITS;
    loop {
        let view = node_changed.view();
        agent.overlay.heed_ipsec(*ipsec_changed.borrow_and_update());
        let next_at = Instant::now() + PACE;
        tokio::task::block_in_place(|| agent.sync(&view, cause));
        if std::mem::take(&mut agent.touched_node) {
            node_changed.read_again();
        }
        if agent.is_ready() && !told {
            tell_supervisor();
            told = true;
        }
        let retry = agent.retry_at();
        let drained = agent
            .drains
            .next(std::time::Instant::now())
            .map(Instant::from_std);
        let ask_again = solicit(&agent.snapshot.resolved.to_solicit, &mut unasked).await;
        let ask_at = Instant::now() + ASK_AGAIN;
        let woken = loop {
            tokio::select! {
                // Who is silent has been so for long enough.
                biased;
                () = health_changed.changed() => break Some(Cause::Health),
                _ = terminate.recv() => break None,
                _ = interrupt.recv() => break None,
                told = files_changed.recv() => {
                    told.context(UNWATCHED)?;
                    reading.begin();
                    continue;
                }
                Some(()) = hangup.recv() => {
                    reading.begin();
                    continue;
                }
                loaded = reading.finished() => agent.take(loaded?),
                told = node_changed.changed() => told?,
                // Where the kernel has no IPsec, or does not say, nobody tells anything.
                Ok(()) = ipsec_changed.changed() => {}
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
                () = sleep_until(ask_at), if ask_again => {}
                () = sleep_until(drained.unwrap_or_else(Instant::now)), if drained.is_some() => {}
                () = agent.hook_lost() => {}
                () = sleep_until(tell_at), if !told => {
                    tracing::warn!(
                        "the node is still not ready; the supervisor hears that the agent has started: {}",
                        agent.snapshot.not_ready_because().unwrap_or_default()
                    );
                    tell_supervisor();
                    told = true;
                    continue;
                }
            }
            break Some(Cause::Anything);
        };
        let gathered = async {
            loop {
                tokio::select! {
                    biased;
                    () = health_changed.changed() => return Ok(Some(Cause::Health)),
                    _ = terminate.recv() => return Ok(None),
                    _ = interrupt.recv() => return Ok(None),
                    () = sleep_until(next_at) => return anyhow::Ok(Some(Cause::Anything)),
                    told = files_changed.recv() => {
                        told.context(UNWATCHED)?;
                        reading.begin();
                    }
                    loaded = reading.finished() => agent.take(loaded?),
                }
            }
        };
        let woken = match woken {
            Some(Cause::Anything) => gathered.await?,
            at_once @ (Some(Cause::Health) | None) => at_once,
        };
        match woken {
            Some(why) => cause = why,
            None => break,
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
/// Says whether there is anybody to ask for. `unasked` is what could not be asked the last time, and was logged.
async fn solicit(neighbours: &BTreeSet<(u32, IpAddr)>, unasked: &mut BTreeSet<String>) -> bool {
    let mut failed = BTreeSet::new();
    for (ifindex, address) in neighbours {
        let asked = match Netlink::connect() {
            Ok(netlink) => netlink.solicit(*ifindex, *address).await,
            Err(error) => Err(error),
        };
        if let Err(error) = asked {
            failed.insert(format!("cannot ask for the neighbour {address}: {error:#}"));
        }
    }
    for problem in failed.difference(unasked) {
        tracing::warn!("{problem}");
    }
    *unasked = failed;
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
