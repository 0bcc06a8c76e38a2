//! Which interfaces lead to the outside.

use std::collections::{BTreeMap, BTreeSet};

use super::NodeView;

/// The uplinks, and what is wrong with those that cannot be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// Names by index.
    pub links: BTreeMap<u32, String>,
    /// What the operator should know, one sentence each.
    pub warnings: BTreeSet<String>,
}

impl NodeView {
    /// The uplinks of these names; without names the devices of the default routes of both families.
    #[must_use]
    pub fn uplinks(&self, names: &[String]) -> Uplinks {
        let mut uplinks = Uplinks::default();
        for name in names {
            let found = self.links.iter().find(|(_, link)| link.name == *name);
            match found {
                Some((index, _)) => uplinks.add(self, *index),
                None => drop(uplinks.warnings.insert(format!(
                    "--uplink names {name}, which this node does not have: nothing comes back by it"
                ))),
            }
        }
        if names.is_empty() {
            let defaults = self
                .routes
                .iter()
                .filter(|route| route.destination.prefix_len() == 0);
            for route in defaults {
                uplinks.add(self, route.ifindex);
            }
        }
        uplinks
    }
}

impl Uplinks {
    fn add(&mut self, view: &NodeView, index: u32) {
        let Some(link) = view.links.get(&index) else {
            return;
        };
        if link.ethernet && !link.loopback {
            self.links.insert(index, link.name.clone());
        } else {
            self.warnings.insert(format!(
                "the uplink {} does not carry Ethernet frames: egress addresses cannot be used through it; name \
                 others with --uplink",
                link.name
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Link, Route};

    fn view(ethernet: bool) -> NodeView {
        let link = |name: &str, ethernet| Link {
            name: name.to_owned(),
            mtu: 1500,
            up: true,
            bridge: false,
            loopback: false,
            ethernet,
            master: None,
        };
        let route = |destination: &str, ifindex| Route {
            destination: destination.parse().unwrap_or_default(),
            gateway: None,
            ifindex,
            metric: 0,
            mtu: None,
        };
        NodeView {
            links: [
                (2, link("eth0", ethernet)),
                (3, link("eth1", true)),
                (4, link("eth2", true)),
            ]
            .into(),
            routes: vec![
                route("0.0.0.0/0", 2),
                route("::/0", 3),
                route("10.0.0.0/8", 4),
            ],
            ..NodeView::default()
        }
    }

    #[test]
    fn uplinks_are_those_named_or_those_of_default_routes() {
        type Row<'a> = (&'a [&'a str], bool, &'a [u32], &'a [&'a str]);
        let rows: &[Row<'_>] = &[
            (&[], true, &[2, 3], &[]),
            (&["eth2"], true, &[4], &[]),
            (&["eth2", "eth9"], true, &[4], &["eth9"]),
            (&[], false, &[3], &["eth0"]),
            (&["eth0"], false, &[], &["eth0"]),
        ];
        for (names, ethernet, links, warnings) in rows {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let uplinks = view(*ethernet).uplinks(&names);
            assert!(uplinks.links.keys().eq(*links), "{names:?}: {uplinks:?}");
            assert_eq!(uplinks.warnings.len(), warnings.len(), "{uplinks:?}");
            for (said, part) in uplinks.warnings.iter().zip(*warnings) {
                assert!(said.contains(part), "{said}");
            }
        }
    }
}
