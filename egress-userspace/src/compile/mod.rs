//! From what this node has to do to what the maps should say: pure, deterministic, without kernel numbers.
//!
//! Numbers of a row: 0 where nothing matches, 1 where the cluster's own prefix is the longest, then in the
//! order of the rules one number for each (rule with gateways or a drop, family), and one that all rules without
//! gateway share. Which gateways are usable changes verdicts only: numbers and rows depend on destinations.

mod prefixes;
pub mod slots;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use egress_common::{
    DropReason, Family,
    cells::{CELLS_PER_LINE, SLOT_LINES},
    keys::PodKey,
    maps::capacity,
    verdict::{NUMBER_CLUSTER, NUMBER_FIRST_RULE, NUMBER_UNMATCHED},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use self::prefixes::{Prefixes, Shape};
use crate::{
    resolve::{Action, EffectiveRule, Fate, Resolved, SourcePod, UsableGateway},
    state::{
        DesiredState, Extent, Facts, Limits, MemberLabel, MemberSpec, Profile, Standing,
        Translation, VerdictSpec,
    },
};

/// Numbers that a policy may have.
const MAX_NUMBERS: usize = 65_535;
/// Bytes of a line.
const LINE_BYTES: u64 = CELLS_PER_LINE as u64 * 2;

/// Why a node's policies do not fit its maps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The rows would take more memory than is allowed.
    #[error(
        "the policy matrix would take {needed} bytes ({rows} distinct rows of {prefixes} distinct prefixes, \
         {tables} slot tables of groups), and {allowed} are allowed: raise --matrix-memory to at least \
         {needed}, or let policies share their destinations"
    )]
    MatrixMemory {
        /// Bytes it would take.
        needed: u64,
        /// Bytes that are allowed.
        allowed: u64,
        /// Distinct rows.
        rows: usize,
        /// Distinct prefixes.
        prefixes: usize,
        /// Distinct slot tables.
        tables: usize,
    },
    /// A policy has more numbers than a cell can tell apart.
    #[error(
        "policy {policy} needs {needed} verdicts of its own, and a policy can have {MAX_NUMBERS}: each of its rules \
         with gateways counts once for each family; split the policy"
    )]
    PolicyTooLarge {
        /// The policy.
        policy: String,
        /// Numbers it would need.
        needed: usize,
    },
    /// A rule's group has more gateways than a cell can tell apart.
    #[error(
        "rule {rule} of policy {policy} has {gateways} gateways, and a group can have {MAX_NUMBERS}: set maxNextHops"
    )]
    GroupTooLarge {
        /// The policy.
        policy: String,
        /// The rule.
        rule: String,
        /// Its gateways.
        gateways: usize,
    },
    /// A map is too small.
    #[error(
        "this node needs room for {needed} {what}, and there is room for {room}: raise that capacity"
    )]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How much of it.
        needed: usize,
        /// How much fits.
        room: u32,
    },
}

