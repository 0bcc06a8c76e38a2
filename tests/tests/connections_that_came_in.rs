//! Who connects to a pod is answered the way he came, although the pod's policy sends everything to a gateway;
//! and nobody outside can open such a way by himself.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    ClusterStage, Host,
    client::whoami,
    cluster::{
        BLUE, ClusterShape, ELSEWHERE, INTERNET_HOST, NodeSetup, Seen, namespace_of, usual,
        usual_gateways,
    },
    resources::pod,
    server::Whoami,
    wait,
};

/// A port of every node, as a service of type `NodePort` has.
const NODE_PORT: u16 = 30_080;
/// The port that the pod named.
const NAMED: u16 = 5060;
/// A port that it did not.
const UNNAMED: u16 = 5061;

fn caller_seen(host: &Host, to: SocketAddr) -> Result<IpAddr> {
    let url = format!("http://{to}/");
    let answer = host.run(&[
        "curl",
        "-sg",
        "--fail",
        "--noproxy",
        "*",
        "--max-time",
        "5",
        &url,
    ])?;
    answer.trim().parse().context("no address")
}

/// What a load balancer does: a port of the node that leads to the pod, with the client's address kept.
#[test]
fn through_a_load_balancer() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.sniff_services(&[NODE_PORT])?;
        let web = stage.pod("web")?.clone();
        let worker = stage.node("worker-1")?.clone();
        worker.host.nft(&format!(
            "table inet balancer {{
               chain prerouting {{
                 type nat hook prerouting priority dstnat; policy accept;
                 tcp dport {NODE_PORT} dnat ip to {}:80
                 tcp dport {NODE_PORT} dnat ip6 to [{}]:80
               }}
             }}\n",
            web.v4, web.v6
        ))?;
        let _server = Whoami::start(&web.host)?;
        stage.permit(BLUE, &[INTERNET_HOST, ELSEWHERE]);
        for address in INTERNET_HOST.addresses() {
            let node = worker.address_like(address);
            stage.permit_exactly("worker-1", node, address.into(), Some(NODE_PORT));
        }
        for address in INTERNET_HOST.addresses() {
            let node = worker.address_like(address);
            for _ in 0..3 {
                let seen = caller_seen(&stage.cluster.internet, SocketAddr::new(node, NODE_PORT))?;
                assert_eq!(seen, address, "the client's address was not kept");
            }
            // What the pod itself begins goes by its policy, to this very host too.
            stage.expect_at("web", address, Seen::As(BLUE))?;
        }
        stage.expect_no_drops()
    })
}

#[test]
fn straight_to_the_pod() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.sniff_services(&[80])?;
        let web = stage.pod("web")?.clone();
        let _server = Whoami::start(&web.host)?;
        stage.permit(BLUE, &[INTERNET_HOST]);
        for address in INTERNET_HOST.addresses() {
            let own = web.address_like(address);
            stage.permit_exactly("worker-1", own, address.into(), Some(80));
        }
        for address in INTERNET_HOST.addresses() {
            let own = web.address_like(address);
            assert_eq!(whoami(&stage.cluster.internet, own)?, address);
            stage.expect_at("web", address, Seen::As(BLUE))?;
            // Other pods and the node itself.
            assert_eq!(
                whoami(stage.host("app")?, own)?,
                stage.pod("app")?.address_like(own)
            );
            whoami(&stage.node("worker-1")?.host, own)?;
        }
        stage.expect_no_drops()
    })
}

/// A datagram that nobody asked for is delivered, and the pod's answer obeys the policy nevertheless.
#[test]
fn an_unsolicited_datagram_opens_nothing() -> Result<()> {
    let stage = ClusterStage::usual()?;
    stage.play(|stage| {
        stage.permit(BLUE, &[INTERNET_HOST]);
        for address in INTERNET_HOST.addresses() {
            let from = answer_of(stage, address, UNNAMED)?;
            ensure!(
                from.ip() == BLUE.like(address),
                "the answer came from {from}, past the gateway"
            );
        }
        Ok(())
    })
}

#[test]
fn named_ports_are_answered_the_way_they_came() -> Result<()> {
    let stage = ClusterStage::new(
        &ClusterShape::default(),
        |cluster| {
            let web = cluster.pod("web")?;
            let plain = pod(namespace_of(web), web, &[], &[]);
            let named = plain.replacen(
                "spec:\n",
                &format!("  annotations: {{egress.fastpath/inbound-udp: \"{NAMED}\"}}\nspec:\n"),
                1,
            );
            Ok(usual(cluster).replace(&plain, &named) + &usual_gateways())
        },
        |_: &mut NodeSetup<'_>| {},
    )?;
    stage.play(|stage| {
        stage.sniff_services(&[NAMED])?;
        let web = stage.pod("web")?.clone();
        stage.permit(BLUE, &[INTERNET_HOST]);
        for address in INTERNET_HOST.addresses() {
            let own = web.address_like(address);
            stage.permit_exactly("worker-1", own, address.into(), Some(NAMED));
            assert_eq!(
                answer_of(stage, address, NAMED)?,
                SocketAddr::new(own, NAMED)
            );
            let other = answer_of(stage, address, UNNAMED)?;
            assert_eq!(other.ip(), BLUE.like(address));
        }
        Ok(())
    })
}

/// Sends a datagram from a host on the internet to the pod's port, has the pod answer, and tells where the answer
/// seemed to come from.
fn answer_of(stage: &ClusterStage, client: IpAddr, port: u16) -> Result<SocketAddr> {
    let web = stage.pod("web")?;
    let own = SocketAddr::new(web.address_like(client), port);
    let pod = web.host.enter(|| Ok(UdpSocket::bind(own)?))?;
    pod.set_read_timeout(Some(wait::PATIENCE))?;
    let asker = stage
        .cluster
        .internet
        .enter(|| Ok(UdpSocket::bind((client, 0))?))?;
    asker.set_read_timeout(Some(wait::PATIENCE))?;
    asker.send_to(b"nobody asked", own)?;
    let mut heard = [0; 32];
    let (_, from) = pod
        .recv_from(&mut heard)
        .context("the datagram did not come in")?;
    pod.send_to(b"an answer", from)?;
    let (_, from) = asker.recv_from(&mut heard).context("no answer came")?;
    Ok(from)
}
