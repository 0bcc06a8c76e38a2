//! What resolutions made of policies, for the next one: most policies have not changed, nor have their gateways.
//!
//! Rules are known by their address in memory, which they keep as long as they are remembered.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{EffectiveRule, UsableGateway};
use crate::model::{GatewaySelector, OnFailure, Preference, Rule, Target};

/// What is remembered; it changes how long a resolution takes, and nothing else.
#[derive(Debug, Default)]
pub struct Memo {
    policies: HashMap<usize, Known>,
    /// How often there was a resolution.
    round: u64,
}

/// The rules of a policy.
#[derive(Debug)]
struct Known {
    rules: Arc<[Rule]>,
    selectors: Arc<Selectors>,
    outcomes: Vec<Outcome>,
    /// The last resolution that they were in.
    round: u64,
}

/// The distinct selectors of a policy.
#[derive(Debug)]
pub(super) struct Selectors {
    /// The places of the first rules that have them.
    first: Vec<usize>,
    /// The same of those that take over where no gateway is usable.
    fallbacks: Vec<usize>,
    /// Whether any of them means the pod's own namespace, where the rule is one with gateways.
    pub(super) own: bool,
}

/// What pods get who choose nothing.
#[derive(Debug)]
struct Outcome {
    /// Their namespace, if it matters.
    namespace: Option<String>,
    /// The gateways of each selector.
    lists: Vec<Arc<[UsableGateway]>>,
    rules: Arc<[EffectiveRule]>,
}

impl Memo {
    /// Begins a resolution.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// Forgets what the resolution had no use for.
    pub(super) fn end(&mut self) {
        let round = self.round;
        self.policies.retain(|_, known| known.round == round);
    }

    /// The selectors of a policy's rules.
    pub(super) fn selectors(&mut self, rules: &Arc<[Rule]>) -> Arc<Selectors> {
        Arc::clone(&self.known(rules).selectors)
    }

    /// What pods of this namespace got from these rules when their selectors had these gateways.
    pub(super) fn outcome(
        &mut self,
        rules: &Arc<[Rule]>,
        namespace: Option<&str>,
        lists: &[Arc<[UsableGateway]>],
    ) -> Option<Arc<[EffectiveRule]>> {
        let outcomes = self.known(rules).outcomes.iter();
        outcomes
            .filter(|outcome| outcome.namespace.as_deref() == namespace)
            .find(|outcome| outcome.lists == lists)
            .map(|outcome| Arc::clone(&outcome.rules))
    }

    /// Remembers what pods of this namespace get.
    pub(super) fn remember(
        &mut self,
        rules: &Arc<[Rule]>,
        namespace: Option<&str>,
        lists: Vec<Arc<[UsableGateway]>>,
        outcome: &Arc<[EffectiveRule]>,
    ) {
        let outcomes = &mut self.known(rules).outcomes;
        outcomes.retain(|outcome| outcome.namespace.as_deref() != namespace);
        outcomes.push(Outcome {
            namespace: namespace.map(str::to_owned),
            lists,
            rules: Arc::clone(outcome),
        });
    }

    fn known(&mut self, rules: &Arc<[Rule]>) -> &mut Known {
        let known = self
            .policies
            .entry(rules.as_ptr().addr())
            .or_insert_with(|| Known::new(rules));
        // Lists without rules may share an address.
        if !Arc::ptr_eq(&known.rules, rules) {
            *known = Known::new(rules);
        }
        known.round = self.round;
        known
    }
}

impl Known {
    fn new(rules: &Arc<[Rule]>) -> Self {
        Self {
            rules: Arc::clone(rules),
            selectors: Arc::new(Selectors::of(rules)),
            outcomes: Vec::new(),
            round: 0,
        }
    }
}

impl Selectors {
    fn of(rules: &[Rule]) -> Self {
        let mut selectors = Self {
            first: Vec::new(),
            fallbacks: Vec::new(),
            own: false,
        };
        let (mut seen, mut seen_fallbacks) = (BTreeSet::new(), BTreeSet::new());
        for (place, rule) in rules.iter().enumerate() {
            if let Some(selector) = primary(rule) {
                let mut asked = selectors_of(rule);
                selectors.own |= asked.any(|selector| selector.namespaces.is_none());
                if seen.insert(identity(selector)) {
                    selectors.first.push(place);
                }
            }
            if let Some(selector) = fallback(rule)
                && seen_fallbacks.insert(identity(selector))
            {
                selectors.fallbacks.push(place);
            }
        }
        selectors
    }

    /// The places of rules that have all selectors between them.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        self.first.iter().chain(&self.fallbacks).copied()
    }

    /// The places of rules that have all those between them which rules name first.
    pub(super) fn first(&self) -> &[usize] {
        &self.first
    }
}

/// The selectors of a rule: its own, and the one that takes over.
pub(super) fn selectors_of(rule: &Rule) -> impl Iterator<Item = &GatewaySelector> {
    primary(rule).into_iter().chain(fallback(rule))
}

/// The selector that a rule names first.
pub(super) fn primary(rule: &Rule) -> Option<&GatewaySelector> {
    match &rule.target {
        Target::Gateways(selector) => Some(selector),
        Target::Local => None,
    }
}

fn fallback(rule: &Rule) -> Option<&GatewaySelector> {
    match &rule.on_failure {
        OnFailure::Fallback(selector) => Some(selector),
        OnFailure::Drop | OnFailure::Local => None,
    }
}

fn identity(selector: &GatewaySelector) -> impl Ord + use<'_> {
    let GatewaySelector {
        namespaces,
        gateways,
        max_next_hops,
        preference,
    } = selector;
    let prefers_local = *preference == Preference::NodeLocal;
    (namespaces, gateways, max_next_hops, prefers_local)
}
