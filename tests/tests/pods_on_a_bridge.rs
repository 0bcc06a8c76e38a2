//! Pods behind a Linux bridge are steered as others are.

use anyhow::Result;
use egress_tests::{
    Scene, Stage,
    client::{Conversation, send_datagrams},
    resources::Resources,
    stage::From,
    topology::{ELSEWHERE, INTERNAL, Layout, RED_NETWORK, Shape},
};

#[test]
fn the_examples_hold_on_a_bridge() -> Result<()> {
    let scene = Scene::build(&Shape {
        layout: Layout::Bridge,
        ..Shape::default()
    })?;
    let resources = Resources::of_examples(&scene)?;
    // A bridge knows only who has spoken: pods that have not, are found once they do.
    for pod in &scene.pods {
        for address in ["10.65.0.1:7", "[fd00:65::1]:7"] {
            send_datagrams(&pod.host, address.parse()?, 1, 4)?;
        }
    }
    let stage = Stage::start(scene, resources)?;
    let rows = [
        ("web", INTERNAL, From::Pod),
        ("web", RED_NETWORK, From::Gateway("red")),
        ("web", ELSEWHERE, From::Gateway("blue")),
        ("batch", INTERNAL, From::Pod),
        ("batch", ELSEWHERE, From::Gateway("red")),
        ("plain", ELSEWHERE, From::Node),
    ];
    for address in RED_NETWORK.addresses() {
        stage.wait_until_seen("web", address, From::Gateway("red"))?;
    }
    for address in ELSEWHERE.addresses() {
        stage.wait_until_seen("batch", address, From::Gateway("red"))?;
    }
    for (pod, destination, from) in rows {
        stage.expect(pod, destination, from)?;
    }
    let talk = Conversation::start(&stage.pod("web")?.host, ELSEWHERE.v4.into())?;
    talk.go_on(100)?;
    talk.end()?;
    // Pods of one bridge reach each other by it, steered or not.
    let plain = stage.pod("plain")?;
    let _server = egress_tests::server::Whoami::start(&plain.host)?;
    for address in [plain.v4.into(), plain.v6.into()] {
        stage.expect_at("web", address, From::Pod)?;
    }
    Ok(())
}
