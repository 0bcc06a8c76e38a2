//! What an earlier run steered, and the egress addresses that it owned, are not let go by mistake, and never
//! silently: pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::ensure;

use super::report;
use crate::{
    model::{Exit, Model},
    node::NodeView,
    resolve::Resolved,
    resources::Kind,
    sources::files::Loaded,
    state::KernelState,
};

/// What an earlier run left in the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Earlier<'a> {
    /// The pods that it steered.
    pub(super) pods: &'a KernelState,
    /// The egress addresses that it owned.
    pub(super) egress: &'a BTreeSet<IpAddr>,
}

/// Refuses a first state that knows less of this node's pods and egress addresses than the earlier run did.
///
/// A file that cannot be read, a mount that is late or a node's name that is mistyped says nothing about
/// them. Taking it for "no pods" would let their traffic out by the node's own routes; taking it for "no
/// egress addresses" would end every connection through this node.
///
/// # Errors
/// What is missing, and what to do if it is meant.
pub(super) fn refuse_to_forget(
    earlier: &Earlier<'_>,
    loaded: &Loaded,
    resolved: &Resolved,
    view: &NodeView,
    node: &str,
) -> anyhow::Result<()> {
    let unread = report::unknown(loaded);
    ensure!(
        unread.is_empty(),
        "what the last run left in the kernel stays as it is until these can be read: {}",
        unread.join(", ")
    );
    let refused: Vec<String> = loaded
        .refused
        .iter()
        .filter(|object| {
            matches!(object.kind, Kind::Pod | Kind::Namespace)
                || object.kind == Kind::EgressGateway && !earlier.egress.is_empty()
        })
        .map(ToString::to_string)
        .collect();
    ensure!(
        refused.is_empty(),
        "what the last run left in the kernel stays as it is until these are valid: {}",
        refused.join(", ")
    );
    let steered = let_go(earlier.pods, &KernelState::default(), view);
    ensure!(
        steered.is_empty() || !resolved.pod_states.is_empty(),
        "the last run steered pods of this node, and the resources have none with an annotation ({}): \
         check --resources and --node; if it is meant, let them go with `egress detach`",
        steered.into_iter().collect::<Vec<_>>().join("; ")
    );
    let none_left = resolved.translation.addresses.is_empty();
    let unexplained: Vec<String> = earlier
        .egress
        .iter()
        .filter(|address| none_left && !is_accounted_for(**address, &loaded.model, node))
        .map(ToString::to_string)
        .collect();
    ensure!(
        unexplained.is_empty(),
        "the last run owned egress addresses of this node, and the resources leave it none and do not say why ({}): \
         connections through them stay as they are; check --resources and --node ({node}); if it is meant, let the \
         addresses go with `egress detach`",
        unexplained.join(", ")
    );
    Ok(())
}

/// Whether the resources tell what became of an egress address of this node.
///
/// One that belongs to another node's gateway now has moved only if this node is known by its name: a mistyped
/// name makes all gateways those of other nodes.
fn is_accounted_for(address: IpAddr, model: &Model, node: &str) -> bool {
    let is_ours_or_moved = |owner: &str| owner == node || model.nodes.contains_key(node);
    let of_object = model.gateways.values().any(|gateway| match &gateway.exit {
        Exit::Node(egress) => egress.addresses.contains(&address) && is_ours_or_moved(&egress.node),
        Exit::NextHops { .. } => false,
    });
    let of_pod = || {
        model.pods.values().any(|pod| {
            pod.addresses.contains(&address) && pod.node.as_deref().is_some_and(is_ours_or_moved)
        })
    };
    of_object || of_pod()
}

