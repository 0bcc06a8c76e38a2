#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use rtnetlink::packet_route::{
    address::AddressAttribute,
    link::{LinkAttribute, LinkFlags, LinkLayerType},
    route::{RouteAddress, RouteFlags, RouteType},
};

use super::*;
use crate::node::{Link, Route};

const OLD: u32 = 2;
const NEW: u32 = 7;

fn view() -> NodeView {
    let mut view = NodeView {
        links: [(OLD, Link::ethernet("eth0"))].into(),
        addresses: vec![
            (OLD, "192.0.2.1/24".parse().unwrap()),
            (OLD, "2001:db8::1/64".parse().unwrap()),
        ],
        routes: vec![
            route("0.0.0.0/0", Some("192.0.2.254"), OLD),
            route("192.0.2.0/24", None, OLD),
        ],
        ..NodeView::default()
    };
    view.sort();
    view
}

fn route(destination: &str, gateway: Option<&str>, ifindex: u32) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        ifindex,
        metric: 0,
        mtu: None,
    }
}

fn message(inner: RouteNetlinkMessage) -> Message {
    Message::from(inner)
}

fn link_message(index: u32, flags: LinkFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.attributes = vec![
        LinkAttribute::IfName("cali1".to_owned()),
        LinkAttribute::Mtu(1500),
    ];
    message
}

fn new_link(index: u32, up: bool) -> Message {
    let flags = if up {
        LinkFlags::Up | LinkFlags::LowerUp
    } else {
        LinkFlags::empty()
    };
    message(RouteNetlinkMessage::NewLink(link_message(index, flags)))
}

fn del_link(index: u32) -> Message {
    message(RouteNetlinkMessage::DelLink(link_message(
        index,
        LinkFlags::empty(),
    )))
}

