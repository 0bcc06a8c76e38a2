//! Golden diagnostics for every way to be malformed.

use super::*;

#[test]
fn malformed_policies() {
    let rules = |rules: &str| policy(&format!("rules:\n{rules}"));
    let gateway = |gateway: &str| rules(&format!("- gateway: {gateway}"));
    let cases = [
        (
            "two rules with one destination, after masking",
            rules("- destination: {cidr: 10.0.0.0/8}\n- destination:\n    cidr: 10.1.0.0/8"),
        ),
        (
            "two defaults",
            rules("- gateway: {selector: all()}\n- gateway: {selector: has(a)}"),
        ),
        (
            "a default and 0.0.0.0/0",
            rules("- gateway: {selector: all()}\n- destination: {cidr: 0.0.0.0/0}"),
        ),
        ("bad CIDR", rules("- destination: {cidr: 10.0.0/8}")),
        ("bad length", rules("- destination: {cidr: 10.0.0.0/33}")),
        ("no length", rules("- destination: {cidr: 192.0.2.1}")),
        (
            "padded length",
            rules("- destination: {cidr: 2001:db8::/032}"),
        ),
        (
            "IPv4-mapped",
            rules("- destination: {cidr: \"::ffff:192.0.2.0/120\"}"),
        ),
        ("CIDR is a number", rules("- destination: {cidr: 10}")),
        ("no CIDR", rules("- destination: {}")),
        ("empty selector", gateway("{selector: \"\"}")),
        (
            "empty namespaceSelector",
            gateway("{selector: all(), namespaceSelector: ''}"),
        ),
        ("no selector", gateway("{namespaceSelector: all()}")),
        (
            "selector syntax, plain",
            gateway("{selector: egress-code == red}"),
        ),
        (
            "selector syntax, double quotes",
            gateway("{selector: \"a == 'b' && egress-code = = 'red'\"}"),
        ),
        (
            "selector syntax, single quotes with an escape",
            gateway("{selector: 'a == ''b'' and has(c)'}"),
        ),
        (
            "selector syntax, folded",
            rules("- gateway:\n    selector: >-\n      a == 'b' &&\n      c is 'd'"),
        ),
        (
            "selector ends too early",
            gateway("{selector: \"has(a) &&\"}"),
        ),
        (
            "negative maxNextHops",
            gateway("{selector: all(), maxNextHops: -1}"),
        ),
        (
            "maxNextHops in quotes",
            gateway("{selector: all(), maxNextHops: \"2\"}"),
        ),
        (
            "fractional maxNextHops",
            gateway("{selector: all(), maxNextHops: 1.5}"),
        ),
        (
            "neither gateway nor destination",
            rules("- description: nothing"),
        ),
        ("unknown field in spec", policy("rule: []\nrules: []")),
        (
            "unknown field in a rule",
            rules("- destinations: {cidr: 10.0.0.0/8}\n  gateway: {selector: all()}"),
        ),
        (
            "unknown field in gateway",
            gateway("{selector: all(), maxNextHop: 2}"),
        ),
        (
            "unknown field in destination",
            rules("- destination: {cidr: 10.0.0.0/8, domains: [a]}"),
        ),
        (
            "duplicate key",
            rules("- destination: {cidr: 10.0.0.0/8}\n  destination: {cidr: 11.0.0.0/8}"),
        ),
        (
            "bad preference",
            rules("- gateway: {selector: all()}\n  gatewayPreference: Local"),
        ),
        (
            "rules is a map",
            policy("rules:\n  destination: {cidr: 10.0.0.0/8}"),
        ),
        ("a rule is a string", rules("- 10.0.0.0/8")),
        ("no rules", policy("{}")),
        (
            "no spec",
            "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata: {name: p}\n"
                .to_owned(),
        ),
        (
            "several errors at once",
            rules(
                "- destination: {cidr: nonsense}\n- gateway: {selector: }\n- gateway: {selector: all(), maxNextHops: -2}",
            ),
        ),
        (
            "host bits only warn",
            rules("- destination: {cidr: 10.1.2.3/8}"),
        ),
        ("an empty list of rules only warns", policy("rules: []")),
    ];
    insta::assert_snapshot!("malformed_policies", reports(&cases));
}

