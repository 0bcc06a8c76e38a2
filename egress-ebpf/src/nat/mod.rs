//! Source NAT: connections of pods under an egress address of this node.

use egress_common::{DropReason, gateway::Egress, verdict::Member};

use crate::{packet::Packet, parse::Ip};

/// Translates a packet of this node's pod, and sends it out of the uplink.
#[inline(always)]
pub(crate) fn from_pod(_packet: &Packet<'_>, _ip: &Ip, _member: &Member) -> Result<(), DropReason> {
    Err(DropReason::NatUnsupported)
}

/// Translates a packet that came from the node `origin`, and sends it out of the uplink.
#[inline(always)]
pub(crate) fn out(
    _packet: &Packet<'_>,
    _ip: &Ip,
    _egress: &Egress,
    _origin: u32,
) -> Result<(), DropReason> {
    Err(DropReason::NatUnsupported)
}
