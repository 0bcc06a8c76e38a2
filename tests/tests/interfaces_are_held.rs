//! With `--hold-interfaces` a pod's interface is closed from its first packet until its policy is in the kernel.

use std::{
    fs,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    client::{Frame, Wire, unanswered},
    resources::{self, Resources},
    stage::From,
    topology::{ELSEWHERE, INTERNAL, Layout, NODE_V4, NODE_V6, Pod, Shape},
    wait,
};
use nix::sys::signal::Signal;

const PATTERN: &str = "cali-*";
const HELD: &str = "egress_held_packets_total";
/// Pods that come and go while the agent runs, while it was told to stop, and after it was killed.
const CHURN: [u32; 3] = [120, 40, 40];
/// Packets that each pod sends at least before anything is known of it.
const UNKNOWN: u64 = 20;

/// A scene whose agent holds interfaces, with these pods beside those of the examples.
fn stage(more: &[&'static str]) -> Result<Stage> {
    let mut shape = Shape::default();
    shape.pods.extend(more);
    let scene = Scene::build(&shape)?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    setup.arguments = ["--hold-interfaces", PATTERN].map(str::to_owned).to_vec();
    Stage::start_with(scene, resources, setup)
}

/// What the node's nftables lets through to itself and on from a pod: counted after the agent's rule, and by no rule of its.
fn watch(stage: &Stage, pod: &Pod) -> Result<()> {
    let interface = &pod.interface;
    stage.scene.node.nft(&format!(
        "table inet watch {{
           counter forwarded {{}}
           counter delivered {{}}
           chain forward {{
             type filter hook forward priority -300; policy accept;
             iifname \"{interface}\" counter name forwarded
           }}
           chain input {{
             type filter hook input priority -300; policy accept;
             iifname \"{interface}\" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
             iifname \"{interface}\" counter name delivered
           }}
         }}"
    ))
}

fn watched(stage: &Stage) -> Result<[u64; 2]> {
    let mut counters = stage.scene.node.counters()?;
    let mut take = |name: &str| {
        let count = counters.remove(name).context("nothing is watched")?;
        anyhow::Ok(count.packets)
    };
    Ok([take("forwarded")?, take("delivered")?])
}

/// Packets that the standing rule held, as the kernel itself counts them.
fn held(stage: &Stage) -> Result<u64> {
    Ok(stage.scene.node.counter("held")?.packets)
}

fn frames(pod: &Pod, node_mac: [u8; 6], destinations: &[IpAddr]) -> Result<Vec<Vec<u8>>> {
    let frame = |destination: &IpAddr| {
        Frame {
            from: [2, 0, 0, 0, 0, 9],
            to: node_mac,
            source: pod.address_like(*destination),
            destination: *destination,
            ttl: 64,
        }
        .bytes()
    };
    destinations.iter().map(frame).collect()
}

/// Waits for what is held; other packets of the pod's own, such as multicast reports, may be among it.
fn wait_until_held(stage: &Stage, least: u64) -> Result<u64> {
    wait::until("packets are held", || {
        let held = held(stage)?;
        ensure!(held >= least, "{held} of {least} packets are held");
        Ok(held)
    })
}

