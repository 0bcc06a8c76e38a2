//! What a policy means for pods: its rules with the gateways that each pod uses.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    sync::Arc,
};

use egress_common::DropReason;
use ipnet::IpNet;

use super::{
    Action, EffectiveRule, Fate, Standing, UsableGateway,
    choose::Chooser,
    gateways::{Gateways, GroupKey},
    memo::{Memo, Selectors, primary},
};
use crate::model::{
    GatewaySelector, Model, ObjectName, OnFailure, Policy, Preference, Rule, Steering, Target,
};

/// The policy that packets of pods with an unreadable annotation are counted under.
const INVALID: &str = "annotation:invalid";

/// Turns what pods ask for into what they get, once for all that ask for the same.
pub(super) struct Planner<'a, 'g> {
    model: &'a Model,
    groups: Groups<'a, 'g>,
    /// By policy, and by namespace where a selector means the pod's own.
    plans: HashMap<(String, Option<&'a str>), Plan>,
    list_ids: BTreeMap<(GroupKey<'a>, bool), usize>,
    /// What is left of rules without what they send to gateways, by the rules' address in memory: plans keep them.
    refused: HashMap<(*const EffectiveRule, usize), Arc<[EffectiveRule]>>,
    /// What earlier resolutions made of policies, and by what the plans here can be those.
    memo: &'g mut Memo,
    /// What all pods of a plan get where they choose nothing.
    settled: HashMap<(&'a str, Option<&'a str>), Arc<[EffectiveRule]>>,
    pub(super) warnings: BTreeSet<String>,
}

/// A rule's label, its destination, and unless it is local its gateways and what happens without them.
type Unplanned<'a> = (
    String,
    Option<IpNet>,
    Option<(&'a GatewaySelector, &'a OnFailure)>,
);

/// A policy whose selectors are resolved, before a pod chooses.
struct Plan {
    rules: Vec<PlannedRule>,
    /// The distinct choices that a pod has: so many of that list.
    choices: Vec<(usize, usize)>,
    /// What pods get, by what they chose.
    outcomes: HashMap<Vec<usize>, Arc<[EffectiveRule]>>,
}

struct PlannedRule {
    label: String,
    destination: Option<IpNet>,
    target: PlannedTarget,
}

#[derive(Clone, Copy)]
enum PlannedTarget {
    Local,
    /// All of this list.
    All(usize),
    /// What this choice of the plan gives.
    Choice(usize),
}

impl<'a, 'g> Planner<'a, 'g> {
    pub(super) fn new(model: &'a Model, gateways: &'g Gateways<'a>, memo: &'g mut Memo) -> Self {
        Self {
            model,
            groups: Groups {
                gateways,
                lists: Vec::new(),
                made: HashMap::new(),
            },
            plans: HashMap::new(),
            list_ids: BTreeMap::new(),
            refused: HashMap::new(),
            memo,
            settled: HashMap::new(),
            warnings: BTreeSet::new(),
        }
    }

    /// The policy's name as counters carry it, and what it means for the pod.
    pub(super) fn fate(&mut self, pod: &'a ObjectName, steering: &'a Steering) -> (String, Fate) {
        match steering {
            Steering::Invalid => (INVALID.to_owned(), Fate::Drop(DropReason::PolicyInvalid)),
            Steering::Policy(name) => match self.model.policies.get(name) {
                None => {
                    self.warnings.insert(format!(
                        "the policy {name} does not exist, or has never been valid: every packet of the pods that name \
                         it is dropped"
                    ));
                    (name.clone(), Fate::Drop(DropReason::PolicyMissing))
                }
                Some(policy) => (name.clone(), Fate::Rules(self.of_policy(pod, name, policy))),
            },
            Steering::Gateways(selector) => {
                let name = policy_name(selector);
                let own = selector.namespaces.is_none();
                let rule = || {
                    vec![(
                        "default".to_owned(),
                        None,
                        Some((selector, &OnFailure::Drop)),
                    )]
                };
                let rules = self.rules(pod, &name, own, rule);
                (name, Fate::Rules(rules))
            }
        }
    }

