//! Frames of the overlay: whom they are for, and that a node of the cluster sent them.
//!
//! ```text
//!  inner Ethernet header:  | tag (6) | 02 kind gateway (4, big endian) | ethertype |
//!                            destination        source
//! ```
//!
//! The tag stands where any value is a valid address; the source has to be a unicast address, or newer
//! kernels drop the frame (kernel commit f58f45c1e5b9).

use crate::{
    addr::{Addr, Mac},
    gateway::GatewayId,
    map_type,
};

/// 48 bits that only who knows the key can make, for one sending and one receiving node.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub [u8; 6]);
map_type!(Tag, size = 6, align = 1);

impl Tag {
    /// No tag: never valid on the wire.
    pub const ZERO: Self = Self([0; 6]);
}

/// What a frame of the overlay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A pod's packet for this gateway.
    Out(GatewayId),
    /// What comes back from this gateway, for the pod that it is addressed to: a reply, or an error.
    Back(GatewayId),
    /// A question whether this gateway is in order.
    Probe(GatewayId),
    /// The answer that it is.
    ProbeReply(GatewayId),
}

const LOCALLY_ADMINISTERED: u8 = 0x02;
const OUT: u8 = 1;
const BACK: u8 = 2;
const PROBE: u8 = 3;
const PROBE_REPLY: u8 = 4;

impl FrameKind {
    /// The source address of the inner frame.
    #[inline(always)]
    pub const fn to_mac(self) -> Mac {
        let (kind, gateway) = match self {
            Self::Out(gateway) => (OUT, gateway),
            Self::Back(gateway) => (BACK, gateway),
            Self::Probe(gateway) => (PROBE, gateway),
            Self::ProbeReply(gateway) => (PROBE_REPLY, gateway),
        };
        let id = gateway.0.to_be_bytes();
        Mac([LOCALLY_ADMINISTERED, kind, id[0], id[1], id[2], id[3]])
    }

    /// What the source address of an inner frame says, if it is one of ours.
    #[inline(always)]
    pub const fn from_mac(mac: Mac) -> Option<Self> {
        let m = mac.0;
        if m[0] != LOCALLY_ADMINISTERED {
            return None;
        }
        let gateway = GatewayId(u32::from_be_bytes([m[2], m[3], m[4], m[5]]));
        match m[1] {
            OUT => Some(Self::Out(gateway)),
            BACK => Some(Self::Back(gateway)),
            PROBE => Some(Self::Probe(gateway)),
            PROBE_REPLY => Some(Self::ProbeReply(gateway)),
            _ => None,
        }
    }
}

/// Another node: an element of `NODE_STATE`. Index 0 is this node and never written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeState {
    /// Where frames for it are sent to.
    pub address: Addr,
    /// Largest IP packet in bytes that fits a frame to it.
    pub mtu: u32,
    /// The tag of frames to it.
    pub send: Tag,
    /// The tags that its frames may have: of the first and the second key; zero is none.
    pub accept: [Tag; 2],
    /// Always zero.
    pub pad: [u8; 2],
}
map_type!(NodeState, size = 40, align = 4);

/// The origin of a connection that started on this node.
pub const ORIGIN_HERE: u32 = 0;
/// The origin of a connection of the node's own sockets from an egress address: what comes back is the kernel's. Such a
/// connection has no entry in `NAT_OUT`; userspace makes the one in `NAT_BACK`, with the time until when it is wanted.
pub const ORIGIN_KERNEL: u32 = u32::MAX - 1;
