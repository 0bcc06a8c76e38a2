//! Golden diagnostics for every way to be malformed, and what well-formed objects mean.

use std::{fmt::Write as _, num::NonZeroU32};

use proptest::prelude::*;

use super::{Kind, Object, ParsedFile, parse};
use crate::{
    diagnostic::{Severity, Source},
    model::{
        EgressAddresses, Exit, Gateway, GatewaySelector, Labels, Leaving, Namespace, Node,
        OnFailure, Phase, Pod, Policy, Preference, Replies, Rule, Steering, Target,
    },
    selector::Selector,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn read(text: &str) -> ParsedFile {
    parse(&Source::new("test.yaml", text.to_owned()))
}

/// Every case with its reports, as one golden text.
fn reports(cases: &[(&str, String)]) -> String {
    let mut out = String::new();
    for (name, text) in cases {
        let file = read(text);
        let accepted = file.entries.iter().filter(|entry| entry.valid).count();
        let kept = file
            .entries
            .iter()
            .filter(|entry| entry.object.is_some())
            .count();
        let _always = writeln!(
            out,
            "==== {name}: {accepted} accepted, {kept} with content{}",
            if file.incomplete { ", incomplete" } else { "" }
        );
        for diagnostic in &file.diagnostics {
            out += &diagnostic.render(false);
            out.push('\n');
        }
    }
    out
}

fn policy(rules: &str) -> String {
    let indented = rules.trim_end().replace('\n', "\n  ");
    format!(
        "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata: {{name: egw-policy}}\nspec:\n  {indented}\n"
    )
}

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

fn selector(text: &str) -> Result<Selector, crate::selector::ParseError> {
    Selector::parse(text)
}

fn only_object(file: ParsedFile) -> Option<Object> {
    assert_eq!(file.diagnostics, [], "no complaints");
    file.entries.into_iter().next()?.object
}

#[test]
fn a_policy_means_what_it_says() -> Outcome {
    let text = policy(
        r#"rules:
- description: "Local: no gateway"
  destination: {cidr: 10.0.0.0/8}
- description: "Gateway to red network"
  destination: {cidr: 192.0.2.0/24}
  gateway: {namespaceSelector: "projectcalico.org/name == 'default'", selector: "egress-code == 'red'", maxNextHops: 2}
  gatewayPreference: PreferNodeLocal
- destination: {cidr: "2001:db8::/32"}
  gateway: {selector: all(), maxNextHops: 0}
  gatewayPreference: None
- gateway: {selector: "egress-code == 'blue'"}
"#,
    );
    let rule = |description: Option<&str>,
                destination: Option<&str>,
                target|
     -> Result<Rule, Box<dyn std::error::Error>> {
        Ok(Rule {
            on_failure: OnFailure::Drop,
            description: description.map(str::to_owned),
            destination: destination.map(str::parse).transpose()?,
            target,
        })
    };
    let gateways =
        |text, namespaces, max, preference| -> Result<Target, crate::selector::ParseError> {
            Ok(Target::Gateways(GatewaySelector {
                namespaces,
                gateways: selector(text)?,
                max_next_hops: NonZeroU32::new(max),
                preference,
            }))
        };
    let default = selector("projectcalico.org/name == 'default'")?;
    let expected = Policy {
        rules: vec![
            rule(Some("Local: no gateway"), Some("10.0.0.0/8"), Target::Local)?,
            rule(
                Some("Gateway to red network"),
                Some("192.0.2.0/24"),
                gateways(
                    "egress-code == 'red'",
                    Some(default),
                    2,
                    Preference::NodeLocal,
                )?,
            )?,
            rule(
                None,
                Some("2001:db8::/32"),
                gateways("all()", None, 0, Preference::None)?,
            )?,
            rule(
                None,
                None,
                gateways("egress-code == 'blue'", None, 0, Preference::None)?,
            )?,
        ],
    };
    for text in [
        text.clone(),
        text.replace("projectcalico.org/v3", "crd.projectcalico.org/v1"),
    ] {
        let file = read(&text);
        let lines: Vec<_> = file.entries[0]
            .places
            .parts
            .iter()
            .map(|place| place.position.line)
            .collect();
        assert_eq!(lines, [7, 9, 12, 15]);
        assert_eq!(only_object(file), Some(Object::Policy(expected.clone())));
    }
    Ok(())
}

#[test]
fn an_egress_gateway_means_what_it_says() -> Outcome {
    let gateway = |spec: &str| {
        let text = format!(
            "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {{name: g}}\nspec: {spec}\n"
        );
        only_object(read(&text))
    };
    let expected = |weight, interface: Option<&str>, egress| {
        Some(Object::Gateway(Gateway {
            leaving: Leaving::No,
            drain_timeout: None,
            labels: Labels::new(),
            interface: interface.map(str::to_owned),
            weight,
            exit: Exit::Node(egress),
        }))
    };
    let both = vec!["203.0.113.10".parse()?, "2001:db8::10".parse()?];
    let plain = EgressAddresses {
        node: "gw-1".to_owned(),
        addresses: both.clone(),
        assign: true,
        allow_local_services: false,
        ports: None,
    };
    assert_eq!(
        gateway(r#"{node: gw-1, egressIPs: [203.0.113.10, "2001:db8::10"]}"#),
        expected(NonZeroU32::MIN, None, plain.clone())
    );
    let full = EgressAddresses {
        assign: false,
        allow_local_services: true,
        ports: Some((40_000, 49_999)),
        ..plain
    };
    for range in [
        "\"40000-49999\"",
        "40000 - 49999",
        "{first: 40000, last: 49999}",
    ] {
        let spec = format!(
            "{{node: gw-1, egressIPs: [203.0.113.10, \"2001:db8::10\"], interface: eth0, weight: 3, assign: false, \
             allowLocalServices: true, portRange: {range}}}"
        );
        let weight = NonZeroU32::new(3).ok_or("zero")?;
        assert_eq!(
            gateway(&spec),
            expected(weight, Some("eth0"), full.clone()),
            "{range}"
        );
    }
    Ok(())
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn what_happens_without_gateways_is_said_or_refused() -> Outcome {
    let policy = |rule: &str| {
        read(&format!(
            "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata: {{name: p}}\nspec: {{rules: \
             [{{{rule}}}]}}\n"
        ))
    };
    let gateway = "gateway: {selector: \"a == 'b'\"}, onFailure: ";
    for (text, expected) in [
        ("Drop", OnFailure::Drop),
        ("Local", OnFailure::Local),
        (
            "{Fallback: {selector: \"c == 'd'\", maxNextHops: 2}}",
            OnFailure::Fallback(GatewaySelector {
                namespaces: None,
                gateways: selector("c == 'd'")?,
                max_next_hops: NonZeroU32::new(2),
                preference: Preference::None,
            }),
        ),
    ] {
        let Some(Object::Policy(policy)) = only_object(policy(&format!("{gateway}{text}"))) else {
            return Err(text.into());
        };
        assert_eq!(policy.rules[0].on_failure, expected, "{text}");
    }
    for (rule, complaint) in [
        (format!("{gateway}Pass"), "`onFailure` is \"Pass\""),
        (format!("{gateway}{{Fallback: {{}}}}"), "selector"),
        (format!("{gateway}{{Other: {{}}}}"), "Other"),
        (
            "destination: {cidr: 10.0.0.0/8}, onFailure: Local".to_owned(),
            "means nothing without `gateway`",
        ),
    ] {
        let file = policy(&rule);
        assert!(
            file.diagnostics
                .iter()
                .any(|d| d.message.contains(complaint)),
            "{rule}: {:?}",
            file.diagnostics
        );
        assert!(file.entries.iter().all(|entry| !entry.valid), "{rule}");
    }
    Ok(())
}

#[test]
fn who_is_about_to_go_says_so() -> Outcome {
    let asked = |value: &str| format!("annotations: {{egress.fastpath/drain: {value}}}");
    for (metadata, expected) in [
        (asked("\"true\""), Leaving::Asked),
        (asked("\"false\""), Leaving::No),
        (
            "deletionTimestamp: \"2026-01-01T00:00:00Z\"".to_owned(),
            Leaving::Terminating,
        ),
        ("deletionTimestamp: null".to_owned(), Leaving::No),
    ] {
        let gateway = read(&format!(
            "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {{name: g, {metadata}}}\nspec: \
             {{nextHops: [192.0.2.1], drainTimeout: 90s}}\n"
        ));
        let Some(Object::Gateway(gateway)) = only_object(gateway) else {
            return Err(metadata.into());
        };
        assert_eq!(gateway.leaving, expected, "{metadata}");
        assert_eq!(
            gateway.drain_timeout,
            Some(std::time::Duration::from_secs(90))
        );
        let pod = read(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, {metadata}}}\n"
        ));
        let Some(Object::Pod(pod)) = only_object(pod) else {
            return Err(metadata.into());
        };
        assert_eq!(pod.leaving, expected, "{metadata}");
    }
    let text = "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {name: g}\nspec: \
                {nextHops: [192.0.2.1], drainTimeout: 90}\n";
    assert_eq!(read(text).diagnostics.len(), 1);
    for (value, complaint) in [("\"\"", "is empty"), ("\"yes\"", "neither")] {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, {}}}\n",
            asked(value)
        );
        let found = read(&pod).diagnostics;
        assert!(
            found.len() == 1 && found[0].message.contains(complaint),
            "{found:?}"
        );
    }
    Ok(())
}

