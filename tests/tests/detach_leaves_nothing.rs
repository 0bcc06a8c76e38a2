//! `egress detach` removes everything of ours: programs, filters, qdiscs, pins, the overlay's device, addresses, files.

use anyhow::{Context, Result};
use egress_tests::{
    Cluster, ClusterStage, Scene, Stage,
    agent::Setup,
    client::Conversation,
    cluster::{BLUE, Seen, usual, usual_gateways},
    resources::Resources,
    stage::From,
    topology::{ELSEWHERE, INTERNAL},
};

#[test]
fn the_node_is_as_it_was() -> Result<()> {
    as_it_was("tcx")
}

#[test]
fn the_node_is_as_it_was_without_filters() -> Result<()> {
    as_it_was("clsact")
}

fn as_it_was(mode: &str) -> Result<()> {
    let scene = Scene::new()?;
    let before = scene.inventory()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    setup.arguments = ["--attach-mode", mode].map(str::to_owned).to_vec();
    let mut stage = Stage::start_with(scene, resources, setup)?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    let during = stage.scene.inventory()?;
    assert!(during.len() > before.len() + 4, "{during:?}");

    stage.agent.take().context("no agent")?.terminate()?;
    assert_eq!(stage.scene.inventory()?, during, "SIGTERM changed the node");
    let talk = Conversation::start(&stage.pod("web")?.host, INTERNAL.v4.into())?;
    stage.setup.detach()?;
    assert_eq!(stage.scene.inventory()?, before);
    assert!(!stage.setup.state_dir().exists());
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

/// Also the egress addresses on the uplink and the overlay's device, whatever became of the agent.
#[test]
fn nodes_of_a_cluster_are_as_they_were() -> Result<()> {
    let cluster = Cluster::new()?;
    let before = cluster.inventory()?;
    let resources = |cluster: &Cluster| Ok(usual(cluster) + &usual_gateways());
    let mut stage = ClusterStage::on(cluster, resources, |_| {})?;
    for killed in [false, true] {
        stage.expect("web", ELSEWHERE, Seen::As(BLUE))?;
        let during = stage.inventory()?;
        assert!(during.len() > before.len() + 10, "{during:#?}");
        if killed {
            for node in ["worker-1", "worker-2", "gw-1"] {
                stage.kill(node)?;
            }
        } else {
            stage.terminate()?;
        }
        assert_eq!(
            stage.inventory()?,
            during,
            "the end of agents changed nodes"
        );
        stage.expect("web", ELSEWHERE, Seen::As(BLUE))?;
        stage.leave()?;
        assert_eq!(stage.inventory()?, before);
        for node in ["worker-1", "worker-2", "gw-1"] {
            assert!(!stage.setups[node].state_dir().exists());
            stage.spawn(node)?;
        }
        stage.wait_until_ready()?;
    }
    Ok(())
}
