//! What others ask of the datapath: who is steered, by which programs, and what the numbers mean.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use egress_common::gateway::{EGRESS_DOWN, GatewayId};

use super::Kernel;
use crate::{
    kernel::{Hook, Program},
    snapshot::AttachedProgram,
    state::{KernelState, Names},
};

impl Kernel {
    /// The gateways of this node that nothing got out by when the maps were read, those of an earlier run's programs
    /// while these are at work.
    pub(in crate::agent) fn down_gateways(&self) -> BTreeSet<GatewayId> {
        if let Some(earlier) = &self.earlier {
            return earlier.down.clone();
        }
        let translation = &self.translation;
        let indexes = translation.gateways.values();
        indexes
            .filter_map(|index| translation.egress.get(index))
            .filter(|egress| egress.flags & EGRESS_DOWN != 0)
            .map(|egress| egress.gateway)
            .collect()
    }

    pub(in crate::agent) fn attach_mode(&self) -> &'static str {
        self.datapath.attachments.mode().name()
    }

    /// Whether an earlier run left pods that are steered or egress addresses, and this one has not changed that yet.
    pub(in crate::agent) fn took_over(&self) -> bool {
        self.took_over
    }

    pub(in crate::agent) fn state(&self) -> Arc<KernelState> {
        Arc::clone(&self.state)
    }

    /// The pods that are steered now, by this run or by programs of an earlier one.
    pub(in crate::agent) fn steered(&self) -> Arc<KernelState> {
        let earlier = self.earlier.as_ref();
        Arc::clone(earlier.map_or(&self.state, |earlier| &earlier.state))
    }

    /// The egress addresses that replies find now, by this run or by programs of an earlier one.
    pub(in crate::agent) fn egress_addresses(&self) -> BTreeSet<IpAddr> {
        if let Some(earlier) = &self.earlier {
            return earlier.egress.clone();
        }
        let addresses = self.translation.addresses.keys();
        addresses.map(|address| IpAddr::from(*address)).collect()
    }

    pub(in crate::agent) fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
    }

    /// Which of the programs that are wanted are attached.
    pub(in crate::agent) fn programs(&self, wanted: &BTreeSet<Hook>) -> Vec<AttachedProgram> {
        let attached = self.datapath.attachments.attached();
        wanted
            .iter()
            .map(|hook| AttachedProgram {
                interface: hook.interface.clone(),
                program: hook.program.name().to_owned(),
                attached: attached.contains(&(hook.program, hook.ifindex)),
                mode: self.attach_mode().to_owned(),
            })
            .collect()
    }

    /// The interfaces where this run has attached a program.
    pub(in crate::agent) fn interfaces_of(&self, program: Program) -> BTreeSet<u32> {
        let attached = self.datapath.attachments.attached().iter();
        attached
            .filter(|(other, _)| *other == program)
            .map(|(_, ifindex)| *ifindex)
            .collect()
    }

    /// Whether a program is attached to an interface, be it one of an earlier run that is still at work.
    pub(in crate::agent) fn is_attached(&self, program: Program, ifindex: u32) -> bool {
        let attached = self.datapath.attachments.attached();
        attached.contains(&(program, ifindex)) || self.keeps(program, ifindex)
    }

    /// Whether an earlier run's program stays on an interface until the maps are filled for the new one.
    pub(super) fn keeps(&self, program: Program, ifindex: u32) -> bool {
        self.datapath.is_switching() && self.has_pin(program, ifindex)
    }

    /// Whether this agent, in this run or an earlier one, has attached a program to an interface.
    pub(in crate::agent) fn has_pin(&self, program: Program, ifindex: u32) -> bool {
        self.paths.link(program, ifindex).exists()
            || self.paths.clsact_marker(program, ifindex).exists()
    }
}
