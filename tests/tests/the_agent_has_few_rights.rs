//! The agent keeps four capabilities, gives the rest up before it does anything, and does all its work with them.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Agent, Scene, Stage,
    agent::Setup,
    resources::{self, Resources},
    stage::From,
    topology::{ELSEWHERE, Layout},
    wait,
};
use egress_userspace::privileges::NEEDED;

/// An egress address of the scene's node, on its uplink.
const ADDRESS: &str = "172.18.0.201";
const DEVICE: &str = "egress.vxlan";

fn mask() -> u64 {
    NEEDED
        .iter()
        .fold(0, |mask, (capability, _)| mask | capability.bitmask())
}

/// A scene whose agent is told of an overlay, an egress address of its own, and interfaces to hold.
fn prepare() -> Result<(Scene, Resources, Setup)> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    resources.write(
        "own.yaml",
        &format!(
            "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {{name: own, namespace: default, \
             labels: {{egress-code: own}}}}\nspec: {{node: worker-1, egressIPs: [{ADDRESS}]}}\n"
        ),
    )?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    let keys = scene.files().join("overlay-keys");
    fs::write(&keys, "a key of at least sixteen bytes\n")?;
    setup.arguments = vec![
        "--overlay-key-file".to_owned(),
        keys.display().to_string(),
        "--hold-interfaces".to_owned(),
        "cali-*".to_owned(),
    ];
    Ok((scene, resources, setup))
}

/// Starts what follows as a container's runtime would: with these capabilities and no others to be had.
fn bounded(capabilities: &[&str]) -> Vec<String> {
    let set = capabilities.iter().map(|name| format!(",+{name}"));
    let set = set.collect::<String>();
    let words = [
        "setpriv",
        "--bounding-set",
        &format!("-all{set}"),
        "--inh-caps",
        "-all",
    ];
    words.map(str::to_owned).to_vec()
}

/// Checks what the kernel says that each thread of the agent may do.
fn expect_few_rights(agent: &Agent, bounding: Option<u64>) -> Result<()> {
    let tasks = format!("/proc/{}/task", agent.pid()?);
    let mut threads = 0;
    for task in fs::read_dir(&tasks)? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            let value = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value
                .map(str::trim)
                .with_context(|| format!("the kernel tells no {name}: {status}"))
        };
        let set = |name: &str| anyhow::Ok(u64::from_str_radix(field(name)?, 16)?);
        for (name, expected) in [
            ("CapEff", mask()),
            ("CapPrm", mask()),
            ("CapInh", 0),
            ("CapAmb", 0),
            ("CapBnd", bounding.unwrap_or_else(mask)),
        ] {
            let found = set(name)?;
            ensure!(found == expected, "{name} is {found:x}, not {expected:x}");
        }
        ensure!(field("NoNewPrivs")? == "1", "{status}");
        threads += 1;
    }
    ensure!(threads > 1, "{tasks} has {threads} threads");
    Ok(())
}

fn address_is_there(stage: &Stage) -> Result<()> {
    let shown = stage
        .scene
        .node
        .run(&["ip", "addr", "show", "dev", "eth0"])?;
    ensure!(shown.contains(ADDRESS), "{shown}");
    Ok(())
}

/// All that an agent does after its start, with the rights that it has then.
fn expect_all_its_work(stage: &mut Stage) -> Result<()> {
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.expect("plain", ELSEWHERE, From::Node)?;
    // A new interface is held, gets its programs, and is open.
    stage.scene.add_pod("late", Layout::Calico)?;
    let late = stage.pod("late")?.clone();
    stage
        .resources
        .write("late.yaml", &resources::pod("shop", &late, &[], &[]))?;
    stage.wait_until_seen("late", ELSEWHERE.v4.into(), From::Gateway("blue"))?;
    // What others take away comes back: programs, the overlay's device, an egress address, nftables' table.
    for entry in fs::read_dir(stage.setup.pin_dir().join("links"))? {
        fs::remove_file(entry?.path())?;
    }
    let node = &stage.scene.node;
    node.ip(&format!(
        "link del {DEVICE}\naddr del {ADDRESS}/32 dev eth0\n"
    ))?;
    let tables = node.run(&["nft", "list", "tables", "inet"])?;
    let own = tables.lines().find(|line| line.contains("egress"));
    node.nft(&format!("delete {}", own.context("no table holds")?))?;
    stage
        .agent()?
        .wait_for_metrics("programs and table are back", |metrics| {
            let reattached = metrics.sum("egress_programs_reattached_total", &[]);
            ensure!(reattached >= 3, "put back {reattached} times");
            let restored = metrics.sum("egress_hold_restored_total", &[]);
            ensure!(restored >= 1, "put up again {restored} times");
            Ok(())
        })?;
    wait::until("device and address are back", || {
        address_is_there(stage)?;
        ensure!(!stage.scene.node.programs_on(DEVICE)?.is_empty());
        let (status, body) = stage.agent()?.get("/readyz")?;
        ensure!(status == 200, "{body}");
        Ok(())
    })?;
    stage.expect("late", ELSEWHERE, From::Gateway("blue"))?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

#[test]
fn it_gives_up_what_root_has_and_works_on() -> Result<()> {
    for mode in ["tcx", "clsact"] {
        let (scene, resources, mut setup) = prepare()?;
        setup
            .arguments
            .extend(["--attach-mode", mode].map(str::to_owned));
        let mut stage = Stage::start_with(scene, resources, setup)?;
        expect_few_rights(stage.agent()?, None)?;
        if mode == "clsact" {
            stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
            continue;
        }
        expect_all_its_work(&mut stage)?;
        // Threads that began since then have no more.
        expect_few_rights(stage.agent()?, None)?;
        let mode = |path: &Path| anyhow::Ok(fs::metadata(path)?.permissions().mode() & 0o777);
        for directory in [stage.setup.pin_dir(), stage.setup.state_dir()] {
            ensure!(mode(&directory)? == 0o700, "{}", directory.display());
        }
        // The next agent takes over with the same.
        stage.agent.take().context("no agent")?.terminate()?;
        stage.agent = Some(stage.setup.start()?);
        expect_few_rights(stage.agent()?, None)?;
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    }
    Ok(())
}

#[test]
fn it_starts_with_no_more_than_the_manifest_gives() -> Result<()> {
    let (scene, resources, mut setup) = prepare()?;
    let all = ["bpf", "net_admin", "perfmon", "net_raw"];
    for missing in all {
        let others: Vec<_> = all.into_iter().filter(|name| *name != missing).collect();
        setup.wrapper = bounded(&others);
        let said = setup.refusal()?;
        let name = format!("CAP_{}", missing.to_uppercase());
        ensure!(said.contains(&name), "without {missing}: {said}");
    }
    setup.wrapper = bounded(&all);
    let mut stage = Stage::start_with(scene, resources, setup)?;
    expect_few_rights(stage.agent()?, Some(mask()))?;
    expect_all_its_work(&mut stage)
}
