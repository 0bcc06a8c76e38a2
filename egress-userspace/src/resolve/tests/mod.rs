//! A small cluster, and what this node makes of it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "rows say what they are; a test that cannot go on says where"
)]

mod claims;
mod egress;
mod enforcement;
mod gateways;
mod health;
mod nodes;
mod pods;
mod policies;
mod unsteered;

use std::cell::RefCell;

use super::*;
use crate::{
    model::{
        EgressAddresses, Exit, Gateway, GatewaySelector, Labels, Leaving, Namespace, Node,
        OnFailure, Phase, Pod, Policy, Preference, Replies, Rule, Steering, Target,
    },
    node::{Link, Route},
    selector::Selector,
    state::{EgressAddress, Holder, Local},
};

/// What `resolve` is given.
struct World {
    model: Model,
    node: NodeView,
    settings: Settings,
    held: Held,
    assigned: Assigned,
    faults: Faults,
    /// Of resolutions before.
    memo: RefCell<Memo>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

fn labels(text: &str) -> Labels {
    text.split_whitespace()
        .map(|label| label.split_once('=').unwrap())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn select(namespaces: Option<&str>, gateways: &str) -> GatewaySelector {
    GatewaySelector {
        namespaces: namespaces.map(|text| Selector::parse(text).unwrap()),
        gateways: Selector::parse(gateways).unwrap(),
        max_next_hops: None,
        preference: Preference::None,
    }
}

fn in_egress(gateways: &str) -> GatewaySelector {
    select(Some("projectcalico.org/name == 'egress'"), gateways)
}

fn at_most(count: u32, selector: GatewaySelector) -> GatewaySelector {
    GatewaySelector {
        max_next_hops: NonZeroU32::new(count),
        ..selector
    }
}

fn rule(destination: Option<&str>, gateways: Option<GatewaySelector>) -> Rule {
    Rule {
        description: None,
        destination: destination.map(net),
        target: gateways.map_or(Target::Local, Target::Gateways),
        on_failure: OnFailure::Drop,
    }
}

/// The interface of the pod 10.0.0.`n`.
fn veth(n: u32) -> u32 {
    100 + n
}

impl World {
    /// The node "here", on 192.0.2.0/24 and 2001:db8::/64, with the namespaces "apps" and "egress".
    fn new() -> Self {
        let mut model = Model::default();
        for namespace in ["apps", "egress"] {
            model.namespaces.insert(
                namespace.to_owned(),
                Namespace {
                    labels: labels(&format!("projectcalico.org/name={namespace}")),
                    steering: None,
                },
            );
        }
        let route = |destination: &str, gateway: Option<&str>| Route {
            destination: net(destination),
            gateway: gateway.map(ip),
            ifindex: 2,
            metric: 0,
            mtu: None,
        };
        Self {
            model,
            node: NodeView {
                links: [(2, Link::ethernet("eth0"))].into(),
                addresses: vec![(2, net("192.0.2.10/24")), (2, net("2001:db8::10/64"))],
                routes: vec![
                    route("0.0.0.0/0", Some("192.0.2.1")),
                    route("192.0.2.0/24", None),
                    route("2001:db8::/64", None),
                ],
                ..NodeView::default()
            },
            settings: Settings {
                node_name: "here".to_owned(),
                ..Settings::default()
            },
            held: Held::new(),
            assigned: Assigned::new(),
            faults: Faults::new(),
            memo: RefCell::default(),
        }
    }

    /// A ready pod on this node with the address 10.0.`n`, its interface and its host route.
    fn pod(&mut self, text: &str, n: u32) -> &mut Pod {
        let address = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        self.node
            .links
            .insert(veth(n), Link::ethernet(&format!("veth{n}")));
        self.node.routes.push(Route {
            destination: IpNet::from(address),
            gateway: None,
            ifindex: veth(n),
            metric: 0,
            mtu: None,
        });
        let pod = Pod {
            labels: Labels::new(),
            steering: None,
            interface: None,
            inbound_udp: Vec::new(),
            node: Some("here".to_owned()),
            addresses: vec![address],
            host_network: false,
            phase: Phase::Alive,
            ready: true,
            leaving: Leaving::No,
        };
        self.model.pods.entry(name(text)).or_insert(pod)
    }

    /// A pod that asks for a policy.
    fn steered(&mut self, text: &str, n: u32, policy: &str) -> &mut Pod {
        let pod = self.pod(text, n);
        pod.steering = Some(Steering::Policy(policy.to_owned()));
        pod
    }

    fn policy(&mut self, name: &str, rules: Vec<Rule>) {
        self.model.policies.insert(
            name.to_owned(),
            Policy {
                rules: rules.into(),
            },
        );
    }

    fn gateway(&mut self, text: &str, labelled: &str, next_hops: &[&str]) -> &mut Gateway {
        let gateway = Gateway {
            labels: labels(labelled),
            interface: None,
            weight: NonZeroU32::MIN,
            exit: Exit::NextHops {
                addresses: next_hops.iter().map(|hop| ip(hop)).collect(),
                replies: Replies::Recorded,
            },
            leaving: Leaving::No,
            drain_timeout: None,
        };
        self.model.gateways.entry(name(text)).or_insert(gateway)
    }

    fn gateway_mut(&mut self, text: &str) -> &mut Gateway {
        self.model.gateways.get_mut(&name(text)).unwrap()
    }

    /// A gateway with egress addresses that a node owns.
    fn egress(&mut self, text: &str, node: &str, addresses: &[&str]) -> &mut Gateway {
        let gateway = self.gateway(text, "", &[]);
        gateway.exit = Exit::Node(EgressAddresses {
            node: node.to_owned(),
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            assign: true,
            allow_local_services: false,
            ports: None,
            probes: None,
        });
        gateway
    }

    fn node_object(&mut self, name: &str, addresses: &[&str]) {
        let node = Node {
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            pod_cidrs: Vec::new(),
        };
        self.model.nodes.insert(name.to_owned(), node);
    }

    /// An overlay with one key, whose device is there.
    fn with_overlay(&mut self) {
        self.node.links.insert(9, Link::ethernet("egress.vxlan"));
        self.settings.overlay = Some(Overlay {
            device: "egress.vxlan".to_owned(),
            port: 4790,
            vni: 4097,
            keys: OverlayKeys::parse(b"0123456789abcdef").unwrap(),
        });
    }

    fn resolve(&self) -> Resolved {
        let resolve = || {
            resolve(
                &self.model,
                &self.node,
                &self.settings,
                &self.held,
                &self.assigned,
                &self.faults,
            )
        };
        let resolved = resolve();
        assert_eq!(resolved, resolve());
        for _ in 0..2 {
            let again = resolve_again(
                &self.model,
                &self.node,
                &self.settings,
                &self.held,
                &self.assigned,
                &self.faults,
                &mut self.memo.borrow_mut(),
            );
            assert_eq!(resolved, again, "what is remembered changes nothing");
        }
        resolved
    }
}

/// The rules of a pod as text: `label -> action`.
fn rules(resolved: &Resolved, pod: &str) -> Vec<String> {
    match &resolved.pods[&name(pod)].fate {
        Fate::Drop(reason) => vec![format!("drop {}", reason.name())],
        Fate::Rules(rules) => rules
            .iter()
            .map(|rule| match &rule.action {
                Action::Local => format!("{} -> local", rule.label),
                Action::Drop(reason) => format!("{} -> drop {}", rule.label, reason.name()),
                Action::Gateways(gateways) => {
                    let names: Vec<_> = gateways.iter().map(|g| g.name.name.as_str()).collect();
                    format!("{} -> {}", rule.label, names.join(","))
                }
            })
            .collect(),
    }
}

#[track_caller]
fn assert_down(resolved: &Resolved, gateway: &str, parts: &[&str]) {
    match &resolved.gateways[&name(gateway)] {
        GatewayStatus::Up(ways) => panic!("{gateway} is up: {ways:?}"),
        GatewayStatus::Down(why) => {
            let said = parts.iter().all(|part| why.contains(part));
            assert!(said, "{gateway}: {parts:?} in {why:?}");
        }
    }
}

#[track_caller]
fn assert_warned(resolved: &Resolved, parts: &[&str]) {
    let matching = resolved
        .warnings
        .iter()
        .filter(|warning| parts.iter().all(|part| warning.contains(part)))
        .count();
    assert_eq!(matching, 1, "{parts:?} in {:#?}", resolved.warnings);
}
