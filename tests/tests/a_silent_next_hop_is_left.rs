//! A next hop that answers nobody is left within a second, and used again once it answers for a while.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    resources::{Resources, Via, gateway, namespace, pod, policy},
    stage::From,
    topology::{ELSEWHERE, Shape},
    wait,
};

/// Two next hops in a group, and an agent that asks them in this way.
fn stage(how: &str) -> Result<Stage> {
    let scene = Scene::build(&Shape {
        pods: vec!["web", "plain"],
        ..Shape::default()
    })?;
    let resources = Resources::empty(&scene)?;
    let mut text = [
        namespace("default", &[("egressGatewayPolicy", "all")]),
        policy("all", &[("", Via::Code("pair"))]),
        namespace("lab", &[]),
        pod("default", scene.pod("web")?, &[], &[]),
        pod("lab", scene.pod("plain")?, &[], &[]),
    ]
    .concat();
    for found in &scene.gateways {
        text.push_str(&gateway(found, "pair", ""));
    }
    resources.write("all.yaml", &text)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    let arguments = ["--next-hop-probe", how, "--probe-up-after", "500ms"];
    setup.arguments.extend(arguments.map(str::to_owned));
    let stage = Stage::start_with(scene, resources, setup)?;
    let asked = if how == "off" { 0 } else { 2 };
    stage
        .agent()?
        .wait_for_metrics("the next hops have answered", |metrics| {
            let labels = [("probe", "next_hop")];
            let answers = metrics.matching("egress_gateway_probe_seconds", &labels);
            ensure!(answers.count() == asked);
            Ok(())
        })?;
    Ok(stage)
}

fn wait_until(stage: &Stage, gateway: &str, up: bool) -> Result<()> {
    let what = format!("{gateway} is {}", if up { "up" } else { "down" });
    stage.agent()?.wait_for_metrics(&what, |metrics| {
        let found = metrics.sum("egress_gateway_up", &[("gateway", gateway)]) == 1;
        ensure!(found == up);
        Ok(())
    })?;
    Ok(())
}

/// Checks that flows of the pod leave by one gateway only.
fn all_by(stage: &Stage, gateway: &str) -> Result<()> {
    for _ in 0..5 {
        stage.expect("web", ELSEWHERE, From::Gateway(gateway))?;
    }
    Ok(())
}

/// Cuts red off, mends it, and checks what is said.
fn is_left(how: &str, reason: &str) -> Result<()> {
    let stage = stage(how)?;
    let dmz = &stage.scene.dmz;
    let cut = Instant::now();
    dmz.ip("link set red0 nomaster\n")?;
    wait_until(&stage, "red", false)?;
    ensure!(cut.elapsed() >= Duration::from_millis(500), "{cut:?}");
    all_by(&stage, "blue")?;
    let log = stage.agent()?.log();
    let line = log
        .lines()
        .find(|line| line.contains("gateway is down"))
        .context("nothing is said")?;
    ensure!(
        line.contains(reason) && line.contains("default/red"),
        "{line}"
    );
    dmz.ip("link set red0 master br0\n")?;
    wait_until(&stage, "red", true)?;
    dmz.ip("link set blue0 nomaster\n")?;
    wait_until(&stage, "blue", false)?;
    all_by(&stage, "red")?;
    // Both are gone: nothing leaves, by neither of them and by no other way.
    dmz.ip("link set red0 nomaster\n")?;
    wait_until(&stage, "red", false)?;
    for address in ELSEWHERE.addresses() {
        stage.expect_dropped("web", address, "NoGateway")?;
    }
    Ok(())
}

#[test]
fn by_hardware_addresses() -> Result<()> {
    is_left("arp", "has not answered ARP requests for 900 ms")
}

#[test]
fn by_echo_requests() -> Result<()> {
    is_left("icmp", "has not answered echo requests for 900 ms")
}

/// A next hop of one family says nothing of the other.
#[test]
fn each_family_is_asked() -> Result<()> {
    let stage = stage("arp")?;
    let red = stage.gateway("red")?.host.clone();
    for (address, other, route, reason) in [
        (
            "172.19.0.11/24",
            1,
            "10.65.0.0/16 via 172.19.0.2",
            "172.19.0.11 has not answered ARP requests",
        ),
        (
            "fd00:19::11/64",
            0,
            "fd00:65::/32 via fd00:19::2",
            "fd00:19::11 has not answered neighbour solicitations",
        ),
    ] {
        red.ip(&format!("addr del {address} dev eth0\n"))?;
        wait::until("it is said", || {
            let (_, status) = stage.agent()?.get("/status")?;
            ensure!(status.contains(reason), "{status}");
            Ok(())
        })?;
        let [v4, v6] = ELSEWHERE.addresses();
        let (silent, answering) = if other == 1 { (v4, v6) } else { (v6, v4) };
        for _ in 0..5 {
            stage.expect_at("web", silent, From::Gateway("blue"))?;
        }
        ensure!(
            stage
                .metrics()?
                .sum("egress_gateway_up", &[("gateway", "red")])
                == 1
        );
        wait::until("some of the other family still use it", || {
            stage.expect_at("web", answering, From::Gateway("red"))
        })?;
        let nodad = if address.contains(':') { "nodad" } else { "" };
        // The route went with the address.
        red.ip(&format!(
            "addr add {address} dev eth0 {nodad}\nroute replace {route}\n"
        ))?;
        wait::until("it is no longer so", || {
            let (_, status) = stage.agent()?.get("/status")?;
            ensure!(!status.contains(reason), "{status}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn or_not_at_all() -> Result<()> {
    let stage = stage("off")?;
    stage.scene.dmz.ip("link set red0 nomaster\n")?;
    let cut = Instant::now();
    // It stays up for longer than any silence that counts.
    wait::until("a while has passed", || {
        ensure!(
            stage
                .metrics()?
                .sum("egress_gateway_up", &[("gateway", "red")])
                == 1
        );
        ensure!(cut.elapsed() > Duration::from_secs(2));
        Ok(())
    })
}
