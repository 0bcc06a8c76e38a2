//! What the resources say of egress addresses and of other nodes is what the maps say, also after a restart.

use std::{fs, net::IpAddr};

use anyhow::{Context, Result, ensure};
use egress_common::{Addr, gateway::Egress, overlay::NodeState};
use egress_tests::{Scene, Stage, agent::Setup, resources::Resources, topology::NODE, wait};
use egress_userspace::{
    kernel::{Maps, Paths},
    translation::State,
};

const UPLINK_PROGRAM: &str = "egress_from_upl";

/// A gateway with an egress address of each family on a node, with further lines of its spec.
fn gateway(name: &str, node: &str, last: u8, more: &str) -> String {
    format!(
        "---\napiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata:\n  name: {name}\n  namespace: \
         default\nspec:\n  node: {node}\n  egressIPs: [172.18.0.{last}, \"fd00:18::{last}\"]\n{more}"
    )
}

fn node(name: &str, addresses: &[&str]) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nstatus:\n  addresses:\n"
    );
    for address in addresses {
        text.push_str(&format!(
            "  - {{type: InternalIP, address: \"{address}\"}}\n"
        ));
    }
    text
}

/// An agent with an overlay, the examples, and these further resources.
fn stage(more: &str, arguments: &[&str]) -> Result<Stage> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    resources.write("more.yaml", more)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    let keys = keys(&scene);
    fs::write(&keys, "the first key, long enough\n")?;
    setup.arguments = vec!["--overlay-key-file".to_owned(), keys.display().to_string()];
    setup
        .arguments
        .extend(arguments.iter().map(|&argument| argument.to_owned()));
    Stage::start_with(scene, resources, setup)
}

fn keys(scene: &Scene) -> std::path::PathBuf {
    scene.files().join("overlay-keys")
}

fn read(setup: &Setup) -> Result<State> {
    Maps::open(&Paths::new(setup.pin_dir()))?.translation()
}

fn addr(text: &str) -> Result<Addr> {
    Ok(text.parse::<IpAddr>()?.into())
}

fn egress(state: &State, address: &str) -> Result<Egress> {
    let index = state
        .addresses
        .get(&addr(address)?)
        .with_context(|| format!("no {address} in {state:?}"))?;
    state
        .egress
        .get(index)
        .copied()
        .context("an index to nothing")
}

fn node_at(state: &State, address: &str) -> Result<(u32, NodeState)> {
    let index = *state
        .nodes
        .get(&addr(address)?)
        .with_context(|| format!("no {address} in {state:?}"))?;
    let node = state
        .node_state
        .get(&index)
        .context("an index to nothing")?;
    Ok((index, *node))
}

/// Waits until the maps are as they should be.
fn wait_for<T>(stage: &Stage, check: impl Fn(&State) -> Result<T>) -> Result<T> {
    wait::until("the maps follow", || check(&read(&stage.setup)?))
}

/// The interfaces that have the uplinks' program.
fn uplinks(stage: &Stage) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for interface in ["eth0", "eth1"] {
        let programs = stage.scene.node.programs_on(interface)?;
        if programs.iter().any(|line| line.contains(UPLINK_PROGRAM)) {
            found.push(interface);
        }
    }
    Ok(found)
}