#[test]
fn malformed_objects() {
    let object =
        |head: &str, rest: &str| format!("{head}\nmetadata:\n  name: a\n  namespace: b\n{rest}\n");
    let gateway = |spec: &str| {
        object(
            "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway",
            &format!("spec: {spec}"),
        )
    };
    let pod = |rest: &str| object("apiVersion: v1\nkind: Pod", rest);
    let annotated = |annotations: &str| pod(&format!("  annotations:\n    {annotations}"));
    let cases = [
        ("no next hop", gateway("{interface: eth1}")),
        ("empty next hops", gateway("{nextHops: []}")),
        ("two of a family", gateway("{nextHops: [192.0.2.1, \"2001:db8::1\", 192.0.2.2]}")),
        ("multicast", gateway("{nextHops: [224.0.0.1]}")),
        ("unspecified", gateway("{nextHops: [\"::\"]}")),
        ("loopback", gateway("{nextHops: [127.0.0.1]}")),
        ("mapped", gateway("{nextHops: [\"::ffff:192.0.2.1\"]}")),
        ("not an address", gateway("{nextHops: [gateway.example]}")),
        ("long interface", gateway("{nextHops: [192.0.2.1], interface: an-interface-name}")),
        ("impossible interface", gateway("{nextHops: [192.0.2.1], interface: a/b}")),
        ("weight 0", gateway("{nextHops: [192.0.2.1], weight: 0}")),
        ("weight 1001", gateway("{nextHops: [192.0.2.1], weight: 1001}")),
        ("bad replies", gateway("{nextHops: [192.0.2.1], replies: none}")),
        ("unknown field of a gateway", gateway("{nextHop: [192.0.2.1]}")),
        ("next hops and egress addresses", gateway("{nextHops: [192.0.2.1], node: n, egressIPs: [192.0.2.2]}")),
        ("next hops and a node", gateway("{nextHops: [192.0.2.1], node: n}")),
        ("a node without egress addresses", gateway("{node: n}")),
        ("egress addresses without a node", gateway("{egressIPs: [192.0.2.2]}")),
        ("empty node", gateway("{node: \"\", egressIPs: [192.0.2.2]}")),
        ("no egress addresses", gateway("{node: n, egressIPs: []}")),
        ("two egress addresses of a family", gateway("{node: n, egressIPs: [192.0.2.2, 192.0.2.3]}")),
        (
            "addresses that cannot be egress addresses",
            gateway("{node: n, egressIPs: [0.0.0.0, 127.0.0.1, 169.254.0.1, 224.0.0.1, 255.255.255.255, \"fe80::1\", \"ff02::1\", \"::1\", \"::\"]}"),
        ),
        ("replies of a node", gateway("{node: n, egressIPs: [192.0.2.2], replies: kernel}")),
        (
            "a node's fields beside next hops",
            gateway("{nextHops: [192.0.2.1], assign: false, allowLocalServices: true, portRange: 1-2}"),
        ),
        ("assign is no boolean", gateway("{node: n, egressIPs: [192.0.2.2], assign: \"no\"}")),
        ("port range is no range", gateway("{node: n, egressIPs: [192.0.2.2], portRange: 40000}")),
        ("port range with words", gateway("{node: n, egressIPs: [192.0.2.2], portRange: high-higher}")),
        ("port range too high", gateway("{node: n, egressIPs: [192.0.2.2], portRange: 60000-70000}")),
        ("port range backwards", gateway("{node: n, egressIPs: [192.0.2.2], portRange: 4-3}")),
        ("port range from 0", gateway("{node: n, egressIPs: [192.0.2.2], portRange: 0-3}")),
        ("port range as a map", gateway("{node: n, egressIPs: [192.0.2.2], portRange: {first: 0, end: 3}}")),
        ("labels not a map", pod("  labels: [a]")),
        ("label not a string", pod("  labels: {app: true, n: 1}")),
        ("annotations not a map", pod("  annotations: none")),
        ("pod address", pod("status: {podIPs: [{ip: 10.0.0.300}]}")),
        ("hostNetwork", pod("spec: {hostNetwork: \"yes\"}")),
        ("annotation selector", annotated("egress.projectcalico.org/selector: \"egress-code == red\"")),
        (
            "annotation maxNextHops",
            annotated("egress.projectcalico.org/selector: all()\n    egress.projectcalico.org/maxNextHops: \"-1\""),
        ),
        (
            "annotation that is a number",
            annotated("egress.projectcalico.org/selector: all()\n    egress.projectcalico.org/maxNextHops: 2"),
        ),
        (
            "both annotations only warn",
            annotated("egress.projectcalico.org/selector: all()\n    egress.projectcalico.org/egressGatewayPolicy: p"),
        ),
        ("empty annotation only warns", annotated("egress.projectcalico.org/egressGatewayPolicy: \"\"")),
        ("companion alone only warns", annotated("egress.projectcalico.org/namespaceSelector: all()")),
        ("inbound UDP ports", annotated("egress.fastpath/inbound-udp: \"53, x,0,70000,+1,\"")),
        ("inbound UDP port that is a number", annotated("egress.fastpath/inbound-udp: 53")),
        ("empty inbound UDP ports only warn", annotated("egress.fastpath/inbound-udp: \"\"")),
        (
            "too many inbound UDP ports",
            annotated("egress.fastpath/inbound-udp: \"1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16\""),
        ),
        ("annotation interface", annotated("egress.fastpath/interface: an-interface-name")),
        ("no name", "apiVersion: v1\nkind: Pod\nmetadata: {}\n".to_owned()),
        ("no kind", "apiVersion: v1\nmetadata: {name: a}\n".to_owned()),
        ("not an object", "- a\n- b\n".to_owned()),
        ("another version", "apiVersion: projectcalico.org/v1\nkind: EgressGatewayPolicy\nmetadata: {name: a}\n".to_owned()),
        ("items not a list", "apiVersion: v1\nkind: List\nitems: {}\n".to_owned()),
        ("bad YAML between good documents", format!("{}---\na: b: c\n---\n{}", pod(""), gateway("{nextHops: [192.0.2.1]}"))),
        ("tabs", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: a\n".to_owned()),
        ("never closed", "apiVersion: v1\nkind: 'Pod\nmetadata: {}\n".to_owned()),
        ("control characters", "apiVersion: \"\u{1b}[31m\"\n".to_owned()),
        ("pool", "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.0.0.0}\n".to_owned()),
        ("service CIDR", "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: p}\nspec: {cidrs: 10.0.0.0/8}\n".to_owned()),
        ("long line", format!("{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"x\": \"{}\", \"metadata\": {{\"name\": 3, \"y\": \"{}\"}}}}", "x".repeat(5000), "y".repeat(5000))),
    ];
    insta::assert_snapshot!("malformed_objects", reports(&cases));
}
