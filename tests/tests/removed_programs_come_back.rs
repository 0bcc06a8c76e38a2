//! What something else takes away is back within a second, and counted: pins, links, and the directory of both.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    paced::{Paced, PacedServer},
    resources::Resources,
    stage::From,
    topology::ELSEWHERE,
    wait,
};
use egress_userspace::kernel::{Paths, detach_all};

const PINS: &str = "egress_pins_restored_total";
const PROGRAMS: &str = "egress_programs_reattached_total";
/// What is promised.
const SOON: Duration = Duration::from_secs(1);
/// What a machine that others keep busy may need.
const LATE: Duration = Duration::from_secs(5);

fn stage(mode: &str) -> Result<Stage> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    setup.arguments = ["--attach-mode", mode].map(str::to_owned).to_vec();
    Stage::start_with(scene, resources, setup)
}

/// Every file and directory below a directory.
fn below(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(below(&path)?);
        }
        found.insert(path);
    }
    Ok(found)
}

/// Waits until all pins are there again, and tells how long that took.
fn wait_for_pins(stage: &Stage, expected: &BTreeSet<PathBuf>) -> Result<Duration> {
    let began = Instant::now();
    wait::until_within("every pin is back", LATE, || {
        let there = below(&stage.setup.pin_dir())?;
        let missing: Vec<_> = expected.difference(&there).collect();
        ensure!(missing.is_empty(), "{missing:?}");
        Ok(())
    })?;
    let took = began.elapsed();
    println!("back after {took:?}");
    Ok(took)
}

/// Removes files below the pin directory under traffic, and checks that nobody notices.
fn unnoticed(mode: &str, remove: impl Fn(&Path) -> Result<u64>) -> Result<()> {
    let mut stage = stage(mode)?;
    let addresses = ELSEWHERE.addresses();
    let server = PacedServer::start(&stage.scene.internet, &addresses)?;
    let web = stage.pod("web")?.host.clone();
    let interface = stage.pod("web")?.interface.clone();
    let programs = stage.scene.node.programs_on(&interface)?;
    let pins = below(&stage.setup.pin_dir())?;
    let traffic = addresses
        .into_iter()
        .map(|address| Paced::datagrams(&web, address, 200))
        .collect::<Result<Vec<_>>>()?;

    let mut quickest = Duration::MAX;
    let mut removed = 0;
    for _ in 0..3 {
        removed += remove(&stage.setup.pin_dir())?;
        quickest = quickest.min(wait_for_pins(&stage, &pins)?);
    }
    ensure!(quickest <= SOON, "it took {quickest:?}");
    let metrics = stage
        .agent()?
        .wait_for_metrics("it is counted", |metrics| {
            let restored = metrics.sum(PINS, &[]);
            ensure!(
                restored == removed,
                "{restored} are counted, {removed} were removed"
            );
            Ok(())
        })?;
    ensure!(metrics.sum(PROGRAMS, &[]) == 0);
    assert_eq!(stage.scene.node.programs_on(&interface)?, programs);

    // And what is pinned again is what was in use all the time.
    stage.agent.take().context("no agent")?.kill()?;
    stage.agent = Some(stage.setup.start()?);
    for paced in traffic {
        let tally = paced.end()?;
        ensure!(tally.sent == tally.back, "{tally:?}");
    }
    let gateway = stage.gateway("blue")?;
    let expected: BTreeSet<_> = addresses.map(|like| gateway.egress_like(like)).into();
    assert_eq!(
        server.datagrams().into_keys().collect::<BTreeSet<_>>(),
        expected
    );
    stage
        .agent()?
        .wait_for_metrics("counters went on", |metrics| {
            let seen = gateway.host.counter("from_pods")?.packets;
            let counted = metrics.through("blue");
            ensure!(seen == counted, "{counted} are counted, {seen} arrived");
            Ok(())
        })?;
    stage.agent.take().context("no agent")?.terminate()?;
    stage.setup.detach()?;
    ensure!(!stage.setup.pin_dir().exists());
    stage.expect("web", ELSEWHERE, From::Node)
}

fn remove_in(directory: &Path) -> Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
        removed += 1;
    }
    Ok(removed)
}

#[test]
fn marks_of_filters() -> Result<()> {
    unnoticed("clsact", |pins| {
        let removed = remove_in(&pins.join("links"))?;
        for entry in fs::read_dir(pins)? {
            let path = entry?.path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("qdisc-"))
            {
                fs::remove_dir(path)?;
            }
        }
        Ok(removed)
    })
}

#[test]
fn pins_of_maps_and_links() -> Result<()> {
    unnoticed("tcx", |pins| {
        Ok(remove_in(&pins.join("maps"))? + remove_in(&pins.join("links"))?)
    })
}

#[test]
fn the_whole_directory() -> Result<()> {
    unnoticed("tcx", |pins| {
        let removed = remove_in(&pins.join("maps"))? + remove_in(&pins.join("links"))?;
        fs::remove_dir_all(pins)?;
        Ok(removed)
    })
}

/// A link that is detached keeps its pin, and does nothing any more.
#[test]
fn links_that_are_detached() -> Result<()> {
    let stage = stage("tcx")?;
    let interface = &stage.pod("web")?.interface;
    let before = stage.scene.node.programs_on(interface)?;
    ensure!(!before.is_empty());
    let mut quickest = Duration::MAX;
    for round in 1..=3 {
        let errors = detach_all(&Paths::new(stage.setup.pin_dir()));
        ensure!(errors.is_empty(), "{errors:?}");
        let began = Instant::now();
        wait::until_within("every program is back", LATE, || {
            let after = stage.scene.node.programs_on(interface)?;
            ensure!(after.len() == before.len(), "{before:?} became {after:?}");
            Ok(())
        })?;
        quickest = quickest.min(began.elapsed());
        stage
            .agent()?
            .wait_for_metrics("it is counted", |metrics| {
                let counted = metrics.sum(PROGRAMS, &[]);
                ensure!(counted >= 3 * round, "counted {counted} times");
                Ok(())
            })?;
    }
    println!("back after {quickest:?}");
    ensure!(quickest <= SOON, "it took {quickest:?}");
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}
