//! What the agent publishes after every apply, for whoever shows it: the one meeting point of agent and readers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    resolve::Resolved,
    state::{KernelState, Names},
};

/// The agent's view of the node at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The node's name.
    pub node: String,
    /// How many applies there were.
    pub generation: u64,
    /// Whether the sources were read in full and the result was applied at least once.
    pub synced: bool,
    /// What this node has to do.
    pub resolved: Arc<Resolved>,
    /// What the maps say.
    pub kernel: Arc<KernelState>,
    /// What the counters are called.
    pub names: Arc<Names>,
    /// Names of the node's interfaces.
    pub interfaces: Arc<BTreeMap<u32, String>>,
    /// Errors in each file that was read, files without errors included.
    pub resource_errors: BTreeMap<PathBuf, usize>,
    /// Objects of kinds that mean nothing to us.
    pub skipped: BTreeMap<String, u64>,
    /// Objects whose newest version is refused.
    pub degraded: BTreeSet<Degraded>,
    /// Objects in force as the last run kept them.
    pub restored: usize,
    /// The last apply, whether it worked or not.
    pub last_apply: Option<Apply>,
    /// When an apply last worked.
    pub last_success: Option<SystemTime>,
    /// The programs that belong on this node's interfaces.
    pub programs: Vec<AttachedProgram>,
    /// Times that something else removed a program or its qdisc, and it was put back.
    pub reattached: u64,
    /// Pins of maps, links and filters that something else removed, and that were put back.
    pub pins_restored: u64,
    /// What would make other nodes drop frames of the overlay from here, one sentence each.
    pub unreachable: BTreeSet<String>,
    /// Interfaces that are closed until their pods' verdicts are in the kernel; none if nothing is to be held.
    pub held: Option<BTreeSet<String>>,
    /// Times that something else changed the nftables table that closes them, and it was put up again.
    pub hold_restored: u64,
    /// The egress addresses that this node owns.
    pub egress: Vec<OwnedAddress>,
    /// Times that something else took an egress address off its interface, and it was put back.
    pub addresses_restored: u64,
}

/// An egress address that this node owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedAddress {
    /// The address.
    pub address: IpAddr,
    /// The namespace of its gateway.
    pub namespace: String,
    /// Its gateway.
    pub gateway: String,
    /// The uplink.
    pub interface: String,
    /// The first and the last port that connections may be given.
    pub ports: (u16, u16),
    /// Who sees to it that the address is here: "agent", "routing", "node" or "pod".
    pub holder: String,
    /// Whether it is on the uplink, if the agent is to put it there.
    pub in_place: bool,
}

/// An object whose newest version is refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Degraded {
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty where the kind has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether a last good version is in force.
    pub last_good: bool,
    /// What is wrong with the newest one, in a line.
    pub error: String,
}

/// One apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    /// When it ended.
    pub finished: SystemTime,
    /// How long it took, from reading the sources to the last map write.
    pub duration: Duration,
    /// How many changes it made in the kernel.
    pub changes: usize,
    /// Why it failed.
    pub error: Option<String>,
}

/// A program that belongs on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedProgram {
    /// The interface.
    pub interface: String,
    /// The program.
    pub program: String,
    /// Whether it is there.
    pub attached: bool,
    /// How it is attached: "tcx" or "clsact".
    pub mode: String,
}

impl Snapshot {
    /// Whether the node does what it was told.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.not_ready_because().is_none()
    }

    /// What keeps the node from doing what it was told.
    #[must_use]
    pub fn not_ready_because(&self) -> Option<String> {
        if let Some(error) = self.last_apply.as_ref().and_then(|a| a.error.as_deref()) {
            return Some(format!("the last apply failed: {error}"));
        }
        if !self.synced {
            let reason = match self.last_apply {
                None => "the resources have not been applied yet",
                Some(_) => {
                    "some of the resources could not be read yet: the log says which and why"
                }
            };
            return Some(reason.to_owned());
        }
        let missing: Vec<String> = self
            .programs
            .iter()
            .filter(|p| !p.attached)
            .map(|p| format!("{} on {}", p.program, p.interface))
            .collect();
        if !missing.is_empty() {
            return Some(format!("not attached: {}", missing.join(", ")));
        }
        self.unreachable.first().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(error: Option<&str>) -> Snapshot {
        Snapshot {
            synced: true,
            last_apply: Some(Apply {
                finished: SystemTime::UNIX_EPOCH,
                duration: Duration::ZERO,
                changes: 0,
                error: error.map(str::to_owned),
            }),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_node_is_ready_once_synced_and_attached() {
        assert_eq!(
            Snapshot::default().not_ready_because().as_deref(),
            Some("the resources have not been applied yet")
        );
        let mut snapshot = applied(None);
        assert!(snapshot.is_ready());
        snapshot.programs.push(AttachedProgram {
            interface: "veth0".to_owned(),
            program: "egress_from_pod".to_owned(),
            attached: false,
            mode: "tcx".to_owned(),
        });
        assert_eq!(
            snapshot.not_ready_because().as_deref(),
            Some("not attached: egress_from_pod on veth0")
        );
    }

    #[test]
    fn frames_that_other_nodes_would_drop_are_a_reason() {
        let mut snapshot = applied(None);
        snapshot
            .unreachable
            .insert("frames leave from x".to_owned());
        assert_eq!(
            snapshot.not_ready_because().as_deref(),
            Some("frames leave from x")
        );
    }

    #[test]
    fn an_apply_that_fails_is_the_reason_first_or_not() {
        for synced in [false, true] {
            let mut snapshot = applied(Some("PODS: no space left"));
            snapshot.synced = synced;
            assert_eq!(
                snapshot.not_ready_because().as_deref(),
                Some("the last apply failed: PODS: no space left")
            );
        }
    }

    #[test]
    fn resources_that_were_not_read_in_full_are_a_reason() {
        let mut snapshot = applied(None);
        snapshot.synced = false;
        let reason = snapshot.not_ready_because();
        assert!(reason.is_some_and(|reason| reason.contains("could not be read")));
    }
}
