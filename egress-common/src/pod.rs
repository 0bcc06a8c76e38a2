//! What is known of a steered pod beside its policy.

use crate::{
    addr::{Addr, Mac, WireU16},
    map_type,
};

/// Where a steered address is: the value of `POD_PLACES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodPlace {
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// Its slot, as in `PODS`.
    pub slot: u32,
}
map_type!(PodPlace, size = 8, align = 4);

/// What the datapath learns of a pod: an element of `POD_NOTES`, by slot. Zero until it is learned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodNote {
    /// The MAC that the pod sends from, in the lower six bytes in memory.
    pub pod_mac: u64,
    /// The MAC that the pod sends to, likewise.
    pub host_mac: u64,
    /// Whether a connection came in to the pod, ever.
    pub inbound: u64,
    /// Always zero.
    pub pad: u64,
}
map_type!(PodNote, size = 32, align = 8);

/// A MAC in a word that is read and written at once.
#[inline(always)]
pub const fn mac_to_word(mac: Mac) -> u64 {
    let m = mac.0;
    u64::from_ne_bytes([m[0], m[1], m[2], m[3], m[4], m[5], 0, 0])
}

/// The MAC in such a word.
#[inline(always)]
pub const fn mac_from_word(word: u64) -> Mac {
    let m = word.to_ne_bytes();
    Mac([m[0], m[1], m[2], m[3], m[4], m[5]])
}

/// UDP ports on which connections may come in to a pod: an element of `POD_UDP_PORTS`, by slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpPorts {
    /// How many there are.
    pub count: u16,
    /// The ports; what follows `count` is zero.
    pub ports: [WireU16; UdpPorts::MAX],
}
map_type!(UdpPorts, size = 32, align = 2);

impl UdpPorts {
    /// Ports that a pod can name.
    pub const MAX: usize = 15;
}

/// A connection that came in to a pod: the value of `INBOUND`, under the key of a recorded reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// When it was last used, in nanoseconds of `CLOCK_MONOTONIC`.
    pub last_seen: u64,
    /// Whether the pod has answered: a TCP connection is open from its SYN with ACK on.
    pub answered: u64,
}
map_type!(Inbound, size = 16, align = 8);

/// The member that a flow uses, as long as its group allows it: the value of `FLOWS` and `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// The gateway.
    pub gateway: crate::gateway::GatewayId,
    /// The number that it had in its group.
    pub number: u32,
}
map_type!(Choice, size = 8, align = 4);

/// Key of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The pod.
    pub source: Addr,
    /// The far end.
    pub destination: Addr,
    /// The pod's port, or the identifier of an ICMP echo.
    pub source_port: WireU16,
    /// The far end's port.
    pub destination_port: WireU16,
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: [u8; 3],
}
map_type!(FlowKey, size = 44, align = 4);