#[test]
fn nothing_passes_until_the_pod_is_known() -> Result<()> {
    let stage = stage(&["new"])?;
    let pod = stage.pod("new")?.clone();
    watch(&stage, &pod)?;
    // The others are known, steered or not.
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.expect("plain", ELSEWHERE, From::Node)?;

    let everywhere: Vec<IpAddr> = [ELSEWHERE.addresses(), INTERNAL.addresses()]
        .concat()
        .into_iter()
        .chain([NODE_V4.into(), NODE_V6.into()])
        .collect();
    let before = held(&stage)?;
    let wire = Wire::open(&pod.host, "eth0")?;
    for frame in frames(&pod, [0xee; 6], &everywhere)? {
        (0..UNKNOWN).try_for_each(|_| wire.send(&frame))?;
    }
    wait_until_held(&stage, before + UNKNOWN * everywhere.len() as u64)?;
    assert_eq!(watched(&stage)?, [0, 0], "forwarded and delivered");
    let metrics = stage.metrics()?;
    assert_eq!(metrics.sum(HELD, &[]), held(&stage)?);
    assert_eq!(metrics.sum("egress_interfaces_held", &[]), 1);
    let (_, status) = stage.agent()?.get("/status")?;
    let shown = format!("\"held\":[\"{}\"]", pod.interface);
    assert!(
        status.replace(char::is_whitespace, "").contains(&shown),
        "{status}"
    );

    // Known, but its namespace is not: that may ask for a policy.
    let unsteered = resources::pod("later", &pod, &[], &[]);
    stage.resources.write("new.yaml", &unsteered)?;
    stage
        .agent()?
        .wait_for_metrics("the pod is read", |metrics| {
            let file = stage.resources.directory().join("new.yaml");
            let file = file.display().to_string();
            let label = [("file", file.as_str())];
            let read = metrics.matching("egress_resource_errors", &label);
            ensure!(read.count() == 1);
            Ok(())
        })?;
    unanswered(&pod.host, ELSEWHERE.v4.into())?;
    assert_eq!(watched(&stage)?[0], 0, "forwarded");
    let namespace = resources::namespace("later", &[]);
    stage.resources.write("later.yaml", &namespace)?;
    stage.wait_until_seen("new", ELSEWHERE.v4.into(), From::Node)?;
    stage.wait_until_seen("new", ELSEWHERE.v6.into(), From::Node)?;

    // A pod that nobody knows any more is closed again, whether it was steered or not.
    for (name, file) in [("new", "new.yaml"), ("web", "pods.yaml")] {
        let passed = stage.pod(name)?.interface.clone();
        stage.resources.remove(file)?;
        wait::until("it is held again", || {
            let set = stage.scene.node.run(&["nft", "list", "sets", "inet"])?;
            ensure!(!set.contains(&passed), "{passed} is open: {set}");
            // It is closed first, and then let go.
            ensure!(stage.scene.node.programs_on(&passed)?.is_empty());
            Ok(())
        })?;
        unanswered(&stage.pod(name)?.host, ELSEWHERE.v4.into())?;
    }
    Ok(())
}

/// The promise: pods are made and deleted under traffic, most of them before anybody knows them.
#[test]
fn pods_that_come_and_go_leak_nothing() -> Result<()> {
    let mut stage = stage(&["churn"])?;
    let pod = stage.pod("churn")?.clone();
    watch(&stage, &pod)?;
    let leaked = |stage: &Stage| -> Result<u64> {
        let outside = &stage.scene.internet;
        Ok(outside.counter("leaked")?.packets + outside.counter("by_node")?.packets)
    };
    let before = leaked(&stage)?;
    let mut sent = 0;
    let mut steered = 0;
    for round in 0..CHURN[0] {
        let (more, arrived) = come_and_go(&stage, &pod, true, round % 3 != 2)?;
        sent += more;
        steered += arrived;
    }
    let running = held(&stage)?;
    let agent = stage.agent.take().context("no agent")?;
    agent.terminate()?;
    for _ in 0..CHURN[1] {
        sent += come_and_go(&stage, &pod, false, false)?.0;
    }
    stage.agent = Some(stage.setup.start()?);
    let (more, arrived) = come_and_go(&stage, &pod, true, true)?;
    (sent, steered) = (sent + more, steered + arrived);
    stage.agent.take().context("no agent")?.kill()?;
    for _ in 0..CHURN[2] {
        sent += come_and_go(&stage, &pod, false, false)?.0;
    }
    // What a pod sends to its own node is its own business once it is known.
    let [forwarded, _] = watched(&stage)?;
    let outside = leaked(&stage)? - before;
    println!(
        "{} pods sent {sent} packets: {} were held ({running} while the agent ran), {steered} came to the gateway, \
         {forwarded} were forwarded, {outside} reached the outside by another way",
        CHURN.iter().sum::<u32>() + 1,
        held(&stage)?,
    );
    assert_eq!(
        (forwarded, outside),
        (0, 0),
        "leaked: forwarded, seen outside"
    );
    assert!(steered > 0 && held(&stage)? > running);

    // Whoever was steered before all that still is, with and without an agent.
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

/// One pod: its interface appears, as a CNI plugin makes it, while the pod sends already; then it is known, if the agent
/// runs, and goes. Gives how many packets it sent, and how many came to the gateway.
fn come_and_go(stage: &Stage, pod: &Pod, runs: bool, wait_for_it: bool) -> Result<(u64, u64)> {
    let Pod {
        interface, v4, v6, ..
    } = pod;
    let blue = || anyhow::Ok(stage.gateway("blue")?.host.counter("from_pods")?.packets);
    let node = &stage.scene.node;
    drop(node.ip(&format!("link del {interface}\n")));
    let (held_before, blue_before) = (held(stage)?, blue()?);
    node.ip(&format!(
        "link add {interface} address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns {}\n",
        pod.host.namespace()
    ))?;
    pod.host.ip("link set eth0 up\n")?;
    let frames = frames(pod, [0xee; 6], &ELSEWHERE.addresses())?;
    let wire = Wire::open(&pod.host, "eth0")?;
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                for frame in &frames {
                    // The other end may not be up yet, or gone.
                    sent += u64::from(wire.send(frame).is_ok());
                }
                // The rate, so that no queue on the way overflows.
                thread::sleep(Duration::from_micros(500));
            }
            sent
        });
        let act = || -> Result<()> {
            node.ip(&format!(
                "link set {interface} up
                 route add {v4}/32 dev {interface} scope link
                 route add {v6}/128 dev {interface}
                 "
            ))?;
            wait_until_held(stage, held_before + UNKNOWN)?;
            if runs {
                let known = resources::pod("shop", pod, &[], &[]);
                stage.resources.write("churn.yaml", &known)?;
            }
            if wait_for_it {
                wait::until("the pod's packets come to its gateway", || {
                    ensure!(blue()? >= blue_before + 2);
                    Ok(())
                })?;
            }
            Ok(())
        };
        let result = act();
        // Deleted under traffic, before or after the resources say so.
        drop(node.ip(&format!("link del {interface}\n")));
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap_or_default();
        result.map(|()| sent)
    })?;
    if runs {
        stage.resources.remove("churn.yaml")?;
    }
    Ok((sent, blue()? - blue_before))
}