#[test]
fn a_pod_means_what_it_says() -> Outcome {
    let text = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 3
  labels: {app: web, projectcalico.org/namespace: forged}
  annotations:
    egress.projectcalico.org/selector: egress-code == 'red'
    egress.projectcalico.org/namespaceSelector: "global()"
    egress.projectcalico.org/maxNextHops: "2"
    egress.fastpath/interface: veth1
    egress.fastpath/inbound-udp: "5060, 53,53"
    other: x
spec: {nodeName: n1, serviceAccountName: sa, containers: [{name: a, image: b}], hostNetwork: false}
status:
  phase: Running
  podIP: 10.0.0.9
  podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}, {ip: 10.0.0.2}]
  conditions: [{type: Initialized, status: "False"}, {type: Ready, status: "True"}]
"#;
    let expected = Pod {
        labels: labels(&[
            ("app", "web"),
            ("projectcalico.org/namespace", "shop"),
            ("projectcalico.org/orchestrator", "k8s"),
            ("projectcalico.org/serviceaccount", "sa"),
        ]),
        steering: Some(Steering::Gateways(GatewaySelector {
            namespaces: Some(selector("global()")?),
            gateways: selector("egress-code == 'red'")?,
            max_next_hops: NonZeroU32::new(2),
            preference: Preference::None,
        })),
        interface: Some("veth1".to_owned()),
        inbound_udp: vec![53, 5060],
        node: Some("n1".to_owned()),
        addresses: vec!["10.0.0.1".parse()?, "fd00::1".parse()?],
        leaving: Leaving::No,
        host_network: false,
        phase: Phase::Alive,
        ready: true,
    };
    assert_eq!(only_object(read(text)), Some(Object::Pod(expected)));

    let finished = "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: null}, spec: {hostNetwork: true}, status: {phase: Succeeded, podIP: 10.0.0.9, podIPs: [], conditions: null}}";
    let file = read(finished);
    assert_eq!(file.entries[0].id.to_string(), "Pod default/a");
    let Some(Object::Pod(pod)) = only_object(file) else {
        return Err("not a pod".into());
    };
    assert_eq!(
        (pod.phase, pod.host_network, pod.ready),
        (Phase::Finished, true, false)
    );
    assert_eq!(pod.addresses, ["10.0.0.9".parse::<std::net::IpAddr>()?]);
    assert_eq!(pod.steering, None);
    Ok(())
}

