//! Bringing the kernel to what files and node say: one way through the whole pipeline.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until},
};

use super::{
    addresses::{Addresses, Moved, answered},
    apply::Kernel,
    drain::Drains,
    health::Health,
    hold::Hold,
    hooks::{self, Outside},
    overlay::Overlay,
    report::{self, Report},
    said::Said,
    sources::Sources,
    takeover,
};
use crate::{
    compile::{self, compile_again},
    counters::Counters,
    health::Faults,
    kernel::{Hook, Program, fault, give_back},
    metrics::Metrics,
    node::NodeView,
    resolve::{self, resolve_again},
    settings::Settings,
    snapshot::{Apply, Snapshot},
    sources::files::Loaded,
    state::{DesiredState, OtherNode, Translation},
    translation::{self, Underlay},
};

/// The pauses after failed applies: doubled each time, between these.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How often hooks are looked at: what something else removes is back within a second.
const LOOK_AT_HOOKS: Duration = Duration::from_millis(500);

/// How long after an apply memory is given back that it was worked out in; others may follow at once.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(3);
/// How often it is, whether there was an apply or not: whoever reads all of the node's network takes some, too.
const GIVE_BACK: Duration = Duration::from_secs(15);

/// What has woken the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Whatever may have changed.
    Anything,
    /// Somebody is usable who was not, or the other way round: packets are lost until the pods are turned.
    Health,
}

/// The state of the loop.
pub(super) struct Agent {
    settings: Settings,
    kernel: Kernel,
    hold: Hold,
    pub(super) overlay: Overlay,
    addresses: Addresses,
    pub(super) health: Health,
    pub(super) drains: Drains,
    sources: Sources,
    counters: Arc<Counters>,
    metrics: Arc<Metrics>,
    published: Arc<ArcSwap<Snapshot>>,
    loaded: Loaded,
    /// What was made of policies before: most have not changed.
    resolutions: resolve::Memo,
    compilations: compile::Memo,
    report: Report,
    pub(super) snapshot: Snapshot,
    /// The hooks that were wanted last.
    hooks: BTreeSet<Hook>,
    failures: u32,
    /// Whether devices or addresses of the node were changed since it was read.
    pub(super) touched_node: bool,
    /// When hooks are looked at next, however often something else wakes the loop.
    look_at: Instant,
    /// When memory is given back.
    give_back_at: Instant,
    /// Why hooks, or the rule that closes new interfaces, could not be looked at the last time.
    unseen: Said,
    unheld: Said,
    /// Why the last apply failed, and the keys could not be read.
    unapplied: Said,
    keyless: Said,
}

impl Agent {
    #[expect(clippy::too_many_arguments, reason = "each is a part of the agent")]
    pub(super) fn new(
        settings: Settings,
        kernel: Kernel,
        hold: Hold,
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
            drains: Drains::new(settings.probes.drain_timeout),
            settings,
            kernel,
            hold,
            overlay,
            addresses,
            health,
            sources: Sources::default(),
            counters,
            metrics,
            published,
            loaded: Loaded::default(),
            resolutions: resolve::Memo::default(),
            compilations: compile::Memo::default(),
            report: Report::default(),
            snapshot,
            hooks: BTreeSet::new(),
            failures: 0,
            touched_node: false,
            look_at: Instant::now() + LOOK_AT_HOOKS,
            give_back_at: Instant::now() + GIVE_BACK_AFTER,
            unseen: Said::default(),
            unheld: Said::default(),
            unapplied: Said::default(),
            keyless: Said::default(),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.snapshot.is_ready()
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        let doublings = self.failures.checked_sub(1)?.min(16);
        Some(Instant::now() + (FIRST_RETRY * 2_u32.pow(doublings)).min(LAST_RETRY))
    }

    /// Waits until something else has taken a program off its hook, or has changed what closes new interfaces.
    ///
    /// The hooks are looked at again and again: a TCX link tells nobody when it goes.
    pub(super) async fn hook_lost(&mut self) {
        loop {
            sleep_until(self.look_at).await;
            self.look_at = Instant::now() + LOOK_AT_HOOKS;
            if self.give_back_at <= Instant::now() {
                self.give_back_at = Instant::now() + GIVE_BACK;
                tokio::task::block_in_place(|| {
                    self.kernel.tidy();
                    give_back();
                });
            }
            let restored = match tokio::task::block_in_place(|| self.hold.check()) {
                Ok(restored) => {
                    self.unheld.is_over();
                    restored
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    if self.unheld.is_news(&why, std::time::Instant::now()) {
                        tracing::error!("cannot see to it that new interfaces are closed: {why}");
                    }
                    false
                }
            };
            match tokio::task::block_in_place(|| self.look()) {
                Ok(0) if restored => {
                    self.unseen.is_over();
                    return;
                }
                Ok(0) => {
                    self.unseen.is_over();
                }
                Ok(lost) => {
                    self.unseen.is_over();
                    self.snapshot.reattached += lost as u64;
                    return;
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    if self.unseen.is_news(&why, std::time::Instant::now()) {
                        tracing::warn!("cannot look at the hooks: {why}");
                    }
                }
            }
        }
    }