#[test]
fn the_rule_outlives_the_agent_and_goes_with_detach() -> Result<()> {
    let scene = Scene::new()?;
    let before = scene.inventory()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    setup.arguments = ["--hold-interfaces", PATTERN].map(str::to_owned).to_vec();
    let mut stage = Stage::start_with(scene, resources, setup)?;
    let rules = |stage: &Stage| stage.scene.node.run(&["nft", "list", "ruleset", "inet"]);
    let table = rules(&stage)?;
    assert!(table.contains("iifname \"cali-*\" jump closed"), "{table}");

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let during = stage.scene.inventory()?;
        let agent = stage.agent.take().context("no agent")?;
        if signal == Signal::SIGKILL {
            agent.kill()?;
        } else {
            agent.terminate()?;
        }
        assert_eq!(
            stage.scene.inventory()?,
            during,
            "{signal} changed the node"
        );
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
        stage.expect("plain", ELSEWHERE, From::Node)?;
        // Other patterns take the old ones' place at once.
        stage.setup.arguments = ["--hold-interfaces", PATTERN, "lxc7"]
            .map(str::to_owned)
            .to_vec();
        stage.agent = Some(stage.setup.start()?);
        let table = rules(&stage)?;
        for rule in ["\"cali-*\" jump closed", "\"lxc7\" jump closed"] {
            assert_eq!(table.matches(rule).count(), 1, "{rule}: {table}");
        }
    }
    stage.agent.take().context("no agent")?.terminate()?;
    stage.setup.detach()?;
    assert_eq!(stage.scene.inventory()?, before);
    stage.expect("web", ELSEWHERE, From::Node)?;

    // Without the flag there is no table, whatever was there before.
    stage.agent = Some(stage.setup.start()?);
    stage.agent.take().context("no agent")?.terminate()?;
    stage.setup.arguments.clear();
    stage.agent = Some(stage.setup.start()?);
    let table = rules(&stage)?;
    assert!(!table.contains("jump closed"), "{table}");
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

/// The name of the agent's tables.
fn table(stage: &Stage) -> Result<String> {
    let tables = stage.scene.node.run(&["nft", "list", "tables", "inet"])?;
    let own = tables
        .lines()
        .find_map(|line| line.strip_prefix("table inet egress"));
    Ok(format!("egress{}", own.context("no table")?))
}

#[test]
fn what_else_changes_the_rule_is_undone() -> Result<()> {
    let stage = stage(&[])?;
    let node = &stage.scene.node;
    let name = table(&stage)?;
    let state = || {
        let ruleset = node.run(&["nft", "list", "ruleset"])?;
        // Handles and counts are new; the rules and the set are not.
        let lines = ruleset.lines().filter(|line| !line.contains("packets"));
        anyhow::Ok(lines.map(str::to_owned).collect::<Vec<_>>())
    };
    let before = state()?;
    for (times, change) in [
        format!("delete table inet {name}"),
        format!("delete table bridge {name}"),
        format!("flush chain inet {name} prerouting"),
        format!("flush set inet {name} programmed"),
        format!("add element inet {name} programmed {{ \"eth0\" }}"),
        format!("insert rule inet {name} closed accept"),
    ]
    .iter()
    .enumerate()
    {
        node.nft(change)?;
        let began = Instant::now();
        // No scrape fails meanwhile.
        stage.metrics()?;
        stage
            .agent()?
            .wait_for_metrics("it is noticed", |metrics| {
                let restored = metrics.sum("egress_hold_restored_total", &[]);
                ensure!(restored > times as u64, "{change}: {restored}");
                Ok(())
            })?;
        println!("{change}: undone after {:?}", began.elapsed());
        let mut now = state()?;
        let mut expected = before.clone();
        // A table that is made anew is listed last.
        now.sort();
        expected.sort();
        assert_eq!(now, expected, "{change}");
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
        stage.expect("plain", ELSEWHERE, From::Node)?;
    }
    Ok(())
}

