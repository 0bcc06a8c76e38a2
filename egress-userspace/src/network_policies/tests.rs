//! Manifests, and whom of a small cluster they select.

use super::*;
use crate::{
    diagnostic::Source,
    model::{Leaving, Namespace, Phase},
    resources::{Object, ParsedFile, parse},
};

const K8S: &str = "networking.k8s.io/v1 NetworkPolicy";
const CALICO: &str = "projectcalico.org/v3 NetworkPolicy";
const GLOBAL: &str = "projectcalico.org/v3 GlobalNetworkPolicy";
const STORED: &str = "crd.projectcalico.org/v1 GlobalNetworkPolicy";
const ADMIN: &str = "policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy";
const BASELINE: &str = "policy.networking.k8s.io/v1alpha1 BaselineAdminNetworkPolicy";
const CLUSTER: &str = "policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy";

fn labels(text: &str) -> Labels {
    let labels = text.split_whitespace();
    labels
        .filter_map(|label| label.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// `apps` is a namespace with labels, `lost` one that nothing is known of but its name; so with service accounts.
fn cluster() -> Model {
    let mut model = Model::default();
    let namespace = Namespace {
        labels: labels("projectcalico.org/name=apps kubernetes.io/metadata.name=apps env=prod"),
        steering: None,
    };
    model.namespaces.insert("apps".to_owned(), namespace);
    let account = ObjectName::new("apps", "known");
    model.service_accounts.insert(account, labels("role=job"));
    for (namespace, name, of_pod) in [
        (
            "apps",
            "web",
            "app=web tier=front projectcalico.org/serviceaccount=known",
        ),
        (
            "apps",
            "db",
            "app=db projectcalico.org/serviceaccount=strange",
        ),
        ("lost", "stray", "app=web"),
    ] {
        let pod = Pod {
            labels: labels(of_pod),
            steering: None,
            interface: None,
            inbound_udp: Vec::new(),
            node: None,
            addresses: Vec::new(),
            host_network: false,
            phase: Phase::Alive,
            ready: true,
            leaving: Leaving::default(),
        };
        model.pods.insert(ObjectName::new(namespace, name), pod);
    }
    model
}

fn read(kind: &str, spec: &str) -> ParsedFile {
    let (api_version, kind) = kind.split_once(' ').unwrap_or((kind, ""));
    let text = format!(
        "{{apiVersion: {api_version}, kind: {kind}, metadata: {{name: p, namespace: apps}}, spec: {spec}}}"
    );
    parse(&Source::new("p.yaml", text))
}

/// The pods that whatever is in force of a file selects.
fn selected(file: &ParsedFile) -> String {
    let model = cluster();
    let Some(Object::NetworkPolicy(policy)) = file.entries.first().and_then(|e| e.object.clone())
    else {
        return format!("no network policy: {:?}", file.entries);
    };
    let Some(policy) = policy else {
        return "ingress only".to_owned();
    };
    let pods = model.pods.iter();
    let names = pods.filter(|(name, pod)| policy.selects(&model, name, pod));
    names
        .map(|(name, _)| name.name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn who_is_selected() {
    let egress = "types: [Egress]";
    let of_types = [
        // Kubernetes: what is not said is ingress, and egress if there are rules for it.
        (K8S, "{podSelector: {}, policyTypes: [Egress]}", "db web"),
        (
            K8S,
            "{podSelector: {}, policyTypes: [Ingress, Egress]}",
            "db web",
        ),
        (
            K8S,
            "{podSelector: {}, policyTypes: [Ingress], egress: [{}]}",
            "ingress only",
        ),
        (K8S, "{podSelector: {}, policyTypes: []}", "ingress only"),
        (
            K8S,
            "{podSelector: {}, policyTypes: [], egress: [{}]}",
            "db web",
        ),
        (
            K8S,
            "{podSelector: {}, egress: [{ports: [{port: 53}]}]}",
            "db web",
        ),
        (K8S, "{podSelector: {}, egress: []}", "ingress only"),
        (
            K8S,
            "{podSelector: {}, egress: null, ingress: [{}]}",
            "ingress only",
        ),
        (K8S, "{podSelector: {}}", "ingress only"),
        (K8S, "{policyTypes: [Egress]}", "db web"),
        // Calico's API fills types in as Kubernetes does; what is stored without any governs both directions.
        (CALICO, "{types: [Egress]}", "db web"),
        (
            CALICO,
            "{types: [Ingress], egress: [{action: Deny}]}",
            "ingress only",
        ),
        (CALICO, "{egress: [{action: Deny}]}", "db web"),
        (
            CALICO,
            "{ingress: [{action: Deny}], egress: [{action: Deny}]}",
            "db web",
        ),
        (
            CALICO,
            "{ingress: [{action: Deny}], egress: []}",
            "ingress only",
        ),
        (CALICO, "{}", "ingress only"),
        (GLOBAL, "{types: [Egress]}", "db web stray"),
        (GLOBAL, "{}", "ingress only"),
        (STORED, "{}", "db web stray"),
        (STORED, "{types: [Ingress]}", "ingress only"),
        // Without rules these have no effect.
        (
            ADMIN,
            "{subject: {namespaces: {}}, egress: [{action: Deny}]}",
            "db web stray",
        ),
        (
            ADMIN,
            "{subject: {namespaces: {}}, ingress: [{action: Deny}]}",
            "ingress only",
        ),
        (
            BASELINE,
            "{subject: {namespaces: {}}, egress: []}",
            "ingress only",
        ),
        (
            CLUSTER,
            "{tier: Admin, subject: {namespaces: {}}, egress: [{action: Deny}]}",
            "db web stray",
        ),
    ];
    for (kind, spec, expected) in of_types {
        let file = read(kind, spec);
        assert_eq!(file.diagnostics, [], "{kind} {spec}");
        assert_eq!(selected(&file), expected, "{kind} {spec}");
    }
    let of_selectors = [
        (
            K8S,
            "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]",
            "web",
        ),
        (
            K8S,
            "podSelector: {matchLabels: {app: web, tier: back}}, policyTypes: [Egress]",
            "",
        ),
        (
            K8S,
            "podSelector: {matchExpressions: [{key: app, operator: In, values: [db, cache]}]}, policyTypes: [Egress]",
            "db",
        ),
        // As everywhere, a label that is not there is none of the values.
        (
            K8S,
            "podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}, policyTypes: [Egress]",
            "db",
        ),
        (
            K8S,
            "podSelector: {matchExpressions: [{key: tier, operator: Exists}]}, policyTypes: [Egress]",
            "web",
        ),
        (
            K8S,
            "podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist, values: []}]}, policyTypes: [Egress]",
            "db",
        ),
        (
            K8S,
            "podSelector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: DoesNotExist}]}, \
             policyTypes: [Egress]",
            "",
        ),
        (CALICO, "selector: \"app == 'web'\", types: [Egress]", "web"),
        (CALICO, "selector: '', types: [Egress]", "db web"),
        (
            CALICO,
            "serviceAccountSelector: \"projectcalico.org/name == 'known'\", types: [Egress]",
            "web",
        ),
        (
            CALICO,
            "serviceAccountSelector: \"projectcalico.org/name == 'strange'\", types: [Egress]",
            "db",
        ),
        // Nothing is known of the account "strange", so it may have that label.
        (
            CALICO,
            "serviceAccountSelector: \"role == 'job'\", types: [Egress]",
            "db web",
        ),
        (
            CALICO,
            "serviceAccountSelector: \"role != 'job'\", types: [Egress]",
            "db",
        ),
        (GLOBAL, "selector: \"app == 'web'\", EGRESS", "web stray"),
        (
            GLOBAL,
            "namespaceSelector: \"projectcalico.org/name == 'apps'\", EGRESS",
            "db web",
        ),
        (
            GLOBAL,
            "namespaceSelector: \"kubernetes.io/metadata.name != 'apps'\", EGRESS",
            "stray",
        ),
        // Nothing is known of the namespace "lost" but its name.
        (
            GLOBAL,
            "namespaceSelector: \"env == 'prod'\", EGRESS",
            "db web stray",
        ),
        (
            GLOBAL,
            "namespaceSelector: \"env == 'test'\", EGRESS",
            "stray",
        ),
        (
            GLOBAL,
            "namespaceSelector: \"env == 'prod'\", selector: \"app == 'db'\", EGRESS",
            "db",
        ),
        // A pod without an account that is known may have any.
        (
            GLOBAL,
            "serviceAccountSelector: \"projectcalico.org/name == 'known'\", EGRESS",
            "web stray",
        ),
        // Those of hosts' own interfaces; `applyOnForward` alone means pods as well.
        (
            GLOBAL,
            "doNotTrack: true, applyOnForward: true, EGRESS",
            "ingress only",
        ),
        (
            GLOBAL,
            "preDNAT: true, applyOnForward: true, EGRESS",
            "ingress only",
        ),
        (
            GLOBAL,
            "doNotTrack: false, applyOnForward: true, EGRESS",
            "db web stray",
        ),
        (
            ADMIN,
            "subject: {namespaces: {matchLabels: {env: prod}}}, egress: [{}]",
            "db web stray",
        ),
        (
            ADMIN,
            "subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: apps}}}, egress: [{}]",
            "db web",
        ),
        (
            BASELINE,
            "subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}, egress: [{}]",
            "web stray",
        ),
    ];
    for (kind, spec, expected) in of_selectors {
        let file = read(kind, &format!("{{{}}}", spec.replace("EGRESS", egress)));
        assert_eq!(file.diagnostics, [], "{kind} {spec}");
        assert_eq!(selected(&file), expected, "{kind} {spec}");
    }
}

/// It may be what keeps packets in, so nobody is let past it until it can be read.
#[test]
fn what_cannot_be_read_selects_all_that_it_might() {
    let table = [
        (K8S, "null", "db web"),
        (K8S, "{podSelector: [], policyTypes: [Egress]}", "db web"),
        (
            K8S,
            "{podSelector: {matchLabels: {app: 1}}, policyTypes: [Egress]}",
            "db web",
        ),
        (
            K8S,
            "{podSelector: {matchExpressions: [{key: app, operator: Is}]}, policyTypes: [Egress]}",
            "db web",
        ),
        (
            K8S,
            "{podSelector: {matchExpressions: [{key: app, operator: In}]}, policyTypes: [Egress]}",
            "db web",
        ),
        (
            K8S,
            "{podSelector: {matchExpressions: [{key: app, operator: Exists, values: [x]}]}, policyTypes: [Egress]}",
            "db web",
        ),
        (
            K8S,
            "{podSelector: {matchLabels: {app: db}}, policyTypes: [Out]}",
            "db",
        ),
        (
            K8S,
            "{podSelector: {matchLabels: {app: db}}, policyTypes: Egress}",
            "db",
        ),
        (
            K8S,
            "{podSelector: {matchLabels: {app: db}}, egress: {}}",
            "db",
        ),
        (CALICO, "{selector: app = web, types: [Egress]}", "db web"),
        (
            CALICO,
            "{serviceAccountSelector: nonsense, types: [Egress]}",
            "db web",
        ),
        (
            GLOBAL,
            "{namespaceSelector: ==, selector: \"app == 'db'\", types: [Egress]}",
            "db",
        ),
        (GLOBAL, "{doNotTrack: 1, types: [Egress]}", "db web stray"),
        (ADMIN, "{egress: [{}]}", "db web stray"),
        (ADMIN, "{subject: {}, egress: [{}]}", "db web stray"),
        (
            ADMIN,
            "{subject: {pods: {podSelector: {matchLabels: []}}}, egress: [{}]}",
            "db web stray",
        ),
    ];
    for (kind, spec, expected) in table {
        let file = read(kind, spec);
        assert!(!file.diagnostics.is_empty(), "{kind} {spec}");
        assert!(!file.entries[0].valid, "{kind} {spec}");
        assert_eq!(selected(&file), expected, "{kind} {spec}");
    }
}

#[test]
fn what_says_nothing_of_what_pods_send_is_not_looked_at() {
    for (kind, spec) in [
        (K8S, "{podSelector: nonsense, policyTypes: [Ingress]}"),
        (CALICO, "{selector: nonsense, types: [Ingress]}"),
        (GLOBAL, "{namespaceSelector: nonsense, doNotTrack: 1}"),
        (ADMIN, "{subject: nonsense, ingress: [{}]}"),
    ] {
        let file = read(kind, spec);
        assert_eq!(
            (selected(&file).as_str(), file.diagnostics.len()),
            ("ingress only", 0),
            "{kind}"
        );
    }
}

#[test]
fn staged_policies_and_others_are_skipped() {
    for kind in [
        "projectcalico.org/v3 StagedNetworkPolicy",
        "projectcalico.org/v3 StagedGlobalNetworkPolicy",
        "projectcalico.org/v3 StagedKubernetesNetworkPolicy",
        "cilium.io/v2 CiliumNetworkPolicy",
    ] {
        let file = read(kind, "{types: [Egress]}");
        assert_eq!((file.entries.len(), file.skipped.get(kind)), (0, Some(&1)));
    }
}

/// Two policies of one name, Kubernetes' and Calico's, are two.
#[test]
fn the_last_good_version_is_read_as_it_was_written() {
    for (kind, id) in [
        (K8S, "NetworkPolicy apps/p"),
        (CALICO, "CalicoNetworkPolicy apps/p"),
        (STORED, "GlobalNetworkPolicy p"),
        (CLUSTER, "ClusterNetworkPolicy p"),
    ] {
        let file = read(kind, "{subject: {namespaces: {}}}");
        let manifest = file.entries[0].manifest.as_ref();
        let manifest = manifest.map_or("", |manifest| &*manifest.text);
        let again = parse(&Source::new("kept.yaml", manifest.to_owned()));
        assert_eq!(again.entries[0].id.to_string(), id);
        assert_eq!(again.entries[0].object, file.entries[0].object, "{kind}");
    }
}
