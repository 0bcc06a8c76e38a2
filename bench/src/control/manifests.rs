//! Resources as the agent reads them.

use std::{
    fmt::{self, Write as _},
    net::Ipv4Addr,
};

/// What all scenes have: a namespace, and a gateway that pods reach by a next hop.
pub(super) const COMMON: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: egress.fastpath/v1alpha1
kind: EgressGateway
metadata: {name: red, namespace: default, labels: {egress-code: red}}
spec:
  nextHops: [172.19.0.11]
";

const GATEWAY: &str = "    gateway: {namespaceSelector: \"projectcalico.org/name == 'default'\", selector: \"egress-code == 'red'\"}\n";

/// Policies over prefixes, one for each of the first pods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policies {
    pub(super) policies: u32,
    /// Distinct ones, of each policy.
    pub(super) prefixes: u32,
    /// Whether all of them lead to the gateway, and not just the first.
    pub(super) all_lead_out: bool,
}

impl Policies {
    /// A policy's manifest; `changed` is the one whose first prefix stays local.
    pub(super) fn manifest(self, policy: u32, changed: bool) -> String {
        let mut text = String::from(
            "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata:\n",
        );
        add(
            &mut text,
            format_args!("  name: policy{policy}\nspec:\n  rules:\n"),
        );
        for index in 0..self.prefixes {
            let prefix = Ipv4Addr::from(0x1400_0000 + (policy * self.prefixes + index) * 256);
            add(
                &mut text,
                format_args!("  - destination: {{cidr: {prefix}/24}}\n"),
            );
            let leads_out = if index == 0 {
                !changed
            } else {
                self.all_lead_out
            };
            if leads_out {
                text.push_str(GATEWAY);
            }
        }
        text
    }

    /// The manifest of a pod, which uses one of the policies.
    pub(super) fn pod(self, pod: u32) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: pod{pod}\n  namespace: default\n  annotations: \
             {{egress.projectcalico.org/egressGatewayPolicy: policy{}}}\nspec: {{nodeName: n1}}\nstatus:\n  phase: \
             Running\n  podIPs: [{{ip: {}}}]\n",
            pod % self.policies,
            address(pod)
        )
    }
}

/// A pod's address.
pub(super) fn address(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a41_0010 + pod)
}

fn add(text: &mut String, what: fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    let _cannot_fail = text.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use egress_userspace::{diagnostic::Source, resources};

    use super::*;

    #[test]
    fn the_agent_understands_what_is_written() {
        let policies = Policies {
            policies: 3,
            prefixes: 5,
            all_lead_out: true,
        };
        for (what, text, objects) in [
            ("common", COMMON.to_owned(), 2),
            ("policy", policies.manifest(2, false), 1),
            ("changed", policies.manifest(0, true), 1),
            ("pods", policies.pod(1) + &policies.pod(2), 2),
        ] {
            let file = resources::parse(&Source::new(Path::new(what), text));
            assert!(
                file.diagnostics.is_empty(),
                "{what}: {:?}",
                file.diagnostics
            );
            assert_eq!(file.entries.len(), objects, "{what}");
        }
    }
}
