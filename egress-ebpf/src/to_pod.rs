//! What becomes of a packet that a pod receives: nothing, but connections that come in are remembered.

use crate::packet::Packet;

/// Remembers the connection that the packet opens, if it does.
#[inline(always)]
pub(crate) fn handle(_packet: &Packet<'_>) {}
