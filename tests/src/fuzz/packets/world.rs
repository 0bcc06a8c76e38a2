//! The node that scripts play on: pods, policies with every kind of way out, gateways, other nodes.

use std::net::IpAddr;

use egress_common::{
    Addr,
    gateway::{GatewayId, Settings},
    nat::NatState,
    overlay::{NodeState, Tag},
    verdict::Replies,
};
use egress_userspace::{
    gateway_id::gateway_id,
    model::ObjectName,
    resolve::{Action, Fate, Resolved, Standing, UsableGateway, Way},
};

use crate::packets::{
    build::address,
    nat::{ALPHA, BETA, Gateway},
    seed::{self, OTHER, POD, UPLINK, resolved, rule, via},
};

/// The overlay's device, which a test-run never gets to.
pub(super) const OVERLAY: u32 = OTHER;
/// The network identifier of the overlay.
pub(super) const VNI: u32 = 4097;
/// Largest packet that fits the narrow way, the overlay, and an uplink.
pub(super) const NARROW: u32 = 400;
pub(super) const TUNNELLED: u32 = 1400;
pub(super) const UPLINK_MTU: u32 = 1500;
/// Largest packet that pods' interfaces take.
pub(super) const ROOM: u32 = 1450;
/// Connections of one source: no more than a script can open.
const QUOTA: u32 = 6;
/// No script takes as long.
const SECONDS: u32 = 300;

/// The gateway behind the overlay.
pub(super) const FAR: &str = "far";
/// The tag of frames to its node.
pub(super) const TO_FAR: Tag = Tag([0xff, 11, 12, 13, 14, 15]);

/// Another node.
pub(super) struct Node {
    pub(super) index: u32,
    /// Whence its frames come.
    pub(super) addresses: &'static [&'static str],
    pub(super) state: NodeState,
}

/// The other nodes: one with two tags, one with one.
pub(super) fn nodes() -> [Node; 2] {
    let state = |text: &str, mtu, send, accept| NodeState {
        address: Addr::from(address(text)),
        mtu,
        send,
        accept,
        pad: [0; 2],
    };
    [
        Node {
            index: 2,
            addresses: &["172.20.0.1", "fd20::1"],
            state: state(
                "172.20.0.1",
                TUNNELLED,
                TO_FAR,
                [Tag([0x03, 1, 2, 3, 4, 5]), Tag([0x52, 6, 7, 8, 9, 10])],
            ),
        },
        Node {
            index: 3,
            addresses: &["fd20::3"],
            state: state(
                "fd20::3",
                1300,
                Tag([0xfe, 21, 22, 23, 24, 25]),
                [Tag([0x13, 1, 2, 3, 4, 5]), Tag::ZERO],
            ),
        },
    ]
}

/// What the node is told.
pub(super) fn settings() -> Settings {
    Settings {
        node4: Addr::from(address("172.18.0.2")),
        node6: Addr::from(address("fd00:18::2")),
        overlay_ifindex: OVERLAY,
        vni: VNI,
        source_quota: QUOTA,
        timeouts: [SECONDS; NatState::COUNT],
        ..Settings::default()
    }
}

