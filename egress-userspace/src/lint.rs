//! What is valid and yet probably not meant.

mod gateways;
mod network_policies;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    diagnostic::Place,
    model::{GatewaySelector, Labels, Model, Policy, Rule, Steering, Target},
    resources::{Kind, ObjectId, Places},
    selector::Selector,
};

/// Prefixes that a finding names before it only counts.
const NAMED_PREFIXES: usize = 3;

/// Something that is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub object: ObjectId,
    /// Where.
    pub place: Place,
    /// What.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// Looks at everything that is in force, in order of objects; `refused` objects are known, but not in force.
#[must_use]
pub fn lint(
    model: &Model,
    places: &BTreeMap<ObjectId, Places>,
    refused: &BTreeSet<ObjectId>,
) -> Vec<Finding> {
    let cluster = cluster_prefixes(model);
    let mut findings = Findings {
        found: Vec::new(),
        places,
    };
    let users = policy_users(model);
    for (name, policy) in &model.policies {
        let id = object_id(Kind::EgressGatewayPolicy, None, name);
        if !users.contains_key(name.as_str()) {
            findings.add(
                &id,
                None,
                "no namespace or pod uses the policy".to_owned(),
                &format!(
                    "annotate one with `egress.projectcalico.org/egressGatewayPolicy: {name}`"
                ),
            );
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            lint_rule(&mut findings, &id, policy, index, &cluster);
            if let Target::Gateways(selector) = &rule.target {
                let namespaces = users.get(name.as_str());
                lint_selector(&mut findings, &id, index, model, selector, namespaces);
                if let Some(destination) = rule.destination {
                    gateways::lint_family(&mut findings, &id, index, model, selector, destination);
                }
            }
        }
        lint_defaults(&mut findings, &id, policy);
    }
    for (id, own_namespace, steering) in steerings(model) {
        match steering {
            Steering::Policy(name) if !model.policies.contains_key(name) => {
                let policy = object_id(Kind::EgressGatewayPolicy, None, name);
                let (fault, help) = if refused.contains(&policy) {
                    ("is refused", "correct the policy")
                } else {
                    ("does not exist", "make the policy, or correct the name")
                };
                let message = format!(
                    "the annotation names the policy {name:?}, which {fault}: every packet is dropped"
                );
                findings.add(&id, Some(0), message, help);
            }
            Steering::Gateways(selector) => {
                let namespaces = BTreeSet::from([own_namespace]);
                lint_selector(&mut findings, &id, 0, model, selector, Some(&namespaces));
            }
            Steering::Policy(_) | Steering::Invalid => {}
        }
    }
    gateways::lint(&mut findings, model);
    network_policies::lint(&mut findings, model);
    findings.found
}

struct Findings<'p> {
    found: Vec<Finding>,
    places: &'p BTreeMap<ObjectId, Places>,
}

impl Findings<'_> {
    /// Adds a finding about a part of an object, or about all of it.
    fn add(&mut self, id: &ObjectId, part: Option<usize>, message: String, help: &str) {
        let Some(places) = self.places.get(id) else {
            return;
        };
        let place = part
            .and_then(|part| places.parts.get(part))
            .unwrap_or(&places.object);
        self.found.push(Finding {
            object: id.clone(),
            place: place.clone(),
            message,
            help: help.to_owned(),
        });
    }

    fn knows(&self, kinds: &[Kind]) -> bool {
        self.places.keys().any(|id| kinds.contains(&id.kind))
    }
}

fn object_id(kind: Kind, namespace: Option<&str>, name: &str) -> ObjectId {
    ObjectId {
        kind,
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
    }
}

/// Every prefix that is local by itself and that the resources tell of.
fn cluster_prefixes(model: &Model) -> BTreeSet<IpNet> {
    let pod_cidrs = model.nodes.values().flat_map(|node| &node.pod_cidrs);
    pod_cidrs.chain(&model.cluster_prefixes).copied().collect()
}

/// What namespaces and pods ask for: the object, the namespace, the request.
fn steerings(model: &Model) -> impl Iterator<Item = (ObjectId, &str, &Steering)> {
    let namespaces = model.namespaces.iter().filter_map(|(name, namespace)| {
        let id = object_id(Kind::Namespace, None, name);
        Some((id, name.as_str(), namespace.steering.as_ref()?))
    });
    let pods = model.pods.iter().filter_map(|(name, pod)| {
        let id = object_id(Kind::Pod, Some(&name.namespace), &name.name);
        Some((id, name.namespace.as_str(), pod.steering.as_ref()?))
    });
    namespaces.chain(pods)
}

