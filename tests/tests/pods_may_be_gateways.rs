//! A pod may be a gateway that translates by itself: its own traffic is left alone, and one on the node may be
//! preferred.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    client::whoami,
    resources::{Resources, Via, gateway, namespace, pod, policy},
    stage::From,
    topology::{ELSEWHERE, INTERNAL, Pod, Shape},
    wait,
};

/// A scene with these resources, whose gateway pods are next hops.
fn stage(resources: impl FnOnce(&Scene) -> Result<String>) -> Result<Stage> {
    let scene = Scene::build(&Shape {
        pods: vec!["web", "plain", "exit"],
        ..Shape::default()
    })?;
    let text = resources(&scene)?;
    let resources = Resources::empty(&scene)?;
    resources.write("all.yaml", &text)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    setup.arguments.push("--pod-gateways=forward".to_owned());
    Stage::start_with(scene, resources, setup)
}

/// Else what a gateway sends on would come back to it for ever.
#[test]
fn a_gateway_pods_own_traffic_is_never_redirected() -> Result<()> {
    let stage = stage(|scene| {
        let annotation = [("egressGatewayPolicy", "all")];
        Ok(namespace("default", &annotation)
            + &policy("all", &[("", Via::Code("pod"))])
            + &gateway(scene.gateway("red")?, "red", "")
            + &pod("default", scene.pod("web")?, &[], &[])
            + &pod(
                "default",
                scene.pod("exit")?,
                &annotation,
                &[("egress-code", "pod")],
            ))
    })?;
    let exit = stage.pod("exit")?;
    make_gateway_pod(&stage, exit)?;
    let web = stage.pod("web")?;
    for address in ELSEWHERE.addresses() {
        assert_eq!(whoami(&web.host, address)?, exit.address_like(address));
        assert_eq!(whoami(&exit.host, address)?, exit.address_like(address));
    }
    stage.expect("web", INTERNAL, From::Pod)?;
    assert_eq!(stage.metrics()?.all_dropped().len(), 0);
    Ok(())
}

/// Of a gateway pod on the node and a next hop off it, the pod is taken while it is there.
#[test]
fn a_gateway_on_the_node_is_preferred() -> Result<()> {
    let stage = stage(|scene| {
        let everything =
            policy("near", &[("", Via::Code("any"))]) + "    gatewayPreference: PreferNodeLocal\n";
        Ok(namespace("default", &[])
            + &everything
            + &policy("either", &[("", Via::Code("any"))])
            + &gateway(scene.gateway("red")?, "any", "")
            + &pod(
                "default",
                scene.pod("web")?,
                &[("egressGatewayPolicy", "near")],
                &[],
            )
            + &pod(
                "default",
                scene.pod("plain")?,
                &[("egressGatewayPolicy", "either")],
                &[],
            ))
    })?;
    // Without one on the node: all.
    stage.expect("web", ELSEWHERE, From::Gateway("red"))?;

    let exit = stage.pod("exit")?;
    make_gateway_pod(&stage, exit)?;
    let code = [("egress-code", "any")];
    stage
        .resources
        .write("exit.yaml", &pod("default", exit, &[], &code))?;
    let through = |name: &str| {
        let web = &stage.pod(name)?.host;
        let mut seen = BTreeSet::new();
        for _ in 0..24 {
            seen.insert(whoami(web, ELSEWHERE.v4.into())?);
        }
        Ok::<_, anyhow::Error>(seen)
    };
    let near = BTreeSet::from([IpAddr::V4(exit.v4)]);
    let both = BTreeSet::from([exit.v4.into(), stage.gateway("red")?.egress_v4.into()]);
    wait::until("the pod is a gateway", || {
        let seen = whoami(&stage.pod("web")?.host, ELSEWHERE.v4.into())?;
        ensure!(seen == exit.v4, "web was seen as {seen}");
        Ok(())
    })?;
    assert_eq!(through("web")?, near);
    assert_eq!(through("plain")?, both);

    stage.resources.remove("exit.yaml")?;
    stage.wait_until_seen("web", ELSEWHERE.v4.into(), From::Gateway("red"))
}

/// Lets a pod translate to its own address, which the outside knows, as Calico's gateways do.
fn make_gateway_pod(stage: &Stage, exit: &Pod) -> Result<()> {
    exit.host
        .sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    exit.host.nft(
        "table inet gateway {
           chain postrouting {
             type nat hook postrouting priority srcnat; policy accept;
             oifname \"eth0\" masquerade
           }
         }
         ",
    )?;
    stage.scene.node.nft(&format!(
        "insert rule inet kube postrouting ip saddr {} accept
         insert rule inet kube postrouting ip6 saddr {} accept
         ",
        exit.v4, exit.v6
    ))?;
    stage.scene.route_internet_to_pods()
}
