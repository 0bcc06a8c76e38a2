#![expect(clippy::unwrap_used, reason = "tests")]

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
