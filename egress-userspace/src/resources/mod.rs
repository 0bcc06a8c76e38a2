//! Kubernetes manifests to objects of the model, with the place of everything that is wrong.

mod annotations;
mod cluster;
mod gateway;
mod kind;
mod manifest;
mod network_policy;
mod policy;
mod probes;
mod report;
mod yaml;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Range,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    diagnostic::{Diagnostic, Place, Severity, Source},
    model::{Gateway, Labels, Namespace, NetworkPolicy, Node, Pod, Policy},
};
use cluster::{Annotations, Metadata};
pub(crate) use gateway::interface_fault;
use kind::Type;
pub use kind::{Kind, ObjectId};
use report::{Fields, Report};
use yaml::{Data, Value};

/// Documents that one file may hold.
pub(crate) const MAX_DOCUMENTS: usize = 200_000;
/// Faults of one file that are told; the rest is counted.
const MAX_DIAGNOSTICS: usize = 1000;
/// Kinds that are not understood and are counted apart.
const MAX_SKIPPED_KINDS: usize = 100;
/// What Kubernetes allows for a name.
const MAX_NAME: usize = 253;
/// The YAML parser recurses, with large frames in debug builds; a document of the greatest depth fits.
const PARSER_STACK: usize = 64 << 20;

/// An object's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A pod.
    Pod(Pod),
    /// A node.
    Node(Node),
    /// An `EgressGatewayPolicy`.
    Policy(Policy),
    /// An `EgressGateway`.
    Gateway(Gateway),
    /// The labels of a service account.
    ServiceAccount(Labels),
    /// A network policy of others; none if it says nothing of what pods send.
    NetworkPolicy(Option<NetworkPolicy>),
    /// The prefixes of a Service, an `IPPool` or a `ServiceCIDR`.
    ClusterPrefixes(Vec<IpNet>),
}

/// Where an object and its parts are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Its name.
    pub object: Place,
    /// A policy's rules, in order; the annotation of a namespace or pod that steers.
    pub parts: Arc<[Place]>,
}

/// An object as it was read.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which.
    pub id: ObjectId,
    /// Whether nothing in it is wrong.
    pub valid: bool,
    /// What it says. An invalid object has content only if leaving it out would let packets past the gateways.
    pub object: Option<Object>,
    /// Where.
    pub places: Places,
    /// The object as a line of YAML, if it is valid: read again, it gives the same object.
    pub manifest: Option<Manifest>,
}

/// An object as a line of YAML.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The line.
    pub text: Arc<str>,
    /// A hash of it, of this run.
    pub hash: u64,
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<String> for Manifest {
    fn from(text: String) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self {
            text: text.into(),
            hash: hasher.finish(),
        }
    }
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct ParsedFile {
    /// The objects, in order.
    pub entries: Vec<Entry>,
    /// What is wrong.
    pub diagnostics: Vec<Diagnostic>,
    /// Objects of other kinds, counted by `apiVersion kind`.
    pub skipped: BTreeMap<String, usize>,
    /// Whether a part of it could not be read, so that it may have held any object.
    pub incomplete: bool,
    /// Errors that are not among the diagnostics, for want of room.
    pub untold: usize,
}

/// Reads every object of a file.
#[must_use]
pub fn parse(source: &Source) -> ParsedFile {
    let parsed = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("yaml".to_owned())
            .stack_size(PARSER_STACK)
            .spawn_scoped(scope, || parse_documents(source))
            .map_err(|error| format!("cannot start a thread to read it: {error}"))
            .and_then(|thread| {
                thread
                    .join()
                    .map_err(|_| "the YAML parser gave up on it".to_owned())
            })
    });
    parsed.unwrap_or_else(|message| ParsedFile {
        diagnostics: vec![Diagnostic::of_file(source.file(), message)],
        incomplete: true,
        ..ParsedFile::default()
    })
}

fn parse_documents(source: &Source) -> ParsedFile {
    let mut file = ParsedFile::default();
    let documents = yaml::documents(source.text());
    if documents.len() > MAX_DOCUMENTS {
        let message = format!("the file holds more than {MAX_DOCUMENTS} documents");
        file.refuse(
            source,
            documents[MAX_DOCUMENTS].clone(),
            &message,
            "split the file",
        );
        return file;
    }
    for document in documents {
        match yaml::parse(source.text(), document) {
            Ok(value) if value.data == Data::Null => {}
            Ok(value) => file.read(source, &value, None),
            Err(error) => file.refuse(
                source,
                error.span,
                &error.message,
                "nothing of this document is applied; what came from this file before stays in force",
            ),
        }
    }
    file
}

