//! What a policy says, told in the plainest way: every length is tried, the longest first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

/// Where a rule leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// To the kernel's own routing.
    Local,
    /// Through the gateway of this number.
    Gateway(u32),
}

/// A policy.
pub(crate) struct Plain {
    rules: HashMap<IpNet, Target>,
    /// Lengths that there are.
    lengths: BTreeSet<u8>,
    in_order: Vec<IpNet>,
}

impl Plain {
    pub(crate) fn new(rules: impl Iterator<Item = (IpNet, Target)>) -> Self {
        let sorted: BTreeMap<IpNet, Target> = rules.collect();
        Self {
            lengths: sorted.keys().map(IpNet::prefix_len).collect(),
            in_order: sorted.keys().copied().collect(),
            rules: sorted.into_iter().collect(),
        }
    }

    /// The longest rule that matches.
    pub(crate) fn of(&self, destination: IpAddr) -> Option<(IpNet, Target)> {
        self.lengths.iter().rev().find_map(|length| {
            let net = IpNet::new(destination, *length).ok()?.trunc();
            Some((net, *self.rules.get(&net)?))
        })
    }

    /// Every rule, by prefix.
    pub(crate) fn rules(&self) -> impl Iterator<Item = (IpNet, Target)> {
        self.in_order.iter().map(|net| (*net, self.rules[net]))
    }

    /// The prefixes of all rules, in order.
    pub(crate) fn nets(&self) -> Vec<IpNet> {
        self.in_order.clone()
    }

    /// Those that lead to gateways.
    pub(crate) fn steered(&self) -> Vec<IpNet> {
        let leads = self.rules().filter(|(_, target)| *target != Target::Local);
        leads.map(|(net, _)| net).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_rule_wins() {
        let rules = [
            ("0.0.0.0/0", Target::Gateway(1)),
            ("20.0.0.0/8", Target::Gateway(2)),
            ("20.1.0.0/16", Target::Local),
            ("20.1.2.3/32", Target::Gateway(3)),
            ("2001:db8::/32", Target::Gateway(4)),
        ];
        let plain = Plain::new(rules.iter().filter_map(|(net, target)| {
            let net: IpNet = net.parse().ok()?;
            Some((net, *target))
        }));
        for (destination, rule) in [
            (IpAddr::from([9, 9, 9, 9]), Some(rules[0])),
            (IpAddr::from([20, 9, 9, 9]), Some(rules[1])),
            (IpAddr::from([20, 1, 9, 9]), Some(rules[2])),
            (IpAddr::from([20, 1, 2, 3]), Some(rules[3])),
            (IpAddr::from([20, 1, 2, 4]), Some(rules[2])),
            (
                IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
                Some(rules[4]),
            ),
            (IpAddr::from([0x2001, 0xdb9, 0, 0, 0, 0, 0, 1]), None),
        ] {
            let found = plain
                .of(destination)
                .map(|(net, target)| (net.to_string(), target));
            let wanted = rule.map(|(net, target)| (net.to_owned(), target));
            assert_eq!(found, wanted, "{destination}");
        }
    }
}
