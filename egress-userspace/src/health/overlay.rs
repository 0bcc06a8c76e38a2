//! Asking gateways on other nodes, through the overlay: their nodes' programs answer, whether an agent runs there or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use egress_common::gateway::GatewayId;

use super::{Prober, Seen, Subject};
use crate::kernel::GatewayProbes;

/// The number of a node that the maps do not have yet: its gateways are not asked, and what an earlier run has found
/// of them holds.
pub const UNKNOWN_NODE: u32 = u32::MAX;

/// Asks gateways through the overlay.
pub struct OverlayProber {
    probes: GatewayProbes,
    /// Those whose nodes are not known yet.
    unknown: BTreeSet<GatewayId>,
}

impl OverlayProber {
    /// By this program and its map.
    #[must_use]
    pub const fn new(probes: GatewayProbes) -> Self {
        Self {
            probes,
            unknown: BTreeSet::new(),
        }
    }
}

impl Prober for OverlayProber {
    fn watch(&mut self, subjects: &BTreeMap<Subject, u32>) -> anyhow::Result<()> {
        let gateways: BTreeMap<GatewayId, Option<u32>> = subjects
            .iter()
            .filter_map(|(subject, node)| {
                let node = (*node != UNKNOWN_NODE).then_some(*node);
                Some((id(subject)?, node))
            })
            .collect();
        let unknown = gateways.iter().filter(|(_, node)| node.is_none());
        self.unknown = unknown.map(|(id, _)| *id).collect();
        self.probes.watch(&gateways)
    }

    fn ask(&mut self, subject: &Subject) -> anyhow::Result<()> {
        match id(subject) {
            Some(id) if !self.unknown.contains(&id) => self.probes.send(id),
            Some(_) | None => Ok(()),
        }
    }

    fn seen(&mut self, subject: &Subject) -> anyhow::Result<Seen> {
        let Some(id) = id(subject) else {
            return Ok(Seen::default());
        };
        let probe = self.probes.read(id)?.unwrap_or_default();
        let time = |at: u64| (at > 0).then(|| Duration::from_nanos(at));
        Ok(Seen {
            asked: time(probe.asked),
            heard: time(probe.heard),
            round_trip: Duration::from_nanos(probe.round_trip),
            unanswered: probe.unanswered,
        })
    }

    fn fault(&self, subject: &Subject, silence: Duration) -> String {
        match subject {
            Subject::Gateway { node, .. } => format!(
                "its node {node} has not answered probes through the overlay for {} ms: the node or its uplink is \
                 down, no program of ours is there, or its own probes of the outside fail",
                silence.as_millis()
            ),
            Subject::NextHop { .. } | Subject::Outside { .. } | Subject::Drained { .. } => {
                String::new()
            }
        }
    }
}

const fn id(subject: &Subject) -> Option<GatewayId> {
    match subject {
        Subject::Gateway { id, .. } => Some(*id),
        Subject::NextHop { .. } | Subject::Outside { .. } | Subject::Drained { .. } => None,
    }
}
