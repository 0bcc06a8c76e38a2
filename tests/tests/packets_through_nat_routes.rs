//! What the kernel's routes say of a packet that is to leave by an uplink.

use std::time::{Duration, Instant};

use egress_common::DropReason::NoRoute;
use egress_tests::packets::{
    Action, Input,
    nat::{
        Fate::{Dropped, Out},
        V6, datagram, forwarded, in_both,
    },
};

/// A way, what is said to `ip` to have it, and whether a packet takes it.
const WAYS: &[(&str, [&str; 2], bool)] = &[
    ("no route at all", ["", ""], false),
    (
        "by another device",
        ["203.0.113.0/24 dev pod", "2001:db8:a::/48 dev pod"],
        false,
    ),
    (
        "a hole",
        ["blackhole 203.0.113.0/24", "blackhole 2001:db8:a::/48"],
        false,
    ),
    (
        "out of reach",
        ["unreachable 203.0.113.0/24", "unreachable 2001:db8:a::/48"],
        false,
    ),
    (
        "forbidden",
        ["prohibit 203.0.113.0/24", "prohibit 2001:db8:a::/48"],
        false,
    ),
    (
        "the node's own",
        [
            "local 203.0.113.0/24 dev uplink",
            "local 2001:db8:a::/48 dev uplink",
        ],
        false,
    ),
    (
        "on the link",
        ["203.0.113.0/24 dev uplink", "2001:db8:a::/48 dev uplink"],
        true,
    ),
    (
        "through a router",
        [
            "203.0.113.0/24 via 198.51.100.1 dev uplink onlink",
            "2001:db8:a::/48 via 2001:db8:b::1 dev uplink onlink",
        ],
        true,
    ),
    (
        "through a router of the other family",
        ["203.0.113.0/24 via inet6 fe80::1 dev uplink", ""],
        true,
    ),
];

#[test]
fn routes_decide() {
    in_both(|node, p| {
        node.forward();
        node.ip("link set pod up");
        node.ip("link set other up");
        let packet = datagram((p.pod, 40_000), (p.remote, 53), 20);
        for (what, routes, leads) in WAYS {
            let route = routes[usize::from(p.name == V6.name)];
            if !route.is_empty() {
                node.ip(&format!("route add {route}"));
            } else if *leads {
                continue;
            }
            if *leads {
                let sent = datagram((p.alpha, 40_000), (p.remote, 53), 20);
                node.out(what, &packet, Out(forwarded(&sent)));
                assert_eq!(node.states().len(), 1, "{what}");
                node.reset();
            } else {
                node.out(what, &packet, Dropped(NoRoute));
                // Nothing is kept for what goes nowhere.
                assert_eq!(node.states().len(), 0, "{what}");
            }
            if !route.is_empty() {
                node.ip(&format!("route del {route}"));
            }
        }
    });
}

/// A connection's packets may be what the one before became, but for no longer than a second.
#[test]
fn connections_follow_their_routes() {
    in_both(|node, p| {
        node.forward();
        let route = if p.name == V6.name {
            "2001:db8:a::/48"
        } else {
            "203.0.113.0/24"
        };
        node.ip(&format!("route add {route} dev uplink"));
        let packet = datagram((p.pod, 40_000), (p.remote, 53), 20);
        let sent = forwarded(&datagram((p.alpha, 40_000), (p.remote, 53), 20));
        for _ in 0..3 {
            node.out("it has a route", &packet, Out(sent.clone()));
        }
        node.ip(&format!("route replace blackhole {route}"));
        let left = Instant::now();
        loop {
            let (seen, _) = node.run_quietly("its route is gone", &Input::from_pod(&packet.bytes));
            if seen.action == Action::Drop {
                break;
            }
            assert_eq!(seen.frame, sent.bytes);
            assert!(
                left.elapsed() < Duration::from_secs(3),
                "it goes on without a route"
            );
        }
        node.out("its route is gone", &packet, Dropped(NoRoute));
        node.ip(&format!("route replace {route} dev uplink"));
        node.out("it has a route again", &packet, Out(sent));
    });
}
