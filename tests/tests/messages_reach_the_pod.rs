//! Echo replies, and what routers complain about, reach the pod that they concern, in both families.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    ClusterStage,
    client::datagram_socket,
    cluster::{BLUE, ClusterShape, ELSEWHERE, INTERNAL, PARTNER, RED, ROUTER, TRANSIT, Underlay},
    ping::{Pinger, ping},
    services::{Bulk, DATAGRAM_PORT, EchoDatagrams},
    topology::Destination,
    wait,
};

fn like(destination: Destination, other: IpAddr) -> IpAddr {
    match other {
        IpAddr::V4(_) => destination.v4.into(),
        IpAddr::V6(_) => destination.v6.into(),
    }
}

#[test]
fn pods_may_ping() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        stage.permit(RED, &[INTERNAL]);
        for address in ELSEWHERE.addresses() {
            // Two pods and two identifiers that may well be the same, and one pod with two sockets.
            let pingers =
                ["web", "web", "batch"].map(|pod| Pinger::open(stage.host(pod)?, address));
            for (number, pinger) in pingers.into_iter().enumerate() {
                let pinger = pinger?;
                for size in [0, 56, 1000] {
                    pinger.ping(u16::try_from(number)?, size, wait::PATIENCE)?;
                }
            }
        }
        for address in INTERNAL.addresses() {
            ping(stage.host("web")?, address)?;
            ping(stage.host("app")?, address)?;
        }
        Ok(())
    })
}

#[test]
fn traceroute_shows_every_hop() -> Result<()> {
    traceroute(Underlay::Dual)
}

#[test]
fn traceroute_shows_every_hop_over_ipv6() -> Result<()> {
    traceroute(Underlay::V6)
}

fn traceroute(underlay: Underlay) -> Result<()> {
    let shape = ClusterShape {
        underlay,
        ..ClusterShape::default()
    };
    ClusterStage::of(&shape)?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let (worker, gateway) = (stage.node("worker-1")?, stage.node("gw-1")?);
        for address in ELSEWHERE.addresses() {
            // A node without an IPv4 address speaks as the destination itself.
            let first = match underlay {
                Underlay::V6 if address.is_ipv4() => None,
                Underlay::Dual | Underlay::V6 => Some(worker.address_like(address)),
            };
            let second = match underlay {
                Underlay::V6 if address.is_ipv4() => None,
                Underlay::Dual | Underlay::V6 => Some(gateway.address_like(address)),
            };
            let hops = [
                first,
                second,
                Some(like(ROUTER, address)),
                Some(like(TRANSIT, address)),
                Some(address),
            ];
            for method in ["--udp", "--icmp", "--tcp"] {
                if method == "--icmp" && first.is_none() {
                    // It would take the first hop for the destination's answer.
                    continue;
                }
                let output = stage.host("web")?.run(&[
                    "traceroute",
                    "-n",
                    "-q",
                    "1",
                    "-w",
                    "5",
                    "-m",
                    "8",
                    method,
                    &address.to_string(),
                ])?;
                let seen: Vec<&str> = output
                    .lines()
                    .skip(1)
                    .filter_map(|line| line.split_whitespace().nth(1))
                    .collect();
                ensure!(seen.len() == hops.len(), "{method}: {output}");
                for (seen, hop) in seen.iter().zip(hops) {
                    let fine = hop.is_none_or(|hop| hop.to_string() == *seen);
                    ensure!(fine, "{method}: {hop:?} is not in its place: {output}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_refused_port_is_told() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        for pod in ["web", "batch"] {
            for address in ELSEWHERE.addresses() {
                let socket = datagram_socket(stage.host(pod)?, SocketAddr::new(address, 4321))?;
                socket.set_read_timeout(Some(wait::PATIENCE))?;
                socket.send(b"anybody?")?;
                let refusal = socket.recv(&mut [0; 16]).err().context("an answer")?;
                assert_eq!(refusal.kind(), std::io::ErrorKind::ConnectionRefused);
            }
        }
        stage.expect_no_drops()
    })
}

/// The link behind the gateway takes 1300 bytes: TCP in both directions and datagrams find that out.
#[test]
fn a_narrow_link_behind_the_gateway_is_found() -> Result<()> {
    let shape = ClusterShape {
        internet_mtu: 1300,
        ..ClusterShape::default()
    };
    ClusterStage::of(&shape)?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let _bulk = Bulk::start(&stage.cluster.internet)?;
        let digest = Bulk::digest(4)?;
        for address in ELSEWHERE.addresses() {
            let web = stage.host("web")?;
            assert_eq!(Bulk::upload(web, address, 4)?, digest);
            expect_mtu(stage, "web", address, 1300)?;
            assert_eq!(Bulk::download(web, address, 4)?, digest);
            // Another pod, which has learned nothing yet.
            datagrams_arrive(stage, "batch", address, 1400)?;
            expect_mtu(stage, "batch", address, 1300)?;
        }
        Ok(())
    })
}

/// The overlay takes less than a pod's interface does.
#[test]
fn the_overlays_own_mtu_is_found() -> Result<()> {
    overlay_mtu(Underlay::Dual, 1450)
}

#[test]
fn the_overlays_own_mtu_is_found_over_ipv6() -> Result<()> {
    overlay_mtu(Underlay::V6, 1430)
}

