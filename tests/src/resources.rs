//! The YAML that a scene's agent reads: the examples, and what a test puts in their place.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    Scene,
    topology::{Gateway, Pod},
};

/// The directory of the repository's examples.
#[must_use]
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// A directory of resources that a test may change while the agent watches it.
#[derive(Clone, Debug)]
pub struct Resources {
    directory: PathBuf,
}

impl Resources {
    /// A copy of the examples.
    pub fn of_examples(scene: &Scene) -> Result<Self> {
        let resources = Self::empty(scene)?;
        for entry in fs::read_dir(examples())? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "yaml") {
                let name = path.file_name().context("a file without a name")?;
                fs::copy(&path, resources.directory.join(name))?;
            }
        }
        Ok(resources)
    }

    /// A directory without any.
    pub fn empty(scene: &Scene) -> Result<Self> {
        Self::below(&scene.files())
    }

    /// A directory without any, below another.
    pub fn below(directory: &Path) -> Result<Self> {
        let directory = directory.join("resources");
        fs::create_dir(&directory)?;
        Ok(Self { directory })
    }

    /// Where they are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a file, or replaces it in one step.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let whole = self.directory.with_extension("next");
        fs::write(&whole, content)?;
        fs::rename(&whole, self.directory.join(name))?;
        Ok(())
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.directory.join(name)).with_context(|| format!("no file {name}"))
    }
}

/// A namespace with annotations below `egress.projectcalico.org/`.
#[must_use]
pub fn namespace(name: &str, annotations: &[(&str, &str)]) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{}",
        annotation_lines(annotations)
    )
}

/// A running pod of the scene with annotations below `egress.projectcalico.org/` and labels.
#[must_use]
pub fn pod(
    namespace: &str,
    pod: &Pod,
    annotations: &[(&str, &str)],
    labels: &[(&str, &str)],
) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {namespace}\n{}{}spec:\n  nodeName: {}\nstatus:\n  phase: Running\n  podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]\n  conditions: [{{type: Ready, status: \"True\"}}]\n",
        pod.name,
        annotation_lines(annotations),
        label_lines(labels),
        pod.node,
        pod.v4,
        pod.v6
    )
}

/// A gateway of the scene in the namespace `default`, with one label `egress-code`, and further lines of its spec.
#[must_use]
pub fn gateway(gateway: &Gateway, code: &str, more: &str) -> String {
    let next_hops = [gateway.hop_v4.to_string(), gateway.hop_v6.to_string()];
    gateway_at(gateway.name, code, &next_hops, more)
}

/// A gateway with these next hops.
#[must_use]
pub fn gateway_at(name: &str, code: &str, next_hops: &[String], more: &str) -> String {
    let next_hops: Vec<_> = next_hops.iter().map(|hop| format!("\"{hop}\"")).collect();
    format!(
        "---\napiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata:\n  name: {name}\n  namespace: default\n  labels: {{egress-code: {code}}}\nspec:\n  nextHops: [{}]\n{more}",
        next_hops.join(", ")
    )
}

/// Where a rule of a test's policy leads.
#[derive(Clone, Copy, Debug)]
pub enum Via<'a> {
    /// To no gateway.
    Local,
    /// Through the gateways with this code.
    Code(&'a str),
    /// Through so many of the gateways with this code.
    Some(&'a str, u32),
}

/// A policy: destinations ("" is none) and where they lead.
#[must_use]
pub fn policy(name: &str, rules: &[(&str, Via<'_>)]) -> String {
    let mut text = format!(
        "---\napiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata:\n  name: {name}\nspec:\n  rules:\n"
    );
    for (destination, via) in rules {
        let mut fields = Vec::new();
        if !destination.is_empty() {
            fields.push(format!("destination: {{cidr: \"{destination}\"}}"));
        }
        let (code, limit) = match via {
            Via::Local => (None, String::new()),
            Via::Code(code) => (Some(code), String::new()),
            Via::Some(code, limit) => (Some(code), format!(", maxNextHops: {limit}")),
        };
        if let Some(code) = code {
            fields.push(format!(
                "gateway: {{namespaceSelector: \"projectcalico.org/name == 'default'\", selector: \"egress-code == '{code}'\"{limit}}}"
            ));
        }
        text.push_str("  - ");
        text.push_str(&fields.join("\n    "));
        text.push('\n');
    }
    text
}

fn annotation_lines(annotations: &[(&str, &str)]) -> String {
    let mut text = String::new();
    if !annotations.is_empty() {
        text.push_str("  annotations:\n");
    }
    for (key, value) in annotations {
        // A String takes every write.
        let _ = writeln!(text, "    egress.projectcalico.org/{key}: \"{value}\"");
    }
    text
}

fn label_lines(labels: &[(&str, &str)]) -> String {
    let mut text = String::new();
    if !labels.is_empty() {
        text.push_str("  labels:\n");
    }
    for (key, value) in labels {
        let _ = writeln!(text, "    {key}: \"{value}\"");
    }
    text
}
