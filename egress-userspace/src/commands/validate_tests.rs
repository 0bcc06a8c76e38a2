//! Whole reports, as golden texts, over directories of resources.

use std::fs;

use super::{ValidateArgs, ValidateOutput, report};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Validates files; gives whether they are accepted, and what is printed.
fn validate(
    files: &[(&str, &str)],
    output: ValidateOutput,
) -> Result<(bool, String), Box<dyn std::error::Error>> {
    let dir = tempfile::TempDir::new()?;
    for (name, text) in files {
        fs::write(dir.path().join(name), text)?;
    }
    let mut out = Vec::new();
    let args = ValidateArgs {
        paths: vec![dir.path().to_owned()],
        output,
    };
    let accepted = report(args, &mut out, false)?;
    let text = String::from_utf8(out)?.replace(dir.path().to_str().ok_or("a strange path")?, "DIR");
    Ok((accepted, text))
}

const CLUSTER: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {egress.projectcalico.org/egressGatewayPolicy: egw-policy}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: red-1, labels: {egress-code: red}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}}
---
{apiVersion: egress.fastpath/v1alpha1, kind: EgressGateway, metadata: {name: blue, labels: {egress-code: blue}}, spec: {nextHops: [192.0.2.1]}}
---
{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/12]}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: pods}, spec: {cidr: 10.244.0.0/16}}
"#;

const GOOD: &str = r#"
apiVersion: projectcalico.org/v3
kind: EgressGatewayPolicy
metadata: {name: egw-policy}
spec:
  rules:
  - description: "Local: no gateway"
    destination: {cidr: 10.0.0.0/8}
  - description: "Gateway to red network"
    destination: {cidr: 192.0.2.0/24}
    gateway: {namespaceSelector: "projectcalico.org/name == 'default'", selector: "egress-code == 'red'"}
  - description: "Everything else goes blue"
    gateway: {namespaceSelector: "projectcalico.org/name == 'default'", selector: "egress-code == 'blue'"}
"#;

#[test]
fn good_resources_are_accepted_in_silence() -> Outcome {
    let (accepted, text) = validate(
        &[("cluster.yaml", CLUSTER), ("policy.yaml", GOOD)],
        ValidateOutput::Text,
    )?;
    assert_eq!(text, "1 policy, 1 gateway, 2 pods: 0 errors, 0 warnings\n");
    assert!(accepted);
    Ok(())
}

const DOUBTFUL: &str = r#"
apiVersion: projectcalico.org/v3
kind: EgressGatewayPolicy
metadata: {name: egw-policy}
spec:
  rules:
  - destination: {cidr: 192.0.2.0/24}
    gateway: &red {namespaceSelector: all(), selector: "egress-code == 'red'"}
  - destination: {cidr: 192.0.2.0/25}
  - destination: {cidr: 192.0.2.128/25}
  - destination: {cidr: 198.51.100.0/24}
  - destination: {cidr: 198.51.100.7/32}
  - destination: {cidr: 10.0.0.0/8}
    gateway: *red
  - destination: {cidr: 10.244.0.0/16}
    gateway: *red
  - destination: {cidr: 10.96.0.10/32}
    gateway: {namespaceSelector: all(), selector: "egress-code == 'green'"}
  - destination: {cidr: 203.0.113.0/24}
    gateway: {selector: "egress-code == 'red'"}
  - destination: {cidr: 203.0.113.128/25}
    gateway: {namespaceSelector: "tier == 'edge'", selector: all()}
  - destination: {cidr: 0.0.0.0/0}
    gateway: *red
---
apiVersion: projectcalico.org/v3
kind: EgressGatewayPolicy
metadata: {name: unused}
spec:
  rules:
  - destination: {cidr: "::/0"}
