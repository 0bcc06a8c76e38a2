//! From what this node has to do to what the maps should say: pure, deterministic, without kernel numbers.
//!
//! Numbers of a row: 0 where nothing matches, 1 where the cluster's own prefix is the longest, then one for each
//! destination of the rules, in the order of destinations: policies over the same destinations have the same row, whatever
//! they say of them. Only where most rules are without gateway do these share a number, since verdicts would take more room
//! than rows save. Which gateways are usable changes verdicts only.

mod memo;
mod prefixes;
pub mod slots;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use egress_common::{
    DropReason, Family,
    cells::{CELLS_PER_LINE, SLOT_LINES},
    keys::PodKey,
    maps::capacity,
    verdict::{NUMBER_CLUSTER, NUMBER_FIRST_RULE, NUMBER_UNMATCHED},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use self::memo::Memo;
use self::{
    memo::Block,
    prefixes::{Prefixes, Shape},
};
use crate::{
    resolve::{Action, EffectiveRule, Fate, Resolved, SourcePod, UsableGateway},
    rows::Row,
    state::{
        DesiredState, Facts, Limits, MemberLabel, MemberSpec, Profile, Standing, Translation,
        VerdictSpec,
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
    compile_again(resolved, limits, &mut Memo::default())
}

/// The same after earlier compilations, which makes it quicker and no different.
///
/// # Errors
/// As [`compile`].
pub fn compile_again(
    resolved: &Resolved,
    limits: &Limits,
    memo: &mut Memo,
) -> Result<DesiredState, CompileError> {
    memo.begin();
    let compiled = compile_with(resolved, limits, memo);
    memo.end();
    compiled
}

fn compile_with(
    resolved: &Resolved,
    limits: &Limits,
    memo: &mut Memo,
) -> Result<DesiredState, CompileError> {
    let (pods, tellings) = distinct_tellings(resolved);
    fits("source pods", pods.len(), limits.pods)?;

    let mut tables = Vec::with_capacity(tellings.len());
    for (policy, fate) in &tellings {
        tables.push(match fate {
            Fate::Drop(reason) => Arc::new(NumberTable::drop(*reason)),
            Fate::Rules(rules) => memo.table(policy, rules)?,
        });
    }
    // Pods that drop everything have no use for prefixes.
    let nothing = BTreeSet::new();
    let steering = tables.iter().any(|table| !table.drops);
    let cluster = if steering {
        &resolved.cluster_prefixes
    } else {
        &nothing
    };
    let prefixes = memo.prefixes(&tables, cluster);
    let v4 = prefixes
        .nets()
        .partition_point(|net| matches!(net, IpNet::V4(_)));
    for (what, needed) in [
        ("IPv4 prefixes", v4),
        ("IPv6 prefixes", prefixes.nets().len() - v4),
    ] {
        fits(what, needed, limits.prefixes)?;
    }

    // A row is a function of its shape; no shape at all is the row of zeroes.
    let mut shapes: BTreeMap<Option<Arc<Shape>>, usize> = BTreeMap::new();
    let mut in_order = Vec::new();
    let mut row_of = Vec::with_capacity(tables.len());
    for table in &tables {
        let shape = memo.shape(&prefixes, table);
        let zero = table.drops || (shape.is_empty() && !prefixes.has_cluster());
        let shape = (!zero).then_some(shape);
        let row = *shapes.entry(shape.clone()).or_insert_with(|| {
            in_order.push(shape);
            in_order.len() - 1
        });
        row_of.push(row);
    }
    let rows: Vec<Arc<Row>> = in_order
        .into_iter()
        .map(|shape| memo.row(&prefixes, shape, limits))
        .collect();
    check_matrix(&prefixes, &rows, &tables, limits)?;

    let blocks: Vec<Block> = tables
        .iter()
        .zip(&row_of)
        .map(|(table, row)| memo.block(table, rows[*row].highest()))
        .collect();
    let policies = || tellings.iter().map(|(policy, _)| *policy);
    check_capacities(policies().zip(&blocks), limits)?;
    check_translation(&resolved.translation)?;
    let interfaces = blocks
        .iter()
        .flat_map(|block| block.reply_interfaces.iter());
    let reply_interfaces = interfaces.copied().collect();
    let profiles = policies().zip(row_of).zip(blocks);
    Ok(DesiredState {
        pods,
        profiles: profiles
            .map(|((policy, row), block)| Profile {
                policy: policy.to_owned(),
                row,
                verdicts: block.verdicts,
            })
            .collect(),
        rows,
        prefixes: prefixes.nets_shared(),
        reply_interfaces,
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
#[derive(Debug)]
struct NumberTable {
    numbers: Vec<(IpNet, u16)>,
    verdicts: Arc<[VerdictSpec]>,
    drops: bool,
    /// Whether a verdict is a group with a slot table.
    groups: bool,
}

impl NumberTable {
    /// Every packet is dropped, those to the cluster too.
    fn drop(reason: DropReason) -> Self {
        Self {
            numbers: Vec::new(),
            verdicts: Arc::new([VerdictSpec::Drop(reason)]),
            drops: true,
            groups: false,
        }
    }

    fn rules(policy: &str, rules: &[EffectiveRule]) -> Result<Self, CompileError> {
        const {
            assert!(
                NUMBER_UNMATCHED == 0 && NUMBER_CLUSTER == 1 && NUMBER_FIRST_RULE == 2,
                "the first two verdicts below stand at these numbers"
            );
        }
        let mut wanted: Vec<_> = rules
            .iter()
            .flat_map(|rule| {
                destinations(rule, rules).map(move |(family, net)| (net, family, rule))
            })
            .collect();
        wanted.sort_by_key(|(net, ..)| *net);
        let is_local = |rule: &EffectiveRule| matches!(rule.action, Action::Local);
        let locals = wanted.iter().filter(|(.., rule)| is_local(rule)).count();
        let all = usize::from(NUMBER_FIRST_RULE) + wanted.len();
        let share = locals > wanted.len() - locals || all > MAX_NUMBERS;
        let mut verdicts = vec![VerdictSpec::Unmatched, VerdictSpec::Local];
        let mut numbers = Vec::with_capacity(wanted.len());
        let mut shared = None;
        for (destination, family, rule) in wanted {
            let verdict = match &rule.action {
                Action::Local => VerdictSpec::Local,
                Action::Drop(reason) => VerdictSpec::Drop(*reason),
                Action::Gateways(gateways) => group(policy, rule, gateways, family)?,
            };
            let number = match shared {
                Some(number) if is_local(rule) => number,
                _ => {
                    verdicts.push(verdict);
                    verdicts.len() - 1
                }
            };
            if share && is_local(rule) {
                shared = Some(number);
            }
            numbers.push((destination, number));
        }
        if verdicts.len() > MAX_NUMBERS {
            return Err(CompileError::PolicyTooLarge {
                policy: policy.to_owned(),
                needed: verdicts.len(),
            });
        }
        let groups = verdicts.iter().any(|verdict| slotted(verdict).is_some());
        Ok(Self {
            groups,
            numbers: numbers
                .into_iter()
                .filter_map(|(net, number)| Some((net, u16::try_from(number).ok()?)))
                .collect(),
            verdicts: verdicts.into(),
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
                label: Arc::new(MemberLabel {
                    namespace: gateway.name.namespace.clone(),
                    gateway: gateway.name.name.clone(),
                    policy: policy.to_owned(),
                    rule: rule.label.clone(),
                }),
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

/// Refuses what would not fit the memory that is allowed, before any line is built.
fn check_matrix(
    prefixes: &Prefixes,
    rows: &[Arc<Row>],
    tables: &[Arc<NumberTable>],
    limits: &Limits,
) -> Result<(), CompileError> {
    let groups: BTreeSet<Vec<slots::Candidate<'_>>> = tables
        .iter()
        .filter(|table| table.groups)
        .flat_map(|table| table.verdicts.iter())
        .filter_map(slotted)
        .map(candidates)
        .collect();
    let of_rows: u64 = rows.iter().map(|row| u64::from(row.lines())).sum();
    let needed = (of_rows + groups.len() as u64 * u64::from(SLOT_LINES)) * LINE_BYTES;
    if needed > limits.matrix_memory {
        return Err(CompileError::MatrixMemory {
            needed,
            allowed: limits.matrix_memory,
            rows: rows.len(),
            prefixes: prefixes.nets().len(),
            tables: groups.len(),
        });
    }
    Ok(())
}

/// The members of a verdict that has a slot table.
fn slotted(verdict: &VerdictSpec) -> Option<&[MemberSpec]> {
    match verdict {
        VerdictSpec::Gateways(members) if only(members).is_none() => Some(members),
        VerdictSpec::Gateways(_)
        | VerdictSpec::Unmatched
        | VerdictSpec::Local
        | VerdictSpec::Drop(_) => None,
    }
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

/// Refuses more than the maps hold. Blocks come in order of their policies, and no two policies have a member or a block in
/// common.
fn check_capacities<'p, 'b>(
    blocks: impl Iterator<Item = (&'p str, &'b Block)>,
    limits: &Limits,
) -> Result<(), CompileError> {
    let blocks: Vec<_> = blocks.collect();
    let (mut policies, mut verdicts, mut members) = (0, 0, 0);
    for of_policy in blocks.chunk_by(|a, b| a.0 == b.0) {
        policies += 1;
        if let [(_, block)] = of_policy {
            verdicts += block.verdicts.len();
            members += block.members;
            continue;
        }
        let distinct: BTreeSet<&[VerdictSpec]> = of_policy
            .iter()
            .map(|(_, block)| &*block.verdicts)
            .collect();
        verdicts += distinct
            .iter()
            .map(|verdicts| verdicts.len())
            .sum::<usize>();
        members += distinct_members(distinct.into_iter().flatten());
    }
    // One index stands for no policy.
    fits("policies", policies + 1, limits.policies)?;
    fits("verdicts", verdicts, limits.verdicts)?;
    fits("group members", members, limits.members)
}

/// How many members the distinct groups among these have.
fn distinct_members<'a>(verdicts: impl Iterator<Item = &'a VerdictSpec>) -> usize {
    let groups: BTreeSet<&[MemberSpec]> = verdicts.map(VerdictSpec::members).collect();
    groups.iter().map(|members| members.len()).sum()
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
