//! Slips that leave a valid object and yet another meaning: each is told, with what was probably meant.

use super::*;

fn object(head: &str, annotation: &str) -> String {
    format!("{head}\nmetadata: {{name: a, annotations: {{{annotation}}}}}\n")
}

#[test]
fn annotations_that_mean_nothing_are_told() {
    let namespace = "apiVersion: v1\nkind: Namespace";
    let pod = "apiVersion: v1\nkind: Pod";
    let cases = [
        (
            "another case",
            object(namespace, "egress.projectcalico.org/egressgatewaypolicy: p"),
        ),
        (
            "a plural",
            object(
                namespace,
                "egress.projectcalico.org/egressGatewayPolicies: p",
            ),
        ),
        (
            "another prefix",
            object(pod, "projectcalico.org/egressGatewayPolicy: p"),
        ),
        ("no prefix", object(pod, "egressGatewayPolicy: p")),
        (
            "the other prefix",
            object(pod, "egress.fastpath/selector: has(a)"),
        ),
        (
            "of pods, on a namespace",
            object(namespace, "egress.fastpath/interface: cali1"),
        ),
        (
            "of something else",
            object(pod, "egress.fastpath/colour: red"),
        ),
    ];
    insta::assert_snapshot!("annotations_that_mean_nothing", reports(&cases));
}

#[test]
fn annotations_of_others_are_left_alone() {
    for annotation in [
        "cni.projectcalico.org/podIP: 10.0.0.1",
        "a/egress.fastpath: x",
    ] {
        let file = read(&object("apiVersion: v1\nkind: Pod", annotation));
        assert_eq!(file.diagnostics, [], "{annotation}");
    }
}

#[test]
fn kinds_that_are_nearly_ours_are_told() {
    let kind = |api_version, kind| {
        format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\n")
    };
    let cases = [
        (
            "another version",
            kind("projectcalico.org/v1", "EgressGatewayPolicy"),
        ),
        (
            "another case",
            kind("projectcalico.org/v3", "EgressgatewayPolicy"),
        ),
        (
            "Calico's operator's",
            kind("operator.tigera.io/v1", "EgressGateway"),
        ),
        (
            "Calico's other group",
            kind("projectcalico.org/v3", "EgressGateway"),
        ),
        ("of somebody else", kind("apps/v1", "Deployment")),
    ];
    insta::assert_snapshot!("kinds_that_are_nearly_ours", reports(&cases));
}

#[test]
fn a_time_without_a_unit_is_given_one() {
    let gateway = |line: &str| {
        format!(
            "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {{name: a}}\nspec:\n  node: n\n  \
             egressIPs: [203.0.113.1]\n  {line}\n"
        )
    };
    let cases = [
        ("a number", gateway("drainTimeout: 90")),
        ("a number in quotes", gateway("drainTimeout: \"90\"")),
        (
            "of a probe",
            gateway("probes: {icmp: {addresses: [192.0.2.1], interval: 5}}"),
        ),
    ];
    insta::assert_snapshot!("times_without_a_unit", reports(&cases));
}
