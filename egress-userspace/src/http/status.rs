//! What `/status` and `egress status` show.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    explain::device,
    resolve::GatewayStatus,
    snapshot::{Apply, AttachedProgram, Degraded, OwnedAddress, Snapshot},
};

/// The node at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// Whether the node does what it was told.
    pub ready: bool,
    /// Why not.
    pub not_ready_because: Option<String>,
    /// How many applies there were.
    pub generation: u64,
    /// The last apply.
    pub last_apply: Option<LastApply>,
    /// Annotated pods of this node.
    pub pods: Vec<PodLine>,
    /// Gateways that some selector could match.
    pub gateways: Vec<GatewayLine>,
    /// The egress addresses that this node owns.
    #[serde(default)]
    pub egress: Vec<OwnedAddress>,
    /// The programs that belong on this node's interfaces.
    pub programs: Vec<AttachedProgram>,
    /// Interfaces that are closed until their pods' policies are in the kernel.
    #[serde(default)]
    pub held: Vec<String>,
    /// Files with errors, and how many.
    pub resource_errors: BTreeMap<String, usize>,
    /// Objects whose newest version is refused.
    pub degraded: Vec<Degraded>,
    /// Objects of kinds that mean nothing to us.
    pub skipped: BTreeMap<String, u64>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// An apply, in numbers that any reader understands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastApply {
    /// When it ended, in Unix time.
    pub finished_seconds: f64,
    /// How long it took.
    pub duration_seconds: f64,
    /// How many changes it made in the kernel.
    pub changes: usize,
    /// Why it failed.
    pub error: Option<String>,
}

/// An annotated pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLine {
    /// Namespace and name.
    pub pod: String,
    /// Where it stands.
    pub state: String,
    /// Its policy, where it is steered.
    pub policy: Option<String>,
    /// Its host-side interface, where it is steered.
    pub interface: Option<String>,
    /// Its addresses, where it is steered.
    pub addresses: Vec<IpAddr>,
}

/// A gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayLine {
    /// Namespace and name.
    pub gateway: String,
    /// Whether it can be used from this node.
    pub up: bool,
    /// Why not.
    pub reason: Option<String>,
    /// How it is reached: next hop, or egress address and node, and device.
    pub ways: Vec<String>,
}

impl Status {
    /// What a snapshot says.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let resolved = &snapshot.resolved;
        let pods = resolved.pod_states.iter().map(|(name, state)| {
            let steered = resolved.pods.get(name);
            PodLine {
                pod: name.to_string(),
                state: state.name().to_owned(),
                policy: steered.map(|p| p.policy.clone()),
                interface: steered.map(|p| p.interface.clone()),
                addresses: steered.map(|p| p.addresses.clone()).unwrap_or_default(),
            }
        });
        let gateways = resolved.gateways.iter().map(|(name, status)| {
            let (reason, ways) = match status {
                GatewayStatus::Up(ways) => (None, ways.as_slice()),
                GatewayStatus::Down(reason) => (Some(reason.clone()), [].as_slice()),
            };
            GatewayLine {
                gateway: name.to_string(),
                up: reason.is_none(),
                reason,
                ways: ways
                    .iter()
                    .map(|w| w.phrase(&device(&snapshot.interfaces, w.ifindex())))
                    .collect(),
            }
        });
        let errors = snapshot.resource_errors.iter().filter(|(_, n)| **n > 0);
        Self {
            node: snapshot.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: snapshot.is_ready(),
            not_ready_because: snapshot.not_ready_because(),
            generation: snapshot.generation,
            last_apply: snapshot.last_apply.as_ref().map(LastApply::of),
            pods: pods.collect(),
            gateways: gateways.collect(),
            egress: snapshot.egress.clone(),
            programs: snapshot.programs.clone(),
            held: snapshot.held.iter().flatten().cloned().collect(),
            resource_errors: errors.map(|(f, n)| (f.display().to_string(), *n)).collect(),
            degraded: snapshot.degraded.iter().cloned().collect(),
            skipped: snapshot.skipped.clone(),
            warnings: resolved.warnings.iter().cloned().collect(),
        }
    }
}

impl LastApply {
    fn of(apply: &Apply) -> Self {
        let since_epoch = apply.finished.duration_since(SystemTime::UNIX_EPOCH);
        Self {
            finished_seconds: since_epoch.unwrap_or(Duration::ZERO).as_secs_f64(),
            duration_seconds: apply.duration.as_secs_f64(),
            changes: apply.changes,
            error: apply.error.clone(),
        }
    }
}
