//! Which gateways answer: probes, and what they say of whom is usable.
//!
//! `judge` decides by what was seen of one subject (pure), `round` asks all of them again and again on a thread, and
//! `overlay` is how gateways on other nodes are asked, `next_hop` how next hops are; `outside` asks hosts on the
//! internet from gateways' egress addresses. `resolve` takes the [`Faults`] as one of its inputs and
//! says who is to be asked.

mod judge;
mod messages;
mod next_hop;
mod outside;
mod overlay;
mod round;

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use egress_common::gateway::GatewayId;
use tokio::sync::Notify;

pub use self::{
    judge::{Judge, Seen, Timing},
    next_hop::{NextHopProbe, NextHopProber},
    outside::{Claims, MAX_TARGETS, Outside, Probed, Source},
    overlay::{OverlayProber, UNKNOWN_NODE},
    round::{Asking, Prober},
};
use crate::model::{ObjectName, ProbeKind};

/// Who is asked whether it is in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A gateway with an egress address, on the node that owns it.
    Gateway {
        /// Its name.
        name: ObjectName,
        /// Its number on every node.
        id: GatewayId,
        /// The node.
        node: String,
    },
    /// A next hop.
    NextHop {
        /// Its address.
        address: IpAddr,
        /// The device that leads to it.
        ifindex: u32,
    },
    /// The outside, from a gateway's egress addresses on this node.
    Outside {
        /// The gateway's name.
        name: ObjectName,
        /// How it is asked.
        by: ProbeKind,
    },
    /// A gateway that takes no new connections: whether those that it has may stay is asked of the clock alone.
    Drained {
        /// Its name.
        name: ObjectName,
    },
}

impl Subject {
    /// How it is asked, as metrics have it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Gateway { .. } => "overlay",
            Self::NextHop { .. } => "next_hop",
            Self::Outside { by, .. } => by.name(),
            Self::Drained { .. } => "drain",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway { name, node, .. } => write!(f, "the gateway {name} on its node {node}"),
            Self::NextHop { address, .. } => write!(f, "the next hop {address}"),
            Self::Outside { name, by } => {
                write!(f, "the outside of the gateway {name} by {}", by.name())
            }
            Self::Drained { name } => write!(f, "the drained gateway {name}"),
        }
    }
}

/// Who is not usable, and why.
pub type Faults = BTreeMap<Subject, String>;

/// What is known of those who are asked, for whoever needs it: written by the threads that ask.
#[derive(Debug, Default)]
pub struct Board {
    outcomes: Mutex<BTreeMap<Subject, Outcome>>,
    changed: Notify,
}

/// What is known of one subject.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Why it is not usable, if it is not.
    pub fault: Option<String>,
    /// How long the last reply took; nothing before the first.
    pub round_trip: Option<Duration>,
}

impl Board {
    /// An empty one.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Who is not usable now.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.lock()
            .iter()
            .filter_map(|(subject, outcome)| Some((subject.clone(), outcome.fault.clone()?)))
            .collect()
    }

    /// How long the last reply of each took.
    #[must_use]
    pub fn round_trips(&self) -> BTreeMap<Subject, Duration> {
        self.lock()
            .iter()
            .filter_map(|(subject, outcome)| Some((subject.clone(), outcome.round_trip?)))
            .collect()
    }

    /// Waits until somebody has become usable or has ceased to be.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Writes down what is known of these, and wakes who waits once, if any fault is another.
    pub fn note(&self, found: impl IntoIterator<Item = (Subject, Outcome)>) {
        let mut outcomes = self.lock();
        let mut changed = false;
        for (subject, outcome) in found {
            let fault = outcome.fault.clone();
            let before = outcomes.insert(subject, outcome);
            changed |= before.and_then(|before| before.fault) != fault;
        }
        drop(outcomes);
        if changed {
            self.changed.notify_one();
        }
    }

    /// Forgets a subject.
    pub fn forget(&self, subject: &Subject) {
        self.lock().remove(subject);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Subject, Outcome>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
