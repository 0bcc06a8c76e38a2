//! The cluster itself: what the tests of several nodes take for granted, proved with the kernel's own means.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Cluster, Host,
    client::{Frame, Wire, datagram_socket, unanswered, whoami},
    cluster::{
        BLUE, ClusterShape, ELSEWHERE, GATEWAY_NODE, INTERNAL, Node, OVERLAY_PORT, Outside,
        PARTNER, RED, ROUTER, TRANSIT,
    },
    ping::ping,
    server::ECHO_PORT,
    services::{
        BULK_PORT, Bulk, Callers, Crowd, Dns, KEEP_ALIVE_PORT, KeepAlive, NAMED_V4, NAMED_V6,
        lookup,
    },
    sniffer::Permit,
    topology::Destination,
};

fn permit(node: &Node, source: IpAddr, destination: IpAddr) -> Permit {
    Permit {
        node: node.name.to_owned(),
        source,
        destination: destination.into(),
        service: None,
    }
}

/// Translates what a node's pods send out to an egress address that the node has, with the kernel's own NAT.
fn translate_by_the_kernel(node: &Node) -> Result<()> {
    node.host.ip(&format!(
        "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n",
        RED.v4, RED.v6
    ))?;
    node.host.nft(&format!(
        "flush chain inet kube postrouting
         add rule inet kube postrouting oifname eth0 ip saddr 10.65.0.0/16 snat ip to {}
         add rule inet kube postrouting oifname eth0 ip6 saddr fd00:65::/32 snat ip6 to {}
         ",
        RED.v4, RED.v6
    ))
}

#[test]
fn pods_reach_everything_by_plain_routing() -> Result<()> {
    let cluster = Cluster::new()?;
    let _outside = Outside::start(&cluster)?;
    let sniffer = cluster.sniff(&[])?;
    let mut permits = Vec::new();
    for pod in &cluster.pods {
        let node = cluster.node(pod.node)?;
        for destination in [PARTNER, ELSEWHERE] {
            for address in destination.addresses() {
                let source = node.address_like(address);
                assert_eq!(whoami(&pod.host, address)?, source);
                permits.push(permit(node, source, address));
            }
        }
        for address in INTERNAL.addresses() {
            assert!(
                whoami(&pod.host, address).is_err(),
                "the firewall let {} in",
                pod.name
            );
            permits.push(permit(node, node.address_like(address), address));
        }
        for other in &cluster.pods {
            for address in [IpAddr::from(other.v4), IpAddr::from(other.v6)] {
                ping(&pod.host, address)
                    .with_context(|| format!("{} pinged {}", pod.name, other.name))?;
            }
        }
    }
    assert_eq!(cluster.firewall.counter("admitted")?.packets, 0);
    assert!(cluster.firewall.counter("refused")?.packets >= 8);
    sniffer.so_far()?.verify(&cluster.rules(&permits))
}

#[test]
fn an_egress_address_works_only_where_a_node_answers_for_it() -> Result<()> {
    let cluster = Cluster::build(&ClusterShape {
        pods: vec![("near", GATEWAY_NODE)],
        ..ClusterShape::default()
    })?;
    let _outside = Outside::start(&cluster)?;
    let gateway = cluster.node(GATEWAY_NODE)?;
    let near = cluster.pod("near")?;
    translate_by_the_kernel(gateway)?;
    for address in INTERNAL.addresses() {
        assert_eq!(whoami(&near.host, address)?, RED.like(address));
    }
    // A translation to an address that nobody announces: the replies find nobody.
    gateway.host.ip(&format!(
        "addr del {}/32 dev eth0\naddr del {}/128 dev eth0\n",
        RED.v4, RED.v6
    ))?;
    cluster
        .fabric
        .run(&["ip", "neigh", "flush", "dev", "br0"])?;
    for address in INTERNAL.addresses() {
        unanswered(&near.host, address)?;
    }
    Ok(())
}

#[test]
fn every_interface_has_a_strict_reverse_path_filter() -> Result<()> {
    let cluster = Cluster::new()?;
    for host in cluster.hosts() {
        host.expect_strict_reverse_paths()?;
    }
    Ok(())
}

#[test]
fn the_narrow_link_is_found_and_hops_are_seen() -> Result<()> {
    let cluster = Cluster::build(&ClusterShape {
        internet_mtu: 1300,
        ..ClusterShape::default()
    })?;
    let _bulk = Bulk::start(&cluster.internet)?;
    let plain = cluster.pod("plain")?;
    let digest = Bulk::digest(1)?;
    for address in ELSEWHERE.addresses() {
        assert_eq!(Bulk::upload(&plain.host, address, 1)?, digest);
        let route = plain
            .host
            .run(&["ip", "route", "get", &address.to_string()])?;
        ensure!(
            route.contains("mtu 1300"),
            "the pod learned no MTU: {route}"
        );
        let trace = plain.host.run(&[
            "traceroute",
            "-n",
            "-q",
            "1",
            "-w",
            "5",
            &address.to_string(),
        ])?;
        let node = cluster.node("worker-1")?.address_like(address).to_string();
        let like = |router: Destination| match address {
            IpAddr::V4(_) => router.v4.to_string(),
            IpAddr::V6(_) => router.v6.to_string(),
        };
        for hop in [node, like(ROUTER), like(TRANSIT), address.to_string()] {
            ensure!(trace.contains(&hop), "no {hop} in {trace}");
        }
    }
    Ok(())
}