impl ParsedFile {
    /// Notes something that can be of no object.
    fn refuse(&mut self, source: &Source, span: Range<usize>, message: &str, help: &str) {
        self.incomplete = true;
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            self.diagnostics
                .push(Diagnostic::at(source, span, message).with_help(help));
        } else {
            self.untold += 1;
        }
    }

    fn tell(&mut self, diagnostics: Vec<Diagnostic>) {
        for diagnostic in diagnostics {
            if self.diagnostics.len() < MAX_DIAGNOSTICS {
                self.diagnostics.push(diagnostic);
            } else {
                self.untold += usize::from(diagnostic.severity == Severity::Error);
            }
        }
    }

    /// Reads an object or a list of them. Items of a typed list may leave their type to it.
    fn read(&mut self, source: &Source, value: &Value, item_type: Option<(&str, &str)>) {
        let Data::Map(entries) = &value.data else {
            let help = "an object is a map with `apiVersion`, `kind` and `metadata`";
            self.refuse(source, value.span.clone(), "this is not an object", help);
            return;
        };
        let text = |field: &str| {
            entries.iter().find_map(|(key, value)| {
                if let (true, Data::Text(text)) = (key.text == field, &value.data) {
                    return Some(text.as_str());
                }
                None
            })
        };
        let typed = text("apiVersion").zip(text("kind")).or(item_type);
        let Some((api_version, kind)) = typed else {
            let missing = if text("kind").is_none() {
                "kind"
            } else {
                "apiVersion"
            };
            let span = entries.first().map_or(&value.span, |(key, _)| &key.span);
            let message = format!("the object has no `{missing}`");
            self.refuse(
                source,
                span.clone(),
                &message,
                "add `apiVersion` and `kind`",
            );
            return;
        };
        let items = entries.iter().find(|(key, _)| key.text == "items");
        if let (Some(item_kind), Some((_, items))) = (kind.strip_suffix("List"), items) {
            let item_type = (!item_kind.is_empty()).then_some((api_version, item_kind));
            if let Data::List(items) = &items.data {
                for item in items {
                    self.read(source, item, item_type);
                }
            } else if items.data != Data::Null {
                let span = items.span.clone();
                self.refuse(source, span, "`items` is not a list", "write a list");
            }
            return;
        }
        match Kind::find(api_version, kind) {
            Some(found) => self.read_object(source, value, found, &Type { api_version, kind }),
            None => self.skip(source, entries, api_version, kind),
        }
    }

    fn skip(
        &mut self,
        source: &Source,
        entries: &[(yaml::Key, Value)],
        api_version: &str,
        kind: &str,
    ) {
        let mut skipped = format!("{api_version} {kind}");
        if skipped.len() > MAX_NAME
            || self.skipped.len() >= MAX_SKIPPED_KINDS && !self.skipped.contains_key(&skipped)
        {
            "other kinds".clone_into(&mut skipped);
        }
        *self.skipped.entry(skipped).or_default() += 1;
        let (field, help) = match kind {
            "EgressGatewayPolicy" => ("apiVersion", "write `apiVersion: projectcalico.org/v3`"),
            // Calico's operator makes pods of these.
            "EgressGateway" if api_version.starts_with("operator.tigera.io/") => (
                "apiVersion",
                "give the gateway pods that it stands for, or write an `egress.fastpath/v1alpha1` `EgressGateway`",
            ),
            "EgressGateway" => ("apiVersion", "write `apiVersion: egress.fastpath/v1alpha1`"),
            _ if kind.eq_ignore_ascii_case("EgressGatewayPolicy") => {
                ("kind", "write `kind: EgressGatewayPolicy`")
            }
            _ if kind.eq_ignore_ascii_case("EgressGateway") => {
                ("kind", "write `kind: EgressGateway`")
            }
            _ => return,
        };
        if let Some((_, value)) = entries.iter().find(|(key, _)| key.text == field) {
            let message = format!("{api_version} {kind} is not known and is skipped");
            let warning = Diagnostic::at(source, value.span.clone(), message)
                .with_severity(Severity::Warning)
                .with_help(help);
            self.tell(vec![warning]);
        }
    }

    fn read_object(&mut self, source: &Source, value: &Value, kind: Kind, written: &Type<'_>) {
        let nameless = Report::new(source, format!("{kind:?}"));
        let Some((id, place)) = identify(&nameless, value, kind) else {
            self.incomplete = true;
            self.tell(nameless.into_diagnostics());
            return;
        };
        let report = Report::new(source, id.to_string());
        report.no_duplicate_keys(value);
        let (object, parts) = content(&report, value, &id, written);
        let valid = !report.refused();
        self.tell(report.into_diagnostics());
        // Without its namespace or itself, an annotated pod would be routed past its gateways; without a network
        // policy, what the policy would stop is redirected past it.
        let keep =
            valid || matches!(id.kind, Kind::Namespace | Kind::Pod) || id.kind.is_network_policy();
        self.entries.push(Entry {
            id,
            valid,
            object: object.filter(|_| keep),
            places: Places {
                object: place,
                parts: parts.into(),
            },
            manifest: valid.then(|| manifest::line(value, written).into()),
        });
    }
}

