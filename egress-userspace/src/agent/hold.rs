//! Interfaces that are closed until their pods' verdicts are in the kernel, and those that are open by now.
//!
//! The rule itself stands in nftables and needs nobody (`node/nft`); here is who may pass it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use egress_common::counter::Count;

use crate::{
    kernel::{Program, programmed},
    node::{self, HoldTable, Netlink, NodeView, Pattern, Standing},
    resolve::Resolved,
    settings::Settings,
};

/// Whoever opens and closes. Without patterns there is nothing to do.
#[derive(Debug)]
pub(super) struct Hold {
    table: HoldTable,
    patterns: Vec<Pattern>,
    standing: Standing,
    /// The generation of nftables at which the table was as it is known; none after a change of our own.
    seen: Option<u32>,
    /// Times that something else changed or removed the table, and it was put up again.
    restored: u64,
}

impl Hold {
    /// Puts the table up before anything else is done, or removes that of an earlier run where none is asked for.
    ///
    /// What an earlier run opened stays open as long as it exists: its verdicts are in the kernel. Where there is no
    /// table, because something else removed it or the earlier run was not to hold anything, that is what has a
    /// program of pods.
    ///
    /// # Errors
    /// A pattern would cut the node off, or the kernel refuses.
    pub(super) async fn begin(settings: &Settings) -> Result<Self> {
        let patterns = settings.hold_interfaces.clone();
        let mut hold = Self {
            table: HoldTable::of(settings.load.paths.root()),
            patterns,
            standing: Standing::default(),
            seen: None,
            restored: 0,
        };
        if hold.patterns.is_empty() {
            if hold.table.remove()? {
                tracing::info!(
                    table = hold.table.name(),
                    "interfaces are not held any more: there is no --hold-interfaces"
                );
            }
            return Ok(hold);
        }
        let view = Netlink::connect()?.read().await?;
        hold.refuse_to_cut_off(&view, settings)?;
        match hold.table.read()? {
            Some(standing) => hold.standing = standing,
            None => {
                let mut open = programmed(&settings.load.paths, Program::FromPod)?;
                open.retain(|index| hold.is_meant(&view, *index));
                hold.standing.open = open;
            }
        }
        let open = &mut hold.standing.open;
        open.retain(|index| view.links.contains_key(index));
        hold.put_up()?;
        if !hold.standing.bridges {
            tracing::warn!(
                "this kernel's nftables does not know bridges: what is a port of a bridge is not held"
            );
        }
        tracing::info!(
            table = hold.table.name(),
            interfaces = list(&hold.patterns),
            open = hold.standing.open.len(),
            "new interfaces are closed until their pods' verdicts are in the kernel"
        );
        Ok(hold)
    }

