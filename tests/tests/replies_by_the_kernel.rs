//! `replies: kernel`: nothing is recorded, and the node's own routing delivers the replies.

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Stage,
    client::unanswered,
    resources::{Via, gateway, namespace, pod, policy},
    stage::From,
    topology::{ELSEWHERE, Shape},
};
use serde_json::Value;

#[test]
fn replies_come_where_the_node_lets_them() -> Result<()> {
    let stage = Stage::new(&Shape::default(), |scene| {
        Ok(namespace("default", &[])
            + &policy("all", &[("", Via::Code("red"))])
            + &gateway(scene.gateway("red")?, "red", "  replies: kernel\n")
            + &pod(
                "default",
                scene.pod("web")?,
                &[("egressGatewayPolicy", "all")],
                &[],
            ))
    })?;
    let mut eth1 = stage.scene.node.programs_on("eth1")?;
    // What leaves there is looked at; what comes in is not.
    eth1.retain(|program| !program.starts_with("Egress "));
    ensure!(eth1.is_empty(), "nothing is recorded, and yet: {eth1:?}");
    // With the checks of most nodes the replies would need a record.
    let web = &stage.pod("web")?.host;
    for address in ELSEWHERE.addresses() {
        unanswered(web, address)?;
    }
    ensure!(stage.gateway("red")?.host.counter("to_pods")?.packets > 0);

    let node = &stage.scene.node;
    node.sysctl(&[
        ("ipv4/conf/all/rp_filter", "2"),
        ("ipv4/conf/eth1/rp_filter", "2"),
    ])?;
    node.nft("flush chain inet kube forward\n")?;
    stage.expect("web", ELSEWHERE, From::Gateway("red"))?;
    // The agent's own count may be from before the connections.
    let (pins, state) = (stage.setup.pin_dir(), stage.setup.state_dir());
    let (pins, state) = (pins.display().to_string(), state.display().to_string());
    let places = ["--pin-dir", &pins, "--state-dir", &state];
    let dump = [&["dump", "counters", "--output", "json"][..], &places].concat();
    let dump: Value = serde_json::from_str(&stage.setup.command(&dump)?)?;
    let maps = dump["counters"]["maps"].as_array().context("no maps")?;
    let replies = maps.iter().find(|map| map["name"] == "REPLIES");
    let records = replies.and_then(|map| map["entries"].as_u64());
    let records = records.context("no REPLIES")?;
    ensure!(records == 0, "{records} connections are recorded");
    Ok(())
}
