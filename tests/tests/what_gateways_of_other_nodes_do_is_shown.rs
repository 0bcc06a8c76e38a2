//! What a gateway's node does for pods of other nodes is in its metrics, in `egress dump nat` and in `egress explain`,
//! as the far end and the pods' node have it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    ClusterStage,
    client::datagram_socket,
    cluster::{BLUE, ClusterShape, ELSEWHERE, GATEWAY_NODE, INTERNAL, RED},
    ping::ping,
    services::{CROWD_PORT, Callers, Crowd, DATAGRAM_PORT, EchoDatagrams},
    wait,
};
use nix::{libc, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use serde_json::Value;

const CALLS: usize = 5;
/// Ports of an egress address that no flag narrows.
const PORTS: f64 = 64_512.0;

sockopt_impl!(
    /// `IP_MTU_DISCOVER` (`linux/in.h`).
    MtuDiscover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);
sockopt_impl!(
    /// `IPV6_MTU_DISCOVER` (`linux/in6.h`).
    MtuDiscover6,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int
);

/// A pod on another node than the gateways, and one beside them.
fn stage() -> Result<ClusterStage> {
    ClusterStage::of(&ClusterShape {
        pods: vec![("web", "worker-1"), ("near", GATEWAY_NODE)],
        ..ClusterShape::default()
    })
}

fn dump(stage: &ClusterStage, choice: &[&str]) -> Result<Vec<Value>> {
    let words = [&["dump", "nat", "--output", "json"], choice].concat();
    let mut dump: Value = serde_json::from_str(&stage.command(GATEWAY_NODE, &words)?)?;
    let rows = dump["connections"].as_array_mut().context("no list")?;
    Ok(std::mem::take(rows))
}

#[test]
fn connections_in_metrics_and_dumps() -> Result<()> {
    stage()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let crowd = Crowd::start(&stage.cluster.internet)?;
        let mut open = Vec::new();
        for (round, address) in ELSEWHERE.addresses().into_iter().enumerate() {
            let _echo = EchoDatagrams::start(&stage.cluster.internet, address)?;
            for (number, pod) in ["web", "near"].into_iter().enumerate() {
                let callers = Callers::connect(stage.host(pod)?, address, CALLS)?;
                let before = CALLS * (2 * round + number);
                crowd.wait_for(before + CALLS)?;
                callers.say()?;
                crowd.answer(before)?;
                callers.hear()?;
                open.push(callers);
                let socket =
                    datagram_socket(stage.host(pod)?, SocketAddr::new(address, DATAGRAM_PORT))?;
                socket.set_read_timeout(Some(wait::PATIENCE))?;
                socket.send(b"hello")?;
                socket.recv(&mut [0; 8])?;
                ping(stage.host(pod)?, address)?;
            }
        }
        let calls = u64::try_from(4 * CALLS)?;
        let metrics = stage.agent(GATEWAY_NODE)?.wait_for_metrics(
            "every connection is counted",
            |metrics| {
                for (protocol, count) in [("tcp", calls), ("udp", 4), ("icmp", 2), ("icmpv6", 2)] {
                    let labels = [("gateway", "blue"), ("protocol", protocol)];
                    let found = metrics.sum("egress_nat_connections", &labels);
                    ensure!(found == count, "{found} of {protocol}, not {count}");
                }
                Ok(())
            },
        )?;
        assert_eq!(
            metrics.sum("egress_nat_connections", &[("gateway", "red")]),
            0
        );
        assert_eq!(metrics.sum("egress_nat_capacity", &[]), 262_144);
        for address in ELSEWHERE.addresses() {
            let remote = format!("{}/tcp", SocketAddr::new(address, CROWD_PORT));
            let egress = BLUE.like(address).to_string();
            let labels = [("egress_address", egress.as_str()), ("remote", &remote)];
            let mut usage = metrics.matching("egress_nat_port_usage_ratio", &labels);
            let usage = usage.next().context("no usage")?.value;
            let expected = 2.0 * 5.0 / PORTS;
            ensure!((usage - expected).abs() < 1e-9, "{usage}, not {expected}");
        }

        for address in ELSEWHERE.addresses() {
            for (pod, node) in [("web", "worker-1"), ("near", GATEWAY_NODE)] {
                let own = stage.pod(pod)?.address_like(address);
                let (pod_text, remote) = (own.to_string(), address.to_string());
                let of = |more: &[&str]| {
                    let choice = ["--pod", &pod_text, "--remote", &remote];
                    dump(stage, &[&choice, more].concat())
                };
                let all = of(&[])?;
                assert_eq!(all.len(), CALLS + 2, "{all:?}");
                assert_eq!(of(&["--gateway", "default/red"])?.len(), 0);
                assert_eq!(of(&["--gateway", "default/blue"])?.len(), CALLS + 2);
                let tcp = of(&["--protocol", "tcp"])?;
                assert_eq!(tcp.len(), CALLS);
                let addresses = stage.node(node)?;
                for row in tcp {
                    let from: IpAddr = row["egress_address"]
                        .as_str()
                        .context("no address")?
                        .parse()?;
                    assert_eq!(from, BLUE.like(address));
                    assert_eq!(row["state"], "tcp-established", "{row}");
                    assert_eq!(row["remote_port"], CROWD_PORT);
                    let origin = row["node"].as_str().context("no node")?;
                    let expected = [addresses.v4.to_string(), addresses.v6.to_string()];
                    ensure!(
                        if node == GATEWAY_NODE {
                            origin == "here"
                        } else {
                            expected.contains(&origin.to_owned())
                        },
                        "{row}"
                    );
                }
            }
        }
        stage.expect_no_drops()
    })
}