/// The namespaces that use each policy.
fn policy_users(model: &Model) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (_, namespace, steering) in steerings(model) {
        if let Steering::Policy(name) = steering {
            users.entry(name).or_default().insert(namespace);
        }
    }
    users
}

fn lint_rule(
    findings: &mut Findings<'_>,
    id: &ObjectId,
    policy: &Policy,
    index: usize,
    cluster: &BTreeSet<IpNet>,
) {
    let rule = &policy.rules[index];
    if is_shadowed(policy, rule) {
        findings.add(
            id,
            Some(index),
            format!(
                "rule {} never applies: longer prefixes of this policy cover all of it",
                rule.label()
            ),
            "remove it",
        );
    } else if let Some(parent) = redundant_beneath(policy, rule, cluster) {
        findings.add(
            id,
            Some(index),
            format!(
                "rule {} changes nothing: rule {} sends its packets to the same place",
                rule.label(),
                parent.label()
            ),
            "remove it, unless it is there for its own counters",
        );
    }
    if let (Target::Gateways(_), Some(net)) = (&rule.target, rule.destination)
        && net.prefix_len() > 0
    {
        lint_cluster_cover(findings, id, index, net, cluster);
    }
}

/// Whether the longer prefixes of the policy leave nothing of the rule's destination.
fn is_shadowed(policy: &Policy, rule: &Rule) -> bool {
    families(rule.destination).iter().all(|net| {
        let longer: Vec<IpNet> = policy
            .rules
            .iter()
            .filter_map(|other| other.destination)
            .filter(|other| other.prefix_len() > net.prefix_len() && net.contains(other))
            .collect();
        IpNet::aggregate(&longer).contains(net)
    })
}

/// The rule that would take this rule's packets to the same target if it were not there.
fn redundant_beneath<'p>(
    policy: &'p Policy,
    rule: &Rule,
    cluster: &BTreeSet<IpNet>,
) -> Option<&'p Rule> {
    let net = rule.destination.filter(|net| net.prefix_len() > 0)?;
    let length_over = |other: &Rule| {
        families(other.destination)
            .into_iter()
            .find(|other| other.prefix_len() < net.prefix_len() && other.contains(&net))
            .map(|other| other.prefix_len())
    };
    let parent = policy
        .rules
        .iter()
        .filter(|other| length_over(other).is_some())
        .max_by_key(|other| length_over(other))?;
    let parent_length = length_over(parent)?;
    // A prefix of the cluster between the two is local but for this rule.
    let decides_locality = cluster
        .iter()
        .chain(&always_local())
        .any(|local| local.prefix_len() > parent_length && local.contains(&net));
    (parent.target == rule.target && !decides_locality).then_some(parent)
}

