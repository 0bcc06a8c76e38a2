//! Whether frames to other nodes leave with an address that those nodes know us by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::node::{Netlink, NodeView, Route};

/// What was found, and for what.
#[derive(Debug, Default)]
pub(super) struct Sources {
    asked: Option<Question>,
    problems: BTreeSet<String>,
}

/// All that the kernel's answer depends on, as far as we see it.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    own: BTreeSet<IpAddr>,
    nodes: BTreeMap<String, IpAddr>,
    routes: Vec<Route>,
    addresses: Vec<(u32, IpNet)>,
}

impl Sources {
    /// Asks the kernel for the source address towards each node, if anything changed since it was asked last.
    ///
    /// A node drops frames from addresses that no Node resource has (`OverlayUnknownNode`), so each one that
    /// would leave with another is a reason for this node not to be ready. A node that no route leads to is
    /// none: it may be gone, and says so by itself.
    pub(super) async fn check(
        &mut self,
        node: &str,
        own: BTreeSet<IpAddr>,
        nodes: BTreeMap<String, IpAddr>,
        view: &NodeView,
    ) -> anyhow::Result<()> {
        let question = Question {
            own,
            routes: routes_towards(&nodes, view),
            nodes,
            addresses: view.addresses.clone(),
        };
        if self.asked.as_ref() == Some(&question) {
            return Ok(());
        }
        let mut problems = BTreeSet::new();
        if !question.nodes.is_empty() {
            let netlink = Netlink::connect()?;
            for (name, address) in &question.nodes {
                match netlink.source_towards(*address).await {
                    Ok(source) if question.own.contains(&source) => {}
                    Ok(source) => drop(problems.insert(wrong(node, name, *address, source))),
                    Err(error) => tracing::warn!(
                        "frames of the overlay cannot reach the node {name}: {error:#}"
                    ),
                }
            }
        }
        self.problems = problems;
        self.asked = Some(question);
        Ok(())
    }

    /// What would make other nodes drop our frames, one sentence each.
    pub(super) const fn problems(&self) -> &BTreeSet<String> {
        &self.problems
    }
}

/// The routes that frames may take. Those of pods come and go all the time, and lead to one address each.
fn routes_towards(nodes: &BTreeMap<String, IpAddr>, view: &NodeView) -> Vec<Route> {
    let addresses: BTreeSet<IpAddr> = nodes.values().copied().collect();
    let leads = |destination: IpNet| {
        destination.prefix_len() < destination.max_prefix_len()
            || addresses.contains(&destination.addr())
    };
    view.routes
        .iter()
        .filter(|route| leads(route.destination))
        .cloned()
        .collect()
}

fn wrong(node: &str, other: &str, address: IpAddr, source: IpAddr) -> String {
    format!(
        "frames of the overlay to the node {other} ({address}) would leave from {source}, which the Node {node} does \
         not have as an address, so {other} would drop them: add it to the Node's status.addresses, or give the \
         route to {address} another source address (`ip route change … src`)"
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn routes_of_pods_are_no_reason_to_ask_again() {
        let route = |destination: &str| Route {
            destination: destination.parse().unwrap(),
            gateway: None,
            ifindex: 2,
            metric: 0,
            mtu: None,
        };
        let view = NodeView {
            routes: vec![
                route("0.0.0.0/0"),
                route("10.65.0.7/32"),
                route("172.18.0.3/32"),
                route("fd00:65::7/128"),
                route("fd00:18::/64"),
            ],
            ..NodeView::default()
        };
        let nodes = [("b".to_owned(), "172.18.0.3".parse().unwrap())].into();
        let expected = ["0.0.0.0/0", "172.18.0.3/32", "fd00:18::/64"].map(route);
        assert_eq!(routes_towards(&nodes, &view), expected);
    }
}
