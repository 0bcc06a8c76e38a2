//! The way back: straight out of the pod's interface.

use egress_common::{DropReason, keys::ReplyPath};

use crate::{forward, packet::Packet, parse::Ip};

/// The mark of what our own programs deliver, on the short way to `egress_to_pod`, which takes it off.
pub(crate) const DELIVERED: u32 = 0x6567_7264;

/// Hands the packet to the pod.
#[inline(always)]
pub(crate) fn to_pod(packet: &Packet<'_>, ip: &Ip, path: &ReplyPath) -> Result<(), DropReason> {
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    forward::lower_ttl(packet, ip)?;
    packet.set_macs(path.pod_mac, path.host_mac)?;
    packet.set_mark(DELIVERED);
    packet.redirect(path.ifindex)
}
