//! Probes of gateways on other nodes: sent by a program of ours, their replies read from the map.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, ensure};
use aya::{
    maps::{HashMap, MapData, MapError},
    programs::SchedClassifier,
};
use egress_common::{
    gateway::GatewayId,
    maps::PROBES,
    probe::{ETHERTYPE, GATEWAY_AT, LENGTH, Probe},
};

use super::{maps::absent_is_fine, object::PROBE, paths::Paths, syscall};

/// The map of probes, and the program that sends one.
pub struct GatewayProbes {
    probes: HashMap<MapData, GatewayId, Probe>,
    program: OwnedFd,
}

impl GatewayProbes {
    /// Opens the pinned map, for the program, which is loaded.
    ///
    /// # Errors
    /// Either is not there.
    pub fn open(paths: &Paths, program: &SchedClassifier) -> anyhow::Result<Self> {
        Ok(Self {
            probes: super::maps::open(paths, PROBES)?.try_into()?,
            program: program.fd()?.as_fd().try_clone_to_owned()?,
        })
    }

    /// Has exactly these gateways in the map, each with its node: an index of `NODE_STATE`, or none if that has no such
    /// node yet. What is known of one that stays on its node stays known.
    ///
    /// # Errors
    /// The map cannot be read, or has no room.
    pub fn watch(&mut self, gateways: &BTreeMap<GatewayId, Option<u32>>) -> anyhow::Result<()> {
        let there: Result<BTreeMap<_, _>, _> = self.probes.iter().collect();
        let there = there.with_context(|| format!("cannot read {PROBES}"))?;
        for gone in there.keys().filter(|id| !gateways.contains_key(id)) {
            absent_is_fine(self.probes.remove(gone))
                .with_context(|| format!("cannot remove from {PROBES}"))?;
        }
        for (id, node) in gateways {
            let Some(node) = *node else {
                continue;
            };
            if there.get(id).is_some_and(|probe| probe.node == node) {
                continue;
            }
            let probe = Probe {
                node,
                ..Probe::default()
            };
            self.probes
                .insert(id, probe, 0)
                .with_context(|| format!("cannot insert into {PROBES}"))?;
        }
        Ok(())
    }

    /// Sends a probe to a gateway that is watched.
    ///
    /// # Errors
    /// The kernel does not run the program, or that could not send it: there is no such node or no overlay.
    pub fn send(&self, gateway: GatewayId) -> anyhow::Result<()> {
        let result = syscall::run_classifier(&self.program, &frame(gateway))
            .with_context(|| format!("cannot run the program {PROBE}"))?;
        ensure!(
            result == 0,
            "the overlay does not take a probe: its device is closed, or the gateway's node unknown"
        );
        Ok(())
    }

    /// What is known of a gateway; nothing if it is not watched.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn read(&self, gateway: GatewayId) -> anyhow::Result<Option<Probe>> {
        match self.probes.get(&gateway, 0) {
            Ok(probe) => Ok(Some(probe)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {PROBES}")),
        }
    }
}

/// The probe without MACs and time, which the program writes.
fn frame(gateway: GatewayId) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    let at = GATEWAY_AT as usize;
    frame[at - 2..at].copy_from_slice(&ETHERTYPE.to_be_bytes());
    frame[at..at + 4].copy_from_slice(&gateway.0.to_ne_bytes());
    frame
}