fn route_message(route: &Route, table: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    let address = |address| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    message.header.address_family = if is_ipv4(&route.destination) {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = table;
    message.header.kind = RouteType::Unicast;
    message.header.flags = RouteFlags::empty();
    message.attributes = vec![
        RouteAttribute::Destination(address(route.destination.addr())),
        RouteAttribute::Oif(route.ifindex),
        RouteAttribute::Priority(route.metric),
    ];
    let gateway = route.gateway.map(address).map(RouteAttribute::Gateway);
    message.attributes.extend(gateway);
    message
}

fn new_route(route: &Route) -> Message {
    message(RouteNetlinkMessage::NewRoute(route_message(
        route,
        RouteHeader::RT_TABLE_MAIN,
    )))
}

fn del_route(route: &Route) -> Message {
    message(RouteNetlinkMessage::DelRoute(route_message(
        route,
        RouteHeader::RT_TABLE_MAIN,
    )))
}

fn address_message(index: u32, net: &str) -> AddressMessage {
    let net: IpNet = net.parse().unwrap();
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.attributes = vec![AddressAttribute::Address(net.addr())];
    message
}

fn new_address(index: u32, net: &str) -> Message {
    message(RouteNetlinkMessage::NewAddress(address_message(index, net)))
}

fn del_address(index: u32, net: &str) -> Message {
    message(RouteNetlinkMessage::DelAddress(address_message(index, net)))
}

/// What a pod's coming is told as.
fn coming() -> Vec<Message> {
    vec![
        new_link(NEW, false),
        new_link(NEW, true),
        new_route(&route("10.65.0.7/32", None, NEW)),
        new_address(NEW, "fe80::1/64"),
        new_route(&route("fe80::/64", None, NEW)),
    ]
}

#[test]
fn a_pod_comes_and_goes() {
    let (mut view, mut telling) = (view(), Telling::default());
    assert!(telling.apply(&mut view, coming()));
    let mut expected = self::view();
    expected.links.insert(NEW, Link::ethernet("cali1"));
    expected
        .addresses
        .push((NEW, "fe80::1/64".parse().unwrap()));
    expected.routes.push(route("10.65.0.7/32", None, NEW));
    expected.routes.push(route("fe80::/64", None, NEW));
    expected.sort();
    assert_eq!(view, expected);
    // All of it may be told again, of what was read meanwhile.
    assert!(telling.apply(&mut view, coming()[2..].to_vec()));
    assert_eq!(view, expected);
    let going = [
        new_link(NEW, false),
        del_route(&route("fe80::/64", None, NEW)),
        del_address(NEW, "fe80::1/64"),
        del_link(NEW),
    ];
    // Removing it takes a grace period.
    let (shut, removed) = going.split_at(1);
    assert!(telling.apply(&mut view, shut.to_vec()));
    assert!(telling.due().is_some());
    assert!(telling.apply(&mut view, removed.to_vec()));
    assert_eq!(telling.due(), None);
    assert_eq!(view, self::view());
}

#[test]
fn what_is_not_certain_is_read() {
    let other = route("192.0.2.0/24", Some("192.0.2.9"), OLD);
    let mut replacing = new_route(&route("0.0.0.0/0", None, OLD));
    replacing.header.flags |= NLM_F_REPLACE;
    let mut paths = route_message(&route("10.9.0.0/16", None, OLD), RouteHeader::RT_TABLE_MAIN);
    paths.attributes.push(RouteAttribute::MultiPath(Vec::new()));
    let mut port = link_message(OLD, LinkFlags::empty());
    port.header.interface_family = AddressFamily::Bridge;
    let mut enslaved = link_message(OLD, LinkFlags::Up | LinkFlags::LowerUp);
    enslaved.attributes.push(LinkAttribute::Controller(9));
    let ruled = route_message(&route("10.9.0.0/16", None, OLD), 100);
    let rows: [(&str, Vec<Message>); 10] = [
        ("a link that goes down", vec![new_link(OLD, false)]),
        (
            "a link that was down before",
            vec![new_link(OLD, false), new_link(OLD, true)],
        ),
        ("an address goes", vec![del_address(OLD, "192.0.2.1/24")]),
        ("a link with an address goes", vec![del_link(OLD)]),
        ("a route is replaced", vec![replacing]),
        ("another route of the same kind", vec![new_route(&other)]),
        ("another one goes", vec![del_route(&other)]),
        (
            "several paths",
            vec![message(RouteNetlinkMessage::NewRoute(paths))],
        ),
        (
            "a port leaves its bridge",
            vec![message(RouteNetlinkMessage::DelLink(port))],
        ),
        (
            "a link becomes a port",
            vec![message(RouteNetlinkMessage::NewLink(enslaved))],
        ),
    ];
    for (what, messages) in rows {
        let certain = Telling::default().apply(&mut view(), messages);
        assert!(!certain, "{what}");
    }
    let goes = vec![message(RouteNetlinkMessage::DelRoute(ruled.clone()))];
    assert!(!Telling::default().apply(&mut view(), goes), "a ruled one");
    let mut with_rules = view();
    let comes = vec![message(RouteNetlinkMessage::NewRoute(ruled))];
    assert!(Telling::default().apply(&mut with_rules, comes));
    assert_eq!(
        with_rules.ruled,
        [(OLD, "10.9.0.0/16".parse().unwrap())].into()
    );
}

#[test]
fn what_was_gone_already_makes_no_difference() {
    let messages = vec![
        del_route(&route("10.1.0.0/16", None, OLD)),
        del_address(OLD, "2001:db8::99/64"),
        del_link(99),
    ];
    let mut found = view();
    assert!(Telling::default().apply(&mut found, messages));
    assert_eq!(found, view());
}

/// A kernel that does what it is told, and tells of it what Linux tells.
struct Kernel {
    view: NodeView,
    told: Vec<Message>,
    /// Indices are not given out twice.
    last: u32,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Come,
    /// Of one of the links that there are.
    Up(prop::sample::Index),
    Down(prop::sample::Index),
    Go(prop::sample::Index),
    Route(prop::sample::Index, u8),
    Unroute(u8),
    Assign(u8),
    Withdraw(u8),
    /// Not the kernel's doing: so many messages are heard.
    Hear(usize),
}

impl Kernel {
    fn new() -> Self {
        Self {
            view: view(),
            told: Vec::new(),
            last: 9,
        }
    }

    fn pod(&self, which: prop::sample::Index) -> Option<(u32, bool)> {
        let pods: Vec<_> = self.view.links.iter().filter(|(i, _)| **i != OLD).collect();
        let (index, link) = pods.get(which.index(pods.len().max(1)))?;
        Some((**index, link.up))
    }

    fn set_link(&mut self, index: u32, up: bool) {
        let link = Link {
            up,
            ..Link::ethernet("cali1")
        };
        self.view.links.insert(index, link);
        self.told.push(new_link(index, up));
    }

    fn down(&mut self, index: u32) {
        self.set_link(index, false);
        let (address, connected) = link_local(index);
        self.told.push(del_route(&connected));
        self.told.push(del_address(index, &address.to_string()));
        // Of IPv4 routes nothing is told.
        self.view.routes.retain(|route| route.ifindex != index);
        self.view.addresses.retain(|(i, _)| *i != index);
    }

    fn up(&mut self, index: u32) {
        self.set_link(index, true);
        let (address, connected) = link_local(index);
        self.told.push(new_address(index, &address.to_string()));
        self.told.push(new_route(&connected));
        insert(&mut self.view.addresses, (index, address));
        insert(&mut self.view.routes, connected);
    }

    fn go(&mut self, index: u32) {
        if self.view.links[&index].up {
            self.down(index);
        }
        self.view.links.remove(&index);
        self.told.push(del_link(index));
    }

    fn carry_out(&mut self, event: Event) {
        match event {
            Event::Come => {
                self.last += 1;
                self.set_link(self.last, false);
            }
            Event::Up(which) => {
                if let Some((index, false)) = self.pod(which) {
                    self.up(index);
                }
            }
            Event::Down(which) => {
                if let Some((index, true)) = self.pod(which) {
                    self.down(index);
                }
            }
            Event::Go(which) => {
                if let Some((index, _)) = self.pod(which) {
                    self.go(index);
                }
            }
            Event::Route(which, host) => {
                if let Some((index, true)) = self.pod(which) {
                    let new = route(&format!("10.65.0.{host}/32"), None, index);
                    let mut others = self.view.routes.iter();
                    if others.all(|other| other.destination != new.destination) {
                        self.told.push(new_route(&new));
                        insert(&mut self.view.routes, new);
                    }
                }
            }
            Event::Unroute(host) => {
                let to: IpNet = format!("10.65.0.{host}/32").parse().unwrap();
                let mut routes = self.view.routes.iter();
                if let Some(at) = routes.position(|route| route.destination == to) {
                    let gone = self.view.routes.remove(at);
                    self.told.push(del_route(&gone));
                }
            }
            Event::Assign(n) => {
                let (address, connected) = assigned(n);
                if !self.view.addresses.contains(&(OLD, address)) {
                    self.told.push(new_address(OLD, &address.to_string()));
                    self.told.push(new_route(&connected));
                    insert(&mut self.view.addresses, (OLD, address));
                    insert(&mut self.view.routes, connected);
                }
            }
            Event::Withdraw(n) => {
                let (address, connected) = assigned(n);
                if self.view.addresses.contains(&(OLD, address)) {
                    self.told.push(del_address(OLD, &address.to_string()));
                    self.view.addresses.retain(|known| *known != (OLD, address));
                    self.view.routes.retain(|route| *route != connected);
                }
            }
            Event::Hear(_) => {}
        }
    }
}

fn link_local(index: u32) -> (IpNet, Route) {
    let address = format!("fe80::{index}/64").parse().unwrap();
    (address, route("fe80::/64", None, index))
}

fn assigned(n: u8) -> (IpNet, Route) {
    let address = format!("198.51.{n}.1/24").parse().unwrap();
    (address, route(&format!("198.51.{n}.0/24"), None, OLD))
}

/// Somebody who follows a kernel as it is told, and reads all when that is not enough.
struct Follower {
    view: NodeView,
    telling: Telling,
    readings: usize,
}

impl Follower {
    fn hear(&mut self, kernel: &mut Kernel, messages: usize) {
        let heard = kernel.told.drain(..messages.min(kernel.told.len()));
        if !self.telling.apply(&mut self.view, heard.collect()) {
            // What it is by now: some of it is told only after that.
            self.view = kernel.view.clone();
            self.telling = Telling::default();
            self.readings += 1;
        }
    }
}

fn events() -> impl Strategy<Value = Event> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        3 => Just(Event::Come),
        4 => which().prop_map(Event::Up),
        2 => which().prop_map(Event::Down),
        2 => which().prop_map(Event::Go),
        4 => (which(), 0_u8..5).prop_map(|(which, host)| Event::Route(which, host)),
        2 => (0_u8..5).prop_map(Event::Unroute),
        1 => (0_u8..3).prop_map(Event::Assign),
        1 => (0_u8..3).prop_map(Event::Withdraw),
        6 => (0_usize..12).prop_map(Event::Hear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Once all is heard, what is known is what a reading gives, but for routes that went with links which are down: those
    /// are read before long.
    #[test]
    fn what_is_told_is_what_would_be_read(happening in prop::collection::vec(events(), 0..60)) {
        let mut kernel = Kernel::new();
        let mut follower = Follower {
            view: view(),
            telling: Telling::default(),
            readings: 0,
        };
        for event in happening {
            kernel.carry_out(event);
            if let Event::Hear(messages) = event {
                follower.hear(&mut kernel, messages);
            }
        }
        let rest = kernel.told.len();
        follower.hear(&mut kernel, rest);
        let shut = &follower.telling.shut;
        prop_assert_eq!(shut.is_empty(), follower.telling.due().is_none());
        follower.view.routes.retain(|route| {
            !(shut.contains_key(&route.ifindex) && is_ipv4(&route.destination))
        });
        prop_assert_eq!(&follower.view, &kernel.view);
    }

    /// Pods that only come, and go, are never a reason to read.
    #[test]
    fn pods_are_followed_without_reading(pods in 1_usize..20, alive in 1_usize..4, at_once in 1_usize..20) {
        let mut kernel = Kernel::new();
        let mut follower = Follower {
            view: view(),
            telling: Telling::default(),
            readings: 0,
        };
        for pod in 0..pods {
            kernel.carry_out(Event::Come);
            let last = kernel.last;
            kernel.up(last);
            let host = route(&format!("10.65.0.{pod}/32"), None, last);
            kernel.told.push(new_route(&host));
            insert(&mut kernel.view.routes, host);
            if kernel.view.links.len() > alive + 1 {
                kernel.go(last - u32::try_from(alive).unwrap());
            }
            follower.hear(&mut kernel, at_once);
        }
        let rest = kernel.told.len();
        follower.hear(&mut kernel, rest);
        prop_assert_eq!(follower.readings, 0);
        prop_assert_eq!(&follower.view, &kernel.view);
    }
}