/// What one node sends to a gateway of another is what that one sends out, packet by packet and byte by byte.
#[test]
fn both_nodes_count_the_same() -> Result<()> {
    stage()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        for address in ELSEWHERE.addresses() {
            let _echo = EchoDatagrams::start(&stage.cluster.internet, address)?;
            let to = SocketAddr::new(address, DATAGRAM_PORT);
            let socket = datagram_socket(stage.host("web")?, to)?;
            socket.set_read_timeout(Some(wait::PATIENCE))?;
            for size in [1, 100, 1300] {
                for _ in 0..20 {
                    socket.send(&vec![7; size])?;
                    socket.recv(&mut [0; 2000])?;
                }
            }
        }
        // UDP's header and IP's; each datagram and its answer.
        let bytes = 20
            * [1_u64, 100, 1300]
                .map(|size| 2 * (size + 8) + 20 + 40)
                .iter()
                .sum::<u64>();
        let sent = stage.metrics("worker-1")?;
        let through = |name| sent.sum(name, &[("gateway", "blue")]);
        assert_eq!(through("egress_gateway_packets_total"), 120);
        assert_eq!(through("egress_gateway_bytes_total"), bytes);
        let gateway = stage.metrics(GATEWAY_NODE)?;
        for direction in ["out", "back"] {
            let labels = [("gateway", "blue"), ("direction", direction)];
            let count = |name| gateway.sum(name, &labels);
            assert_eq!(count("egress_gateway_translated_packets_total"), 120);
            assert_eq!(count("egress_gateway_translated_bytes_total"), bytes);
        }
        stage.expect_no_drops()
    })
}

#[test]
fn answers_about_what_is_too_big_are_counted() -> Result<()> {
    stage()?.play(|stage| {
        for (before, address) in (0..).zip(ELSEWHERE.addresses()) {
            let socket =
                datagram_socket(stage.host("web")?, SocketAddr::new(address, DATAGRAM_PORT))?;
            match address {
                IpAddr::V4(_) => setsockopt(&socket, MtuDiscover, &libc::IP_PMTUDISC_DO)?,
                IpAddr::V6(_) => setsockopt(&socket, MtuDiscover6, &libc::IPV6_PMTUDISC_DO)?,
            }
            socket.send(&[7; 1452])?;
            // The next one is refused by the pod's own kernel, once it knows.
            wait::until("the pod has been told", || {
                let route =
                    stage
                        .host("web")?
                        .run(&["ip", "route", "get", &address.to_string()])?;
                ensure!(route.contains("mtu 1450"), "{route}");
                Ok(())
            })?;
            let metrics = stage.metrics("worker-1")?;
            let told = metrics.sum("egress_answers_sent_total", &[("kind", "too_big")]);
            assert_eq!((told, metrics.dropped("TooBig")), (before + 1, before + 1));
            ensure!(socket.send(&[7; 1452]).is_err() || socket.send(&[7; 1452]).is_err());
        }
        Ok(())
    })
}

#[test]
fn explanations_name_node_address_and_way() -> Result<()> {
    stage()?.play(|stage| {
        let gateway = stage.node(GATEWAY_NODE)?.clone();
        for (destination, egress) in [(INTERNAL, RED), (ELSEWHERE, BLUE)] {
            for address in destination.addresses() {
                let explain = |node: &str, pod: &str, more: &[&str]| {
                    let to = address.to_string();
                    let words = ["explain", "--pod", pod, "--dst", &to];
                    let setup = stage.setups.get(node).context("no such node")?;
                    setup.command(&[&words, more].concat())
                };
                let far = explain("worker-1", "shop/web", &[])?;
                let seen = format!("default/{} as {}", egress.name, egress.like(address));
                let way = format!("on node {GATEWAY_NODE}, via overlay to ");
                ensure!(far.contains(&format!("{seen} {way}")), "{far}");
                let to = [gateway.v4.to_string(), gateway.v6.to_string()];
                ensure!(
                    to.iter()
                        .any(|to| far.contains(&format!("{way}{to} on egress.vxlan"))),
                    "{far}"
                );
                let near = explain(GATEWAY_NODE, "shop/near", &[])?;
                let way = format!("on node {GATEWAY_NODE}, local, out of eth0");
                ensure!(near.contains(&format!("{seen} {way}")), "{near}");
                for live in [far, near] {
                    ensure!(live.contains("agrees with the resources"), "{live}");
                }
            }
        }
        Ok(())
    })
}
