//! One node, and what is asked of it, row by row.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "rows say what they are; a test that cannot go on says where"
)]

mod interfaces;
mod next_hops;
mod outside;

use super::*;
use crate::node::{ForwardingEntry, Neighbour};

const LO: u32 = 1;
const ETH0: u32 = 2;
const ETH1: u32 = 3;
const VETH: u32 = 4;
const VETH2: u32 = 5;
const BRIDGE: u32 = 6;
const PORT: u32 = 7;
const PORT2: u32 = 8;
const TUN: u32 = 9;
const DOWN: u32 = 10;

fn port(name: &str) -> Link {
    Link {
        master: Some(BRIDGE),
        ..Link::ethernet(name)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn route(destination: &str, gateway: Option<&str>, ifindex: u32, metric: u32) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        gateway: gateway.map(ip),
        ifindex,
        metric,
        mtu: None,
    }
}

fn node() -> NodeView {
    let neighbour = |address, mac| Neighbour {
        ifindex: BRIDGE,
        address: ip(address),
        mac: Mac([2, 0, 0, 0, 0, mac]),
    };
    let forwarding = |port, mac| ForwardingEntry {
        port,
        mac: Mac([2, 0, 0, 0, 0, mac]),
    };
    NodeView {
        links: [
            (
                LO,
                Link {
                    loopback: true,
                    ethernet: false,
                    mtu: 65536,
                    ..Link::ethernet("lo")
                },
            ),
            (ETH0, Link::ethernet("eth0")),
            (
                ETH1,
                Link {
                    mtu: 9000,
                    ..Link::ethernet("eth1")
                },
            ),
            (VETH, Link::ethernet("veth1")),
            (VETH2, Link::ethernet("veth2")),
            (
                BRIDGE,
                Link {
                    bridge: true,
                    ..Link::ethernet("br0")
                },
            ),
            (PORT, port("port1")),
            (PORT2, port("port2")),
            (
                TUN,
                Link {
                    ethernet: false,
                    ..Link::ethernet("tun0")
                },
            ),
            (
                DOWN,
                Link {
                    up: false,
                    ..Link::ethernet("down0")
                },
            ),
        ]
        .into(),
        addresses: vec![
            (LO, "127.0.0.1/8".parse().unwrap()),
            (ETH0, "192.0.2.10/24".parse().unwrap()),
            (ETH0, "2001:db8::10/64".parse().unwrap()),
            (BRIDGE, "10.1.0.1/24".parse().unwrap()),
        ],
        routes: vec![
            route("0.0.0.0/0", Some("192.0.2.1"), ETH0, 0),
            route("::/0", Some("2001:db8::1"), ETH0, 1024),
            route("192.0.2.0/24", None, ETH0, 0),
            route("2001:db8::/64", None, ETH0, 256),
            route("fe80::/64", None, ETH0, 256),
            route("fe80::/64", None, ETH1, 256),
            // The same network twice: by metric, and by carrier.
            route("198.51.100.0/24", None, ETH0, 100),
            route("198.51.100.0/24", None, ETH1, 50),
            route("198.51.100.0/24", None, DOWN, 10),
            route("203.0.113.0/24", None, ETH0, 0),
            route("203.0.113.128/25", Some("192.0.2.2"), ETH0, 0),
            route("10.0.0.2/32", None, VETH, 0),
            route("2001:db8:1::2/128", None, VETH, 1024),
            route("10.0.0.3/32", None, VETH2, 0),
            route("2001:db8:1::3/128", None, VETH, 1024),
            route("10.0.0.4/32", None, ETH0, 0),
            route("10.0.0.5/32", None, TUN, 0),
            route("10.0.0.6/32", None, LO, 0),
            route("10.0.0.7/32", None, VETH, 0),
            route("10.0.0.7/32", None, VETH2, 0),
            route("10.0.1.0/24", None, VETH, 0),
            route("10.0.2.0/24", Some("192.0.2.2"), ETH0, 0),
            route("10.0.3.2/32", Some("10.0.0.2"), VETH, 0),
            route("10.1.0.0/24", None, BRIDGE, 0),
            route("10.1.0.9/32", None, BRIDGE, 0),
            route("10.9.0.0/16", None, DOWN, 0),
            route("10.8.0.0/16", None, TUN, 0),
            Route {
                mtu: Some(1400),
                ..route("10.7.0.0/16", None, ETH1, 0)
            },
            Route {
                mtu: Some(9999),
                ..route("10.6.0.0/16", None, ETH0, 0)
            },
        ],
        neighbours: vec![
            neighbour("10.1.0.2", 2),
            neighbour("10.1.0.3", 3),
            neighbour("10.1.0.4", 4),
            neighbour("10.1.0.9", 2),
        ],
        forwarding: vec![
            forwarding(PORT, 2),
            forwarding(PORT, 4),
            forwarding(PORT2, 4),
        ],
        ..NodeView::default()
    }
}
