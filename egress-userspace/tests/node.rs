//! The node's network as the kernel tells it, in network namespaces that live as long as their threads.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says where"
)]

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    sync::mpsc,
    thread,
    time::Duration,
};

use egress_userspace::node::{self, InterfaceProblem, Netlink, NoWay, NodeView, Watch};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, RouteNextHopBuilder,
    packet_route::{
        neighbour::NeighbourState,
        route::{RouteAttribute, RouteMetric, RouteType},
    },
};
use tokio::time::timeout;

/// Runs `body` in a network namespace of its own, with loopback up.
fn in_namespace<F: Future<Output = ()>>(body: impl FnOnce(Net) -> F + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "needs root: run with sudo"
    );
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        block_on(async move {
            let net = Net::connect();
            net.up("lo").await;
            body(net).await;
        });
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Changes to the namespace of the thread that made it.
struct Net(Handle);

impl Net {
    fn connect() -> Self {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        Self(handle)
    }

    async fn veth(&self, name: &str, peer: &str) {
        let message = LinkVeth::new(name, peer).build();
        self.0.link().add(message).execute().await.unwrap();
    }

    async fn bridge(&self, name: &str) {
        let message = LinkBridge::new(name).build();
        self.0.link().add(message).execute().await.unwrap();
    }

    async fn set(&self, message: rtnetlink::LinkMessageBuilder<LinkUnspec>) {
        self.0.link().set(message.build()).execute().await.unwrap();
    }

    async fn up(&self, name: &str) {
        self.set(LinkUnspec::new_with_name(name).up()).await;
    }

    async fn address(&self, name: &str, net: &str) {
        let net: IpNet = net.parse().unwrap();
        self.0
            .address()
            .add(self.index(name).await, net.addr(), net.prefix_len())
            .execute()
            .await
            .unwrap();
    }

    async fn route(&self, destination: &str, change: impl FnOnce(&mut Vec<RouteAttribute>)) {
        let net: IpNet = destination.parse().unwrap();
        let mut message = match net {
            IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .build(),
            IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .build(),
        };
        change(&mut message.attributes);
        self.0.route().add(message).execute().await.unwrap();
    }

    async fn index(&self, name: &str) -> u32 {
        let view = Netlink::connect().unwrap().read().await.unwrap();
        index(&view, name)
    }
}

