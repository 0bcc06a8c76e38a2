//! What it costs to ask the kernel's routes before a packet leaves by an uplink.

use egress_tests::packets::{
    Input,
    nat::{ALPHA, Node, V4, V6, datagram, with_node},
};

pub(crate) fn measure() {
    for p in [&V4, &V6] {
        with_node(|node| {
            let packet = datagram((p.pod, 40_000), (p.remote, 53), 64).ttl(255);
            let packet = Input::from_pod(&packet.bytes);
            node.own_at(&ALPHA, p.pod, 30, (1024, 65_535), 0);
            let median = |node: &mut Node<'_>| {
                let mut times: Vec<_> = (0..400).map(|_| node.measure(&packet, 200)).collect();
                times.sort_unstable();
                times[200]
            };
            // An uplink that does not forward is asked no routes.
            let without = median(node);
            node.forward();
            node.ip("route add 203.0.113.0/24 via 198.51.100.1 dev uplink onlink");
            node.ip("route add 2001:db8:a::/48 via 2001:db8:b::1 dev uplink onlink");
            let with = median(node);
            println!("{}: {without:?} a packet, {with:?} with a route", p.name);
        });
    }
}
