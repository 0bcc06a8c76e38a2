//! What the rows speak of: pods, policies and gateways, as `resolve` would hand them on.

use std::{net::IpAddr, num::NonZeroU32};

use egress_common::{DropReason, verdict::Replies};
use egress_userspace::{
    gateway_id::gateway_id,
    model::ObjectName,
    resolve::{Action, EffectiveRule, Fate, Resolved, SourcePod, Standing, UsableGateway, Way},
};
use ipnet::IpNet;

/// The pods' interface.
pub const POD: u32 = 10;
/// An interface that is no pod's.
pub const OTHER: u32 = 20;
/// The interface towards gateways.
pub const UPLINK: u32 = 11;
/// The policy with all the rules.
pub const STEERED: &str = "main";
/// The prefixes that are the cluster's.
pub const CLUSTER: &[&str] = &[
    "10.96.0.0/12",
    "10.112.0.0/12",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "fd10::/16",
    "fe80::/10",
    "ff00::/8",
];

/// The pods of the rows.
///
/// Pod `web` (10.1.0.5, fd00::5) has policy `main`; `lost` (…6) names a policy that does not exist;
/// `garbled` (…7) has a selector that cannot be parsed; `free` (…8) has a policy without rules; `guarded` (…9) is
/// selected by a network policy, which what its policy steers would go past.
#[must_use]
pub fn world() -> Resolved {
    let red = || gateway("red", 1, 1500, &["192.168.9.1", "fd09::1"]);
    let blue = || gateway("blue", 2, 1500, &["192.168.9.2", "fd09::2"]);
    let green = || gateway("green", 1, 1500, &["192.168.9.3", "fd09::3"]);
    let narrow = || gateway("narrow", 1, 1280, &["192.168.9.4", "fd09::4"]);
    let nat = || {
        let hops = &["192.168.9.5", "fd09::5"];
        next_hops("nat", 1, 1500, hops, Replies::Kernel)
    };
    let old = || gateway("old", 1, 1500, &["192.168.9.6"]);
    let new = || gateway("new", 1, 1500, &["fd09::7"]);
    let main = vec![
        rule("192.0.2.0/24", via(vec![red()])),
        rule("2001:db8:1::/48", via(vec![red()])),
        rule("192.0.2.128/25", Action::Local),
        rule("2001:db8:1:8000::/49", Action::Local),
        rule("198.51.100.0/24", via(vec![red(), blue(), green()])),
        rule("2001:db8:2::/48", via(vec![red(), blue(), green()])),
        rule("198.18.0.0/15", via(vec![])),
        rule("2001:db8:4::/48", via(vec![])),
        rule("192.88.99.0/24", via(vec![nat()])),
        rule("2001:db8:5::/48", via(vec![nat()])),
        rule("203.0.113.0/24", via(vec![new()])),
        rule("2001:db8:6::/48", via(vec![old()])),
        rule("100.64.0.0/10", via(vec![narrow()])),
        rule("2001:db8:7::/48", via(vec![narrow()])),
        rule("10.96.7.0/24", via(vec![red()])),
        rule("10.112.0.0/12", via(vec![red()])),
        rule("fd10:7::/32", via(vec![red()])),
    ];
    let refused = || Action::Drop(DropReason::PolicyEnforcement);
    let guarded = vec![
        rule("192.0.2.0/24", refused()),
        rule("2001:db8:1::/48", refused()),
        rule("192.0.2.128/25", Action::Local),
        rule("2001:db8:1:8000::/49", Action::Local),
    ];
    resolved(
        CLUSTER,
        [
            ("web", 5, Fate::Rules(main.into()), STEERED),
            ("lost", 6, Fate::Drop(DropReason::PolicyMissing), "gone"),
            (
                "garbled",
                7,
                Fate::Drop(DropReason::PolicyInvalid),
                "broken",
            ),
            ("free", 8, Fate::Rules(Vec::new().into()), "empty"),
            ("guarded", 9, Fate::Rules(guarded.into()), "guarded"),
        ],
    )
}

/// Pods (name, last part of both addresses, fate, policy) on [`POD`], in a cluster with these prefixes.
pub fn resolved<'a>(
    cluster: &[&str],
    pods: impl IntoIterator<Item = (&'a str, u8, Fate, &'a str)>,
) -> Resolved {
    Resolved {
        pods: pods
            .into_iter()
            .map(|(name, last, fate, policy)| {
                let pod = SourcePod {
                    ifindex: POD,
                    interface: "pod".to_owned(),
                    addresses: addresses(last).into(),
                    policy: policy.to_owned(),
                    fate,
                    mtu: 1500,
                    network_policies: Vec::new(),
                    udp_ports: Vec::new(),
                };
                (ObjectName::new("default", name), pod)
            })
            .collect(),
        cluster_prefixes: cluster.iter().map(|text| net(text)).collect(),
        ..Resolved::default()
    }
}

/// The addresses of the pod whose last part is `last`.
#[must_use]
pub fn addresses(last: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 1, 0, last]),
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
    ]
}

/// A gateway of namespace `edge` behind [`UPLINK`], whose connections are recorded.
#[must_use]
pub fn gateway(name: &str, weight: u32, mtu: u32, hops: &[&str]) -> UsableGateway {
    next_hops(name, weight, mtu, hops, Replies::Recorded)
}

fn next_hops(name: &str, weight: u32, mtu: u32, hops: &[&str], replies: Replies) -> UsableGateway {
    let name = ObjectName::new("edge", name);
    UsableGateway {
        id: gateway_id(&name),
        name,
        weight: NonZeroU32::new(weight).unwrap(),
        standing: Standing::Serving,
        ways: hops
            .iter()
            .map(|hop| Way::NextHop {
                next_hop: super::build::address(hop),
                ifindex: UPLINK,
                mtu,
                replies,
            })
            .collect(),
    }
}

/// A rule; an empty destination is the default.
#[must_use]
pub fn rule(destination: &str, action: Action) -> EffectiveRule {
    let destination = (!destination.is_empty()).then(|| net(destination));
    EffectiveRule {
        label: destination.map_or_else(|| "default".to_owned(), |net| net.to_string()),
        destination,
        action,
    }
}

/// Through these.
#[must_use]
pub fn via(gateways: Vec<UsableGateway>) -> Action {
    Action::Gateways(gateways.into())
}

/// A prefix from its text.
#[must_use]
pub fn net(text: &str) -> IpNet {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}