#[test]
fn the_other_kinds_mean_what_they_say() -> Outcome {
    let list = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {kubernetes.io/metadata.name: forged}, annotations: {egress.projectcalico.org/egressGatewayPolicy: p}}}
- apiVersion: v1
  kind: NodeList
  items:
  - metadata: {name: n1}
    spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24, "fd00:1::/64"]}
    status: {addresses: [{type: InternalIP, address: 192.0.2.10}, {type: Hostname, address: n1}]}
- {apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd00:2::a"], externalIPs: [198.51.100.1]}, status: {loadBalancer: {ingress: [{ip: 203.0.113.5}, {hostname: x}]}}}
- {apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, clusterIPs: [None]}}
- {apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: i}, spec: {cidr: 10.244.0.0/16, natOutgoing: true}}
- {apiVersion: networking.k8s.io/v1beta1, kind: ServiceCIDR, metadata: {name: c}, spec: {cidrs: [10.96.0.0/12]}}
- {apiVersion: egress.fastpath/v1alpha1, kind: EgressGateway, metadata: {name: g, namespace: shop, labels: {a: b}}, spec: {nextHops: [192.0.2.1, "2001:db8::1"], interface: eth1, weight: 1000, replies: kernel}}
- {apiVersion: egress.fastpath/v1alpha1, kind: EgressGateway, metadata: {name: h}, spec: {nextHops: [192.0.2.1]}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: e}}
"#;
    let file = read(list);
    assert_eq!(file.diagnostics, []);
    assert!(!file.incomplete);
    assert_eq!(file.skipped, [("apps/v1 Deployment".to_owned(), 2)].into());
    let prefixes = |texts: &[&str]| -> Result<Object, ipnet::AddrParseError> {
        Ok(Object::ClusterPrefixes(
            texts
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?,
        ))
    };
    let expected = [
        (
            "Namespace shop",
            Object::Namespace(Namespace {
                labels: labels(&[
                    ("kubernetes.io/metadata.name", "shop"),
                    ("projectcalico.org/name", "shop"),
                ]),
                steering: Some(Steering::Policy("p".to_owned())),
            }),
        ),
        (
            "Node n1",
            Object::Node(Node {
                addresses: vec!["192.0.2.10".parse()?],
                pod_cidrs: vec!["10.244.0.0/24".parse()?, "fd00:1::/64".parse()?],
            }),
        ),
        (
            "Service shop/s",
            prefixes(&["10.96.0.10/32", "203.0.113.5/32", "fd00:2::a/128"])?,
        ),
        ("Service default/headless", prefixes(&[])?),
        ("IPPool i", prefixes(&["10.244.0.0/16"])?),
        ("ServiceCIDR c", prefixes(&["10.96.0.0/12"])?),
        (
            "EgressGateway shop/g",
            Object::Gateway(Gateway {
                leaving: Leaving::No,
                drain_timeout: None,
                labels: labels(&[("a", "b")]),
                interface: Some("eth1".to_owned()),
                weight: NonZeroU32::new(1000).ok_or("zero")?,
                exit: Exit::NextHops {
                    addresses: vec!["192.0.2.1".parse()?, "2001:db8::1".parse()?],
                    replies: Replies::Kernel,
                },
            }),
        ),
        (
            "EgressGateway default/h",
            Object::Gateway(Gateway {
                leaving: Leaving::No,
                drain_timeout: None,
                labels: Labels::new(),
                interface: None,
                weight: NonZeroU32::MIN,
                exit: Exit::NextHops {
                    addresses: vec!["192.0.2.1".parse()?],
                    replies: Replies::Recorded,
                },
            }),
        ),
    ];
    let found: Vec<_> = file
        .entries
        .into_iter()
        .map(|entry| (entry.id.to_string(), entry.object))
        .collect();
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(id, object)| (id.to_owned(), Some(object)))
        .collect();
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn what_cannot_be_understood_steers_into_a_drop() -> Outcome {
    let annotations = [
        "{egress.projectcalico.org/selector: 'nonsense'}",
        "{egress.projectcalico.org/selector: ' '}",
        "{egress.projectcalico.org/selector: 'all()', egress.projectcalico.org/maxNextHops: 'x'}",
        "{egress.projectcalico.org/selector: 'all()', egress.projectcalico.org/maxNextHops: 2}",
        "{egress.projectcalico.org/selector: 'all()', egress.projectcalico.org/namespaceSelector: '=='}",
        "{egress.projectcalico.org/egressGatewayPolicy: 7}",
        "[nonsense]",
    ];
    for annotation in annotations {
        for kind in ["Pod", "Namespace"] {
            let file = read(&format!(
                "{{apiVersion: v1, kind: {kind}, metadata: {{name: a, annotations: {annotation}}}}}"
            ));
            assert!(
                file.diagnostics
                    .iter()
                    .any(|it| it.severity == Severity::Error),
                "{annotation}"
            );
            let steering = match file
                .entries
                .into_iter()
                .next()
                .and_then(|entry| entry.object)
            {
                Some(Object::Pod(pod)) => pod.steering,
                Some(Object::Namespace(namespace)) => namespace.steering,
                other => return Err(format!("{annotation}: {other:?}").into()),
            };
            assert_eq!(steering, Some(Steering::Invalid), "{annotation}");
        }
    }
    Ok(())
}