/// What is local in every cluster: link-local and multicast.
fn always_local() -> Vec<IpNet> {
    let v4 = |a, b, length| Ipv4Net::new([a, b, 0, 0].into(), length).map(IpNet::from);
    let v6 = |a, length| Ipv6Net::new([a, 0, 0, 0, 0, 0, 0, 0].into(), length).map(IpNet::from);
    [
        v4(169, 254, 16),
        v4(224, 0, 4),
        v6(0xfe80, 10),
        v6(0xff00, 8),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn lint_cluster_cover(
    findings: &mut Findings<'_>,
    id: &ObjectId,
    index: usize,
    net: IpNet,
    cluster: &BTreeSet<IpNet>,
) {
    let longer: Vec<_> = cluster
        .iter()
        .filter(|local| local.prefix_len() > net.prefix_len() && net.contains(*local))
        .collect();
    let beaten: Vec<_> = cluster
        .iter()
        .filter(|local| local.prefix_len() <= net.prefix_len() && local.contains(&net))
        .collect();
    if !beaten.is_empty() {
        findings.add(
            id,
            Some(index),
            format!("rule {net} sends traffic within the cluster to gateways: it is at least as specific as {}", listed(&beaten)),
            "leave out `gateway` if this traffic should stay local",
        );
    }
    if !longer.is_empty() {
        findings.add(
            id,
            Some(index),
            format!(
                "rule {net} covers prefixes of the cluster, which stay local: {}",
                listed(&longer)
            ),
            "to send them to gateways too, add a rule for exactly these prefixes",
        );
    }
}

fn listed(nets: &[&IpNet]) -> String {
    let mut text = nets
        .iter()
        .take(NAMED_PREFIXES)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if nets.len() > NAMED_PREFIXES {
        text += &format!(" and {} more", nets.len() - NAMED_PREFIXES);
    }
    text
}

fn lint_defaults(findings: &mut Findings<'_>, id: &ObjectId, policy: &Policy) {
    let explicit = |net: &IpNet| {
        policy
            .rules
            .iter()
            .position(|rule| rule.destination.as_ref() == Some(net))
    };
    let [v4, v6] = default_nets();
    let one_sided = match (explicit(&v4), explicit(&v6)) {
        (Some(index), None) => Some((index, v4, v6)),
        (None, Some(index)) => Some((index, v6, v4)),
        (Some(_), Some(_)) | (None, None) => None,
    };
    if let Some((index, present, absent)) = one_sided {
        findings.add(
            id,
            Some(index),
            format!("the policy has a rule for {present} but none for {absent}, which is routed as if there were no policy"),
            "leave out `destination` to mean both",
        );
    }
    let gateway_default = policy.rules.iter().position(|rule| {
        let is_default = rule.destination.is_none_or(|net| net.prefix_len() == 0);
        is_default && matches!(rule.target, Target::Gateways(_))
    });
    if let Some(index) = gateway_default
        && !findings.knows(&[Kind::Service, Kind::ServiceCIDR])
    {
        findings.add(
            id,
            Some(index),
            "the default rule also takes traffic to Services: no service prefix is known".to_owned(),
            "add the ServiceCIDR or the Services to the resources, or give the agent `--local-cidr`",
        );
    }
}

/// The prefixes that a destination means.
fn families(destination: Option<IpNet>) -> Vec<IpNet> {
    destination.map_or_else(|| default_nets().to_vec(), |net| vec![net])
}

fn default_nets() -> [IpNet; 2] {
    [Ipv4Net::default().into(), Ipv6Net::default().into()]
}

/// Looks whether a selector can find a gateway for pods of these namespaces (none: of any).
fn lint_selector(
    findings: &mut Findings<'_>,
    id: &ObjectId,
    part: usize,
    model: &Model,
    selector: &GatewaySelector,
    users: Option<&BTreeSet<&str>>,
) {
    let is_searched = |namespace: &str| match &selector.namespaces {
        Some(namespaces) => namespaces.matches(&namespace_labels(model, namespace)),
        None => users.is_none_or(|users| users.contains(namespace)),
    };
    if let Some(namespaces) = &selector.namespaces
        && !all_namespaces(model).into_iter().any(is_searched)
    {
        findings.add(
            id,
            Some(part),
            format!(
                "namespaceSelector \"{namespaces}\" matches no namespace: the packets are dropped"
            ),
            "label a namespace so that it matches, or correct the selector",
        );
        return;
    }
    if !candidates(model)
        .any(|(namespace, labels)| selector.gateways.matches(labels) && is_searched(namespace))
    {
        let help = if selector.namespaces.is_none() {
            "label a gateway pod or an EgressGateway in the pod's own namespace, or add a namespaceSelector"
        } else {
            "label a gateway pod or an EgressGateway in these namespaces so that it matches"
        };
        findings.add(
            id,
            Some(part),
            format!(
                "selector {} matches no gateway: the packets are dropped",
                quoted(&selector.gateways)
            ),
            help,
        );
    }
}

fn quoted(selector: &Selector) -> String {
    format!("\"{selector}\"")
}

/// What can be a gateway.
fn candidates(model: &Model) -> impl Iterator<Item = (&str, &Labels)> {
    let pods = model.pods.iter().filter(|(_, pod)| !pod.host_network);
    let pods = pods.map(|(name, pod)| (name.namespace.as_str(), &pod.labels));
    let gateways = model
        .gateways
        .iter()
        .map(|(name, gateway)| (name.namespace.as_str(), &gateway.labels));
    pods.chain(gateways)
}

fn all_namespaces(model: &Model) -> BTreeSet<&str> {
    let of_objects = candidates(model).map(|(namespace, _)| namespace);
    model
        .namespaces
        .keys()
        .map(String::as_str)
        .chain(of_objects)
        .collect()
}

/// A namespace that is not among the resources still has the labels that every namespace has.
fn namespace_labels(model: &Model, name: &str) -> Labels {
    model.namespaces.get(name).map_or_else(
        || {
            ["projectcalico.org/name", "kubernetes.io/metadata.name"]
                .map(|key| (key.to_owned(), name.to_owned()))
                .into()
        },
        |namespace| namespace.labels.clone(),
    )
}
