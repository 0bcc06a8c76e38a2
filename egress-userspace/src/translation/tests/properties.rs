//! Whatever is wanted next, and wherever a plan breaks off.

use proptest::prelude::*;

use super::*;

/// A small world, in which things meet.
fn translations() -> impl Strategy<Value = Translation> {
    let gateway = (0_u32..3, 1400_u32..1402);
    let addresses = prop::collection::btree_map(0_u8..4, gateway, 0..3);
    let node = (prop::collection::btree_set(0_u8..6, 1..3), 1300_u32..1302);
    let nodes = prop::collection::btree_map(0_u8..4, node, 0..4);
    (addresses, nodes).prop_map(|(addresses, nodes)| {
        let mut families = BTreeSet::new();
        Translation {
            addresses: addresses
                .into_iter()
                // A gateway has one address of a family.
                .filter(|(n, (gateway, _))| families.insert((*gateway, n % 2)))
                .map(|(n, (gateway, mtu))| {
                    let address = match n % 2 {
                        0 => format!("203.0.113.{n}"),
                        _ => format!("2001:db8::{n}"),
                    };
                    (ip(&address), egress(gateway, mtu))
                })
                .collect(),
            nodes: nodes
                .into_iter()
                .map(|(name, (addresses, mtu))| {
                    let addresses: Vec<_> =
                        addresses.iter().map(|n| format!("192.0.2.{n}")).collect();
                    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
                    (format!("n{name}"), self::node(&addresses, mtu))
                })
                .collect(),
            ..Translation::default()
        }
    })
}

/// What everybody finds: gateways, addresses, and the nodes of addresses.
type Seen = (
    BTreeMap<GatewayKey, Egress>,
    BTreeMap<Addr, Egress>,
    BTreeMap<Addr, u32>,
);

fn seen(state: &State) -> Seen {
    (
        state
            .gateways
            .keys()
            .map(|key| (*key, out(state, *key).unwrap()))
            .collect(),
        state
            .addresses
            .keys()
            .map(|address| (*address, back(state, *address).unwrap()))
            .collect(),
        state.nodes.clone(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a packet reads first, and however long it then takes, it reads whole elements: the old or the
    /// new, of what it looked for.
    #[test]
    fn every_packet_sees_the_old_or_the_new(steps in prop::collection::vec(translations(), 1..5)) {
        let mut kernel = Kernel::default();
        // Elements that some packet may still be about to read.
        let mut held: BTreeMap<u32, Egress> = BTreeMap::new();
        for wanted in &steps {
            let plan = kernel.plan(wanted);
            let (before, after) = (seen(&kernel.state), seen(&plan.after));
            for change in plan.additions.iter().chain(&plan.removals) {
                kernel.state.apply(change);
                if *change == Change::Grace {
                    held.clear();
                }
                let now = seen(&kernel.state);
                for (key, egress) in &now.0 {
                    prop_assert_eq!(egress.gateway, key.gateway);
                    let known = [before.0.get(key), after.0.get(key)];
                    prop_assert!(known.contains(&Some(egress)), "{:?}", key);
                }
                for (address, egress) in &now.1 {
                    prop_assert_eq!(egress.address, *address);
                    let known = [before.1.get(address), after.1.get(address)];
                    prop_assert!(known.contains(&Some(egress)), "{:?}", address);
                }
                for (index, egress) in &held {
                    prop_assert_eq!(&kernel.state.egress[index], egress, "at {:?}", change);
                }
                let indexes = kernel.state.gateways.values().chain(kernel.state.addresses.values());
                held.extend(indexes.map(|index| (*index, kernel.state.egress[index])));
            }
            // What is there before and after is there all the while: nothing is taken away by additions.
            let removes = plan.additions.iter().any(|change| matches!(
                change,
                Change::RemoveGateway { .. } | Change::RemoveAddress { .. } | Change::RemoveNode { .. }
            ));
            prop_assert!(!removes);
            kernel.names.gateways = plan.gateways;
            kernel.names.nodes = plan.nodes;
        }
    }

    /// A plan that was broken off anywhere, with the names of before or of after, is completed by the next.
    #[test]
    fn what_breaks_off_is_completed(
        first in translations(),
        second in translations(),
        third in translations(),
        at in any::<prop::sample::Index>(),
        named in any::<bool>(),
    ) {
        let mut kernel = Kernel::default();
        kernel.bring_to(&first);
        let plan = kernel.plan(&second);
        let changes: Vec<_> = plan.additions.iter().chain(&plan.removals).collect();
        for change in changes.iter().take(at.index(changes.len() + 1)) {
            kernel.state.apply(change);
            kernel.state.apply(change);
        }
        if named {
            kernel.names.nodes = plan.nodes;
            kernel.names.gateways = plan.gateways;
        }
        kernel.bring_to(&third);
        let mut fresh = Kernel::default();
        fresh.bring_to(&third);
        let addresses = |kernel: &Kernel| -> BTreeSet<Addr> {
            kernel.state.addresses.keys().copied().collect()
        };
        prop_assert_eq!(addresses(&kernel), addresses(&fresh));
        prop_assert!(kernel.state.gateways.keys().eq(fresh.state.gateways.keys()));
        prop_assert!(kernel.state.nodes.keys().eq(fresh.state.nodes.keys()));
        for (address, index) in &kernel.state.nodes {
            let same = fresh.state.node_state[&fresh.state.nodes[address]];
            prop_assert_eq!(kernel.state.node_state[index], same);
        }
        prop_assert_eq!(kernel.plan(&third).changes(), 0);
    }

    /// A node that stays keeps its index, whoever comes and goes; no index is two nodes'.
    #[test]
    fn nodes_keep_their_indexes(steps in prop::collection::vec(translations(), 1..6)) {
        let mut kernel = Kernel::default();
        for wanted in &steps {
            let before = kernel.names.nodes.clone();
            kernel.bring_to(wanted);
            for (name, index) in &kernel.names.nodes {
                prop_assert!(before.get(name).is_none_or(|then| then == index), "{}", name);
                prop_assert_ne!(*index, 0);
            }
            let indexes: BTreeSet<_> = kernel.names.nodes.values().collect();
            prop_assert_eq!(indexes.len(), kernel.names.nodes.len());
        }
    }
}