#[test]
fn hostile_yaml_is_refused() {
    let flow = format!("a: {}", "[".repeat(100_000));
    let block = (0..3000).fold(String::new(), |text, depth| {
        text + &" ".repeat(depth) + "a:\n"
    });
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        bomb += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    for (name, text) in [("flow", flow), ("block", block), ("bomb", bomb)] {
        let file = read(&text);
        assert!(
            file.incomplete && file.diagnostics.len() == 1,
            "{name}: {:?}",
            file.diagnostics
        );
    }
    // As deep as allowed, in the deepest stack frames there are.
    let nested = (0..90).fold(
        "apiVersion: v1\nkind: X\nitems:\n".to_owned(),
        |text, depth| text + &" ".repeat(depth + 1) + "a:\n",
    );
    assert_eq!(read(&nested).diagnostics, []);
}

#[test]
fn many_documents_are_read() {
    const { assert!(super::MAX_DOCUMENTS >= 100_000) };
    let text = (0..20_000).fold(String::new(), |text, index| {
        text + &format!("---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: n{index}}}}}\n")
    });
    let file = read(&text);
    assert_eq!((file.entries.len(), file.diagnostics.len()), (20_000, 0));
    let text = "---\na\n".repeat(super::MAX_DOCUMENTS + 1);
    let file = read(&text);
    assert!(file.incomplete && file.entries.is_empty());
    assert_eq!(file.diagnostics.len(), 1);
}

