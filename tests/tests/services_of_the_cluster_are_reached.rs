//! What belongs to the cluster is reached as if there were no policy, although the policy sends everything else to a
//! gateway on another node: other pods, services, nodes.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use egress_tests::{
    ClusterStage,
    client::{datagram_socket, whoami},
    cluster::{
        BLUE, ClusterShape, ELSEWHERE, GATEWAY_NODE, NodeSetup, Seen, usual, usual_gateways,
    },
    ping::ping,
    server::Whoami,
    services::{DATAGRAM_PORT, Dns, EchoDatagrams, NAMED_V4, NAMED_V6, lookup},
    wait,
};

/// Prefixes of services, and one service in each (RFC 1918; RFC 4193).
const SERVICES: [&str; 2] = ["10.96.0.0/12", "fd00:96::/112"];
const SERVICE: [&str; 2] = ["10.96.0.80", "fd00:96::80"];

/// A cluster whose nodes lead a service to the pod `app`, as kube-proxy does.
fn stage() -> Result<ClusterStage> {
    ClusterStage::new(
        &ClusterShape::default(),
        |cluster| {
            let app = cluster.pod("app")?;
            for node in &cluster.nodes {
                node.host.nft(&format!(
                    "table inet services {{
                       chain prerouting {{
                         type nat hook prerouting priority dstnat; policy accept;
                         ip daddr {} dnat ip to {}
                         ip6 daddr {} dnat ip6 to {}
                       }}
                     }}\n",
                    SERVICE[0], app.v4, SERVICE[1], app.v6
                ))?;
            }
            Ok(usual(cluster) + &usual_gateways())
        },
        |node: &mut NodeSetup<'_>| {
            let services = SERVICES.map(str::to_owned);
            node.setup.local_cidrs.extend(services);
        },
    )
}

#[test]
fn pods_services_and_nodes() -> Result<()> {
    stage()?.play(|stage| {
        let app = stage.pod("app")?.clone();
        let _in_pod = Whoami::start(&app.host)?;
        let nodes: Vec<_> = ["worker-1", "worker-2", GATEWAY_NODE]
            .into_iter()
            .map(|name| stage.node(name).cloned())
            .collect::<Result<_>>()?;
        let _on_nodes: Vec<_> = nodes
            .iter()
            .map(|node| Whoami::start(&node.host))
            .collect::<Result<_>>()?;
        for (service, own) in SERVICE
            .into_iter()
            .zip([IpAddr::from(app.v4), app.v6.into()])
        {
            let service: IpAddr = service.parse()?;
            for pod in ["web", "batch"] {
                let seen = stage.pod(pod)?.address_like(service);
                for address in [service, own] {
                    assert_eq!(
                        whoami(stage.host(pod)?, address)?,
                        seen,
                        "{pod} called {address}"
                    );
                }
                ping(stage.host(pod)?, own)?;
                for node in &nodes {
                    let address = node.address_like(service);
                    // A node's masquerade is for what leaves the cluster: its own rules know only pods.
                    whoami(stage.host(pod)?, address)?;
                }
            }
            // A service that answers by UDP, as the cluster's DNS does.
            let _echo = EchoDatagrams::start(&app.host, own)?;
            let socket =
                datagram_socket(stage.host("web")?, SocketAddr::new(service, DATAGRAM_PORT))?;
            socket.set_read_timeout(Some(wait::PATIENCE))?;
            socket.send(b"hello")?;
            let mut back = [0; 16];
            let length = socket.recv(&mut back)?;
            ensure!(back[..length] == *b"hello", "{back:?}");
            let dns = Dns::start(&app.host, own)?;
            assert_eq!(
                lookup(
                    stage.host("web")?,
                    service,
                    "service.example",
                    &stage.cluster.files()
                )?,
                [IpAddr::from(NAMED_V4), IpAddr::from(NAMED_V6)]
            );
            let web = stage.pod("web")?.address_like(service);
            ensure!(dns.callers().iter().all(|caller| caller.ip() == web));
        }
        // None of it went through a gateway; what is not the cluster's does.
        let through = stage.metrics("worker-1")?.through(BLUE.name);
        assert_eq!(through, 0, "packets for the cluster went through a gateway");
        stage.expect("web", ELSEWHERE, Seen::As(BLUE))?;
        ensure!(stage.metrics("worker-1")?.through(BLUE.name) > 0);
        stage.expect_no_drops()
    })
}
