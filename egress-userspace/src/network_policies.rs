//! Which pods the egress network policies of others select: pure.
//!
//! Such policies are enforced where the kernel forwards packets, and redirected packets never come there. What is not
//! known of a namespace or a service account counts as selected.

use crate::{
    model::{Labels, Model, NetworkPolicy, ObjectName, Pod, Scope},
    selector::Selector,
};

/// Labels that every namespace has, with its name for a value.
const OF_NAMESPACES: &[&str] = &["projectcalico.org/name", "kubernetes.io/metadata.name"];
/// Labels that every service account has, with its name for a value.
const OF_SERVICE_ACCOUNTS: &[&str] = &["projectcalico.org/name"];
/// The label of pods that tells their service account.
const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";

/// The policies that judge what a pod sends, by kind and name, in order.
#[must_use]
pub fn judging(model: &Model, name: &ObjectName, pod: &Pod) -> Vec<String> {
    let policies = model.network_policies.iter();
    policies
        .filter(|(_, policy)| policy.selects(model, name, pod))
        .map(|(name, _)| name.clone())
        .collect()
}

impl NetworkPolicy {
    /// Whether it selects a pod.
    #[must_use]
    pub fn selects(&self, model: &Model, name: &ObjectName, pod: &Pod) -> bool {
        self.reaches(model, &name.namespace)
            && self.pods.matches(&pod.labels)
            && self.service_accounts.as_ref().is_none_or(|selector| {
                pod.labels.get(SERVICE_ACCOUNT).is_none_or(|account| {
                    let name = ObjectName::new(&name.namespace, account);
                    let mut labels = model.service_accounts.get(&name).cloned();
                    if let Some(labels) = &mut labels {
                        labels.extend(named(OF_SERVICE_ACCOUNTS, account));
                    }
                    may_match(selector, labels.as_ref(), OF_SERVICE_ACCOUNTS, account)
                })
            })
    }

    /// Whether it may select pods of a namespace.
    #[must_use]
    pub fn reaches(&self, model: &Model, namespace: &str) -> bool {
        match &self.scope {
            Scope::Own(own) => own == namespace,
            Scope::Selected(selector) => {
                let labels = model.namespaces.get(namespace).map(|known| &known.labels);
                may_match(selector, labels, OF_NAMESPACES, namespace)
            }
        }
    }
}

/// Whether a selector matches, or may match what is not known but for these labels, which have its name for a value.
fn may_match(selector: &Selector, labels: Option<&Labels>, certain: &[&str], name: &str) -> bool {
    match labels {
        Some(labels) => selector.matches(labels),
        None => {
            !selector.asks_only_for(certain) || selector.matches(&named(certain, name).collect())
        }
    }
}

fn named<'a>(labels: &'a [&str], name: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
    let labels = labels.iter();
    labels.map(|label| ((*label).to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests;
