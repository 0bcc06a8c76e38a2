//! Where the outside and other hosts are.

use super::*;

#[test]
fn the_outside_is_where_default_routes_lead() {
    let of = |view: &NodeView, family: &str| view.index().default_device(ip(family));
    let device = |ifindex, mtu| Some(Ok(Device { ifindex, mtu }));
    let mut view = node();
    assert_eq!(of(&view, "0.0.0.0"), device(ETH0, 1500));
    assert_eq!(of(&view, "::"), device(ETH0, 1500));
    view.routes
        .push(route("::/0", Some("2001:db8::2"), ETH1, 10));
    assert_eq!(of(&view, "::"), device(ETH1, 9000), "a better one");
    view.links.get_mut(&ETH1).unwrap().up = false;
    assert_eq!(
        of(&view, "::"),
        device(ETH0, 1500),
        "the better one is down"
    );
    view.links.get_mut(&ETH0).unwrap().up = false;
    let problem = Some(Err(NoWay::Down("eth1".to_owned())));
    assert_eq!(of(&view, "::"), problem);
    view.routes.clear();
    assert_eq!(of(&view, "::"), None);
}

#[test]
fn other_hosts_are_towards_some_device() {
    let view = node();
    let rows = [
        ("192.0.2.77", Some((ETH0, 1500))),
        ("8.8.8.8", Some((ETH0, 1500))),
        ("203.0.113.200", Some((ETH0, 1500))),
        ("198.51.100.9", Some((ETH1, 9000))),
        ("10.8.0.1", Some((TUN, 1500))),
        ("10.9.0.1", None),
        ("10.0.0.6", None),
        ("192.0.2.10", None),
        ("127.0.0.1", None),
    ];
    for (host, expected) in rows {
        let found = view.index().device_towards(ip(host));
        let found = found.map(|device| (device.ifindex, device.mtu));
        assert_eq!(found, expected, "{host}");
    }
}

#[test]
fn a_devices_addresses_are_those_that_others_can_send_to() {
    let mut view = node();
    view.addresses.push((ETH0, "fe80::1/64".parse().unwrap()));
    view.addresses
        .push((ETH0, "169.254.7.7/16".parse().unwrap()));
    let of = |ifindex| view.index().addresses_of(ifindex).collect::<Vec<_>>();
    assert_eq!(of(ETH0), [ip("192.0.2.10"), ip("2001:db8::10")]);
    assert_eq!(of(LO), [] as [IpAddr; 0]);
}