#[test]
fn documents_end_where_yaml_says() {
    let table = [
        ("", 0),
        ("---\n---\n", 0),
        ("# comment\n", 0),
        ("\u{feff}a: 1\n", 1),
        ("a: 1\n---\nb: 1", 2),
        ("a: |\n  ---\n  x\n---\r\nb: 1\r\n", 2),
        ("a: 1\n...\n# c\n%YAML 1.2\n---\nb: 1\n", 2),
        ("--- {a: 1}\n--- # c\n---\n", 1),
        ("---x: 1\n", 1),
    ];
    for (text, expected) in table {
        let documents = super::yaml::documents(text);
        assert_eq!(documents.len(), expected, "{text:?}");
        for document in documents {
            assert!(super::yaml::parse(text, document).is_ok(), "{text:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_is_too_strange(text in "[-a:{}\\[\\]'\"&*!|>%@`# \n\t,?~.0-9é\u{feff}]{0,60}") {
        for diagnostic in read(&text).diagnostics {
            let _rendered = diagnostic.render(true);
        }
    }

    /// However a selector is written in YAML, the place of its error is the place of the wrong character.
    #[test]
    fn the_place_is_inside_the_string(
        labels in prop::collection::vec("[a-zé]{1,6}", 1..5),
        style in 0..5_usize,
    ) {
        let good: String = labels.iter().map(|label| {
            let label = label.replace('é', "e");
            format!("{label} == 'ü' && ")
        }).collect();
        let text = format!("{good}has(a) § has(b)");
        let written = match style {
            0 => text.clone(),
            1 => format!("\"{}\"", text.replace('&', "\\x26")),
            2 => format!("'{}'", text.replace('\'', "''")),
            3 => format!("|\n      {text}\n"),
            _ => format!(">-\n      {}\n", text.replace("&& ", "&&\n      ")),
        };
        let yaml = policy(&format!("rules:\n- gateway:\n    selector: {written}"));
        let file = read(&yaml);
        prop_assert_eq!(file.diagnostics.len(), 1);
        let position = file.diagnostics[0].position.clone();
        prop_assert_eq!(position.map(|position| &yaml[position.span]), Some("§"), "{}", yaml);
    }
}

#[test]
fn kinds_need_their_api_group() {
    assert_eq!(Kind::find("v1", "Pod"), Some(Kind::Pod));
    assert_eq!(Kind::find("operator.tigera.io/v1", "EgressGateway"), None);
    assert_eq!(Kind::find("projectcalico.org/v3", "Pod"), None);
}
