//! Which program belongs where: pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    kernel::{Hook, Program},
    node::NodeView,
    resolve::Resolved,
    state::DesiredState,
};

/// The interfaces that lead to other nodes and to the outside, by index and name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outside {
    /// The uplinks.
    pub(crate) uplinks: BTreeMap<u32, String>,
    /// The overlay device.
    pub(crate) overlay: Option<(u32, String)>,
    /// The interface where plain frames of the overlay go past the kernel's stack.
    pub(crate) underlay: Option<u32>,
    /// Whether what is let through as the cluster's own is marked, and looked at when it leaves.
    pub(crate) marks: bool,
    /// Where it is looked at by now: that stays so while the interface is there, or a route that comes back would find
    /// nobody there.
    pub(crate) guarded: BTreeSet<u32>,
}

/// The hooks that a state needs: source pods' interfaces, those where recorded replies arrive, the uplinks of
/// a node that owns an egress address, the overlay device, and whatever else pods' packets may leave the cluster by.
#[must_use]
pub(crate) fn wanted(
    resolved: &Resolved,
    desired: &DesiredState,
    view: &NodeView,
    outside: &Outside,
) -> BTreeSet<Hook> {
    let hook = |program, ifindex| {
        Some(Hook {
            program,
            ifindex,
            interface: view.links.get(&ifindex)?.name.clone(),
        })
    };
    let gateways = desired
        .reply_interfaces
        .iter()
        .filter_map(|ifindex| hook(Program::FromGateway, *ifindex));
    let owned = &desired.translation.addresses;
    let uplinks = owned
        .values()
        .map(|address| address.ifindex)
        .chain(
            outside
                .uplinks
                .keys()
                .copied()
                .filter(|_| !owned.is_empty()),
        )
        .filter_map(|ifindex| hook(Program::FromUplink, ifindex));
    let guarded = leading_out(resolved, desired, view, outside)
        .into_iter()
        .filter_map(|ifindex| hook(Program::ToUplink, ifindex));
    // The device may be newer than the view.
    let overlay = outside.overlay.iter().map(|(ifindex, name)| Hook {
        program: Program::FromOverlay,
        ifindex: *ifindex,
        interface: name.clone(),
    });
    let underlay = outside
        .underlay
        .and_then(|ifindex| hook(Program::FromUnderlay, ifindex));
    of_pods(resolved)
        .chain(gateways)
        .chain(underlay)
        .chain(uplinks)
        .chain(guarded)
        .chain(overlay)
        .collect()
}

/// Those of source pods' interfaces, which are known before anything is compiled.
fn of_pods(resolved: &Resolved) -> impl Iterator<Item = Hook> {
    resolved.pods.values().flat_map(|pod| {
        OF_PODS.map(|program| Hook {
            program,
            ifindex: pod.ifindex,
            interface: pod.interface.clone(),
        })
    })
}

/// The programs of source pods' interfaces.
pub(super) const OF_PODS: [Program; 2] = [Program::FromPod, Program::ToPod];

/// The interfaces by which packets of steered pods may leave the cluster: all but the overlay's and pods' own.
fn leading_out(
    resolved: &Resolved,
    desired: &DesiredState,
    view: &NodeView,
    outside: &Outside,
) -> BTreeSet<u32> {
    if !outside.marks || resolved.pods.is_empty() {
        return BTreeSet::new();
    }
    let mut leading = view.leading_beyond(&resolved.cluster_prefixes);
    leading.extend(&desired.reply_interfaces);
    leading.extend(outside.uplinks.keys());
    leading.extend(&outside.guarded);
    leading.extend(desired.translation.addresses.values().map(|a| a.ifindex));
    if let Some((overlay, _)) = &outside.overlay {
        leading.remove(overlay);
    }
    for pods in [
        resolved.pods.values().map(|pod| pod.ifindex).collect(),
        resolved.unsteered.clone(),
    ] {
        leading.retain(|ifindex| !pods.contains(ifindex));
    }
    leading
}

#[cfg(test)]
mod tests {
    use egress_common::DropReason;

    use super::*;
    use crate::{
        model::ObjectName,
        node::{Link, Route},
        resolve::{Fate, SourcePod},
    };

    const ETH0: u32 = 2;
    const OVERLAY: u32 = 3;
    const STEERED: u32 = 4;
    const UNSTEERED: u32 = 5;
    const ETH1: u32 = 6;

    fn view() -> NodeView {
        let names = [
            (ETH0, "eth0"),
            (OVERLAY, "egress.vxlan"),
            (STEERED, "cali1"),
            (UNSTEERED, "cali2"),
            (ETH1, "eth1"),
        ];
        // Whatever a route says, pods' interfaces and the overlay are none of those.
        let route = |ifindex| Route {
            destination: "192.0.2.0/24".parse().unwrap_or_default(),
            gateway: None,
            ifindex,
            metric: 0,
            mtu: None,
        };
        NodeView {
            links: names
                .map(|(index, name)| (index, Link::ethernet(name)))
                .into(),
            routes: [ETH0, OVERLAY, STEERED, UNSTEERED].map(route).into(),
            ..NodeView::default()
        }
    }

    fn steering() -> Resolved {
        let pod = SourcePod {
            ifindex: STEERED,
            interface: "cali1".to_owned(),
            mtu: 1500,
            addresses: Vec::new(),
            policy: "p".to_owned(),
            fate: Fate::Drop(DropReason::PolicyMissing),
            network_policies: Vec::new(),
            udp_ports: Vec::new(),
        };
        Resolved {
            pods: [(ObjectName::new("apps", "a"), pod)].into(),
            unsteered: [UNSTEERED].into(),
            ..Resolved::default()
        }
    }

    #[test]
    fn what_leads_out_is_looked_at_where_pods_are_steered() {
        let covered = Resolved {
            cluster_prefixes: ["192.0.2.0/24".parse().unwrap_or_default()].into(),
            ..steering()
        };
        type Row<'a> = (&'a str, Resolved, bool, &'a [u32], &'a [u32]);
        let rows: [Row<'_>; 6] = [
            ("a route", steering(), true, &[], &[ETH0]),
            ("no pods", Resolved::default(), true, &[], &[]),
            ("no mark", steering(), false, &[ETH0], &[]),
            (
                "a route that is gone",
                steering(),
                true,
                &[ETH1],
                &[ETH0, ETH1],
            ),
            (
                "an interface that is gone",
                steering(),
                true,
                &[99],
                &[ETH0],
            ),
            ("the cluster's", covered, true, &[], &[]),
        ];
        for (what, resolved, marks, guarded, expected) in rows {
            let outside = Outside {
                uplinks: BTreeMap::new(),
                overlay: Some((OVERLAY, "egress.vxlan".to_owned())),
                underlay: None,
                marks,
                guarded: guarded.iter().copied().collect(),
            };
            let hooks = wanted(&resolved, &DesiredState::default(), &view(), &outside);
            let found: Vec<u32> = hooks
                .iter()
                .filter(|hook| hook.program == Program::ToUplink)
                .map(|hook| hook.ifindex)
                .collect();
            assert_eq!(found, expected, "{what}");
        }
    }
}
