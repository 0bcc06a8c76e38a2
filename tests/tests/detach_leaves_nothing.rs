//! `egress detach` removes everything of ours: programs, filters, qdiscs, pins.

use std::path::Path;

use anyhow::{Context, Result};
use egress_tests::{
    Scene, Stage,
    client::Conversation,
    resources::Resources,
    stage::From,
    topology::{ELSEWHERE, INTERNAL},
};

/// Everything that an agent could have left on the node.
fn inventory(scene: &Scene) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let links: serde_json::Value = serde_json::from_str(&scene.node.run(&["ip", "-j", "link"])?)?;
    for link in links.as_array().context("ip printed no list")? {
        let name = link["ifname"].as_str().context("a link without name")?;
        found.push(name.to_owned());
        for program in scene.node.programs_on(name)? {
            found.push(format!("{name}: {program}"));
        }
    }
    found.push(scene.node.run(&["tc", "qdisc", "show"])?);
    pins(&scene.bpffs(), &mut found)?;
    Ok(found)
}

fn pins(directory: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        found.push(path.display().to_string());
        if path.is_dir() {
            pins(&path, found)?;
        }
    }
    Ok(())
}

#[test]
fn the_node_is_as_it_was() -> Result<()> {
    let scene = Scene::new()?;
    let before = inventory(&scene)?;
    let resources = Resources::of_examples(&scene)?;
    let mut stage = Stage::start(scene, resources)?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    let during = inventory(&stage.scene)?;
    assert!(during.len() > before.len() + 4, "{during:?}");

    stage.agent.take().context("no agent")?.terminate()?;
    assert_eq!(inventory(&stage.scene)?, during, "SIGTERM changed the node");
    let talk = Conversation::start(&stage.pod("web")?.host, INTERNAL.v4.into())?;
    stage.setup.detach()?;
    assert_eq!(inventory(&stage.scene)?, before);
    stage.expect("web", ELSEWHERE, From::Node)?;
    talk.go_on(10)?;
    talk.end()?;

    // Once more is no error, and a new agent begins anew.
    stage.setup.detach()?;
    stage.agent = Some(stage.setup.start()?);
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}
