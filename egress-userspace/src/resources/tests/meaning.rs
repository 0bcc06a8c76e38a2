//! What well-formed objects mean.

use super::*;

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
        rules: [
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
        ]
        .into(),
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
        probes: None,
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
fn kinds_need_their_api_group() {
    assert_eq!(Kind::find("v1", "Pod"), Some(Kind::Pod));
    assert_eq!(Kind::find("operator.tigera.io/v1", "EgressGateway"), None);
    assert_eq!(Kind::find("projectcalico.org/v3", "Pod"), None);
}