/// Pods of all fates, and rules of all kinds.
pub(super) fn world() -> Resolved {
    let red = || hops("red", 1500, &["192.168.9.1", "fd09::1"]);
    let blue = || hops("blue", 1500, &["192.168.9.2", "fd09::2"]);
    let narrow = || hops("narrow", NARROW, &["192.168.9.4", "fd09::4"]);
    let rules = || {
        [
            ("203.0.113.0/24", "2001:db8:a::/48", via(vec![here(&ALPHA)])),
            ("203.0.112.0/24", "2001:db8:b::/48", via(vec![here(&BETA)])),
            ("192.88.99.0/24", "2001:db8:5::/48", via(vec![red()])),
            (
                "198.51.100.0/24",
                "2001:db8:2::/48",
                via(vec![red(), blue()]),
            ),
            ("100.64.0.0/10", "2001:db8:7::/48", via(vec![narrow()])),
            ("198.18.0.0/15", "2001:db8:4::/48", via(vec![far()])),
            (
                "192.52.193.0/24",
                "2001:db8:c::/48",
                via(vec![here(&ALPHA), far(), red()]),
            ),
            ("203.0.113.128/25", "2001:db8:a:8000::/49", Action::Local),
            ("192.31.196.0/24", "2001:db8:9::/48", via(vec![])),
        ]
        .into_iter()
        .flat_map(|(v4, v6, action)| [rule(v4, action.clone()), rule(v6, action)])
        .collect::<Vec<_>>()
    };
    let main = || Fate::Rules(rules().into());
    let everything = || Fate::Rules(vec![rule("", via(vec![here(&BETA)]))].into());
    let lost = Fate::Drop(egress_common::DropReason::PolicyMissing);
    resolved(
        seed::CLUSTER,
        [
            ("web", 5, main(), seed::STEERED),
            ("other", 6, main(), seed::STEERED),
            ("lost", 7, lost, "gone"),
            ("free", 8, Fate::Rules(Vec::new().into()), "empty"),
            ("open", 9, everything(), "all"),
        ],
    )
}

/// The pod that has this address on this interface.
pub(super) fn pod_at(world: &Resolved, ifindex: u32, source: IpAddr) -> Option<&ObjectName> {
    let mut pods = world.pods.iter();
    pods.find(|(_, pod)| pod.ifindex == ifindex && pod.addresses.contains(&source))
        .map(|(name, _)| name)
}

/// The gateway of this node by the name that counters have.
pub(super) fn own_gateway(name: &str) -> Option<Gateway> {
    match name {
        "alpha" => Some(ALPHA),
        "beta" => Some(BETA),
        _ => None,
    }
}

/// The gateway of this node with this number.
pub(super) fn gateway_of(id: GatewayId) -> Option<Gateway> {
    [ALPHA, BETA].into_iter().find(|gateway| gateway.id == id)
}

/// The egress address of a gateway, of the family that `like` has.
pub(super) fn egress_of(gateway: &Gateway, like: IpAddr) -> IpAddr {
    address(if like.is_ipv4() {
        gateway.v4
    } else {
        gateway.v6
    })
}

/// The number of the gateway behind the overlay.
pub(super) fn far_id() -> GatewayId {
    gateway_id(&ObjectName::new("edge", FAR))
}

fn usable(name: &str, id: GatewayId, ways: Vec<Way>) -> UsableGateway {
    UsableGateway {
        name: ObjectName::new("edge", name),
        id,
        weight: std::num::NonZeroU32::MIN,
        standing: Standing::Serving,
        ways,
    }
}

fn hops(name: &str, mtu: u32, texts: &[&str]) -> UsableGateway {
    let ways = texts.iter().map(|text| Way::NextHop {
        next_hop: address(text),
        ifindex: UPLINK,
        mtu,
        replies: Replies::Recorded,
    });
    let id = gateway_id(&ObjectName::new("edge", name));
    usable(name, id, ways.collect())
}

fn here(gateway: &Gateway) -> UsableGateway {
    let ways = [gateway.v4, gateway.v6].map(|text| Way::Here {
        egress: address(text),
        node: "here".to_owned(),
        ifindex: UPLINK,
        mtu: UPLINK_MTU,
    });
    let name = if gateway.id == ALPHA.id {
        "alpha"
    } else {
        "beta"
    };
    usable(name, gateway.id, ways.into())
}

fn far() -> UsableGateway {
    let ways = ["192.0.2.99", "2001:db8:ee::99"].map(|text| Way::Overlay {
        egress: address(text),
        node: "there".to_owned(),
        address: address("172.20.0.1"),
        ifindex: OVERLAY,
        mtu: TUNNELLED,
        tag: TO_FAR,
    });
    usable(FAR, far_id(), ways.into())
}

/// Where the pods' interface is.
pub(super) const PODS: u32 = POD;
