//! What becomes of a packet that arrives on an uplink.

use egress_common::DropReason;

use crate::{counters::Shape, packet::Packet};

/// What becomes of it.
pub(crate) enum Return {
    /// Not for an egress address, or the kernel's all the same.
    NotOurs,
    /// Translated back, and on its way to the pod.
    Redirected { gateway: u32, shape: Shape },
    /// It ends here.
    Dropped {
        gateway: u32,
        reason: DropReason,
        shape: Shape,
    },
}

/// Decides over a packet from the outside.
#[inline(always)]
pub(crate) fn handle(_packet: &Packet<'_>) -> Return {
    Return::NotOurs
}