#[test]
fn addresses_of_this_node_come_change_and_go() -> Result<()> {
    let mut stage = stage(&gateway("own", NODE, 100, ""), &[])?;
    let state = read(&stage.setup)?;
    let v4 = egress(&state, "172.18.0.100")?;
    let v6 = egress(&state, "fd00:18::100")?;
    assert_eq!(v4.gateway, v6.gateway);
    assert_eq!(v4.counter, v6.counter);
    assert_eq!((v4.mtu, v4.flags), (1500, 0));
    assert_eq!(state.gateways.len(), 2);
    assert_eq!(state.settings.node4, addr("172.18.0.2")?);
    assert_eq!(state.settings.node6, addr("fd00:18::2")?);
    assert_eq!(state.settings.vni, 4097);
    assert_ne!(state.settings.overlay_ifindex, 0);
    assert_eq!(state.settings.source_quota, 16_384);
    assert_eq!(uplinks(&stage)?, ["eth0"]);

    // Another agent finds all of it as it is, and goes on with the same counters.
    stage.agent.take().context("no agent")?.kill()?;
    stage.agent = Some(stage.setup.start()?);
    assert_eq!(read(&stage.setup)?, state);

    let two =
        gateway("also", NODE, 101, "") + &gateway("own", NODE, 100, "  portRange: 2000-2999\n");
    stage.resources.write("more.yaml", &two)?;
    let changed = wait_for(&stage, |state| {
        let changed = egress(state, "172.18.0.100")?;
        ensure!(changed.first_port == 2000, "{changed:?}");
        ensure!(egress(state, "172.18.0.101")?.counter != changed.counter);
        Ok(changed)
    })?;
    assert_eq!(changed.counter, v4.counter);

    stage.resources.remove("more.yaml")?;
    wait_for(&stage, |state| {
        ensure!(state.gateways.is_empty() && state.addresses.is_empty());
        Ok(())
    })?;
    wait::until("nothing is on the uplink any more", || {
        let left = uplinks(&stage)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

#[test]
fn uplinks_are_those_that_are_named() -> Result<()> {
    let arguments = ["--uplink", "eth1", "--uplink", "eth9"];
    let stage = stage(
        &gateway("own", NODE, 100, "  interface: eth0\n"),
        &arguments,
    )?;
    // The gateway's own is one, too.
    assert_eq!(uplinks(&stage)?, ["eth0", "eth1"]);
    let log = stage.agent()?.log();
    ensure!(log.contains("--uplink names eth9"), "{log}");
    Ok(())
}

#[test]
fn nodes_keep_their_numbers() -> Result<()> {
    let two = node("worker-2", &["172.18.0.3", "fd00:18::3"]);
    let three = node("worker-3", &["172.18.0.4"]);
    let mut stage = stage(&(two.clone() + &three), &[])?;
    let state = read(&stage.setup)?;
    let (second, told) = node_at(&state, "172.18.0.3")?;
    assert_eq!(node_at(&state, "fd00:18::3")?.0, second);
    let (third, _) = node_at(&state, "172.18.0.4")?;
    ensure!(second != third && second != 0 && third != 0);
    assert_eq!(told.mtu, 1450);
    ensure!(!state.nodes.contains_key(&addr("172.18.0.2")?), "it is us");

    // A new first one by name, with and without an agent, and with its memory of names lost.
    let first = node("a-worker", &["172.18.0.5"]);
    stage
        .resources
        .write("more.yaml", &(first + &two + &three))?;
    let check = |state: &State| {
        ensure!(node_at(state, "172.18.0.3")?.0 == second);
        ensure!(node_at(state, "172.18.0.4")?.0 == third);
        node_at(state, "172.18.0.5")
    };
    let (new, _) = wait_for(&stage, check)?;
    for forget in [false, true] {
        stage.agent.take().context("no agent")?.terminate()?;
        if forget {
            fs::remove_file(stage.setup.state_dir().join("names.json"))?;
        }
        stage.agent = Some(stage.setup.start()?);
        assert_eq!(check(&read(&stage.setup)?)?.0, new);
    }

    // Keys turn without a restart: frames go with the new one, and come with both.
    let rotated = "the second key, long enough\nthe first key, long enough\n";
    fs::write(keys(&stage.scene), rotated)?;
    let now = wait_for(&stage, |state| {
        let (index, now) = node_at(state, "172.18.0.3")?;
        ensure!(index == second && now.send != told.send);
        Ok(now)
    })?;
    assert_eq!(now.accept[1], told.accept[0]);
    assert_ne!(now.accept[0], told.accept[0]);

    stage.resources.write("more.yaml", &two)?;
    wait_for(&stage, |state| {
        ensure!(state.nodes.len() == 2, "{:?}", state.nodes);
        ensure!(node_at(state, "172.18.0.3")?.0 == second);
        Ok(())
    })
}

#[test]
fn frames_from_an_address_that_nobody_knows_are_said_first() -> Result<()> {
    let other = node("worker-2", &["172.18.0.3"]);
    let stage = stage(&other, &[])?;
    let agent = stage.agent()?;
    let ready = |expected: u16, part: &str| {
        wait::until("the agent says whether it is ready", || {
            let (status, body) = agent.get("/readyz")?;
            ensure!(status == expected && body.contains(part), "{status} {body}");
            Ok(())
        })
    };
    // The node's own resource says only what is not the way to the other.
    stage
        .resources
        .write("nodes.yaml", &node(NODE, &["172.19.0.2"]))?;
    ready(
        503,
        "to the node worker-2 (172.18.0.3) would leave from 172.18.0.2",
    )?;
    // With another route it is right again, and wrong with the next.
    let via_dmz = "172.18.0.3/32 via 172.19.0.11";
    stage.scene.node.ip(&format!("route add {via_dmz}\n"))?;
    ready(200, "")?;
    stage.scene.node.ip(&format!("route del {via_dmz}\n"))?;
    ready(503, "status.addresses")?;
    stage
        .resources
        .write("nodes.yaml", &node(NODE, &["172.18.0.2", "172.19.0.2"]))?;
    ready(200, "")
}
