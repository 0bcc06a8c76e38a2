//! `egress detach` removes everything of ours: programs, filters, qdiscs, pins.

use anyhow::{Context, Result};
use egress_tests::{
    Scene, Stage,
    client::Conversation,
    resources::Resources,
    stage::From,
    topology::{ELSEWHERE, INTERNAL},
};

#[test]
fn the_node_is_as_it_was() -> Result<()> {
    let scene = Scene::new()?;
    let before = scene.inventory()?;
    let resources = Resources::of_examples(&scene)?;
    let mut stage = Stage::start(scene, resources)?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    let during = stage.scene.inventory()?;
    assert!(during.len() > before.len() + 4, "{during:?}");

    stage.agent.take().context("no agent")?.terminate()?;
    assert_eq!(stage.scene.inventory()?, during, "SIGTERM changed the node");
    let talk = Conversation::start(&stage.pod("web")?.host, INTERNAL.v4.into())?;
    stage.setup.detach()?;
    assert_eq!(stage.scene.inventory()?, before);
    stage.expect("web", ELSEWHERE, From::Node)?;
    talk.go_on(10)?;
    talk.end()?;

    // Once more is no error, and a new agent begins anew.
    stage.setup.detach()?;
    stage.agent = Some(stage.setup.start()?);
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

/// Removing a link's pin lets go of the link only after a grace period, by a work queue.
#[test]
fn programs_are_gone_when_detach_returns() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    for _ in 0..5 {
        let agent = stage.agent.take().context("no agent")?;
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
        agent.terminate()?;
        stage.setup.detach()?;
        stage.expect("web", ELSEWHERE, From::Node)?;
        stage.agent = Some(stage.setup.start()?);
    }
    Ok(())
}
