//! A version whose maps have another layout takes over, and gives back: nothing is lost, misrouted or uncounted.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData};
use egress_common::maps;
use egress_tests::{
    ClusterStage, Stage,
    agent::Setup,
    cluster::{BLUE, GATEWAY_NODE},
    paced::{PacedServer, Traffic},
    stage::From,
    topology::ELSEWHERE,
    wait,
};
use egress_userspace::kernel::Paths;

/// Changes of version, there and back.
const CHANGES: usize = 4;
/// How long each version is at work at least.
const SLICE: Duration = Duration::from_secs(1);
const SOAK: Duration = Duration::from_secs(15);

#[test]
fn on_a_node_with_next_hops() -> Result<()> {
    next_hops("tcx", SLICE)
}

#[test]
fn on_a_node_with_filters() -> Result<()> {
    next_hops("clsact", SLICE)
}

#[test]
fn on_both_nodes_of_an_egress_address() -> Result<()> {
    egress_address(SLICE)
}

#[test]
#[ignore = "soak: a minute of traffic"]
fn on_a_node_with_next_hops_for_a_minute() -> Result<()> {
    next_hops("tcx", SOAK)
}

#[test]
#[ignore = "soak: a minute of traffic"]
fn on_both_nodes_of_an_egress_address_for_a_minute() -> Result<()> {
    egress_address(SOAK)
}

/// One version and the other.
fn versions(setup: &Setup) -> Result<[Setup; 2]> {
    Ok([setup.of_other_layout()?, setup.clone()])
}