    /// Pins again what has lost its pin, and says how many hooks have lost their programs.
    fn look(&mut self) -> anyhow::Result<usize> {
        let restored = self.kernel.restore_pins()?;
        if restored > 0 {
            self.snapshot.pins_restored += restored as u64;
            self.published.store(Arc::new(self.snapshot.clone()));
        }
        self.kernel.forget_lost_hooks()
    }

    /// Goes by these resources from now on, and by the overlay's keys as they are now.
    pub(super) fn take(&mut self, loaded: Loaded) {
        self.loaded = loaded;
        if let Some(options) = &self.settings.overlay {
            match options.with_keys() {
                Ok(overlay) => {
                    self.keyless.is_over();
                    self.settings.resolve.overlay = Some(overlay);
                }
                Err(error) => {
                    let why = error.to_string();
                    if self.keyless.is_news(&why, std::time::Instant::now()) {
                        tracing::error!("the overlay's last good keys stay: {why}");
                    }
                }
            }
        }
        self.report.diagnostics(&self.loaded.diagnostics);
    }

    /// Brings the kernel to what files and node say now, or says why not and changes nothing.
    pub(super) fn sync(&mut self, view: &NodeView, cause: Cause) {
        let began = std::time::Instant::now();
        fault::begin();
        let result = self.try_sync(view, cause);
        // Even if it failed: who is not asked would never be found dead.
        self.health.ready();
        fault::end();
        let duration = began.elapsed();
        let finished = std::time::SystemTime::now();
        let (changes, error) = match result {
            Ok(changes) => {
                self.failures = 0;
                if self.unapplied.is_over() {
                    tracing::info!("applies work again");
                }
                self.snapshot.synced |= self.loaded.unknown.is_empty();
                self.snapshot.last_success = Some(finished);
                (changes, None)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                let why = format!("{error:#}");
                if self.unapplied.is_news(&why, std::time::Instant::now()) {
                    tracing::error!("apply failed, the last good state stays: {why}");
                }
                (0, Some(why))
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
        self.give_back_at = self.give_back_at.min(Instant::now() + GIVE_BACK_AFTER);
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
        self.snapshot.restored = self.loaded.restored.values().map(BTreeSet::len).sum();
        self.snapshot.kernel = self.kernel.state();
        self.snapshot.names = self.kernel.names();
        let links = view.links.iter().map(|(index, link)| (*index, &link.name));
        if !self
            .snapshot
            .interfaces
            .iter()
            .map(|(index, name)| (*index, name))
            .eq(links.clone())
        {
            let named = links.map(|(index, name)| (index, name.clone()));
            self.snapshot.interfaces = Arc::new(named.collect());
        }
        self.published.store(Arc::new(self.snapshot.clone()));
    }

    fn try_sync(&mut self, view: &NodeView, cause: Cause) -> anyhow::Result<usize> {
        let before = self.kernel.steered();
        let (held, assigned) = (before.held(), self.addresses.assigned());
        let mut resolve_with = |faults: &Faults| {
            let (settings, model) = (&self.settings.resolve, &self.loaded.model);
            let memo = &mut self.resolutions;
            resolve_again(model, view, settings, &held, &assigned, faults, memo)
        };
        tracing::debug!(?cause, "looking at what is to be");
        let now = std::time::Instant::now();
        let mut faults = self.health.faults();
        self.drains.add_faults(now, &mut faults);
        let mut resolved = resolve_with(&faults);
        self.health.watch(&resolved, &self.kernel.names());
        self.drains.note(&resolved.draining, now);
        let mut known = self.health.faults();
        self.drains.add_faults(now, &mut known);
        if known != faults {
            resolved = resolve_with(&known);
        }
        resolved.warnings.extend(report::restored(&self.loaded));
        tracing::debug!(faults = known.len(), "resolved");
        let uplinks = view.uplinks(&self.settings.resolve.uplinks);
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
        let compiled = compile_again(&resolved, &self.settings.limits, &mut self.compilations);
        let desired = match compiled {
            Ok(desired) => desired,
            Err(error) => {
                self.report.warnings(&resolved.warnings);
                // Where replies arrive is not known then: what was wanted last still is.
                self.hooks
                    .retain(|hook| !hooks::OF_PODS.contains(&hook.program));
                let outside = self.outside(uplinks.links, self.overlay.index_in(view));
                let nothing = DesiredState::default();
                let known = hooks::wanted(&resolved, &nothing, view, &outside);
                self.hooks.extend(known);
                let guard = self.kernel.guard(&self.hooks);
                self.snapshot.programs = self.kernel.programs(&self.hooks);
                let unguarded = guard?.errors;
                let also = unguarded.iter().map(|error| format!("; and {error:#}"));
                bail!("{error}{}", also.collect::<String>());
            }
        };
        tracing::debug!("compiled");
        let mut warnings = resolved.warnings.clone();
        if !desired.translation.addresses.is_empty() || !self.settings.resolve.uplinks.is_empty() {
            warnings.extend(uplinks.warnings);
        }
        // The kernel takes its time to tell of the device, and would have told if it had changed.
        let as_it_was = match cause {
            Cause::Anything => None,
            Cause::Health => self.overlay.index_in(view),
        };
        let (overlay, mut errors) = match as_it_was {
            Some(index) => (Some(index), Vec::new()),
            None => self.ensure_overlay(view),
        };
        let mut outside = self.outside(uplinks.links, overlay);
        let underlay = self.underlay(&desired.translation, view);
        outside.underlay = underlay.as_ref().map(|underlay| underlay.ifindex);
        self.hooks = hooks::wanted(&resolved, &desired, view, &outside);
        let guard = self.kernel.guard(&self.hooks)?;
        errors.extend(guard.errors);
        let vni = self.overlay.options().map(|(_, vni)| vni);
        let settings = translation::settings(
            &desired.translation,
            overlay.zip(vni),
            &self.settings.nat,
            self.settings.mark.bit(),
            guard.guarded,
        );
        let settings = translation::with_underlay(settings, underlay.as_ref());
        // Where the datapath does not know an egress address, or sees nothing of its uplink, whatever listens on
        // all addresses of the node would answer on it: it is off before the maps forget it, which they do not
        // while it is on, and on after the program of its uplink.
        let (mut taken_off, mut put_on) = (0, Moved::default());
        let brought = self.kernel.plan(&desired, &settings).and_then(|plans| {
            tracing::debug!("planned");
            let taken = self.addresses.take_off(&desired.translation, view);
            self.touched_node |= taken.changes > 0;
            taken_off = taken.in_full().context(
                "nothing is changed while an egress address that is let go cannot be taken off",
            )?;
            self.hold.close_others(&resolved)?;
            let kernel = &mut self.kernel;
            let brought = kernel.bring_to(plans, &desired, &self.hooks, &self.counters)?;
            let answered = answered(&desired.translation, |ifindex| {
                kernel.is_attached(Program::FromUplink, ifindex)
            });
            put_on = self.addresses.bring_to(&answered, view);
            self.touched_node |= put_on.changes > 0;
            let is_programmed = |ifindex| kernel.is_attached(Program::FromPod, ifindex);
            let opened = self.hold.open_ready(&resolved, view, is_programmed);
            Ok(brought.but(opened.err()))
        });
        self.snapshot.held = self.hold.held(view);
        self.snapshot.hold_restored = self.hold.restored();
        self.snapshot.programs = self.kernel.programs(&self.hooks);
        self.snapshot.egress = self.addresses.lines(&desired.translation);
        self.snapshot.addresses_restored = self.addresses.restored();
        if as_it_was.is_some() {
            let (now, problems) = self.ensure_overlay(view);
            errors.extend(problems);
            if now != overlay {
                errors.push(anyhow!("the overlay device is another one than before"));
            }
        }
        errors.extend(self.settle_overlay(overlay));
        errors.extend(self.check_sources(&desired.translation.nodes, view));
        warnings.extend(self.sources.problems().iter().cloned());
        self.report.warnings(&warnings);
        let brought = brought?.but(errors);
        self.health.watch(&resolved, &self.kernel.names());
        self.report.gateways(&resolved.gateways);
        for pod in takeover::let_go(&before, &self.kernel.state(), view) {
            tracing::warn!("no longer steered, though its interface is still there: {pod}");
        }
        self.snapshot.resolved = Arc::new(resolved);
        Ok(brought.in_full()? + guard.attached + taken_off + put_on.in_full()?)
    }

    fn outside(&self, uplinks: BTreeMap<u32, String>, overlay: Option<u32>) -> Outside {
        Outside {
            uplinks,
            overlay: self.named_overlay(overlay),
            underlay: None,
            marks: self.settings.mark.is_on(),
            guarded: self.kernel.interfaces_of(Program::ToUplink),
        }
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

    /// Where plain frames of the overlay go past the kernel's stack, if they do.
    fn underlay(&self, translation: &Translation, view: &NodeView) -> Option<Underlay> {
        let port = self.overlay.fast_path_port()?;
        let ports = self.settings.resolve.local_ports;
        translation::underlay(translation, view, port, ports)
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
