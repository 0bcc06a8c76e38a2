//! What senders are told of packets that could not be sent on.

use egress_common::{DropReason, counter::Answer};

use crate::{packet::Packet, parse::Ip};

/// Turns the packet into an ICMP error towards its source, if one is due.
#[inline(always)]
pub(crate) fn write(
    _packet: &Packet<'_>,
    _ip: &Ip,
    _reason: DropReason,
    _mtu: u32,
) -> Option<Answer> {
    None
}
