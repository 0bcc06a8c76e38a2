//! Gateways whose egress addresses this node owns, and what the whole node is told.

use crate::{
    addr::{Addr, Family},
    map_type,
};

/// A gateway, the same number on every node: derived from its name.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(pub u32);
map_type!(GatewayId, size = 4, align = 4);

/// Key of `GATEWAYS`: a gateway has at most one egress address of each family.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayKey {
    /// The gateway.
    pub gateway: GatewayId,
    /// 4 or 6.
    pub family: u32,
}
map_type!(GatewayKey, size = 8, align = 4);

impl GatewayKey {
    /// The key of a gateway's address of that family.
    #[inline(always)]
    pub const fn new(gateway: GatewayId, family: Family) -> Self {
        let family = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        Self { gateway, family }
    }
}

/// An egress address that this node owns: an element of `EGRESS`.
///
/// Written once, where nothing live is; a reader compares id and address with what it looked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Egress {
    /// The address that the outside sees.
    pub address: Addr,
    /// The gateway.
    pub gateway: GatewayId,
    /// The uplink.
    pub ifindex: u32,
    /// Largest IP packet in bytes that the uplink takes.
    pub mtu: u32,
    /// Index of its counters: `GATEWAY_COUNTS`, `GATEWAY_DROPS`.
    pub counter: u32,
    /// The first port that connections may be given, in host order.
    pub first_port: u16,
    /// The last of them.
    pub last_port: u16,
    /// A sum of the `EGRESS_` flags.
    pub flags: u32,
}
map_type!(Egress, size = 40, align = 4);

/// What belongs to no connection goes to the kernel: `allowLocalServices`, or a gateway pod's own address.
pub const EGRESS_ALLOW_LOCAL: u32 = 1;
/// The address is the node's own too: ports outside the range are the kernel's.
pub const EGRESS_SHARED: u32 = 2;
/// The node's own probes say that nothing gets out by this address: other nodes' probes are not answered.
pub const EGRESS_DOWN: u32 = 4;

/// What the whole node is told: the one element of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The node's IPv4 address, for the ICMP messages and the frames that it sends; all zero if it has none.
    pub node4: Addr,
    /// The node's IPv6 address, likewise.
    pub node6: Addr,
    /// The overlay device; zero if there is none.
    pub overlay_ifindex: u32,
    /// The overlay's VXLAN network identifier.
    pub vni: u32,
    /// Connections that one source address may have.
    pub source_quota: u32,
    /// Seconds without a packet after which a connection ends, by [`crate::nat::NatState`].
    pub timeouts: [u32; crate::nat::NatState::COUNT],
    /// The one bit of the mark of packets that are let through because their destination is the cluster's own; zero
    /// marks nothing.
    pub local_mark: u32,
    /// Not zero while something leads out of the cluster where nobody looks at marks: what would be marked is dropped.
    pub unguarded: u32,
    /// The interface that has `node4` and leads to other nodes, where plain frames of the overlay are put on the wire and
    /// taken off it past the kernel's own stack; zero leaves all of them to the overlay device.
    pub underlay_ifindex: u32,
    /// The overlay's UDP port, in host order.
    pub overlay_port: u16,
    /// The first port that frames of the overlay come from, in host order, as the overlay device has them.
    pub first_source_port: u16,
    /// The port behind the last of them.
    pub source_ports_end: u16,
    /// Always zero.
    pub pad: u16,
}
map_type!(Settings, size = 112, align = 4);

/// The value of `LOCALS4` and `LOCALS6`: a prefix of the cluster, or of nobody's to steer.
pub const LOCAL_CLUSTER: u32 = 1;
/// The same of an address that this node has itself: its own NAT may hide anybody behind it.
pub const LOCAL_NODE: u32 = 2;