    /// The rules of a policy for a pod: those of an earlier resolution, if it would make the same.
    fn of_policy(
        &mut self,
        pod: &'a ObjectName,
        name: &'a str,
        policy: &'a Policy,
    ) -> Arc<[EffectiveRule]> {
        let selectors = self.memo.selectors(&policy.rules);
        let namespace = selectors.own.then_some(pod.namespace.as_str());
        if let Some(rules) = self.settled.get(&(name, namespace)) {
            return Arc::clone(rules);
        }
        let lists = self.lists(pod, name, &policy.rules, &selectors);
        if let Some(lists) = &lists
            && let Some(rules) = self.memo.outcome(&policy.rules, namespace, lists)
        {
            self.settled.insert((name, namespace), Arc::clone(&rules));
            return rules;
        }
        let own = selectors.own;
        let rules = self.rules(pod, name, own, || policy_rules(&policy.rules));
        if let Some(lists) = lists {
            self.memo.remember(&policy.rules, namespace, lists, &rules);
            self.settled.insert((name, namespace), Arc::clone(&rules));
        }
        rules
    }

    /// The gateways of each selector, if there are some and pods use all of them: then they say all that pods get.
    fn lists(
        &mut self,
        pod: &'a ObjectName,
        policy: &str,
        rules: &'a [Rule],
        selectors: &Selectors,
    ) -> Option<Vec<Arc<[UsableGateway]>>> {
        let mut lists = Vec::with_capacity(selectors.first().len());
        for place in selectors.first() {
            let selector = primary(&rules[*place])?;
            let key = GroupKey::new(selector, &pod.namespace);
            let gateways = self.groups.gateways;
            let mut matched = gateways.matched(&key).iter();
            if !matched.any(|gateway| gateways.usable(*gateway).is_some()) {
                return None;
            }
            let list = self.list(pod, policy, &rules[*place].label(), selector, "");
            let most = selector.max_next_hops.map_or(usize::MAX, |n| {
                usize::try_from(n.get()).unwrap_or(usize::MAX)
            });
            if most < self.groups.lists[list].gateways.len() {
                return None;
            }
            lists.push(self.groups.whole(list));
        }
        Some(lists)
    }

    /// The rules of a plan, with a drop in place of gateways; shared by all pods that shared those.
    pub(super) fn refuse(
        &mut self,
        rules: &Arc<[EffectiveRule]>,
        reason: DropReason,
    ) -> Arc<[EffectiveRule]> {
        let refused = self.refused.entry((rules.as_ptr(), rules.len()));
        let refused = refused.or_insert_with(|| {
            let rules = rules.iter().map(|rule| EffectiveRule {
                action: match &rule.action {
                    Action::Gateways(_) => Action::Drop(reason),
                    kept @ (Action::Local | Action::Drop(_)) => kept.clone(),
                },
                ..rule.clone()
            });
            rules.collect()
        });
        Arc::clone(refused)
    }

    /// The rules for a pod; `own` is whether they depend on its namespace.
    fn rules(
        &mut self,
        pod: &'a ObjectName,
        policy: &str,
        own: bool,
        rules: impl FnOnce() -> Vec<Unplanned<'a>>,
    ) -> Arc<[EffectiveRule]> {
        let key = (policy.to_owned(), own.then_some(pod.namespace.as_str()));
        let mut plan = match self.plans.remove(&key) {
            Some(plan) => plan,
            None => self.plan(pod, policy, rules()),
        };
        let outcome = plan.outcome(pod, &mut self.groups);
        self.plans.insert(key, plan);
        outcome
    }

