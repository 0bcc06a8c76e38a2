//! Connections that come in to a pod are answered the way they came, although its policy sends everything out
//! through a gateway.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    client::whoami,
    resources::{Via, gateway, namespace, pod, policy},
    server::Whoami,
    stage::From,
    topology::{ELSEWHERE, NODE_V4, NODE_V6, Shape},
};

/// The internet's own addresses, as the node sees them.
const CLIENT: [&str; 2] = ["203.0.113.1", "2001:db8:113::1"];

/// What a node port does.
const NODE_PORT: &str = "
table inet nodeport {
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    iifname \"eth0\" ip daddr 172.18.0.2 tcp dport 80 dnat ip to 10.65.0.10
    iifname \"eth0\" ip6 daddr fd00:18::2 tcp dport 80 dnat ip6 to fd00:65::10
  }
}
";

fn resources(scene: &Scene) -> Result<String> {
    Ok(namespace("default", &[])
        + &policy("all", &[("", Via::Code("red"))])
        + &gateway(scene.gateway("red")?, "red", "")
        + &pod(
            "default",
            scene.pod("web")?,
            &[("egressGatewayPolicy", "all")],
            &[],
        ))
}

/// A stage whose internet can reach pods, and the server that `web` is.
fn stage() -> Result<(Stage, Whoami)> {
    let stage = Stage::new(&Shape::default(), resources)?;
    stage.scene.route_internet_to_pods()?;
    let server = Whoami::start(&stage.pod("web")?.host)?;
    Ok((stage, server))
}

/// Checks that the pod answers a client outside that calls these addresses, and sees who it is.
fn expect_answers(stage: &Stage, addresses: [IpAddr; 2]) -> Result<()> {
    for (address, client) in addresses.into_iter().zip(CLIENT) {
        let client: IpAddr = client.parse()?;
        for _ in 0..5 {
            let seen = whoami(&stage.scene.internet, address)
                .with_context(|| format!("a client outside called {address}"))?;
            ensure!(seen == client, "the pod saw {seen}, not {client}");
        }
        // What the pod starts itself, also to that very host, leaves by its gateway all the same.
        stage.expect_at("web", client, From::Gateway("red"))?;
    }
    stage.expect("web", ELSEWHERE, From::Gateway("red"))?;
    let dropped = stage.metrics()?.all_dropped();
    ensure!(dropped.is_empty(), "dropped: {dropped:?}");
    Ok(())
}

#[test]
fn a_client_outside_calls_the_pod() -> Result<()> {
    let (stage, _server) = stage()?;
    let web = stage.pod("web")?;
    expect_answers(&stage, [web.v4.into(), web.v6.into()])
}

#[test]
fn a_client_outside_calls_the_node() -> Result<()> {
    let (stage, _server) = stage()?;
    stage.scene.node.nft(NODE_PORT)?;
    expect_answers(&stage, [NODE_V4.into(), NODE_V6.into()])
}

/// A rule without a gateway drops what the pod starts, and not what it answers.
#[test]
fn a_client_outside_calls_a_pod_without_gateway() -> Result<()> {
    let (stage, _server) = stage()?;
    let all_but_gateways = namespace("default", &[])
        + &policy("all", &[("", Via::Code("red"))])
        + &pod(
            "default",
            stage.pod("web")?,
            &[("egressGatewayPolicy", "all")],
            &[],
        );
    stage.resources.write("all.yaml", &all_but_gateways)?;
    stage
        .agent()?
        .wait_for_metrics("the gateway is out of use", |metrics| {
            let gateways = metrics.matching("egress_gateway_up", &[]).count();
            ensure!(gateways == 0, "there are {gateways} gateways");
            Ok(())
        })?;
    for address in ELSEWHERE.addresses() {
        stage.expect_dropped("web", address, "NoGateway")?;
    }
    let web = stage.pod("web")?;
    for (address, client) in [IpAddr::from(web.v4), web.v6.into()]
        .into_iter()
        .zip(CLIENT)
    {
        ensure!(whoami(&stage.scene.internet, address)? == client.parse::<IpAddr>()?);
    }
    Ok(())
}
