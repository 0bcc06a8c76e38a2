//! What becomes of a frame that arrives on the overlay.

use egress_common::{DropReason, counter::Answer};

use crate::{counters::Shape, packet::Packet};

/// What becomes of it.
pub(crate) enum Emergence {
    /// Translated, and out of the uplink.
    Translated { gateway: u32, shape: Shape },
    /// On its way to a pod of this node.
    Delivered,
    /// It ends here, and the pod is told.
    Answered {
        gateway: u32,
        reason: DropReason,
        answer: Answer,
        shape: Shape,
    },
    /// A gateway of this node does not take it.
    Refused {
        gateway: u32,
        reason: DropReason,
        shape: Shape,
    },
    /// It ends here.
    Dropped { reason: DropReason, shape: Shape },
}

/// Decides over a frame from the overlay: nothing of it ever goes to the kernel.
#[inline(always)]
pub(crate) fn handle(packet: &Packet<'_>) -> Emergence {
    Emergence::Dropped {
        reason: DropReason::OverlayMalformed,
        shape: Shape::of_frame(packet),
    }
}