/// Compiles a node's pods and rules, or says what does not fit.
///
/// # Errors
/// When a limit would be exceeded; nothing large is built before that is known.
pub fn compile(resolved: &Resolved, limits: &Limits) -> Result<DesiredState, CompileError> {
    let (pods, tellings) = distinct_tellings(resolved);
    fits("source pods", pods.len(), limits.pods)?;

    let mut tables = Vec::with_capacity(tellings.len());
    let mut nets = Vec::new();
    for (policy, fate) in &tellings {
        let table = match fate {
            Fate::Drop(reason) => NumberTable::drop(*reason),
            Fate::Rules(rules) => NumberTable::rules(policy, rules)?,
        };
        nets.extend(table.numbers.iter().map(|(net, _)| *net));
        tables.push(table);
    }
    // Pods that drop everything have no use for prefixes.
    let nothing = BTreeSet::new();
    let steering = tables.iter().any(|table| !table.drops);
    let prefixes = Prefixes::new(
        nets,
        if steering {
            &resolved.cluster_prefixes
        } else {
            &nothing
        },
    );
    for (what, v4) in [("IPv4 prefixes", true), ("IPv6 prefixes", false)] {
        let family = |net: &&IpNet| matches!(net, IpNet::V4(_)) == v4;
        let needed = prefixes.nets().iter().filter(family).count();
        fits(what, needed, limits.prefixes)?;
    }

    // A row is a function of its shape; no shape at all is the row of zeroes.
    let mut shapes: BTreeMap<Option<Shape>, usize> = BTreeMap::new();
    let mut in_order = Vec::new();
    let mut row_of = Vec::with_capacity(tables.len());
    for table in &tables {
        let shape = prefixes.shape(&table.numbers);
        let zero = table.drops || (shape.is_empty() && !prefixes.has_cluster());
        let shape = (!zero).then_some(shape);
        let row = *shapes.entry(shape.clone()).or_insert_with(|| {
            in_order.push(shape);
            in_order.len() - 1
        });
        row_of.push(row);
    }
    check_matrix(&prefixes, in_order.len(), &tables, limits)?;

    let rows: Vec<Vec<u16>> = in_order
        .iter()
        .map(|shape| match shape {
            Some(shape) => prefixes.row(shape),
            None => vec![NUMBER_UNMATCHED; prefixes.nets().len()],
        })
        .collect();
    let highest: Vec<usize> = rows
        .iter()
        .map(|row| usize::from(row.iter().copied().max().unwrap_or(0)))
        .collect();
    let profiles: Vec<Profile> = tellings
        .iter()
        .zip(tables)
        .zip(row_of)
        .map(|(((policy, _), table), row)| {
            let mut verdicts = table.verdicts;
            // What no cell names is not there, so that a block can be measured by looking at its rows.
            verdicts.truncate(highest[row] + 1);
            Profile {
                policy: (*policy).to_owned(),
                row,
                verdicts,
            }
        })
        .collect();
    check_capacities(&profiles, limits)?;
    check_translation(&resolved.translation)?;
    Ok(DesiredState {
        pods,
        profiles,
        rows,
        prefixes: prefixes.into_nets(),
        translation: resolved.translation.clone(),
        facts: facts(resolved),
    })
}

/// What is to be known of every pod, under each of its addresses.
fn facts(resolved: &Resolved) -> BTreeMap<PodKey, Facts> {
    let of_pod = |pod: &SourcePod| Facts {
        mtu: pod.mtu,
        udp_ports: pod.udp_ports.clone(),
    };
    let pods = resolved.pods.values();
    pods.flat_map(|pod| pod_keys(pod).map(move |key| (key, of_pod(pod))))
        .collect()
}

/// Where packets of a pod are known by.
fn pod_keys(pod: &SourcePod) -> impl Iterator<Item = PodKey> {
    pod.addresses.iter().map(|address| PodKey {
        ifindex: pod.ifindex,
        addr: (*address).into(),
    })
}

/// What a pod is told: its policy's name and what that policy means for it.
type Telling<'a> = (&'a str, &'a Fate);