---
{apiVersion: v1, kind: Namespace, metadata: {name: lost, annotations: {egress.projectcalico.org/egressGatewayPolicy: missing}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: own, namespace: lost, annotations: {egress.projectcalico.org/selector: has(x)}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}
"#;

#[test]
fn doubts_are_warnings() -> Outcome {
    let (accepted, text) = validate(
        &[("cluster.yaml", CLUSTER), ("policy.yaml", DOUBTFUL)],
        ValidateOutput::Text,
    )?;
    assert!(accepted);
    insta::assert_snapshot!("doubts", text);
    Ok(())
}

#[test]
fn a_default_rule_needs_a_service_prefix() -> Outcome {
    let without = CLUSTER.replace("ServiceCIDR", "Unknown");
    let (accepted, text) = validate(
        &[("cluster.yaml", &without), ("policy.yaml", GOOD)],
        ValidateOutput::Text,
    )?;
    assert!(accepted);
    insta::assert_snapshot!("no_service_prefix", text);
    Ok(())
}

#[test]
fn errors_refuse_and_programs_can_read_them() -> Outcome {
    let bad = GOOD.replace("egress-code == 'red'", "egress-code == red");
    let files = [("cluster.yaml", CLUSTER), ("policy.yaml", bad.as_str())];
    let (accepted, text) = validate(&files, ValidateOutput::Json)?;
    assert!(!accepted);
    insta::assert_snapshot!("json", text);
    let (accepted, text) = validate(&files, ValidateOutput::Text)?;
    assert!(!accepted);
    assert!(
        text.ends_with("0 policies, 1 gateway, 2 pods: 1 error, 1 warning\n"),
        "{text}"
    );
    Ok(())
}

#[test]
fn redundancy_heeds_the_cluster() -> Outcome {
    // Beneath a default to the same gateways, the /8 is what takes the pods' prefix away from the cluster.
    let rules = |pool: &str| {
        let policy = r#"
{apiVersion: projectcalico.org/v3, kind: EgressGatewayPolicy, metadata: {name: egw-policy}, spec: {rules: [
  {destination: {cidr: 10.244.0.0/16}, gateway: {namespaceSelector: all(), selector: "egress-code == 'red'"}},
  {gateway: {namespaceSelector: all(), selector: "egress-code == 'red'"}}]}}
"#;
        let cluster = CLUSTER.replace("10.244.0.0/16", pool);
        validate(
            &[("cluster.yaml", &cluster), ("policy.yaml", policy)],
            ValidateOutput::Text,
        )
    };
    assert!(!rules("10.244.0.0/16")?.1.contains("changes nothing"));
    assert!(rules("10.245.0.0/16")?.1.contains("changes nothing"));
    Ok(())
}

#[test]
fn gateways_that_no_node_takes_are_doubtful() -> Outcome {
    let gateway = |name: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: egress.fastpath/v1alpha1, kind: EgressGateway, metadata: {{name: {name}}}, spec: {spec}}}\n"
        )
    };
    let gateways = gateway("a", "{node: gw-1, egressIPs: [203.0.113.10]}")
        + &gateway(
            "b",
            "{node: gw-1, egressIPs: [203.0.113.10, \"2001:db8::10\"]}",
        )
        + &gateway("c", "{node: gw-2, egressIPs: [203.0.113.11]}")
        + &gateway("d", "{node: gw-1, egressIPs: [192.0.2.1]}")
        + &gateway(
            "e",
            "{node: gw-1, egressIPs: [192.0.2.2], portRange: 40000-49999}",
        )
        + &gateway(
            "f",
            "{node: gw-1, egressIPs: [203.0.113.12], assign: false, probes: {icmp: {addresses: [198.51.100.1]}}}",
        );
    let nodes = "{apiVersion: v1, kind: Node, metadata: {name: gw-1}, status: {addresses: [{type: InternalIP, \
                 address: 192.0.2.1}, {type: ExternalIP, address: 192.0.2.2}]}}";
    let files = [("gateways.yaml", gateways.as_str()), ("nodes.yaml", nodes)];
    let (accepted, text) = validate(&files, ValidateOutput::Text)?;
    assert!(accepted);
    insta::assert_snapshot!("doubtful_gateways", text);
    // Gateways alone are not wrong for lack of nodes.
    let alone = gateway("c", "{node: gw-2, egressIPs: [203.0.113.11]}");
    let (_, text) = validate(&[("gateways.yaml", &alone)], ValidateOutput::Text)?;
    assert_eq!(
        text,
        "0 policies, 1 gateway, 0 pods: 0 errors, 0 warnings\n"
    );
    Ok(())
}

