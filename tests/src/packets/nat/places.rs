//! The gateways of the node, and who talks through them, in each family.

use egress_common::{Addr, WireU16, gateway::GatewayId};

use crate::packets::build::{address, proto};

/// The one gateway that the pods' rules name first.
pub const ALPHA: Gateway = Gateway {
    id: GatewayId(0x0a0a_0001),
    counter: 1,
    v4: "192.0.2.10",
    v6: "2001:db8:ee::10",
};
/// The other one.
pub const BETA: Gateway = Gateway {
    id: GatewayId(0x0a0a_0002),
    counter: 2,
    v4: "192.0.2.20",
    v6: "2001:db8:ee::20",
};

/// A gateway of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its number.
    pub id: GatewayId,
    /// Its counter.
    pub counter: u32,
    /// Its egress addresses.
    pub v4: &'static str,
    /// The IPv6 one.
    pub v6: &'static str,
}

/// The same places in one family.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// What rows are called.
    pub name: &'static str,
    /// Two pods.
    pub pod: &'static str,
    /// The other one.
    pub other: &'static str,
    /// A far end that rules send to `ALPHA`.
    pub remote: &'static str,
    /// Another one.
    pub remote2: &'static str,
    /// A router on the way there.
    pub router: &'static str,
    /// `ALPHA`'s address.
    pub alpha: &'static str,
    /// `BETA`'s address.
    pub beta: &'static str,
    /// ICMP's protocol number.
    pub icmp: u8,
    /// Types of an echo request, an echo reply, packet too big or its like, and an error that is none of it.
    pub ping: u8,
    /// The reply's type.
    pub pong: u8,
    /// An error's type.
    pub error: u8,
}

/// IPv4.
pub const V4: Places = Places {
    name: "IPv4",
    pod: "10.1.0.5",
    other: "10.1.0.6",
    remote: "203.0.113.7",
    remote2: "203.0.113.8",
    router: "198.51.100.1",
    alpha: ALPHA.v4,
    beta: BETA.v4,
    icmp: proto::ICMP,
    ping: 8,
    pong: 0,
    error: 3,
};

/// IPv6.
pub const V6: Places = Places {
    name: "IPv6",
    pod: "fd00::5",
    other: "fd00::6",
    remote: "2001:db8:a::7",
    remote2: "2001:db8:a::8",
    router: "2001:db8:b::1",
    alpha: ALPHA.v6,
    beta: BETA.v6,
    icmp: proto::ICMPV6,
    ping: 128,
    pong: 129,
    error: 2,
};

/// The address as maps have it.
#[must_use]
pub fn addr(text: &str) -> Addr {
    Addr::from(address(text))
}

/// A port as maps have it.
#[must_use]
pub fn port(number: u16) -> WireU16 {
    WireU16::new(number)
}