/// The pins of a node's maps.
fn pinned(setup: &Setup) -> Result<BTreeSet<String>> {
    fs::read_dir(setup.pin_dir().join("maps"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Checks that the maps are of this version, and nothing else is left.
fn expect_layout(setup: &Setup, other: bool) -> Result<()> {
    let pins = pinned(setup)?;
    let [mine, theirs] = if other {
        ["MEMBERS-2", "MEMBERS"]
    } else {
        ["MEMBERS", "MEMBERS-2"]
    };
    ensure!(pins.contains(mine) && !pins.contains(theirs), "{pins:?}");
    for gone in ["old", "switching"] {
        ensure!(!setup.pin_dir().join(gone).exists(), "{gone} is left");
    }
    Ok(())
}

fn next_hops(mode: &str, slice: Duration) -> Result<()> {
    let mut stage = Stage::of_examples()?;
    stage.agent.take().context("no agent")?.terminate()?;
    stage.setup.detach()?;
    stage.setup.arguments = ["--attach-mode", mode].map(str::to_owned).to_vec();
    stage.agent = Some(stage.setup.start()?);
    let gateways_saw = |stage: &Stage| -> Result<Vec<u64>> {
        let gateways = stage.scene.gateways.iter();
        gateways
            .map(|gateway| Ok(gateway.host.counter("from_pods")?.packets))
            .collect()
    };
    let before = gateways_saw(&stage)?;
    let addresses = ELSEWHERE.addresses();
    let server = PacedServer::start(&stage.scene.internet, &addresses)?;
    let traffic = Traffic::start(&stage.pod("web")?.host, &addresses)?;
    let versions = versions(&stage.setup)?;
    for (change, version) in versions.iter().cycle().take(CHANGES).enumerate() {
        traffic.go_on(slice)?;
        // As a supervisor does it, or a crash.
        let agent = stage.agent.take().context("no agent")?;
        if change < CHANGES / 2 {
            agent.terminate()?;
        } else {
            agent.kill()?;
        }
        stage.agent = Some(version.start()?);
        expect_layout(version, change % 2 == 0)?;
        stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
    }
    traffic.go_on(slice)?;
    let blue = stage.gateway("blue")?;
    traffic.end(&server, |address| blue.egress_like(address))?;
    stage
        .agent()?
        .wait_for_metrics("what arrived is what was counted", |metrics| {
            let seen = gateways_saw(&stage)?;
            for ((gateway, seen), before) in stage.scene.gateways.iter().zip(seen).zip(&before) {
                let counted = metrics.through(gateway.name);
                ensure!(
                    seen - before == counted,
                    "{} saw {}, counted are {counted}",
                    gateway.name,
                    seen - before
                );
            }
            let dropped = metrics.all_dropped();
            ensure!(dropped.is_empty(), "{dropped:?}");
            Ok(())
        })?;
    assert_eq!(stage.scene.internet.counter("leaked")?.packets, 0);
    assert_eq!(stage.scene.internet.counter("by_node")?.packets, 0);

    // Either version removes what the other has left.
    stage.agent.take().context("no agent")?.terminate()?;
    stage.setup.of_other_layout()?.detach()?;
    ensure!(!stage.setup.pin_dir().exists());
    stage.expect("web", ELSEWHERE, From::Node)
}

fn egress_address(slice: Duration) -> Result<()> {
    const NODES: [&str; 2] = ["worker-1", GATEWAY_NODE];
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let addresses = ELSEWHERE.addresses();
        let server = PacedServer::start(&stage.cluster.internet, &addresses)?;
        let web = stage.host("web")?.clone();
        // What is one packet here is one packet on the uplink too.
        web.ip("link set eth0 gso_max_segs 1\n")?;
        let traffic = Traffic::start(&web, &addresses)?;
        let usual = stage.setups.clone();
        for change in 0..CHANGES {
            traffic.go_on(slice)?;
            for node in NODES {
                stage.kill(node)?;
                let [other, usual] = versions(&usual[node])?;
                let version = if change % 2 == 0 { other } else { usual };
                stage.setups.insert(node, version);
                stage.spawn(node)?;
                // One node after the other: they talk to each other in both layouts.
                if change < CHANGES / 2 {
                    stage.wait_until_ready()?;
                }
            }
            stage.wait_until_ready()?;
            for node in NODES {
                expect_layout(&stage.setups[node], change % 2 == 0)?;
            }
        }
        traffic.go_on(slice)?;
        traffic.end(&server, |address| BLUE.like(address))?;
        stage.wait_until_counted("worker-1", BLUE, &addresses)?;
        stage.expect_no_drops()
    })
}

/// What a start finds that an earlier one did not finish, whichever version it is.
#[test]
fn a_switch_that_broke_off_is_finished_or_undone() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let faults = stage.scene.files().join("faults");
    let addresses = ELSEWHERE.addresses();
    let server = PacedServer::start(&stage.scene.internet, &addresses)?;
    let traffic = Traffic::start(&stage.pod("web")?.host, &addresses)?;
    let mut with_faults = stage.setup.clone();
    with_faults.faults = Some(faults.clone());
    let versions = versions(&with_faults)?;

    // How many steps a switch has.
    stage.agent.take().context("no agent")?.terminate()?;
    stage.agent = Some(versions[0].start()?);
    let steps = fs::read_to_string(faults.with_extension("steps"))?;
    let steps: Vec<&str> = steps.lines().collect();
    let switch = |what: &str| {
        let place = steps.iter().position(|step| *step == what);
        place.with_context(|| format!("no step {what:?} in {steps:?}"))
    };
    let (begin, end) = (
        switch("begin to switch")? + 1,
        switch("end the switch")? + 1,
    );
    ensure!(end > begin + 2, "{steps:?}");
    let tried = [begin / 2, begin, begin + 1, begin + 2, end];
    for (number, step) in tried.into_iter().enumerate() {
        // To the other version, which dies on the way; then the one or the other takes over.
        let to = (number + 1) % 2;
        let after = if number % 3 == 2 { 1 - to } else { to };
        let context = format!("step {step} of {}", steps.len());
        stage.agent.take().context("no agent")?.kill()?;
        // Each begins where the version before has finished.
        stage.agent = Some(versions[1 - to].start().context(context.clone())?);
        stage.agent.take().context("no agent")?.kill()?;
        fs::write(&faults, format!("abort {step}"))?;
        let mut dying = versions[to].spawn()?;
        wait::until("the agent is killed", || {
            ensure!(dying.was_killed()?, "it lives");
            Ok(())
        })
        .context(context.clone())?;
        fs::remove_file(&faults)?;
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
        stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
        stage.agent = Some(versions[after].start().context(context.clone())?);
        expect_layout(&versions[after], after == 0).context(context)?;
    }
    let blue = stage.gateway("blue")?;
    traffic.end(&server, |address| blue.egress_like(address))?;
    let dropped = stage.metrics()?.all_dropped();
    ensure!(dropped.is_empty(), "{dropped:?}");
    Ok(())
}

