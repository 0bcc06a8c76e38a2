//! Frames to other nodes.

use egress_common::{DropReason, verdict::Member};

use crate::{packet::Packet, parse::Ip};

/// Sends a pod's packet to the node of its gateway.
#[inline(always)]
pub(crate) fn send(_packet: &Packet<'_>, _ip: &Ip, _member: &Member) -> Result<(), DropReason> {
    Err(DropReason::NatUnsupported)
}
