//! The places of [`world`](super::seed::world), the same ones in each family.

use super::{
    Row,
    build::proto::{ICMP, ICMPV6},
};

/// The same places in one family: what a row needs to be said once for both.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// What rows are called.
    pub name: &'static str,
    /// The pod with all the rules.
    pub web: &'static str,
    /// The one whose policy does not exist.
    pub lost: &'static str,
    /// The one whose selector cannot be parsed.
    pub garbled: &'static str,
    /// The one whose policy has no rules.
    pub free: &'static str,
    /// The one that a network policy selects.
    pub guarded: &'static str,
    /// An address that no pod has.
    pub nobody: &'static str,
    /// An address of a rule with one gateway, and the rule.
    pub red: (&'static str, &'static str),
    /// Of a rule with several gateways.
    pub group: (&'static str, &'static str),
    /// Of a rule whose gateway's replies the kernel routes.
    pub nat: (&'static str, &'static str),
    /// Of a rule whose gateway takes small packets only.
    pub narrow: (&'static str, &'static str),
    /// In the prefix of `red`, but in a longer one that is local.
    pub local: &'static str,
    /// Of a rule without gateways.
    pub no_gateway: &'static str,
    /// Of a rule whose gateway has the other family only.
    pub other_family_only: &'static str,
    /// The cluster's.
    pub cluster: &'static str,
    /// In the cluster's prefix, but in a longer one of a rule.
    pub inside_cluster: (&'static str, &'static str),
    /// Of no rule.
    pub elsewhere: &'static str,
    /// An echo request's type.
    pub ping: u8,
    /// ICMP's protocol number.
    pub icmp: u8,
}

/// IPv4.
pub const V4: Family = Family {
    name: "IPv4",
    web: "10.1.0.5",
    lost: "10.1.0.6",
    garbled: "10.1.0.7",
    free: "10.1.0.8",
    guarded: "10.1.0.9",
    nobody: "10.1.0.99",
    red: ("192.0.2.7", "192.0.2.0/24"),
    group: ("198.51.100.7", "198.51.100.0/24"),
    nat: ("192.88.99.7", "192.88.99.0/24"),
    narrow: ("100.64.0.7", "100.64.0.0/10"),
    local: "192.0.2.200",
    no_gateway: "198.18.0.1",
    other_family_only: "203.0.113.7",
    cluster: "10.96.0.10",
    inside_cluster: ("10.96.7.1", "10.96.7.0/24"),
    elsewhere: "8.8.8.8",
    ping: 8,
    icmp: ICMP,
};

/// IPv6.
pub const V6: Family = Family {
    name: "IPv6",
    web: "fd00::5",
    lost: "fd00::6",
    garbled: "fd00::7",
    free: "fd00::8",
    guarded: "fd00::9",
    nobody: "fd00::99",
    red: ("2001:db8:1::7", "2001:db8:1::/48"),
    group: ("2001:db8:2::7", "2001:db8:2::/48"),
    nat: ("2001:db8:5::7", "2001:db8:5::/48"),
    narrow: ("2001:db8:7::7", "2001:db8:7::/48"),
    local: "2001:db8:1:8000::7",
    no_gateway: "2001:db8:4::7",
    other_family_only: "2001:db8:6::7",
    cluster: "fd10::10",
    inside_cluster: ("fd10:7::1", "fd10:7::/32"),
    elsewhere: "2606:4700::1",
    ping: 128,
    icmp: ICMPV6,
};

/// Rows for each family, which their names begin with.
pub fn in_both(of: impl Fn(&'static Family) -> Vec<Row>) -> Vec<Row> {
    [&V4, &V6]
        .into_iter()
        .flat_map(|family| {
            of(family).into_iter().map(|mut row| {
                row.name = format!("{}: {}", family.name, row.name);
                row
            })
        })
        .collect()
}
