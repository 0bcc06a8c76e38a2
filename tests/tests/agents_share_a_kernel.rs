//! Agents live beside each other, each in its network namespace, and bring their own bpffs.

use std::path::PathBuf;

use anyhow::{Context, Result};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    resources::Resources,
    stage::From,
    topology::{ELSEWHERE, RED_NETWORK},
};

#[test]
fn two_agents_do_not_know_each_other() -> Result<()> {
    let mut one = Stage::of_examples()?;
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    // One file system of pins, a directory for each.
    setup.bpffs = one.scene.bpffs().join("two");
    let two = Stage::start_with(scene, resources, setup)?;
    for stage in [&one, &two] {
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
        stage.expect("web", RED_NETWORK, From::Gateway("red"))?;
    }

    let policy = std::fs::read_to_string(two.resources.directory().join("policy.yaml"))?;
    two.resources
        .write("policy.yaml", &policy.replace("'blue'", "'red'"))?;
    two.wait_until_seen("web", ELSEWHERE.v4.into(), From::Gateway("red"))?;
    let through_blue = one.metrics()?.through("blue");
    two.expect("web", ELSEWHERE, From::Gateway("red"))?;
    assert_eq!(one.metrics()?.through("blue"), through_blue);
    one.expect("web", ELSEWHERE, From::Gateway("blue"))?;

    one.agent.take().context("no agent")?.terminate()?;
    one.setup.detach()?;
    one.expect("web", ELSEWHERE, From::Node)?;
    two.expect("web", ELSEWHERE, From::Gateway("red"))
}

#[test]
fn an_agent_does_not_share_its_pins() -> Result<()> {
    let stage = Stage::of_examples()?;
    let said = stage.setup.refusal()?;
    assert!(said.contains("cannot listen"), "{said}");
    let output = stage.setup.output(&[
        "run",
        "--resources",
        "/dev/null",
        "--metrics-listen",
        "127.0.0.1:9465",
        "--pin-dir",
        &stage.setup.pin_dir().display().to_string(),
        "--state-dir",
        &stage.setup.state_dir().display().to_string(),
    ])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("another agent uses"), "{said}");
    Ok(())
}

#[test]
fn a_missing_bpffs_is_mounted() -> Result<()> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    let bare = "while umount /sys/fs/bpf 2> /dev/null; do :; done; exec \"$@\"";
    setup.wrapper = [
        "unshare",
        "--mount",
        "--propagation=private",
        "sh",
        "-c",
        bare,
        "sh",
    ]
    .map(str::to_owned)
    .to_vec();
    setup.bpffs = PathBuf::from("/sys/fs/bpf/egress-tests");
    let stage = Stage::start_with(scene, resources, setup)?;
    let log = stage.agent()?.log();
    assert!(log.contains("mounted the BPF file system"), "{log}");
    // Nothing of it is in the machine's own mounts.
    assert!(!stage.setup.bpffs.exists());
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}
