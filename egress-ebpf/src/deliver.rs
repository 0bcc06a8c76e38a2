//! The way back: straight out of the pod's interface.

use egress_common::{DropReason, keys::ReplyPath};

use crate::{forward, packet::Packet, parse::Ip};

/// Hands the packet to the pod.
#[inline(always)]
pub(crate) fn to_pod(packet: &Packet<'_>, ip: &Ip, path: &ReplyPath) -> Result<(), DropReason> {
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    forward::lower_ttl(packet, ip)?;
    packet.set_macs(path.pod_mac, path.host_mac)?;
    packet.redirect(path.ifindex)
}
