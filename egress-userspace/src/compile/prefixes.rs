//! Classes: every distinct prefix once, as a forest in which a row is one walk.

use std::{collections::BTreeSet, sync::Arc};

use egress_common::verdict::{NUMBER_CLUSTER, NUMBER_UNMATCHED};
use ipnet::IpNet;

/// A policy's rules as a row sees them: (place of the prefix, number), sorted by place.
pub(super) type Shape = Vec<(u32, u16)>;

/// Where a cell without a rule of its own takes its number from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// No prefix contains it.
    Nothing,
    /// It is one of the cluster's.
    Cluster,
    /// From the nearest prefix that contains it.
    Parent(u32),
}

/// The distinct prefixes of all policies and of the cluster.
#[derive(Debug)]
pub(super) struct Prefixes {
    nets: Arc<[IpNet]>,
    origins: Vec<Origin>,
    has_cluster: bool,
}

impl Prefixes {
    /// From prefixes in any order, with repeats; `cluster` is added.
    pub(super) fn new(mut nets: Vec<IpNet>, cluster: &BTreeSet<IpNet>) -> Self {
        let cluster: BTreeSet<IpNet> = cluster.iter().map(IpNet::trunc).collect();
        nets.extend(&cluster);
        // Most are there in order: policies one after another.
        nets.sort();
        nets.dedup();
        let mut around: Vec<(IpNet, u32)> = Vec::new();
        let mut cluster = cluster.into_iter().peekable();
        let mut origins = Vec::with_capacity(nets.len());
        // Sorted prefixes come parents first, so the stack holds exactly those around the current one.
        for (place, net) in (0..).zip(&nets) {
            while around.last().is_some_and(|(outer, _)| !outer.contains(net)) {
                around.pop();
            }
            origins.push(if cluster.next_if_eq(net).is_some() {
                Origin::Cluster
            } else {
                around
                    .last()
                    .map_or(Origin::Nothing, |(_, parent)| Origin::Parent(*parent))
            });
            around.push((*net, place));
        }
        let has_cluster = origins.contains(&Origin::Cluster);
        Self {
            nets: nets.into(),
            origins,
            has_cluster,
        }
    }

    /// The prefixes, sorted.
    pub(super) fn nets(&self) -> &[IpNet] {
        &self.nets
    }

    /// The prefixes, sorted, shared.
    pub(super) fn nets_shared(&self) -> Arc<[IpNet]> {
        Arc::clone(&self.nets)
    }

    /// Whether others are the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.nets == other.nets && self.origins == other.origins
    }

    /// Whether a row without rules is all zero.
    pub(super) fn has_cluster(&self) -> bool {
        self.has_cluster
    }

    /// Gives each destination its place: `numbers` has one for every prefix of a policy.
    pub(super) fn shape(&self, numbers: &[(IpNet, u16)]) -> Shape {
        let mut shape: Shape = numbers
            .iter()
            .filter_map(|(net, number)| {
                let place = self.nets.binary_search(net).ok()?;
                Some((u32::try_from(place).ok()?, *number))
            })
            .collect();
        shape.sort_by_key(|(place, _)| *place);
        shape.dedup_by_key(|(place, _)| *place);
        shape
    }

    /// A policy's number for every prefix.
    ///
    /// A cell takes the number of the nearest prefix around it that says something: a rule of the policy
    /// or the cluster, and the rule where both are the same prefix. So the cluster wins only where it is
    /// strictly longer.
    pub(super) fn row(&self, shape: &Shape) -> Vec<u16> {
        let mut cells: Vec<u16> = Vec::with_capacity(self.nets.len());
        let mut rules = shape.iter().peekable();
        for (place, origin) in (0..).zip(&self.origins) {
            let own = rules.next_if(|(rule, _)| *rule == place);
            cells.push(match (own, *origin) {
                (Some((_, number)), _) => *number,
                (None, Origin::Nothing) => NUMBER_UNMATCHED,
                (None, Origin::Cluster) => NUMBER_CLUSTER,
                (None, Origin::Parent(parent)) => cells[parent as usize],
            });
        }
        cells
    }
}
