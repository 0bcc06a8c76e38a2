//! The overlay's device is the agent's from its making to `egress detach`, and nobody else's ever.

use std::{fs, net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    resources::Resources,
    stage::From,
    topology::{ELSEWHERE, NODE_V4},
    wait,
};
use serde_json::Value;

const DEVICE: &str = "egress.vxlan";
const PORT: u16 = 4790;
const PROGRAM: &str = "egress_from_overlay";
/// As much of its name as the kernel keeps (`BPF_OBJ_NAME_LEN`).
const SHORT: &str = "egress_from_ove";

/// A scene whose agent is told of an overlay, and has not been started.
fn prepare() -> Result<(Scene, Resources, Setup)> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    let keys = scene.files().join("overlay-keys");
    fs::write(&keys, "a key of at least sixteen bytes\n")?;
    setup.arguments = vec!["--overlay-key-file".to_owned(), keys.display().to_string()];
    Ok((scene, resources, setup))
}

fn stage_with(arguments: &[&str]) -> Result<Stage> {
    let (scene, resources, mut setup) = prepare()?;
    setup
        .arguments
        .extend(arguments.iter().map(|&argument| argument.to_owned()));
    Stage::start_with(scene, resources, setup)
}

/// What `ip` says of the device.
fn device(scene: &Scene) -> Result<Value> {
    let text = scene
        .node
        .run(&["ip", "-d", "-j", "link", "show", "dev", DEVICE])?;
    let links: Value = serde_json::from_str(&text)?;
    Ok(links[0].clone())
}

fn is_up(device: &Value) -> bool {
    let flags = device["flags"].as_array().map_or(&[][..], Vec::as_slice);
    flags.iter().any(|flag| flag == "UP")
}

fn index(device: &Value) -> Result<u64> {
    device["ifindex"].as_u64().context("a device without index")
}

/// Checks that the device is open, and our program alone on it.
fn expect_at_work(scene: &Scene) -> Result<()> {
    let device = device(scene)?;
    ensure!(is_up(&device), "it is closed: {device}");
    let programs = scene.node.programs_on(DEVICE)?;
    ensure!(
        programs.iter().any(|line| line.contains(SHORT)),
        "on it are {programs:?}"
    );
    Ok(())
}

/// Waits until `/readyz` says why the agent is not ready, and `part` is in it.
fn wait_until_refused(stage: &egress_tests::Agent, part: &str) -> Result<()> {
    wait::until("the agent says what is wrong", || {
        let (status, body) = stage.get("/readyz")?;
        ensure!(status == 503 && body.contains(part), "{status} {body}");
        Ok(())
    })
}

#[test]
fn it_is_what_programs_need_and_nothing_more() -> Result<()> {
    for mode in ["tcx", "clsact"] {
        let mut stage = stage_with(&["--attach-mode", mode])?;
        expect_at_work(&stage.scene)?;
        let device = device(&stage.scene)?;
        let info = &device["linkinfo"];
        ensure!(info["info_kind"] == "vxlan", "{device}");
        let data = &info["info_data"];
        ensure!(data["external"] == true && data["port"] == PORT, "{data}");
        ensure!(data["learning"] == false, "{data}");
        ensure!(device["mtu"] == 65_465, "{device}");
        let addresses = stage
            .scene
            .node
            .run(&["ip", "addr", "show", "dev", DEVICE])?;
        ensure!(!addresses.contains("inet"), "it has addresses: {addresses}");
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;

        // The next agent takes it over as it is.
        stage.agent.take().context("no agent")?.kill()?;
        expect_at_work(&stage.scene)?;
        stage.agent = Some(stage.setup.start()?);
        expect_at_work(&stage.scene)?;
        ensure!(index(&self::device(&stage.scene)?)? == index(&device)?);
    }
    Ok(())
}

