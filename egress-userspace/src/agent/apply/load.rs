//! Loading the datapath, what is left of an earlier run in it, and whoever else works on its maps.

use std::{net::IpAddr, sync::Arc};

use anyhow::Context as _;

use super::{Earlier, Kernel};
use crate::{
    agent::sweep::Sweeper,
    counters::Counters,
    diff,
    health::OverlayProber,
    http::ReadMaps,
    kernel::{
        CounterMaps, CounterReader, Datapath, GatewayProbes, Maps, NatMaps, NatSweep,
        OwnConnections, ProgramLog,
    },
    settings::Settings,
    state::KernelState,
    state_dir::StateDir,
};

impl Kernel {
    /// Loads the datapath, and reads what an earlier run has left in its maps.
    pub(in crate::agent) fn load(settings: &Settings, state_dir: StateDir) -> anyhow::Result<Self> {
        let took_over = settings.load.paths.has_maps();
        let mut datapath = Datapath::load(&settings.load)?;
        // The last run may have freed something just before it ended.
        datapath.maps.grace()?;
        let state = diff::trace(&datapath.maps).context("cannot read the maps of the last run")?;
        let translation = datapath.maps.translation()?;
        let names = state_dir.names();
        let earlier = datapath.earlier_pods().map(|pods| Earlier {
            state: Arc::new(KernelState {
                pods: pods.into_iter().collect(),
                ..KernelState::default()
            }),
            egress: datapath
                .earlier_egress_addresses()
                .into_iter()
                .map(IpAddr::from)
                .collect(),
            down: datapath.earlier_down_gateways().into_iter().collect(),
        });
        if let Some(earlier) = &earlier {
            tracing::info!(
                pods = earlier.state.pods.len(),
                egress_addresses = earlier.egress.len(),
                "the last run's programs go on with its maps until new ones are filled"
            );
        }
        let anything = !(state.pods.is_empty() && translation.addresses.is_empty())
            || earlier
                .as_ref()
                .is_some_and(|e| !(e.state.pods.is_empty() && e.egress.is_empty()));
        tracing::debug!(
            took_over,
            pods = state.pods.len(),
            egress_addresses = translation.addresses.len(),
            "loaded"
        );
        Ok(Self {
            zeroing: CounterMaps::open(&settings.load.paths)?,
            reader: Arc::new(CounterReader::open(&settings.load.paths)?),
            datapath,
            state_dir,
            paths: settings.load.paths.clone(),
            limits: settings.limits,
            took_over: took_over && anything,
            state: Arc::new(state),
            planned: diff::Memo::default(),
            translation,
            names: Arc::new(names),
            unsure: false,
            earlier,
        })
    }

    /// The counters, going on from where the last run was.
    pub(in crate::agent) fn counters(&self) -> Arc<Counters> {
        let source = Arc::clone(&self.reader);
        Arc::new(Counters::taking_over(source, &self.names))
    }

    /// Whoever reads counters.
    pub(in crate::agent) fn reader(&self) -> Arc<CounterReader> {
        Arc::clone(&self.reader)
    }

    /// Reads what the live maps say, beside whoever writes them.
    pub(in crate::agent) fn reading_maps(&self) -> Arc<ReadMaps> {
        let paths = self.paths.clone();
        Arc::new(move || diff::trace(&Maps::open(&paths)?))
    }

    /// The programs' log, if there is one.
    pub(in crate::agent) fn log(&mut self) -> anyhow::Result<Option<ProgramLog>> {
        self.datapath.log()
    }

    /// Whoever rids the tables of connections of what has ended.
    pub(in crate::agent) fn sweeper(&mut self) -> anyhow::Result<Sweeper> {
        let program = NatSweep::new(self.datapath.nat_sweep()?)?;
        Ok(Sweeper::new(NatMaps::open(&self.paths)?, program))
    }

    /// Whoever asks gateways on other nodes whether they are in order.
    pub(in crate::agent) fn prober(&mut self) -> anyhow::Result<OverlayProber> {
        let program = self.datapath.probe()?;
        Ok(OverlayProber::new(GatewayProbes::open(
            &self.paths,
            program,
        )?))
    }

    /// What lets the node's own sockets ask from egress addresses.
    pub(in crate::agent) fn own_connections(&self) -> anyhow::Result<OwnConnections> {
        OwnConnections::open(&self.paths)
    }
}
