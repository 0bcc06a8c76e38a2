//! What an earlier run left steered is not let go by mistake, and never silently: pure.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;

use super::report;
use crate::{
    node::NodeView, resolve::Resolved, resources::Kind, sources::files::Loaded, state::KernelState,
};

/// Refuses a first state that knows less of this node's pods than the earlier run did.
///
/// A file that cannot be read, a mount that is late or a node's name that is mistyped says nothing about
/// the pods; taking it for "no pods" would let their traffic out by the node's own routes.
///
/// # Errors
/// What is missing, and what to do if it is meant.
pub(super) fn refuse_to_forget(
    earlier: &KernelState,
    loaded: &Loaded,
    resolved: &Resolved,
    view: &NodeView,
) -> anyhow::Result<()> {
    let unread = report::unreadable(loaded);
    ensure!(
        unread.is_empty(),
        "what the last run left in the kernel stays as it is until these can be read: {}",
        unread.join(", ")
    );
    let refused: Vec<String> = loaded
        .refused
        .iter()
        .filter(|object| matches!(object.kind, Kind::Pod | Kind::Namespace))
        .map(ToString::to_string)
        .collect();
    ensure!(
        refused.is_empty(),
        "what the last run left in the kernel stays as it is until these are valid: {}",
        refused.join(", ")
    );
    let steered = let_go(earlier, &KernelState::default(), view);
    ensure!(
        steered.is_empty() || !resolved.pod_states.is_empty(),
        "the last run steered pods of this node, and the resources have none with an annotation ({}): \
         check --resources and --node; if it is meant, let them go with `egress detach`",
        steered.into_iter().collect::<Vec<_>>().join("; ")
    );
    Ok(())
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
        let address = std::net::IpAddr::from(key.addr);
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
    use std::{net::IpAddr, path::Path};

    use egress_common::{Addr, keys::PodKey};

    use super::*;
    use crate::{
        diagnostic::Diagnostic, model::ObjectName, node::Link, resolve::PodState,
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
        let link = Link {
            name: "cali7".to_owned(),
            mtu: 1500,
            up: true,
            bridge: false,
            loopback: false,
            ethernet: true,
            master: None,
        };
        NodeView {
            links: [(POD, link)].into(),
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
        let result = refuse_to_forget(earlier, loaded, resolved, &view());
        result.err().map(|error| error.to_string())
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
                Path::new("pods.yaml"),
                "cannot be read",
            )],
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