#[test]
fn it_opens_only_once_its_program_is_there() -> Result<()> {
    let (scene, _resources, setup) = prepare()?;
    // Indexes are given out in order, so the device's is known, and its link's pin can be in the way.
    scene
        .node
        .run(&["ip", "link", "add", DEVICE, "type", "bridge"])?;
    let next = index(&device(&scene)?)? + 1;
    scene.node.run(&["ip", "link", "delete", DEVICE])?;
    let pin = setup.pin_dir().join(format!("links/{PROGRAM}-{next}"));
    fs::create_dir_all(&pin)?;

    let mut agent = setup.spawn()?;
    wait_until_refused(&agent, "cannot attach egress_from_overlay")?;
    let made = device(&scene)?;
    ensure!(index(&made)? == next, "it has another index: {made}");
    ensure!(!is_up(&made), "it is open without its program: {made}");
    fs::remove_dir(&pin)?;
    agent.wait_until_ready()?;
    expect_at_work(&scene)
}

#[test]
fn its_program_is_put_back() -> Result<()> {
    let stage = stage_with(&[])?;
    expect_at_work(&stage.scene)?;
    for entry in fs::read_dir(stage.setup.pin_dir().join("links"))? {
        let path = entry?.path();
        if path.to_string_lossy().contains(PROGRAM) {
            fs::remove_file(path)?;
        }
    }
    wait::until_within("its program is back", Duration::from_secs(3), || {
        let metrics = stage.metrics()?;
        ensure!(metrics.sum("egress_programs_reattached_total", &[]) >= 1);
        expect_at_work(&stage.scene)
    })
}

#[test]
fn it_is_made_again_when_somebody_removes_it() -> Result<()> {
    let stage = stage_with(&[])?;
    let before = index(&device(&stage.scene)?)?;
    stage.scene.node.run(&["ip", "link", "delete", DEVICE])?;
    wait::until_within("it is back", Duration::from_secs(3), || {
        ensure!(index(&device(&stage.scene)?)? != before);
        expect_at_work(&stage.scene)
    })?;
    stage
        .scene
        .node
        .run(&["ip", "link", "set", DEVICE, "down"])?;
    wait::until_within("it is open again", Duration::from_secs(3), || {
        expect_at_work(&stage.scene)
    })?;
    wait::until("what is left of the old one is gone", || {
        let links = fs::read_dir(stage.setup.pin_dir().join("links"))?;
        let pins = links
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().contains(PROGRAM))
            .count();
        ensure!(pins == 1, "{pins} pins");
        Ok(())
    })?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

#[test]
fn a_taken_port_is_one_clear_error_until_it_is_free() -> Result<()> {
    let (scene, _resources, setup) = prepare()?;
    for address in ["0.0.0.0", "[::]"] {
        let socket = scene
            .node
            .enter(|| Ok(UdpSocket::bind(format!("{address}:{PORT}"))?))?;
        let mut agent = setup.spawn()?;
        wait_until_refused(&agent, "UDP port 4790 is taken")?;
        let (_, body) = agent.get("/readyz")?;
        ensure!(body.contains("--overlay-port"), "{body}");
        ensure!(!is_up(&device(&scene)?));
        drop(socket);
        agent.wait_until_ready()?;
        expect_at_work(&scene)?;
        agent.terminate()?;
        setup.detach()?;
    }

    // A device of the same kind on that port: open with other settings, or closed with the same.
    for more in [
        &["nolearning"][..],
        &["nolearning", "udp6zerocsumrx", "udp6zerocsumtx"],
    ] {
        let add = [
            "ip", "link", "add", "other", "type", "vxlan", "external", "dstport", "4790",
        ];
        scene.node.run(&[&add, more].concat())?;
        if more.len() == 1 {
            scene.node.run(&["ip", "link", "set", "other", "up"])?;
        }
        let mut agent = setup.spawn()?;
        wait_until_refused(&agent, "UDP port 4790 is taken")?;
        scene.node.run(&["ip", "link", "delete", "other"])?;
        agent.wait_until_ready()?;
        expect_at_work(&scene)?;
        agent.terminate()?;
        setup.detach()?;
    }
    Ok(())
}