fn identify(report: &Report<'_>, value: &Value, kind: Kind) -> Option<(ObjectId, Place)> {
    let object = report.fields(value, "the object")?;
    let metadata = report.fields(report.required(&object, "metadata")?, "metadata")?;
    let name_value = report.required(&metadata, "name")?;
    let name = report.text(name_value, "name")?;
    if name.is_empty() {
        report.error(
            &name_value.span,
            "`name` is empty",
            "give the object a name",
        );
        return None;
    }
    let too_long = |value: &Value, field: &str, text: &str| {
        let is_too_long = text.len() > MAX_NAME;
        if is_too_long {
            let message = format!("`{field}` is longer than {MAX_NAME} characters");
            report.error(&value.span, message, "Kubernetes allows no more");
        }
        is_too_long
    };
    if too_long(name_value, "name", name) {
        return None;
    }
    let namespace = match metadata.get("namespace").filter(|_| kind.is_namespaced()) {
        Some(value) => {
            let text = report.text(value, "namespace")?;
            if too_long(value, "namespace", text) {
                return None;
            }
            Some(text).filter(|name| !name.is_empty())
        }
        None => None,
    };
    let id = ObjectId {
        kind,
        namespace: kind
            .is_namespaced()
            .then(|| namespace.unwrap_or("default").to_owned()),
        name: name.to_owned(),
    };
    Some((id, report.source().place(name_value.span.clone())))
}

/// The object's content, and the places of its parts.
fn content(
    report: &Report<'_>,
    value: &Value,
    id: &ObjectId,
    written: &Type<'_>,
) -> (Option<Object>, Vec<Place>) {
    let Some(object) = report.fields(value, "the object") else {
        return (None, Vec::new());
    };
    let metadata = read_metadata(report, &object, id);
    let namespace = id.namespace.as_deref();
    match id.kind {
        Kind::Namespace => {
            let (namespace, place) = cluster::namespace(report, metadata);
            (
                Some(Object::Namespace(namespace)),
                place.into_iter().collect(),
            )
        }
        Kind::Pod => {
            let (pod, place) = cluster::pod(report, &object, metadata);
            (Some(Object::Pod(pod)), place.into_iter().collect())
        }
        Kind::Node => (
            Some(Object::Node(cluster::node(report, &object))),
            Vec::new(),
        ),
        Kind::EgressGatewayPolicy => policy::read(report, &object, &metadata)
            .map(|(policy, places)| (Object::Policy(policy), places))
            .map_or_else(Default::default, |(policy, places)| (Some(policy), places)),
        Kind::EgressGateway => {
            let gateway = gateway::read(report, &object, metadata);
            (gateway.map(Object::Gateway), Vec::new())
        }
        Kind::ServiceAccount => (Some(Object::ServiceAccount(metadata.labels)), Vec::new()),
        Kind::NetworkPolicy => judge(network_policy::kubernetes(report, &object, namespace)),
        Kind::CalicoNetworkPolicy | Kind::GlobalNetworkPolicy => {
            let stored = written.api_version.starts_with("crd.");
            judge(network_policy::calico(report, &object, namespace, stored))
        }
        Kind::AdminNetworkPolicy
        | Kind::BaselineAdminNetworkPolicy
        | Kind::ClusterNetworkPolicy => judge(network_policy::admin(report, &object)),
        Kind::Service => prefixes(cluster::service(report, &object)),
        Kind::IPPool => prefixes(cluster::ip_pool(report, &object)),
        Kind::ServiceCIDR => prefixes(cluster::service_cidr(report, &object)),
    }
}

const fn judge(policy: Option<NetworkPolicy>) -> (Option<Object>, Vec<Place>) {
    (Some(Object::NetworkPolicy(policy)), Vec::new())
}

const fn prefixes(prefixes: Vec<IpNet>) -> (Option<Object>, Vec<Place>) {
    (Some(Object::ClusterPrefixes(prefixes)), Vec::new())
}

fn read_metadata<'v>(report: &Report<'_>, object: &Fields<'v>, id: &'v ObjectId) -> Metadata<'v> {
    let metadata = object
        .get("metadata")
        .and_then(|value| report.fields(value, "metadata"));
    let field = |name| metadata.and_then(|metadata| metadata.get(name));
    // Nothing of the other kinds is selected by labels, or says anything by annotations.
    let annotated = matches!(
        id.kind,
        Kind::Namespace | Kind::Pod | Kind::EgressGateway | Kind::EgressGatewayPolicy
    );
    let labelled = matches!(
        id.kind,
        Kind::Namespace | Kind::Pod | Kind::EgressGateway | Kind::ServiceAccount
    );
    let annotations = match field("annotations").filter(|_| annotated) {
        None => Annotations::None,
        Some(value) => report
            .fields(value, "annotations")
            .map_or(Annotations::Unreadable, Annotations::Some),
    };
    if let Annotations::Some(fields) = &annotations {
        annotations::warn_of_unknown(report, fields, id.kind);
    }
    Metadata {
        labels: field("labels")
            .filter(|_| labelled)
            .map(|value| cluster::labels(report, value))
            .unwrap_or_default(),
        terminating: field("deletionTimestamp").is_some_and(|value| value.data != Data::Null),
        annotations,
        namespace: id.namespace.as_deref().unwrap_or_default(),
        name: &id.name,
    }
}