/// A version that cannot know yet what to do leaves the other one's programs at work.
#[test]
fn nothing_is_switched_before_the_resources_can_be_read() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let addresses = ELSEWHERE.addresses();
    let server = PacedServer::start(&stage.scene.internet, &addresses)?;
    let traffic = Traffic::start(&stage.pod("web")?.host, &addresses)?;
    let pods = fs::read_to_string(stage.resources.directory().join("pods.yaml"))?;
    let [other, _] = versions(&stage.setup)?;
    stage.agent.take().context("no agent")?.terminate()?;
    stage.resources.write("pods.yaml", "{")?;
    // Nothing remembers what was in that file.
    fs::remove_dir_all(stage.setup.state_dir().join("objects"))?;
    for run in 0..2 {
        let mut agent = other.spawn()?;
        wait::until("the agent refuses to forget", || {
            // All runs write to one log.
            let refusals = agent.log().matches("stays as it is until").count();
            ensure!(refusals > run, "{refusals} refusals");
            Ok(())
        })?;
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
        stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
        ensure!(other.pin_dir().join("old").exists());
        ensure!(!agent.was_killed()?);
        agent.kill()?;
    }
    stage.resources.write("pods.yaml", &pods)?;
    stage.agent = Some(other.start()?);
    expect_layout(&other, true)?;
    stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
    let blue = stage.gateway("blue")?;
    traffic.end(&server, |address| blue.egress_like(address))
}

/// A version may have maps that the one before, which comes back, has never heard of.
#[test]
fn what_a_newer_version_has_left_is_no_switch_that_broke_off() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let addresses = ELSEWHERE.addresses();
    let server = PacedServer::start(&stage.scene.internet, &addresses)?;
    let traffic = Traffic::start(&stage.pod("web")?.host, &addresses)?;
    let [other, usual] = versions(&stage.setup)?;
    let maps = usual.pin_dir().join("maps");
    for (version, is_other) in [(&other, true), (&usual, false)] {
        stage.agent.take().context("no agent")?.kill()?;
        Array::<MapData, u32>::create(1, 0)?.pin(maps.join("FUTURE"))?;
        // The switch, and a start that goes on after it.
        for _ in 0..2 {
            stage.agent = Some(version.start()?);
            expect_layout(version, is_other)?;
            ensure!(!maps.join("FUTURE").exists());
            stage.agent.take().context("no agent")?.kill()?;
        }
        stage.agent = Some(version.start()?);
    }
    let log = stage.agent()?.log();
    ensure!(!log.contains("begins anew"), "{log}");
    // Nor is it in the way of a switch that broke off.
    stage.agent.take().context("no agent")?.kill()?;
    fs::rename(&maps, usual.pin_dir().join("old"))?;
    fs::create_dir(&maps)?;
    Array::<MapData, u32>::create(1, 0)?.pin(maps.join("FUTURE"))?;
    stage.agent = Some(usual.start()?);
    expect_layout(&usual, false)?;
    let blue = stage.gateway("blue")?;
    traffic.end(&server, |address| blue.egress_like(address))?;
    let dropped = stage.metrics()?.all_dropped();
    ensure!(dropped.is_empty(), "{dropped:?}");
    Ok(())
}

/// A pin that goes while no agent holds the map: its content is made anew, and nobody meets the half of it.
#[test]
fn maps_unpinned_while_the_agent_was_away_are_made_anew() -> Result<()> {
    restart_without(&[maps::PODS, maps::LINES, maps::VERDICTS], 0)
}

/// What was known of connections goes with its pin: each is recorded anew by its next packet, and only answers that
/// come while programs are swapped, one hook after the other, find nobody.
#[test]
fn replies_unpinned_while_the_agent_was_away_are_recorded_anew() -> Result<()> {
    // Of a hundred a second, a quarter of a second.
    restart_without(&[maps::REPLIES], 25)
}

/// Kills the agent, removes the pin of a map, and starts the agent again, for one map after the other. At most so many
/// answers of each flow of datagrams do not come back.
fn restart_without(unpinned: &[&str], answers: u64) -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let addresses = ELSEWHERE.addresses();
    let server = PacedServer::start(&stage.scene.internet, &addresses)?;
    let traffic = Traffic::start(&stage.pod("web")?.host, &addresses)?;
    for map in unpinned {
        stage.agent.take().context("no agent")?.kill()?;
        fs::remove_file(Paths::new(stage.setup.pin_dir()).map(map))?;
        stage.agent = Some(stage.setup.start()?);
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
        stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
    }
    let blue = stage.gateway("blue")?;
    traffic.end_without(answers, &server, |address| blue.egress_like(address))?;
    let dropped = stage.metrics()?.all_dropped();
    ensure!(dropped.is_empty(), "{dropped:?}");
    Ok(())
}