#[test]
fn a_device_of_somebody_else_is_left_alone() -> Result<()> {
    let (scene, _resources, setup) = prepare()?;
    for kind in [
        &["bridge"][..],
        &["vxlan", "id", "7", "dstport", "4791"],
        &["vxlan", "external", "dstport", "4790", "nolearning"],
    ] {
        let add = [&["ip", "link", "add", DEVICE, "type"], kind].concat();
        scene.node.run(&add)?;
        let before = scene
            .node
            .run(&["ip", "-d", "link", "show", "dev", DEVICE])?;
        let agent = setup.spawn()?;
        wait_until_refused(&agent, "there is a device egress.vxlan already")?;
        agent.terminate()?;
        setup.detach()?;
        let after = scene
            .node
            .run(&["ip", "-d", "link", "show", "dev", DEVICE])?;
        ensure!(after == before, "{before} became {after}");
        scene.node.run(&["ip", "link", "delete", DEVICE])?;
    }
    Ok(())
}

#[test]
fn detach_removes_it() -> Result<()> {
    for mode in ["tcx", "clsact"] {
        let (scene, resources, mut setup) = prepare()?;
        setup
            .arguments
            .extend(["--attach-mode", mode].map(str::to_owned));
        let before = scene.inventory()?;
        let mut stage = Stage::start_with(scene, resources, setup)?;
        stage.agent.take().context("no agent")?.terminate()?;
        expect_at_work(&stage.scene)?;
        let said = stage.setup.detach()?;
        ensure!(
            said.contains("removed the overlay device egress.vxlan"),
            "{said}"
        );
        assert_eq!(stage.scene.inventory()?, before);
        ensure!(!stage.setup.state_dir().exists());
    }
    Ok(())
}

#[test]
fn it_goes_when_there_is_no_overlay_any_more_and_changes_with_its_settings() -> Result<()> {
    let mut stage = stage_with(&[])?;
    stage.agent.take().context("no agent")?.terminate()?;
    let with_port = ["--overlay-port", "4791"].map(str::to_owned);
    stage.setup.arguments.extend(with_port);
    let agent = stage.setup.start()?;
    ensure!(device(&stage.scene)?["linkinfo"]["info_data"]["port"] == 4791);
    expect_at_work(&stage.scene)?;
    agent.terminate()?;

    let with_name = ["--overlay-device", "other.vxlan"].map(str::to_owned);
    stage.setup.arguments.extend(with_name);
    let agent = stage.setup.start()?;
    ensure!(device(&stage.scene).is_err(), "the old name is still there");
    let programs = stage.scene.node.programs_on("other.vxlan")?;
    ensure!(programs.iter().any(|line| line.contains(SHORT)));
    agent.terminate()?;

    stage.setup.arguments.clear();
    stage.agent = Some(stage.setup.start()?);
    let links = stage.scene.node.run(&["ip", "link", "show"])?;
    ensure!(!links.contains("vxlan"), "{links}");
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

/// Whoever sends a frame there gets it dropped and counted for what it is: the kernel sees none of it.
#[test]
fn what_arrives_there_is_never_the_kernels() -> Result<()> {
    const FRAMES: u64 = 3;
    let stage = stage_with(&[])?;
    let socket = stage
        .scene
        .internet
        .enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    for (identifier, reason) in [(1, "OverlayUnknownNode"), (2, "OverlayMalformed")] {
        // A VXLAN header (RFC 7348, 5) with the overlay's identifier or another, and a frame of nobody.
        let mut frame = vec![0x08, 0, 0, 0, 0, 0x10, identifier, 0];
        frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00]);
        frame.extend([0x45; 46]);
        for _ in 0..FRAMES {
            socket.send_to(&frame, (NODE_V4, PORT))?;
        }
        wait::until("the frames are counted", || {
            let metrics = stage.metrics()?;
            let dropped = metrics.dropped_anywhere(reason);
            ensure!(dropped == FRAMES, "{:?}", metrics.drops_anywhere());
            Ok(())
        })?;
    }
    Ok(())
}
