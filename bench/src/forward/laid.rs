//! Hosts that are connected: what is common to all ways, and how it is written for `ip` and `nft`.

use std::{any::Any, fmt::Write as _, net::Ipv4Addr};

use super::{
    host::Host,
    right::{NextHop, Right},
};
use crate::world::{GATEWAYS, HOST_MAC};

/// The name of a cable's only end on a host.
pub(super) const CABLE: &str = "eth0";
/// The interfaces of nodes: to pods, and to where packets leave.
pub(super) const ENTRY: &str = "pod";
pub(super) const EXIT: &str = "uplink";
/// The address that nftables gives packets.
pub(super) const TRANSLATED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 100);
/// No connection ends while it is measured; in seconds.
pub(super) const A_DAY: &str = "86400";

/// Hosts in a row, and how frames have to arrive at the last.
pub(super) struct Laid {
    /// All pods.
    pub(super) pod: Host,
    /// Their node.
    pub(super) node: Host,
    /// Where it ends.
    pub(super) sink: Host,
    pub(super) right: Right,
    /// What has to stay for that, such as programs.
    pub(super) keeps: Vec<Box<dyn Any>>,
}

impl Laid {
    /// Hosts of which nothing is known yet but that packets are forwarded.
    pub(super) const fn new(pod: Host, node: Host, sink: Host) -> Self {
        Self {
            pod,
            node,
            sink,
            right: Right::forwarded(NextHop::First),
            keeps: Vec::new(),
        }
    }
}

/// All next hops, as nobody has to ask for them.
pub(super) fn neighbours() -> String {
    let mut lines = String::new();
    for number in 0..=GATEWAYS {
        let _infallible = writeln!(
            lines,
            "neigh add {} lladdr {} dev {EXIT} nud permanent",
            NextHop::address(number),
            mac(NextHop::mac(number))
        );
    }
    lines
}

/// All addresses that packets may be given, as the sink finds them.
pub(super) fn translators() -> String {
    let mut lines = String::new();
    for number in 0..GATEWAYS {
        let _infallible = writeln!(
            lines,
            "neigh add {} lladdr {} dev {CABLE} nud permanent",
            Ipv4Addr::from(u32::from(TRANSLATED) + number),
            mac(HOST_MAC)
        );
    }
    lines
}

/// What gives packets that leave a node another source, which `statement` says.
pub(super) fn translation(statement: &str) -> String {
    format!(
        "table ip bench {{
           chain out {{
             type nat hook postrouting priority srcnat; policy accept;
             oifname \"{EXIT}\" {statement}
           }}
         }}"
    )
}

/// As `ip` writes it.
pub(super) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