#[test]
fn services_serve_and_clients_ask() -> Result<()> {
    let cluster = Cluster::new()?;
    let _outside = Outside::start(&cluster)?;
    let _keep_alive = KeepAlive::start(&cluster.internet)?;
    let _bulk = Bulk::start(&cluster.internet)?;
    let crowd = Crowd::start(&cluster.internet)?;
    let plain = &cluster.pod("plain")?.host;
    let node = cluster.node("worker-1")?;
    let digest = Bulk::digest(8)?;
    for (count, address) in ELSEWHERE.addresses().into_iter().enumerate() {
        let url = format!(
            "http://{}/",
            std::net::SocketAddr::new(address, KEEP_ALIVE_PORT)
        );
        let answer = plain.run(&[
            "curl",
            "-sg",
            "--noproxy",
            "*",
            "--max-time",
            "5",
            &url,
            &url,
        ])?;
        let lines: Vec<_> = answer.lines().collect();
        ensure!(lines.len() == 2 && lines[0] == lines[1], "{answer}");
        assert_eq!(
            Bulk::download(plain, address, 8)?,
            digest,
            "port {BULK_PORT}"
        );
        assert_eq!(Bulk::upload(plain, address, 8)?, digest);
        let dns = Dns::start(&cluster.internet, address)?;
        assert_eq!(
            lookup(plain, address, "service.example", &cluster.files())?,
            [IpAddr::from(NAMED_V4), IpAddr::from(NAMED_V6)]
        );
        ensure!(
            dns.callers()
                .iter()
                .all(|caller| caller.ip() == node.address_like(address)),
            "{:?}",
            dns.callers()
        );
        let callers = Callers::connect(plain, address, 100)?;
        let seen = crowd.wait_for(100 * (count + 1))?;
        ensure!(
            seen[100 * count..]
                .iter()
                .all(|from| from.ip() == node.address_like(address))
        );
        callers.say()?;
        crowd.answer(100 * count)?;
        callers.hear()?;
    }
    Ok(())
}

/// What the sniffer is for: each of these leaks must be found, and be the only thing that is found.
#[test]
fn the_sniffer_finds_each_leak() -> Result<()> {
    let cluster = Cluster::new()?;
    let (web, worker) = (cluster.pod("web")?, cluster.node("worker-1")?);
    let gateway = cluster.node(GATEWAY_NODE)?;
    let permits: Vec<_> = ELSEWHERE
        .addresses()
        .into_iter()
        .map(|address| permit(gateway, RED.like(address), address))
        .collect();
    let rules = cluster.rules(&permits);
    let found = |what: &str, leak: &dyn Fn() -> Result<()>, words: &[&str]| -> Result<()> {
        let sniffer = cluster.sniff(&[])?;
        sniffer.so_far()?.verify(&rules)?;
        leak()?;
        let refusal = sniffer
            .so_far()?
            .verify(&rules)
            .err()
            .with_context(|| format!("{what} was not found"))?
            .to_string();
        for word in words {
            ensure!(refusal.contains(word), "{what}: no {word:?} in {refusal}");
        }
        ensure!(refusal.lines().count() == 2, "{what}: {refusal}");
        Ok(())
    };
    let say = |host: &Host, from: Option<IpAddr>, to: IpAddr| -> Result<()> {
        host.enter(|| {
            let any = |like| match like {
                IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            };
            let socket = std::net::UdpSocket::bind((from.unwrap_or(any(to)), 0))?;
            socket.send_to(b"leak", (to, ECHO_PORT))?;
            Ok(())
        })?;
        // What comes behind it on the same way has arrived: so has the leak.
        ping(&web.host, ROUTER.v4.into())
    };
    for address in ELSEWHERE.addresses() {
        found(
            "a node's address",
            &|| say(&web.host, None, address),
            &["worker-1 sent", &worker.address_like(address).to_string()],
        )?;
    }
    // Without the node's masquerade, a pod's own address.
    worker.host.nft("flush chain inet kube postrouting\n")?;
    for address in ELSEWHERE.addresses() {
        found(
            "a pod's address",
            &|| say(&web.host, None, address),
            &["worker-1 sent", &web.address_like(address).to_string()],
        )?;
    }
    for (node, egress) in [(worker, RED), (gateway, BLUE)] {
        node.host.ip(&format!(
            "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n",
            egress.v4, egress.v6
        ))?;
        for address in ELSEWHERE.addresses() {
            let source = egress.like(address);
            found(
                "an egress address of another gateway or node",
                &|| say(&node.host, Some(source), address),
                &[node.name, &source.to_string()],
            )?;
        }
    }
    found(
        "a frame of the overlay with nonsense inside",
        &|| {
            let to = std::net::SocketAddr::new(gateway.v4.into(), OVERLAY_PORT);
            datagram_socket(&worker.host, to)?.send(&[8; 40])?;
            Ok(())
        },
        &["worker-1 sent", "not ours"],
    )?;
    // What is sent past every rule and route of the node, as a redirect is.
    let uplink = Wire::open(&worker.host, "eth0")?;
    for address in ELSEWHERE.addresses() {
        let frame = Frame {
            from: worker.host.mac("eth0")?,
            to: cluster.fabric.mac("br0")?,
            source: web.address_like(address),
            destination: address,
            ttl: 63,
        };
        found(
            "a packet that was redirected",
            &|| uplink.send(&frame.bytes()?),
            &["worker-1 sent", &web.address_like(address).to_string()],
        )?;
    }
    Ok(())
}

#[test]
fn a_cluster_leaves_nothing_behind() -> Result<()> {
    let cluster = Cluster::new()?;
    let sniffer = cluster.sniff(&[])?;
    drop(cluster);
    drop(sniffer);
    assert_eq!(
        egress_tests::workspace::remains(std::process::id()),
        Vec::<String>::new()
    );
    Ok(())
}