/// Every source address's place in the distinct tellings, and those.
///
/// Places follow policy and content, not the order in which pods are met.
fn distinct_tellings(resolved: &Resolved) -> (BTreeMap<PodKey, usize>, Vec<Telling<'_>>) {
    let mut distinct: BTreeMap<Telling<'_>, usize> = BTreeMap::new();
    // Pods that share one list of rules in memory need not be compared rule by rule.
    let mut by_address: HashMap<(&str, *const EffectiveRule, usize), Telling<'_>> = HashMap::new();
    let mut of_pod: Vec<(PodKey, Telling<'_>)> = Vec::new();
    for pod in resolved.pods.values() {
        let mut telling: Telling<'_> = (&pod.policy, &pod.fate);
        if let Fate::Rules(rules) = &pod.fate {
            let rules: &[EffectiveRule] = rules;
            telling = *by_address
                .entry((&pod.policy, rules.as_ptr(), rules.len()))
                .or_insert(telling);
        }
        distinct.entry(telling).or_default();
        of_pod.extend(pod_keys(pod).map(|key| (key, telling)));
    }
    for (place, slot) in distinct.values_mut().enumerate() {
        *slot = place;
    }
    // By pointer first: most tellings are found without comparing content.
    let mut places: HashMap<*const Fate, usize> = HashMap::new();
    let mut pods = BTreeMap::new();
    for (key, telling) in of_pod {
        let place = *places
            .entry(std::ptr::from_ref(telling.1))
            .or_insert_with(|| distinct[&telling]);
        // Two pods never share a key; if they did, the first by name has it.
        pods.entry(key).or_insert(place);
    }
    (pods, distinct.into_keys().collect())
}

/// A policy's numbers: which destination has which, and what each means.
struct NumberTable {
    numbers: Vec<(IpNet, u16)>,
    verdicts: Vec<VerdictSpec>,
    drops: bool,
}

impl NumberTable {
    /// Every packet is dropped, those to the cluster too.
    fn drop(reason: DropReason) -> Self {
        Self {
            numbers: Vec::new(),
            verdicts: vec![VerdictSpec::Drop(reason)],
            drops: true,
        }
    }

    fn rules(policy: &str, rules: &[EffectiveRule]) -> Result<Self, CompileError> {
        const {
            assert!(
                NUMBER_UNMATCHED == 0 && NUMBER_CLUSTER == 1 && NUMBER_FIRST_RULE == 2,
                "the first two verdicts below stand at these numbers"
            );
        }
        let mut verdicts = vec![VerdictSpec::Unmatched, VerdictSpec::Local];
        let mut numbers = Vec::with_capacity(rules.len());
        let mut local = None;
        for rule in rules {
            for (family, destination) in destinations(rule, rules) {
                let number = match &rule.action {
                    Action::Local => *local.get_or_insert_with(|| {
                        verdicts.push(VerdictSpec::Local);
                        verdicts.len() - 1
                    }),
                    Action::Drop(reason) => {
                        verdicts.push(VerdictSpec::Drop(*reason));
                        verdicts.len() - 1
                    }
                    Action::Gateways(gateways) => {
                        verdicts.push(group(policy, rule, gateways, family)?);
                        verdicts.len() - 1
                    }
                };
                numbers.push((destination, number));
            }
        }
        if verdicts.len() > MAX_NUMBERS {
            return Err(CompileError::PolicyTooLarge {
                policy: policy.to_owned(),
                needed: verdicts.len(),
            });
        }
        Ok(Self {
            numbers: numbers
                .into_iter()
                .filter_map(|(net, number)| Some((net, u16::try_from(number).ok()?)))
                .collect(),
            verdicts,
            drops: false,
        })
    }
}

/// The prefixes that a rule speaks for: its own, or each family's default that no other rule names.
fn destinations<'a>(
    rule: &'a EffectiveRule,
    rules: &'a [EffectiveRule],
) -> impl Iterator<Item = (Family, IpNet)> + 'a {
    let defaults = [
        (Family::V4, IpNet::V4(Ipv4Net::default())),
        (Family::V6, IpNet::V6(Ipv6Net::default())),
    ];
    let own = rule.destination.map(|net| {
        let family = match net {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        };
        (family, net.trunc())
    });
    let unclaimed = defaults.into_iter().filter(move |(_, net)| {
        own.is_none()
            && !rules
                .iter()
                .any(|other| other.destination.map(|d| d.trunc()) == Some(*net))
    });
    own.into_iter().chain(unclaimed)
}

/// The gateways of a rule that have a way in this family.
fn group(
    policy: &str,
    rule: &EffectiveRule,
    gateways: &[UsableGateway],
    family: Family,
) -> Result<VerdictSpec, CompileError> {
    let mut members: Vec<MemberSpec> = gateways
        .iter()
        .filter_map(|gateway| {
            let way = gateway.ways.iter().find(|way| way.family() == family)?;
            Some(MemberSpec {
                gateway: gateway.id,
                label: MemberLabel {
                    namespace: gateway.name.namespace.clone(),
                    gateway: gateway.name.name.clone(),
                    policy: policy.to_owned(),
                    rule: rule.label.clone(),
                },
                weight: gateway.weight,
                standing: gateway.standing,
                way: way.clone(),
            })
        })
        .collect();
    // By id first: the datapath searches a group for the gateway that a flow is on.
    members.sort_unstable();
    if members.is_empty() {
        return Ok(VerdictSpec::Drop(DropReason::NoGateway));
    }
    if members.len() > MAX_NUMBERS {
        return Err(CompileError::GroupTooLarge {
            policy: policy.to_owned(),
            rule: rule.label.clone(),
            gateways: members.len(),
        });
    }
    Ok(VerdictSpec::Gateways(members))
}

