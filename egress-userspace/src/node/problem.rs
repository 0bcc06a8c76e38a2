//! Why a pod's interface or the way to a next hop is not known, in sentences that a user can act on.

use std::net::IpAddr;

/// Why a pod's host-side interface is not known, or is not its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceProblem {
    /// No route leads to the pod.
    #[error("no route on this node leads to {address}")]
    NoRoute {
        /// The pod's address.
        address: IpAddr,
    },
    /// The pod is behind a router.
    #[error(
        "the route to {address} leads through the router {router}, so the pod is not on this node"
    )]
    Remote {
        /// The pod's address.
        address: IpAddr,
        /// The next hop.
        router: IpAddr,
    },
    /// The pod's MAC is not known to its bridge's neighbour table.
    #[error("{address} is on the bridge {device}, which has not learned its MAC yet")]
    NeighbourUnknown {
        /// The pod's address.
        address: IpAddr,
        /// The bridge.
        ifindex: u32,
        /// The bridge's name.
        device: String,
    },
    /// The bridge does not know the port of the pod's MAC.
    #[error(
        "{address} is on the bridge {device}, which has not learned the port behind its MAC yet"
    )]
    PortUnknown {
        /// The pod's address.
        address: IpAddr,
        /// The bridge.
        ifindex: u32,
        /// The bridge's name.
        device: String,
    },
    /// The annotation names a device that does not exist.
    #[error("the annotation egress.fastpath/interface names {name}, which this node does not have")]
    HintMissing {
        /// The name.
        name: String,
    },
    /// The address is the node's.
    #[error("{address} is an address of the node itself")]
    OwnAddress {
        /// The address.
        address: IpAddr,
    },
    /// The device leads to a whole subnet, or to everything.
    #[error("{device} is not the pod's own interface: {why}")]
    NotItsOwn {
        /// The device.
        device: String,
        /// What makes it somebody else's.
        why: &'static str,
    },
    /// The pod's addresses lead to different devices.
    #[error("its addresses lead to different interfaces, {first} and {second}")]
    Disagree {
        /// One device.
        first: String,
        /// The other.
        second: String,
    },
}

impl InterfaceProblem {
    /// Whether time alone may solve it: routes and neighbours come after the pod.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::NoRoute { .. }
            | Self::Remote { .. }
            | Self::NeighbourUnknown { .. }
            | Self::PortUnknown { .. }
            | Self::HintMissing { .. } => true,
            Self::OwnAddress { .. } | Self::NotItsOwn { .. } | Self::Disagree { .. } => false,
        }
    }

    /// The bridge and the address that [`super::Netlink::solicit`] should ask for.
    #[must_use]
    pub const fn to_solicit(&self) -> Option<(u32, IpAddr)> {
        match self {
            Self::NeighbourUnknown {
                address, ifindex, ..
            }
            | Self::PortUnknown {
                address, ifindex, ..
            } => Some((*ifindex, *address)),
            Self::NoRoute { .. }
            | Self::Remote { .. }
            | Self::HintMissing { .. }
            | Self::OwnAddress { .. }
            | Self::NotItsOwn { .. }
            | Self::Disagree { .. } => None,
        }
    }
}

/// Why a next hop cannot be used from this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    /// Not an address that one host has.
    #[error("{0} is not the address of a single host")]
    NotAHost(IpAddr),
    /// The address is ours.
    #[error("{0} is an address of this node: a gateway must be another host")]
    OwnAddress(IpAddr),
    /// No route.
    #[error("no route leads to {0}: add a route, or correct the next hop")]
    NoRoute(IpAddr),
    /// Only through another router.
    #[error(
        "{next_hop} is reached only through the router {router}, which would route packets by their destination \
         and not to the gateway: use a next hop on a network that this node is attached to"
    )]
    Routed {
        /// The next hop.
        next_hop: IpAddr,
        /// The router in between.
        router: IpAddr,
    },
    /// A link-local next hop without an interface.
    #[error("{0} is link-local and so means another host on every interface: set spec.interface")]
    NeedsInterface(IpAddr),
    /// No such interface.
    #[error("the interface {0} does not exist on this node")]
    NoSuchInterface(String),
    /// Not on that interface.
    #[error("{next_hop} is not on-link on {interface}: no route without a gateway covers it there")]
    NotOnLink {
        /// The next hop.
        next_hop: IpAddr,
        /// The interface asked for.
        interface: String,
    },
    /// The interface is down.
    #[error("the interface {0} that leads to it is down or has no carrier")]
    Down(String),
    /// The interface does not carry Ethernet.
    #[error("the interface {0} that leads to it does not carry Ethernet frames")]
    NotEthernet(String),
}