fn index(view: &NodeView, name: &str) -> u32 {
    *view
        .links
        .iter()
        .find(|(_, link)| link.name == name)
        .unwrap_or_else(|| panic!("no link {name} in {view:#?}"))
        .0
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn until(views: &mut Watch, what: &str, mut condition: impl FnMut(&NodeView) -> bool) {
    timeout(Duration::from_secs(10), async {
        while !condition(&views.view()) {
            views.changed().await.unwrap();
        }
    })
    .await
    .unwrap_or_else(|_| panic!("never seen: {what}"));
}

#[test]
fn a_reading_tells_links_addresses_and_routes() {
    in_namespace(|net| async move {
        net.veth("up0", "up1").await;
        net.veth("pod0", "pod1").await;
        for name in ["up0", "up1", "pod0"] {
            net.up(name).await;
        }
        net.set(LinkUnspec::new_with_name("up0").mtu(1400)).await;
        net.address("up0", "192.0.2.10/24").await;
        net.address("up0", "2001:db8::10/64").await;
        let (up, pod) = (net.index("up0").await, net.index("pod0").await);
        net.route("10.0.0.2/32", |a| {
            a.push(RouteAttribute::Oif(pod));
            a.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(1300)]));
        })
        .await;
        net.route("0.0.0.0/0", |a| {
            a.push(RouteAttribute::Gateway(ip("192.0.2.1").into()));
        })
        .await;
        net.route("198.51.100.0/24", |a| {
            let hop = |last| {
                RouteNextHopBuilder::new_ipv4()
                    .via(IpAddr::from([192, 0, 2, last]))
                    .unwrap()
                    .build()
            };
            a.push(RouteAttribute::MultiPath(vec![hop(2), hop(3)]));
        })
        .await;
        net.route("203.0.113.0/24", |a| {
            a.push(RouteAttribute::Oif(up));
            a.push(RouteAttribute::Table(100));
        })
        .await;
        let mut unreachable = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 9, 0, 0), 16)
            .build();
        unreachable.header.kind = RouteType::Unreachable;
        net.0.route().add(unreachable).execute().await.unwrap();

        let view = Netlink::connect().unwrap().read().await.unwrap();
        let link = &view.links[&up];
        assert!(
            link.up && link.ethernet && !link.bridge && !link.loopback,
            "{link:?}"
        );
        assert_eq!((link.mtu, link.master), (1400, None));
        assert!(!view.links[&pod].up, "its peer is down");
        assert!(view.links[&index(&view, "lo")].loopback);
        for own in ["192.0.2.10/24", "2001:db8::10/64"] {
            assert!(
                view.addresses.contains(&(up, own.parse().unwrap())),
                "{view:#?}"
            );
        }
        assert!(view.is_own_address(ip("192.0.2.10")) && !view.is_own_address(ip("192.0.2.1")));

        let v4: Vec<_> = view
            .routes
            .iter()
            .filter(|r| r.destination.addr().is_ipv4())
            .map(|r| (r.destination.to_string(), r.gateway, r.ifindex, r.mtu))
            .collect();
        let expected = [
            ("0.0.0.0/0", Some(ip("192.0.2.1")), up, None),
            ("10.0.0.2/32", None, pod, Some(1300)),
            ("192.0.2.0/24", None, up, None),
            ("198.51.100.0/24", Some(ip("192.0.2.2")), up, None),
            ("198.51.100.0/24", Some(ip("192.0.2.3")), up, None),
        ]
        .map(|(net, gateway, ifindex, mtu)| (net.to_owned(), gateway, ifindex, mtu));
        assert_eq!(v4, expected);

        assert_eq!(view.pod_interface(&[ip("10.0.0.2")], None), Ok(pod));
        let way = view.way_to(ip("192.0.2.1"), None).unwrap();
        assert_eq!((way.ifindex, way.mtu), (up, 1400));
        assert_eq!(
            view.way_to(ip("203.0.113.1"), None),
            Err(NoWay::Routed {
                next_hop: ip("203.0.113.1"),
                router: ip("192.0.2.1"),
            })
        );
        // IPv6 link-local addresses come in their own time; the rest reads the same again.
        let again = Netlink::connect().unwrap().read().await.unwrap();
        assert_eq!(
            (view.links, view.neighbours),
            (again.links, again.neighbours)
        );
    });
}

#[test]
fn changes_wake_and_flapping_does_not() {
    in_namespace(|net| async move {
        let mut views = node::watch().await.unwrap();
        net.bridge("br0").await;
        until(&mut views, "a new link", |v| {
            v.links.values().any(|l| l.name == "br0")
        })
        .await;
        net.veth("port0", "pod0").await;
        let bridge = net.index("br0").await;
        net.set(LinkUnspec::new_with_name("port0").controller(bridge))
            .await;
        for name in ["br0", "port0", "pod0"] {
            net.up(name).await;
        }
        until(&mut views, "a bridge port with carrier", |v| {
            v.links.values().any(|l| l.up && l.master == Some(bridge))
        })
        .await;
        net.address("br0", "10.1.0.1/24").await;
        until(&mut views, "an address", |v| {
            v.is_own_address(ip("10.1.0.1"))
        })
        .await;
        net.route("10.2.0.0/16", |a| a.push(RouteAttribute::Oif(bridge)))
            .await;
        let has =
            |v: &NodeView, net: &str| v.routes.iter().any(|r| r.destination.to_string() == net);
        until(&mut views, "a route", |v| has(v, "10.2.0.0/16")).await;

        let neighbour = async |state| {
            net.0
                .neighbours()
                .add(bridge, ip("10.1.0.2"))
                .link_layer_address(&[2, 0, 0, 0, 0, 2])
                .state(state)
                .replace()
                .execute()
                .await
                .unwrap();
        };
        neighbour(NeighbourState::Reachable).await;
        until(&mut views, "a neighbour", |v| !v.neighbours.is_empty()).await;
        // IPv6 link-local addresses, multicast routes and the like settle in their own time.
        while timeout(Duration::from_secs(3), views.changed())
            .await
            .is_ok()
        {}
        for _ in 0..10 {
            neighbour(NeighbourState::Stale).await;
            neighbour(NeighbourState::Reachable).await;
        }
        let woken = timeout(Duration::from_millis(500), views.changed()).await;
        assert!(
            woken.is_err(),
            "woken by a neighbour that is the same as before"
        );
        net.route("10.3.0.0/16", |a| a.push(RouteAttribute::Oif(bridge)))
            .await;
        timeout(Duration::from_secs(10), views.changed())
            .await
            .expect("woken by a route")
            .unwrap();
        assert!(has(&views.view(), "10.3.0.0/16"));
    });
}