    /// Closes what may not stay open. It comes before the programs of pods that are let go are detached.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn close_others(&mut self, resolved: &Resolved) -> Result<()> {
        let candidates = candidates(resolved);
        let leaving = self.standing.open.difference(&candidates).copied();
        self.close(&leaving.collect())
            .context("nothing is changed while an interface that is let go cannot be closed")
    }

    /// Opens the interfaces of pods whose verdicts are in the kernel, and of those that are not to be steered; closes
    /// those whose program could not be put back.
    ///
    /// # Errors
    /// The kernel refuses: they stay as they are.
    pub(super) fn open_ready(
        &mut self,
        resolved: &Resolved,
        view: &NodeView,
        is_programmed: impl Fn(u32) -> bool,
    ) -> Result<()> {
        let steered: BTreeSet<u32> = resolved.pods.values().map(|pod| pod.ifindex).collect();
        let may_be_open = |index: &u32| !steered.contains(index) || is_programmed(*index);
        let open = &self.standing.open;
        let leaving = open.iter().copied().filter(|index| !may_be_open(index));
        let entering = candidates(resolved)
            .into_iter()
            .filter(|index| !open.contains(index) && may_be_open(index))
            .filter(|index| self.is_meant(view, *index));
        let (leaving, entering) = (leaving.collect(), entering.collect());
        self.change(&leaving, &entering)
    }

    /// Puts the table up again if something else has changed it. Says whether it had to.
    ///
    /// # Errors
    /// The kernel refuses: new interfaces are not closed until it does not.
    pub(super) fn check(&mut self) -> Result<bool> {
        if self.patterns.is_empty() {
            return Ok(false);
        }
        let generation = node::nft_generation()?;
        if self.seen == Some(generation) {
            return Ok(false);
        }
        let now = self.table.read()?;
        if let Some(now) = now.filter(|now| now.is_as(&self.standing)) {
            self.standing = now;
            self.seen = Some(generation);
            return Ok(false);
        }
        self.put_up()?;
        self.restored += 1;
        tracing::warn!(
            table = self.table.name(),
            "something else changed the nftables table that closes new interfaces: it is as it was"
        );
        Ok(true)
    }

    /// What is held by now: interfaces that a pattern names and that are not open. None if nothing is to be held.
    pub(super) fn held(&self, view: &NodeView) -> Option<BTreeSet<String>> {
        (!self.patterns.is_empty()).then(|| {
            let held = view.links.iter().filter(|(index, link)| {
                !self.standing.open.contains(index) && self.names(&link.name)
            });
            held.map(|(_, link)| link.name.clone()).collect()
        })
    }

    /// Times that something else changed or removed the table.
    pub(super) const fn restored(&self) -> u64 {
        self.restored
    }

    /// Whoever reads the packets that were held back so far; none if nothing is to be held.
    ///
    /// While something else has removed the table, that is what was read last: it is put up again within the
    /// second and counts on from about there, and no scrape fails for it.
    pub(super) fn counter(&self) -> Option<impl Fn() -> Result<Count> + Send + Sync + 'static> {
        let table = self.table.clone();
        let last = Mutex::new(self.standing.held);
        (!self.patterns.is_empty()).then_some(move || {
            let now = table.read()?.map(|standing| standing.held);
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(now) = now.filter(|now| now.packets >= last.packets) {
                *last = now;
            }
            Ok(*last)
        })
    }

    fn close(&mut self, indices: &BTreeSet<u32>) -> Result<()> {
        self.change(indices, &BTreeSet::new())
    }

    fn change(&mut self, close: &BTreeSet<u32>, open: &BTreeSet<u32>) -> Result<()> {
        if self.patterns.is_empty() || (close.is_empty() && open.is_empty()) {
            return Ok(());
        }
        self.seen = None;
        if let Err(error) = self.table.change(close, open, self.standing.bridges) {
            tracing::debug!("putting the table up again first: {error:#}");
            self.put_up()?;
            self.table.change(close, open, self.standing.bridges)?;
        }
        self.standing.open.retain(|index| !close.contains(index));
        self.standing.open.extend(open);
        Ok(())
    }

    /// Puts rules and set there as they are known, and learns how the kernel calls them.
    fn put_up(&mut self) -> Result<()> {
        let Standing { open, held, .. } = &self.standing;
        self.table.install(&self.patterns, open, *held)?;
        self.seen = None;
        let now = self.table.read()?;
        let mut now = now.context("the nftables table is gone as soon as it is put up")?;
        now.open = std::mem::take(&mut self.standing.open);
        self.standing = now;
        Ok(())
    }

    fn names(&self, interface: &str) -> bool {
        self.patterns
            .iter()
            .any(|pattern| pattern.matches(interface))
    }

    fn is_meant(&self, view: &NodeView, index: u32) -> bool {
        view.links
            .get(&index)
            .is_some_and(|link| self.names(&link.name))
    }

    /// A pattern is easily too short, and a node that is closed to itself can only be mended at its console.
    fn refuse_to_cut_off(&self, view: &NodeView, settings: &Settings) -> Result<()> {
        let uplinks = view.uplinks(&settings.resolve.uplinks).links;
        let default_routes = view
            .routes
            .iter()
            .filter(|route| route.destination.prefix_len() == 0);
        let mut own: BTreeMap<u32, &str> = default_routes
            .filter_map(|route| Some((route.ifindex, view.links.get(&route.ifindex)?)))
            .map(|(index, link)| (index, link.name.as_str()))
            .collect();
        own.extend(uplinks.iter().map(|(index, name)| (*index, name.as_str())));
        let overlay = settings.overlay.as_ref().map(|o| o.device.as_str());
        let hit = own
            .into_values()
            .chain(overlay)
            .chain(["lo"])
            .find(|name| self.names(name));
        ensure!(
            hit.is_none(),
            "--hold-interfaces {} would close {}, which is the node's own: name pods' interfaces only, such as 'cali*'",
            list(&self.patterns),
            hit.unwrap_or_default()
        );
        Ok(())
    }
}

fn candidates(resolved: &Resolved) -> BTreeSet<u32> {
    let steered = resolved.pods.values().map(|pod| pod.ifindex);
    steered.chain(resolved.unsteered.iter().copied()).collect()
}

fn list(patterns: &[Pattern]) -> String {
    let names: Vec<String> = patterns.iter().map(ToString::to_string).collect();
    names.join(" ")
}
