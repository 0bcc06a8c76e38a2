//! Without TCX the programs are clsact filters, which is all the difference there is.

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    client::Conversation,
    resources::Resources,
    stage::From,
    topology::{ELSEWHERE, INTERNAL, RED_NETWORK},
    wait,
};

fn stage() -> Result<Stage> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    setup.arguments = ["--attach-mode", "clsact"].map(str::to_owned).to_vec();
    Stage::start_with(scene, resources, setup)
}

fn expect_all(stage: &Stage) -> Result<()> {
    stage.expect("web", INTERNAL, From::Pod)?;
    stage.expect("web", RED_NETWORK, From::Gateway("red"))?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
    stage.expect("plain", ELSEWHERE, From::Node)
}

#[test]
fn filters_steer_survive_and_go() -> Result<()> {
    let mut stage = stage()?;
    expect_all(&stage)?;
    let interface = stage.pod("web")?.interface.clone();
    let filters = stage.scene.node.programs_on(&interface)?;
    for (program, priority) in [("egress_from_pod", "pref 3 "), ("egress_to_pod", "pref 1 ")] {
        let filter = filters
            .iter()
            .find(|line| line.contains(program))
            .with_context(|| format!("no {program} in {filters:?}"))?;
        ensure!(filter.contains(priority), "{filter}");
    }

    let talk = Conversation::start(&stage.pod("web")?.host, ELSEWHERE.v4.into())?;
    talk.go_on(50)?;
    stage.agent.take().context("no agent")?.kill()?;
    talk.go_on(50)?;
    expect_all(&stage)?;
    stage.agent = Some(stage.setup.start()?);
    talk.go_on(50)?;
    talk.end()?;
    expect_all(&stage)?;

    stage.agent.take().context("no agent")?.terminate()?;
    stage.setup.detach()?;
    for interface in [interface.as_str(), "eth1"] {
        let left = stage.scene.node.programs_on(interface)?;
        ensure!(left.is_empty(), "{interface}: {left:?}");
    }
    let qdiscs = stage.scene.node.run(&["tc", "qdisc", "show"])?;
    ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    stage.expect("web", ELSEWHERE, From::Node)
}

#[test]
fn a_filter_that_somebody_removes_is_put_back() -> Result<()> {
    let stage = stage()?;
    let interface = &stage.pod("web")?.interface;
    let before = stage.scene.node.programs_on(interface)?;
    for side in ["egress_from_pod", "egress_to_pod"] {
        ensure!(before.iter().any(|line| line.contains(side)), "{before:?}");
    }
    for (what, removal) in [
        (
            "filter",
            ["tc", "filter", "del", "dev", interface, "ingress"],
        ),
        (
            "other filter",
            ["tc", "filter", "del", "dev", interface, "egress"],
        ),
        ("qdisc", ["tc", "qdisc", "del", "dev", interface, "clsact"]),
    ] {
        stage.scene.node.run(&removal)?;
        wait::until_within(
            "the filter is back",
            std::time::Duration::from_secs(2),
            || {
                let filters = stage.scene.node.programs_on(interface)?;
                ensure!(
                    filters.len() == before.len(),
                    "{filters:?} after its {what} was removed"
                );
                Ok(())
            },
        )?;
        expect_all(&stage)?;
    }
    Ok(())
}