#[test]
fn network_policies_that_would_be_passed_by_are_doubtful() -> Outcome {
    let policies = r#"
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop}, spec: {podSelector: {}, policyTypes: [Egress]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: later, namespace: shop}, spec: {podSelector: {matchLabels: {app: later}}, egress: [{}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: unsteered, namespace: default}, spec: {podSelector: {}, policyTypes: [Egress]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: ingress}, spec: {types: [Ingress]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: broken}, spec: {types: [Egress], selector: "a = b"}}
"#;
    let files = [
        ("cluster.yaml", CLUSTER),
        ("egress.yaml", GOOD),
        ("policies.yaml", policies),
    ];
    let (accepted, text) = validate(&files, ValidateOutput::Text)?;
    assert!(!accepted);
    insta::assert_snapshot!("network_policies", text);
    Ok(())
}

#[test]
fn a_missing_path_is_an_error() -> Outcome {
    let mut out = Vec::new();
    let args = ValidateArgs {
        paths: vec!["/nonexistent/resources".into()],
        output: ValidateOutput::Text,
    };
    assert!(!report(args, &mut out, false)?);
    insta::assert_snapshot!("missing_path", String::from_utf8(out)?);
    Ok(())
}

/// A policy for a prefix, whose gateways are all that there are.
fn everything_from(prefix: &str) -> String {
    format!(
        "{{apiVersion: projectcalico.org/v3, kind: EgressGatewayPolicy, metadata: {{name: egw-policy}}, spec: {{rules: [\
         {{destination: {{cidr: \"{prefix}\"}}, gateway: {{namespaceSelector: all(), selector: has(egress)}}}}]}}}}\n"
    )
}

#[test]
fn a_rule_of_a_family_that_no_gateway_has_is_told() -> Outcome {
    const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: \
        {egress.projectcalico.org/egressGatewayPolicy: egw-policy}}}\n---\n";
    let gateway = |name: &str, addresses: &str| {
        format!(
            "---\n{{apiVersion: egress.fastpath/v1alpha1, kind: EgressGateway, metadata: {{name: {name}, labels: \
             {{egress: {name}}}}}, spec: {{nextHops: [{addresses}]}}}}\n"
        )
    };
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: pod, labels: {egress: pod}}}\n"
        .to_owned();
    let v4 = || gateway("four", "192.0.2.1");
    let v6 = || gateway("six", "\"2001:db8::1\"");
    let wanting = |family| {
        Some(format!(
            "no gateway that it selects has an {family} address"
        ))
    };
    for (prefix, gateways, expected) in [
        ("2001:db8:2::/48", vec![v4()], wanting("IPv6")),
        ("198.51.100.0/24", vec![v6()], wanting("IPv4")),
        ("2001:db8:2::/48", vec![v4(), v6()], None),
        ("198.51.100.0/24", vec![v4()], None),
        // Nobody knows which addresses a pod will have.
        ("2001:db8:2::/48", vec![v4(), pod], None),
    ] {
        let text = NAMESPACE.to_owned() + &everything_from(prefix) + &gateways.concat();
        let (accepted, said) = validate(&[("all.yaml", &text)], ValidateOutput::Text)?;
        assert!(accepted, "{said}");
        match expected {
            Some(words) => assert!(said.contains(&words), "no word of {words:?} in\n{said}"),
            None => assert!(said.contains("0 warnings"), "{said}"),
        }
    }
    Ok(())
}
