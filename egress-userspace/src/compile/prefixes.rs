//! Classes: every distinct prefix once, as a forest in which a row is one walk.

use std::{collections::BTreeSet, sync::Arc};

use egress_common::verdict::{NUMBER_CLUSTER, NUMBER_UNMATCHED};
use ipnet::IpNet;

use crate::{rows::Row, state::Limits};

/// A policy's rules as a row sees them: (place of the prefix, number), sorted by place.
pub(super) type Shape = Vec<(u32, u16)>;

/// The distinct prefixes of all policies and of the cluster.
#[derive(Debug)]
pub(super) struct Prefixes {
    nets: Arc<[IpNet]>,
    /// For each prefix the place after those that it contains.
    ends: Vec<u32>,
    /// The places of the cluster's, in order.
    cluster: Vec<u32>,
}

impl Prefixes {
    /// From prefixes in any order, with repeats; `cluster` is added.
    pub(super) fn new(mut nets: Vec<IpNet>, cluster: &BTreeSet<IpNet>) -> Self {
        let cluster: BTreeSet<IpNet> = cluster.iter().map(IpNet::trunc).collect();
        nets.extend(&cluster);
        // Most are there in order: policies one after another.
        nets.sort();
        nets.dedup();
        let count = u32::try_from(nets.len()).unwrap_or(u32::MAX);
        let mut around: Vec<(IpNet, u32)> = Vec::new();
        let mut ends = vec![count; nets.len()];
        // Sorted prefixes come parents first, so the stack holds exactly those around the current one.
        for (place, net) in (0..).zip(&nets) {
            while let Some((outer, inner)) = around.last()
                && !outer.contains(net)
            {
                ends[*inner as usize] = place;
                around.pop();
            }
            around.push((*net, place));
        }
        let places = cluster
            .iter()
            .filter_map(|net| nets.binary_search(net).ok());
        Self {
            cluster: places
                .filter_map(|place| u32::try_from(place).ok())
                .collect(),
            nets: nets.into(),
            ends,
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
        self.nets == other.nets && self.cluster == other.cluster
    }

    /// Whether a row without rules is all zero.
    pub(super) fn has_cluster(&self) -> bool {
        !self.cluster.is_empty()
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
    /// A place takes the number of the nearest prefix around it that says something: a rule of the policy
    /// or the cluster, and the rule where both are the same prefix. So the cluster wins only where it is
    /// strictly longer.
    pub(super) fn row(&self, shape: &[(u32, u16)], limits: &Limits) -> Row {
        let all = u32::try_from(self.nets.len()).unwrap_or(u32::MAX);
        let mut runs = vec![(0, NUMBER_UNMATCHED)];
        // What is said around the current place, and up to where.
        let mut around = vec![(all, NUMBER_UNMATCHED)];
        let leave = |runs: &mut Vec<(u32, u16)>, around: &mut Vec<(u32, u16)>, until: u32| {
            while let [.., (_, outer), (end, _)] = around[..]
                && end <= until
            {
                runs.push((end, outer));
                around.pop();
            }
        };
        let mut rules = shape.iter().copied().peekable();
        let mut cluster = self.cluster.iter().copied().peekable();
        loop {
            let rule = rules.peek().map(|(place, _)| *place);
            let (place, number) = match (rule, cluster.peek().copied()) {
                (None, None) => break,
                (rule, Some(own)) if rule.is_none_or(|rule| own < rule) => {
                    cluster.next();
                    (own, NUMBER_CLUSTER)
                }
                (_, own) => {
                    let Some((place, number)) = rules.next() else {
                        break;
                    };
                    if own == Some(place) {
                        cluster.next();
                    }
                    (place, number)
                }
            };
            leave(&mut runs, &mut around, place);
            runs.push((place, number));
            around.push((self.ends[place as usize], number));
        }
        leave(&mut runs, &mut around, all);
        Row::new(all, runs, limits)
    }
}