/// A device that was opened and closed again between two readings, as if nothing had been.
#[test]
fn what_was_undone_before_it_was_read_is_told_to_who_asks() {
    in_namespace(|net| async move {
        let mut views = node::watch().await.unwrap();
        net.veth("eth0", "eth1").await;
        until(&mut views, "a new link", |v| {
            v.links.values().any(|l| l.name == "eth0")
        })
        .await;
        // What else comes with a link comes in its own time.
        while timeout(Duration::from_secs(1), views.changed())
            .await
            .is_ok()
        {}
        let before = views.view();
        views.read_again();
        timeout(Duration::from_secs(10), views.changed())
            .await
            .expect("the reading that was asked for")
            .unwrap();
        assert_eq!(views.view(), before);
        // Once for each time it is asked.
        let again = timeout(Duration::from_millis(500), views.changed()).await;
        assert!(again.is_err(), "told without being asked");
    });
}

#[test]
fn more_changes_than_the_socket_holds_are_still_changes() {
    const ROUTES: u32 = 3000;
    in_namespace(|net| async move {
        let mut views = node::watch().await.unwrap();
        let lo = net.index("lo").await;
        // While this thread waits nobody reads the socket: it overflows, and the last changes are lost.
        thread::spawn(move || {
            block_on(async {
                let net = Net::connect();
                for n in 0..ROUTES {
                    let destination = format!("{}/32", Ipv4Addr::from(0x0a00_0000 + n));
                    net.route(&destination, |a| a.push(RouteAttribute::Oif(lo)))
                        .await;
                }
            });
        })
        .join()
        .unwrap();
        until(&mut views, "every route", |v| {
            v.routes
                .iter()
                .filter(|r| r.ifindex == lo && r.destination.addr().is_ipv4())
                .count()
                == ROUTES as usize
        })
        .await;
    });
}

#[test]
fn a_silent_pod_behind_a_bridge_is_found_by_asking() {
    in_namespace(|net| async move {
        net.bridge("br0").await;
        net.veth("port0", "eth0").await;
        let bridge = net.index("br0").await;
        net.set(LinkUnspec::new_with_name("port0").controller(bridge))
            .await;
        net.up("br0").await;
        net.up("port0").await;
        net.address("br0", "10.1.0.1/24").await;

        // The pod: a namespace that lives until `stop` is dropped.
        let (stop, stopped) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let (ready, configured) = mpsc::channel();
        let (moved, arrived) = mpsc::channel::<()>();
        let pod = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(File::open("/proc/thread-self/ns/net").unwrap())
                .unwrap();
            arrived.recv().unwrap();
            block_on(async {
                let net = Net::connect();
                net.address("eth0", "10.1.0.2/24").await;
                net.up("eth0").await;
            });
            ready.send(()).unwrap();
            stopped.recv().unwrap_err();
        });
        let namespace = told.recv().unwrap();
        net.set(LinkUnspec::new_with_name("eth0").setns_by_fd(namespace.as_raw_fd()))
            .await;
        moved.send(()).unwrap();
        configured.recv().unwrap();

        let mut views = node::watch().await.unwrap();
        let port = net.index("port0").await;
        until(&mut views, "carrier", |v| {
            v.links[&port].up && v.links[&bridge].up
        })
        .await;
        let problem = views
            .view()
            .pod_interface(&[ip("10.1.0.2")], None)
            .unwrap_err();
        assert!(
            matches!(problem, InterfaceProblem::NeighbourUnknown { .. }),
            "{problem}"
        );
        let (ifindex, address) = problem.to_solicit().unwrap();
        assert_eq!((ifindex, address), (bridge, ip("10.1.0.2")));
        Netlink::connect()
            .unwrap()
            .solicit(ifindex, address)
            .await
            .unwrap();
        until(&mut views, "the bridge port of the pod", |v| {
            v.pod_interface(&[address], None) == Ok(port)
        })
        .await;

        drop(stop);
        pod.join().unwrap();
    });
}
