//! A next hop that answers nobody is left within a second, and used again once it answers for a while.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    flow::Flow,
    resources::{Resources, Via, gateway, namespace, pod, policy},
    stage::From,
    topology::{ELSEWHERE, Shape},
    wait,
};

/// What is promised.
const WITHIN: Duration = Duration::from_secs(1);

/// Two next hops in a group, and an agent that asks them for their hardware addresses.
fn stage() -> Result<Stage> {
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
    setup.arguments = asking("arp");
    let stage = Stage::start_with(scene, resources, setup)?;
    wait_until_heard(&stage, 2)?;
    Ok(stage)
}

fn asking(how: &str) -> Vec<String> {
    let arguments = ["--next-hop-probe", how, "--probe-up-after", "300ms"];
    arguments.map(str::to_owned).to_vec()
}

/// Starts another agent, which asks in this way.
fn ask_by(stage: &mut Stage, how: &str) -> Result<()> {
    let agent = stage.agent.take().context("there is no agent")?;
    agent.terminate()?;
    stage.setup.arguments = asking(how);
    stage.agent = Some(stage.setup.start()?);
    Ok(())
}

fn wait_until_heard(stage: &Stage, answers_wanted: usize) -> Result<()> {
    stage
        .agent()?
        .wait_for_metrics("the next hops have answered", |metrics| {
            let labels = [("probe", "next_hop")];
            let answers = metrics.matching("egress_gateway_probe_seconds", &labels);
            ensure!(answers.count() == answers_wanted);
            Ok(())
        })?;
    Ok(())
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

/// Cuts off the next hop that a flow uses, and checks when it is on the other one. Gives the one that is cut off.
fn is_left_in_time(stage: &Stage, flow: &Flow) -> Result<&'static str> {
    let used = flow.last()?;
    let mut found = None;
    for name in ["red", "blue"] {
        if stage.gateway(name)?.egress_like(used) == used {
            found = Some(name);
        }
    }
    let name = found.with_context(|| format!("{used} is nobody's"))?;
    stage
        .scene
        .dmz
        .ip(&format!("link set {name}0 nomaster\n"))?;
    let (silence, pause) = wait::until("the flow is on the other one", || {
        ensure!(flow.last()? != used, "it is still on {name}");
        flow.last_silence()
    })?;
    println!("{name} was left after {silence:?}, with a pause of the sender of {pause:?}");
    ensure!(silence <= WITHIN, "{name} was left after {silence:?}");
    Ok(name)
}

/// Cuts off one, then the other, then both, and checks what is said, and that nothing leaves in the end.
fn are_left(stage: &Stage, reason: &str) -> Result<()> {
    let dmz = &stage.scene.dmz;
    let from = stage.agent()?.log().len();
    let flow = Flow::start(
        &stage.pod("web")?.host,
        &stage.scene.internet,
        ELSEWHERE.v4.into(),
    )?;
    let first = is_left_in_time(stage, &flow)?;
    let other = if first == "red" { "blue" } else { "red" };
    wait_until(stage, first, false)?;
    all_by(stage, other)?;
    let log = stage.agent()?.log().split_off(from);
    let mut lines = log.lines();
    let line = lines.find(|line| line.contains("gateway is down"));
    let line = line.context("nothing is said")?;
    ensure!(
        line.contains(reason) && line.contains(&format!("default/{first}")),
        "{line}"
    );
    dmz.ip(&format!("link set {first}0 master br0\n"))?;
    wait_until(stage, first, true)?;
    let second = is_left_in_time(stage, &flow)?;
    ensure!(second == other, "the flow went back");
    wait_until(stage, second, false)?;
    all_by(stage, first)?;
    drop(flow);
    // Both are gone: nothing leaves, by neither of them and by no other way.
    dmz.ip(&format!("link set {first}0 nomaster\n"))?;
    wait_until(stage, first, false)?;
    for address in ELSEWHERE.addresses() {
        stage.expect_dropped("web", address, "NoGateway")?;
    }
    for name in ["red", "blue"] {
        dmz.ip(&format!("link set {name}0 master br0\n"))?;
        wait_until(stage, name, true)?;
    }
    Ok(())
}

#[test]
fn silent_next_hops_are_left_and_used_again() -> Result<()> {
    let mut stage = stage()?;
    each_family_is_asked(&stage)?;
    are_left(&stage, "has not answered ARP requests for 900 ms")?;
    ask_by(&mut stage, "icmp")?;
    wait_until_heard(&stage, 2)?;
    are_left(&stage, "has not answered echo requests for 900 ms")?;
    ask_by(&mut stage, "off")?;
    or_not_at_all(&stage)
}

/// A next hop of one family says nothing of the other.
fn each_family_is_asked(stage: &Stage) -> Result<()> {
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

fn or_not_at_all(stage: &Stage) -> Result<()> {
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
        ensure!(cut.elapsed() > Duration::from_millis(1200));
        Ok(())
    })?;
    wait_until_heard(stage, 0)
}