/// Refuses what would not fit the memory that is allowed, before any of it is built.
fn check_matrix(
    prefixes: &Prefixes,
    rows: usize,
    tables: &[NumberTable],
    limits: &Limits,
) -> Result<(), CompileError> {
    let groups: BTreeSet<Vec<slots::Candidate<'_>>> = tables
        .iter()
        .flat_map(|table| &table.verdicts)
        .filter_map(|verdict| match verdict {
            VerdictSpec::Gateways(members) if only(members).is_none() => Some(candidates(members)),
            VerdictSpec::Gateways(_)
            | VerdictSpec::Unmatched
            | VerdictSpec::Local
            | VerdictSpec::Drop(_) => None,
        })
        .collect();
    let classes = u32::try_from(prefixes.nets().len()).unwrap_or(u32::MAX / 2);
    let row_bytes = u64::from(Extent::lines_given(classes)) * LINE_BYTES;
    let needed = rows as u64 * row_bytes + groups.len() as u64 * u64::from(SLOT_LINES) * LINE_BYTES;
    if needed > limits.matrix_memory {
        return Err(CompileError::MatrixMemory {
            needed,
            allowed: limits.matrix_memory,
            rows,
            prefixes: prefixes.nets().len(),
            tables: groups.len(),
        });
    }
    Ok(())
}

/// The one member of a group that is not asked which flow is whose.
pub(crate) fn only(members: &[MemberSpec]) -> Option<&MemberSpec> {
    match members {
        [only] if only.standing != Standing::Remaining => Some(only),
        _ => None,
    }
}

/// A group as slot tables know it: two groups with equal candidates share a table.
pub(crate) fn candidates(members: &[MemberSpec]) -> Vec<slots::Candidate<'_>> {
    members
        .iter()
        .map(|member| slots::Candidate {
            namespace: &member.label.namespace,
            name: &member.label.gateway,
            weight: member.weight,
            draining: member.standing == Standing::Draining,
        })
        .collect()
}

/// Refuses more than the maps hold.
fn check_capacities(profiles: &[Profile], limits: &Limits) -> Result<(), CompileError> {
    let policies: BTreeSet<&str> = profiles.iter().map(|p| p.policy.as_str()).collect();
    // One index stands for no policy.
    fits("policies", policies.len() + 1, limits.policies)?;

    let blocks: BTreeSet<(&str, &[VerdictSpec])> = profiles
        .iter()
        .map(|p| (p.policy.as_str(), p.verdicts.as_slice()))
        .collect();
    let verdicts = blocks.iter().map(|(_, verdicts)| verdicts.len()).sum();
    fits("verdicts", verdicts, limits.verdicts)?;

    let groups: BTreeSet<&[MemberSpec]> = blocks
        .iter()
        .flat_map(|(_, verdicts)| *verdicts)
        .map(VerdictSpec::members)
        .collect();
    let members = groups.iter().map(|members| members.len()).sum();
    fits("group members", members, limits.members)
}

/// Refuses more egress addresses and nodes than their maps hold.
fn check_translation(translation: &Translation) -> Result<(), CompileError> {
    let addresses = translation.addresses.len();
    fits("egress addresses", addresses, capacity::EGRESS)?;
    let of_nodes = translation.nodes.values().map(|node| node.addresses.len());
    fits("addresses of other nodes", of_nodes.sum(), capacity::NODES)?;
    // Index 0 is this node.
    let nodes = translation.nodes.len() + 1;
    fits("nodes", nodes, capacity::NODES)
}

fn fits(what: &'static str, needed: usize, room: u32) -> Result<(), CompileError> {
    if u32::try_from(needed).is_ok_and(|needed| needed <= room) {
        return Ok(());
    }
    Err(CompileError::Full { what, needed, room })
}