    fn plan(&mut self, pod: &'a ObjectName, policy: &str, rules: Vec<Unplanned<'a>>) -> Plan {
        let mut choices = Vec::new();
        let mut rules: Vec<_> = rules
            .into_iter()
            .map(|(label, destination, selector)| {
                let target = match selector {
                    None => PlannedTarget::Local,
                    Some((selector, on_failure)) => {
                        let mut selector = selector;
                        let instead = match on_failure {
                            OnFailure::Drop => "are dropped",
                            OnFailure::Local => {
                                "are left to the kernel's routing, as its onFailure says"
                            }
                            OnFailure::Fallback(_) => "go where its onFailure says",
                        };
                        let mut list = self.list(pod, policy, &label, selector, instead);
                        if self.groups.lists[list].gateways.is_empty() {
                            match on_failure {
                                OnFailure::Drop => {}
                                OnFailure::Local => {
                                    return PlannedRule {
                                        label,
                                        destination,
                                        target: PlannedTarget::Local,
                                    };
                                }
                                OnFailure::Fallback(other) => {
                                    selector = other;
                                    list = self.list(pod, policy, &label, other, "are dropped");
                                }
                            }
                        }
                        let most = selector.max_next_hops.map_or(usize::MAX, |n| {
                            usize::try_from(n.get()).unwrap_or(usize::MAX)
                        });
                        if most >= self.groups.lists[list].gateways.len() {
                            PlannedTarget::All(list)
                        } else {
                            let choice = (list, most);
                            let known = choices.iter().position(|&c| c == choice);
                            PlannedTarget::Choice(known.unwrap_or_else(|| {
                                choices.push(choice);
                                choices.len() - 1
                            }))
                        }
                    }
                };
                PlannedRule {
                    label,
                    destination,
                    target,
                }
            })
            .collect();
        rules.sort_by_key(|rule| rule.destination);
        Plan {
            rules,
            choices,
            outcomes: HashMap::new(),
        }
    }

    /// The usable gateways of a selector, those on this node alone if it prefers them and there are any.
    fn list(
        &mut self,
        pod: &'a ObjectName,
        policy: &str,
        label: &str,
        selector: &'a GatewaySelector,
        instead: &str,
    ) -> usize {
        let key = GroupKey::new(selector, &pod.namespace);
        let matched = self.groups.gateways.matched(&key);
        let usable: Vec<_> = matched
            .iter()
            .copied()
            .filter(|&gateway| self.groups.gateways.usable(gateway).is_some())
            .collect();
        let all = usable.len();
        if usable.is_empty() {
            self.warn_unusable(pod, policy, label, selector, matched.len(), instead);
        }
        let prefers_local = selector.preference == Preference::NodeLocal;
        let lists = &mut self.groups.lists;
        let gateways = self.groups.gateways;
        *self
            .list_ids
            .entry((key, prefers_local))
            .or_insert_with(|| {
                let local: Vec<_> = usable
                    .iter()
                    .copied()
                    .filter(|&gateway| prefers_local && gateways.is_local(gateway))
                    .collect();
                // Different selectors often mean the same gateways, and then a pod chooses once for all of them.
                let list = if local.is_empty() { usable } else { local };
                // Where others are missing that may come back, flows are to stay with who remains.
                let list = List {
                    remaining: list.len() == 1 && matched.len() > all,
                    gateways: list,
                };
                let known = lists.iter().position(|other| *other == list);
                known.unwrap_or_else(|| {
                    lists.push(list);
                    lists.len() - 1
                })
            })
    }