fn overlay_mtu(underlay: Underlay, mtu: u16) -> Result<()> {
    let shape = ClusterShape {
        underlay,
        ..ClusterShape::default()
    };
    ClusterStage::of(&shape)?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let _bulk = Bulk::start(&stage.cluster.internet)?;
        let digest = Bulk::digest(4)?;
        for address in ELSEWHERE.addresses() {
            datagrams_arrive(stage, "web", address, 1452)?;
            expect_mtu(stage, "web", address, mtu)?;
            let batch = stage.host("batch")?;
            assert_eq!(Bulk::upload(batch, address, 4)?, digest);
            assert_eq!(Bulk::download(batch, address, 4)?, digest);
        }
        Ok(())
    })
}

/// Pods' interfaces take less than the overlay and the internet do: the far end learns that, in the name of the
/// egress address that it talks to.
#[test]
fn the_mtu_of_pods_is_found_from_outside() -> Result<()> {
    const MTU: u16 = 1400;
    let shape = ClusterShape {
        pod_mtu: MTU,
        pods: vec![("web", "worker-1"), ("batch", "gw-1")],
        ..ClusterShape::default()
    };
    for pod in ["web", "batch"] {
        ClusterStage::of(&shape)?.play(|stage| {
            stage.permit(BLUE, &[ELSEWHERE]);
            for address in ELSEWHERE.addresses() {
                let headers = if address.is_ipv4() { 28 } else { 48 };
                // What a frame of the overlay carries, so that nobody says anything before the pod's node does.
                datagrams_arrive(stage, pod, address, 1430 - headers)?;
                let egress = BLUE.like(address).to_string();
                let route = stage
                    .cluster
                    .internet
                    .run(&["ip", "route", "get", &egress])?;
                ensure!(route.contains(&format!("mtu {MTU}")), "{pod}: {route}");
                let node = if pod == "web" { "worker-1" } else { "gw-1" };
                ensure!(stage.metrics(node)?.dropped_anywhere("TooBig") > 0, "{pod}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Sends datagrams of one size until one has come back whole: the first may be what tells that they are too large.
fn datagrams_arrive(stage: &ClusterStage, pod: &str, to: IpAddr, size: usize) -> Result<()> {
    let _echo = EchoDatagrams::start(&stage.cluster.internet, to)?;
    let socket = datagram_socket(stage.host(pod)?, SocketAddr::new(to, DATAGRAM_PORT))?;
    socket.set_read_timeout(Some(std::time::Duration::from_millis(200)))?;
    let sent: Vec<u8> = (0..size).map(|at| at.to_le_bytes()[0]).collect();
    let mut received = vec![0; size + 1];
    wait::until("a large datagram comes back", || {
        // What is too large is an error of the next call on the socket.
        drop(socket.send(&sent));
        let length = socket.recv(&mut received)?;
        ensure!(received[..length] == sent, "it came back changed");
        Ok(())
    })
}

fn expect_mtu(stage: &ClusterStage, pod: &str, to: IpAddr, mtu: u16) -> Result<()> {
    let route = stage
        .host(pod)?
        .run(&["ip", "route", "get", &to.to_string()])?;
    ensure!(
        route.contains(&format!("mtu {mtu}")),
        "{pod} has not learned the MTU {mtu}: {route}"
    );
    Ok(())
}

/// Pods whose MTU leaves room for the overlay, as pods of every overlay have it. The way to the internet is as
/// narrow: it is there that the internet's packets for them become fragments, or that it learns to make them.
fn with_room() -> ClusterShape {
    ClusterShape {
        pod_mtu: 1430,
        internet_mtu: 1430,
        ..ClusterShape::default()
    }
}

#[test]
fn large_datagrams_go_in_fragments() -> Result<()> {
    ClusterStage::of(&with_room())?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        for address in ELSEWHERE.addresses() {
            for size in [3000, 20_000] {
                datagrams_arrive(stage, "web", address, size)?;
            }
        }
        Ok(())
    })
}

#[test]
fn large_pings_go_in_fragments() -> Result<()> {
    ClusterStage::of(&with_room())?.play(|stage| {
        stage.permit(BLUE, &[PARTNER]);
        for address in PARTNER.addresses() {
            let pinger = Pinger::open(stage.host("web")?, address)?;
            wait::until("a large ping is answered", || {
                pinger.ping(7, 4000, std::time::Duration::from_secs(1))
            })?;
        }
        Ok(())
    })
}

/// What may be fragmented on its way is not told that it should be smaller (RFC 1191, 4): it counts as dropped.
#[test]
fn fragments_without_room_are_counted() -> Result<()> {
    const FRAGMENTS: u64 = 2;
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let to = SocketAddr::new(ELSEWHERE.v4.into(), DATAGRAM_PORT);
        let socket = datagram_socket(stage.host("web")?, to)?;
        // Two of 1500 bytes, and the rest of 48, which is for nobody without the first.
        socket.send(&[0; 2 * 1480 + 20])?;
        stage.wait_for_drops("worker-1", "TooBig", FRAGMENTS)?;
        let metrics = stage.metrics("worker-1")?;
        assert_eq!(metrics.dropped_anywhere("TooBig"), FRAGMENTS, "{metrics}");
        assert_eq!(
            metrics.sum("egress_answers_sent_total", &[]),
            0,
            "{metrics}"
        );
        Ok(())
    })
}
