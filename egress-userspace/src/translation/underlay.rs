//! Where plain frames of the overlay go past the kernel's own stack.

use egress_common::gateway::Settings;

use crate::{node::NodeView, state::Translation};

/// The interface that leads to other nodes, and what the programs have to know to send there what the overlay device would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Its index.
    pub ifindex: u32,
    /// The overlay's UDP port.
    pub port: u16,
    /// The first and the last port that the node gives its own connections, and VXLAN devices their frames.
    pub source_ports: (u16, u16),
}

/// The interface that has the node's own IPv4 address, which other nodes know it by: frames have it as their source, and are
/// taken off the wire only if it is what they are for. An address that is nowhere, in two places, or on what is no network
/// of Ethernet frames (a loopback device, a tunnel) leaves frames to the overlay device.
#[must_use]
pub fn underlay(
    translation: &Translation,
    view: &NodeView,
    port: u16,
    source_ports: (u16, u16),
) -> Option<Underlay> {
    let own = translation.own.iter().find(|own| own.is_ipv4())?;
    let mut places = view
        .addresses
        .iter()
        .filter(|(_, net)| net.addr() == *own)
        .map(|(ifindex, _)| *ifindex);
    let ifindex = places.next()?;
    if places.next().is_some() {
        return None;
    }
    let link = view.links.get(&ifindex)?;
    (link.ethernet && !link.loopback).then_some(Underlay {
        ifindex,
        port,
        source_ports,
    })
}

/// The content of `SETTINGS` with what the programs have to know of the underlay.
#[must_use]
pub fn with_underlay(settings: Settings, underlay: Option<&Underlay>) -> Settings {
    let Some(underlay) = underlay else {
        return settings;
    };
    let (first, last) = underlay.source_ports;
    Settings {
        underlay_ifindex: underlay.ifindex,
        overlay_port: underlay.port,
        // The kernel takes the last for the end (`udp_flow_src_port`).
        first_source_port: first,
        source_ports_end: last,
        ..settings
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::node::Link;

    #[test]
    fn frames_leave_where_the_nodes_address_is() {
        let loopback = Link {
            loopback: true,
            ..Link::ethernet("lo")
        };
        let tunnel = Link {
            ethernet: false,
            ..Link::ethernet("wg0")
        };
        let links = [
            (1, loopback),
            (2, Link::ethernet("eth0")),
            (3, Link::ethernet("eth1")),
            (4, tunnel),
        ];
        type Row<'a> = (&'a str, &'a [&'a str], &'a [(u32, &'a str)], Option<u32>);
        let rows: &[Row<'_>] = &[
            (
                "one of two",
                &["172.18.0.11"],
                &[(2, "172.18.0.12/16"), (3, "172.18.0.11/16")],
                Some(3),
            ),
            (
                "both families",
                &["fd00:18::11", "172.18.0.11"],
                &[(3, "fd00:18::11/64"), (2, "172.18.0.11/16")],
                Some(2),
            ),
            (
                "IPv6 alone",
                &["fd00:18::11"],
                &[(2, "fd00:18::11/64")],
                None,
            ),
            ("nowhere", &["172.18.0.11"], &[(2, "172.18.0.12/16")], None),
            (
                "in two places",
                &["172.18.0.11"],
                &[(2, "172.18.0.11/16"), (3, "172.18.0.11/32")],
                None,
            ),
            ("loopback", &["172.18.0.11"], &[(1, "172.18.0.11/32")], None),
            ("a tunnel", &["172.18.0.11"], &[(4, "172.18.0.11/32")], None),
            ("gone", &["172.18.0.11"], &[(5, "172.18.0.11/16")], None),
        ];
        for (what, own, addresses, expected) in rows {
            let translation = Translation {
                own: own.iter().map(|own| own.parse().unwrap()).collect(),
                ..Translation::default()
            };
            let view = NodeView {
                links: links.clone().into(),
                addresses: addresses
                    .iter()
                    .map(|(ifindex, net)| (*ifindex, net.parse().unwrap()))
                    .collect(),
                ..NodeView::default()
            };
            let found = underlay(&translation, &view, 4790, (32_768, 60_999));
            let expected = expected.map(|ifindex| Underlay {
                ifindex,
                port: 4790,
                source_ports: (32_768, 60_999),
            });
            assert_eq!(found, expected, "{what}");
        }
    }
}