    fn warn_unusable(
        &mut self,
        pod: &ObjectName,
        policy: &str,
        label: &str,
        selector: &GatewaySelector,
        matched: usize,
        instead: &str,
    ) {
        let place = match &selector.namespaces {
            Some(namespaces) => format!("in namespaces with \"{namespaces}\""),
            None => format!("in the namespace {}", pod.namespace),
        };
        let gateways = &selector.gateways;
        self.warnings.insert(if matched == 0 {
            format!(
                "policy {policy}, rule {label}: no gateway {place} has labels with \"{gateways}\", so packets of the rule \
                 {instead}"
            )
        } else {
            format!(
                "policy {policy}, rule {label}: none of the gateways with \"{gateways}\" {place} is usable from this node, so \
                 packets of the rule {instead}; `egress status` tells why"
            )
        });
    }
}

impl Plan {
    /// What the pod gets, shared with every pod that chose the same.
    fn outcome(&mut self, pod: &ObjectName, groups: &mut Groups<'_, '_>) -> Arc<[EffectiveRule]> {
        let gateways = groups.gateways;
        let mut chooser = Chooser::new(pod);
        let chosen: Vec<usize> = self
            .choices
            .iter()
            .flat_map(|&(list, most)| {
                chooser.choose(&groups.lists[list].gateways, most, |gateway| {
                    gateways.name(gateway)
                })
            })
            .collect();
        if let Some(rules) = self.outcomes.get(&chosen) {
            return Arc::clone(rules);
        }
        let mut rest = chosen.as_slice();
        let mut parts = Vec::new();
        for &(_, most) in &self.choices {
            let (part, others) = rest.split_at(most);
            parts.push(groups.group(List {
                gateways: part.to_vec(),
                remaining: false,
            }));
            rest = others;
        }
        let rules: Arc<[_]> = self
            .rules
            .iter()
            .map(|rule| EffectiveRule {
                label: rule.label.clone(),
                destination: rule.destination,
                action: match rule.target {
                    PlannedTarget::Local => Action::Local,
                    PlannedTarget::All(list) => Action::Gateways(groups.whole(list)),
                    PlannedTarget::Choice(choice) => Action::Gateways(Arc::clone(&parts[choice])),
                },
            })
            .collect();
        self.outcomes.insert(chosen, Arc::clone(&rules));
        rules
    }
}

/// The usable gateways of a selector, after its preference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct List {
    gateways: Vec<usize>,
    /// Whether it is only one because others of the selector are not usable now.
    remaining: bool,
}

/// Lists of gateways by number, and what they stand for.
struct Groups<'a, 'g> {
    gateways: &'g Gateways<'a>,
    lists: Vec<List>,
    made: HashMap<List, Arc<[UsableGateway]>>,
}

impl Groups<'_, '_> {
    fn whole(&mut self, list: usize) -> Arc<[UsableGateway]> {
        let list = self.lists[list].clone();
        self.group(list)
    }

    fn group(&mut self, list: List) -> Arc<[UsableGateway]> {
        if let Some(group) = self.made.get(&list) {
            return Arc::clone(group);
        }
        let usable = |&gateway: &usize| {
            let mut usable = self.gateways.usable(gateway)?.clone();
            if list.remaining && usable.standing == Standing::Serving {
                usable.standing = Standing::Remaining;
            }
            Some(usable)
        };
        let group: Arc<[_]> = list.gateways.iter().filter_map(usable).collect();
        self.made.insert(list, Arc::clone(&group));
        group
    }
}

fn policy_rules(rules: &[Rule]) -> Vec<Unplanned<'_>> {
    rules
        .iter()
        .map(|rule| {
            let selector = match &rule.target {
                Target::Local => None,
                Target::Gateways(selector) => Some((selector, &rule.on_failure)),
            };
            (rule.label(), rule.destination, selector)
        })
        .collect()
}

/// The name of the policy that a selector annotation amounts to: all that defines it, and nothing of the pod,
/// so that counters do not multiply by pods.
fn policy_name(selector: &GatewaySelector) -> String {
    let mut name = format!("selector:{}", selector.gateways);
    if let Some(namespaces) = &selector.namespaces {
        // Writing to a string cannot fail.
        let _ok = write!(name, " in {namespaces}");
    }
    if let Some(most) = selector.max_next_hops {
        let _ok = write!(name, " max {most}");
    }
    if selector.preference == Preference::NodeLocal {
        name.push_str(" prefer local");
    }
    name
}