/// A table that goes while no agent looks after it, or that there was none of: steered pods are not cut off until the
/// resources are read, be that never.
#[test]
fn steered_pods_go_on_where_the_rule_went_with_the_agent() -> Result<()> {
    let mut stage = stage(&[])?;
    let pods = fs::read_to_string(stage.resources.directory().join("pods.yaml"))?;
    stage.agent.take().context("no agent")?.kill()?;
    for family in ["bridge", "inet"] {
        let delete = format!("delete table {family} {}", table(&stage)?);
        stage.scene.node.nft(&delete)?;
    }
    stage.resources.write("pods.yaml", "{")?;
    // Nothing remembers what was in that file.
    fs::remove_dir_all(stage.setup.state_dir().join("objects"))?;
    let agent = stage.setup.spawn()?;
    wait::until("the agent refuses to forget", || {
        ensure!(agent.log().contains("stays as it is until"));
        Ok(())
    })?;
    let sets = stage.scene.node.run(&["nft", "list", "sets", "inet"])?;
    let web = stage.pod("web")?.interface.clone();
    ensure!(sets.contains(&web), "{web} is closed: {sets}");
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.resources.write("pods.yaml", &pods)?;
    stage.agent = Some(agent);
    stage.wait_until_seen("plain", ELSEWHERE.v4.into(), From::Node)
}

#[test]
fn patterns_that_would_cut_the_node_off_are_refused() -> Result<()> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    for (pattern, part) in [
        ("e*", "would close eth0"),
        ("lo", "would close lo"),
        ("*", "every interface"),
    ] {
        setup.arguments = ["--hold-interfaces", pattern].map(str::to_owned).to_vec();
        let said = setup.refusal()?;
        assert!(said.contains(part), "{pattern}: {said}");
    }
    // Somebody else's table is left alone, by `run` and by `detach`.
    setup.arguments = ["--hold-interfaces", PATTERN].map(str::to_owned).to_vec();
    let pins = setup.pin_dir().display().to_string();
    let name = format!("egress{}", pins.replace('/', "-"));
    scene.node.nft(&format!("table inet {name} {{ }}"))?;
    let said = setup.refusal()?;
    assert!(said.contains("not this agent's"), "{said}");
    let refused = setup.detach().err().map(|error| error.to_string());
    assert!(
        refused
            .as_ref()
            .is_some_and(|said| said.contains("not this agent's")),
        "{refused:?}"
    );
    scene.node.run(&["nft", "list", "table", "inet", &name])?;
    Ok(())
}

#[test]
fn ports_of_a_bridge_are_held_too() -> Result<()> {
    let scene = Scene::build(&Shape {
        layout: Layout::Bridge,
        ..Shape::default()
    })?;
    let resources = Resources::of_examples(&scene)?;
    let plain = scene.pod("plain")?.clone();
    let all = fs::read_to_string(resources::examples().join("pods.yaml"))?;
    let known: Vec<&str> = all
        .split("\n---\n")
        .filter(|pod| !pod.contains("name: plain"))
        .collect();
    resources.write("pods.yaml", &known.join("\n---\n"))?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    setup.arguments = ["--hold-interfaces", "veth-*"].map(str::to_owned).to_vec();
    let stage = Stage::start_with(scene, resources, setup)?;
    stage.wait_until_seen("web", ELSEWHERE.v4.into(), From::Gateway("blue"))?;
    stage.wait_until_seen("web", ELSEWHERE.v6.into(), From::Gateway("blue"))?;
    unanswered(&plain.host, ELSEWHERE.v4.into())?;
    stage.resources.write("pods.yaml", &all)?;
    stage.wait_until_seen("plain", ELSEWHERE.v4.into(), From::Node)?;
    stage.wait_until_seen("plain", ELSEWHERE.v6.into(), From::Node)
}
