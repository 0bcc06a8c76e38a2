//! Keys of the maps that look something up by what a packet carries.

use crate::{
    addr::{Addr, Mac, WireU16},
    map_type,
};

/// A source pod: known by (interface, address), never by address alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// One of the pod's addresses.
    pub addr: Addr,
}
map_type!(PodKey, size = 20, align = 4);

/// A recorded connection, as its replies carry it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyKey {
    /// The far end: the reply's source.
    pub remote: Addr,
    /// The pod: the reply's destination.
    pub pod: Addr,
    /// The far end's port; zero for an ICMP echo and for protocols without ports.
    pub remote_port: WireU16,
    /// The pod's port, or the identifier of an ICMP echo.
    pub pod_port: WireU16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: [u8; 3],
}
map_type!(ReplyKey, size = 40, align = 4);

/// Where the replies of a recorded connection come from and go: out of the pod's interface with these MACs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyPath {
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// The MAC that the pod sent from.
    pub pod_mac: Mac,
    /// The MAC that the pod sent to.
    pub host_mac: Mac,
    /// The interface that the connection left by, and the only one that its replies are taken from.
    pub via: u32,
}
map_type!(ReplyPath, size = 20, align = 4);