/// The interfaces, still there, that `after` steers no address of and `before` did: one line each.
pub(super) fn let_go(
    before: &KernelState,
    after: &KernelState,
    view: &NodeView,
) -> BTreeSet<String> {
    let kept: BTreeSet<u32> = after.pods.keys().map(|key| key.ifindex).collect();
    let mut gone: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for key in before
        .pods
        .keys()
        .filter(|key| !kept.contains(&key.ifindex))
    {
        let address = IpAddr::from(key.addr);
        gone.entry(key.ifindex)
            .or_default()
            .push(address.to_string());
    }
    gone.iter()
        .filter_map(|(ifindex, addresses)| {
            let link = view.links.get(ifindex)?;
            Some(format!("{} with {}", link.name, addresses.join(", ")))
        })
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{num::NonZeroU32, path::Path};

    use egress_common::{Addr, keys::PodKey};

    use super::*;
    use crate::{
        diagnostic::Diagnostic,
        model::{EgressAddresses, Gateway, Labels, Leaving, Node, ObjectName},
        node::Link,
        resolve::PodState,
        resources::ObjectId,
    };

    const POD: u32 = 7;
    const GONE: u32 = 8;

    fn state(pods: &[(u32, [u8; 4])]) -> KernelState {
        KernelState {
            pods: pods
                .iter()
                .map(|&(ifindex, address)| {
                    let addr = Addr::from(IpAddr::from(address));
                    (PodKey { ifindex, addr }, 0)
                })
                .collect(),
            ..KernelState::default()
        }
    }

    fn view() -> NodeView {
        NodeView {
            links: [(POD, Link::ethernet("cali7"))].into(),
            ..NodeView::default()
        }
    }

    fn one_pod() -> Resolved {
        let name = ObjectName {
            namespace: "app".to_owned(),
            name: "a".to_owned(),
        };
        Resolved {
            pod_states: [(name, PodState::Finished)].into(),
            ..Resolved::default()
        }
    }

    fn refusal(earlier: &KernelState, loaded: &Loaded, resolved: &Resolved) -> Option<String> {
        refusal_of_both(earlier, &[], loaded, resolved)
    }

    fn refusal_of_both(
        pods: &KernelState,
        egress: &[IpAddr],
        loaded: &Loaded,
        resolved: &Resolved,
    ) -> Option<String> {
        let earlier = Earlier {
            pods,
            egress: &egress.iter().copied().collect(),
        };
        let result = refuse_to_forget(&earlier, loaded, resolved, &view(), "here");
        result.err().map(|error| error.to_string())
    }

    const EGRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10));

    /// A gateway with the egress address on a node, and the nodes that the resources know.
    fn with_gateway(on: &str, nodes: &[&str]) -> Loaded {
        let gateway = Gateway {
            labels: Labels::new(),
            interface: None,
            weight: NonZeroU32::MIN,
            leaving: Leaving::No,
            drain_timeout: None,
            exit: Exit::Node(EgressAddresses {
                node: on.to_owned(),
                addresses: vec![EGRESS],
                assign: true,
                allow_local_services: false,
                ports: None,
                probes: None,
            }),
        };
        let mut loaded = Loaded::default();
        let name = ObjectName::new("egress", "red");
        loaded.model.gateways.insert(name, gateway);
        let nodes = nodes.iter().map(|n| ((*n).to_owned(), Node::default()));
        loaded.model.nodes.extend(nodes);
        loaded
    }

    #[test]
    fn a_gateway_node_keeps_its_egress_addresses_until_the_resources_account_for_them() {
        let unread = Loaded {
            diagnostics: vec![Diagnostic::of_file(
                Path::new("/gateways.yaml"),
                "cannot be read",
            )],
            unknown: ["/gateways.yaml".into()].into(),
            ..Loaded::default()
        };
        let refused = Loaded {
            refused: [ObjectId {
                kind: Kind::EgressGateway,
                namespace: Some("egress".to_owned()),
                name: "red".to_owned(),
            }]
            .into(),
            ..Loaded::default()
        };
        let rows: &[(&str, Loaded, &[&str])] = &[
            ("unreadable", unread, &["gateways.yaml"]),
            ("refused", refused, &["red"]),
            (
                "empty",
                Loaded::default(),
                &["203.0.113.10", "--resources", "--node", "egress detach"],
            ),
            ("another name", with_gateway("there", &["there"]), &["here"]),
            ("moved", with_gateway("there", &["here", "there"]), &[]),
            ("down", with_gateway("here", &[]), &[]),
        ];
        let nobody = KernelState::default();
        for (what, loaded, parts) in rows {
            let refusal = refusal_of_both(&nobody, &[EGRESS], loaded, &Resolved::default());
            assert_eq!(refusal.is_some(), !parts.is_empty(), "{what}: {refusal:?}");
            let refusal = refusal.unwrap_or_default();
            assert!(
                parts.iter().all(|part| refusal.contains(part)),
                "{what}: {refusal}"
            );
        }
        let none = Loaded::default();
        assert_eq!(
            refusal_of_both(&nobody, &[], &none, &Resolved::default()),
            None
        );
    }

    #[test]
    fn what_the_resources_know_of_is_let_go_if_they_say_so() {
        let earlier = state(&[(POD, [10, 0, 0, 2])]);
        assert_eq!(refusal(&earlier, &Loaded::default(), &one_pod()), None);
    }

    #[test]
    fn resources_without_pods_of_this_node_let_nobody_go() {
        let earlier = state(&[(POD, [10, 0, 0, 2])]);
        let refusal = refusal(&earlier, &Loaded::default(), &Resolved::default()).unwrap();
        for part in ["cali7 with 10.0.0.2", "--node", "egress detach"] {
            assert!(refusal.contains(part), "{refusal}");
        }
    }

    #[test]
    fn pods_whose_interfaces_are_gone_keep_nothing() {
        let earlier = state(&[(GONE, [10, 0, 0, 2])]);
        assert_eq!(
            refusal(&earlier, &Loaded::default(), &Resolved::default()),
            None
        );
    }

    #[test]
    fn refused_pods_and_namespaces_and_unread_files_let_nobody_go() {
        let earlier = state(&[(POD, [10, 0, 0, 2])]);
        for (kind, refuses) in [
            (Kind::Pod, true),
            (Kind::Namespace, true),
            (Kind::EgressGatewayPolicy, false),
        ] {
            let object = ObjectId {
                kind,
                namespace: None,
                name: "it".to_owned(),
            };
            let loaded = Loaded {
                refused: [object].into(),
                ..Loaded::default()
            };
            let refusal = refusal(&earlier, &loaded, &one_pod());
            assert_eq!(refusal.is_some(), refuses, "{kind:?}: {refusal:?}");
        }
        let unread = Loaded {
            diagnostics: vec![Diagnostic::of_file(
                Path::new("/pods.yaml"),
                "cannot be read",
            )],
            unknown: ["/pods.yaml".into()].into(),
            ..Loaded::default()
        };
        let refusal = refusal(&earlier, &unread, &one_pod()).unwrap();
        assert!(refusal.contains("pods.yaml"), "{refusal}");
    }

    #[test]
    fn an_interface_is_let_go_with_its_last_address() {
        let before = state(&[
            (POD, [10, 0, 0, 2]),
            (POD, [10, 0, 0, 3]),
            (GONE, [10, 0, 0, 4]),
        ]);
        let fewer = state(&[(POD, [10, 0, 0, 3])]);
        assert!(let_go(&before, &fewer, &view()).is_empty());
        let none = KernelState::default();
        assert_eq!(
            let_go(&before, &none, &view()),
            BTreeSet::from(["cali7 with 10.0.0.2, 10.0.0.3".to_owned()])
        );
    }
}
