//! A gateway that dies is left within a second of silence, and nothing leaks meanwhile.

use std::{
    fmt, fs,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    ClusterStage,
    client::Conversation,
    cluster::{BLUE, ClusterShape, ELSEWHERE, Egress, RED, SHOP, gateway_spec},
    flow::Flow,
    resources::{Via, namespace, pod, policy},
    wait,
};
use nix::unistd::Pid;

/// The gateways of the group, and where each is.
const PAIR: [(Egress, &str); 2] = [(RED, "gw-1"), (BLUE, "gw-2")];
/// How often a gateway is cut off.
const RUNS: u64 = 6;
const SOAK: u64 = 20;
/// How long a gateway must answer before it is used again.
const UP_AFTER: Duration = Duration::from_millis(400);
/// What is promised.
const WITHIN: Duration = Duration::from_secs(1);

/// Three nodes: one with pods, and two with a gateway each.
fn stage() -> Result<ClusterStage> {
    let shape = ClusterShape {
        nodes: vec!["worker-1", "gw-1", "gw-2"],
        pods: vec![("web", "worker-1")],
        ..ClusterShape::default()
    };
    let mut stage = ClusterStage::new(
        &shape,
        |cluster| {
            let gateways = PAIR.map(|(egress, node)| {
                let spec = format!(
                    "  node: {node}\n  egressIPs: [{}, \"{}\"]\n  interface: eth0\n",
                    egress.v4, egress.v6
                );
                gateway_spec(egress.name, "pair", &spec)
            });
            Ok([
                namespace("default", &[]),
                namespace("shop", &[("egressGatewayPolicy", SHOP)]),
                policy(SHOP, &[("", Via::Code("pair"))]),
                pod("shop", cluster.pod("web")?, &[], &[]),
                gateways.concat(),
            ]
            .concat())
        },
        |setup| setup.arguments(&["--probe-up-after", "400ms"]),
    )?;
    for (egress, node) in PAIR {
        stage.permit_at(node, egress, &[ELSEWHERE]);
    }
    stage
        .agent("worker-1")?
        .wait_for_metrics("both gateways have answered", |metrics| {
            let answers = metrics
                .matching("egress_gateway_probe_seconds", &[])
                .count();
            ensure!(answers == PAIR.len(), "{answers} have");
            Ok(())
        })?;
    Ok(stage)
}

/// Cuts a node off from the segment; its own interfaces notice nothing.
fn cut(stage: &ClusterStage, node: &str) -> Result<()> {
    stage
        .cluster
        .fabric
        .ip(&format!("link set {node} nomaster\n"))
}

fn mend(stage: &ClusterStage, node: &str) -> Result<()> {
    stage
        .cluster
        .fabric
        .ip(&format!("link set {node} master br0\n"))
}

/// Waits until the worker can use these gateways, and no other.
fn wait_until_up(stage: &ClusterStage, up: &[Egress]) -> Result<()> {
    stage.agent("worker-1")?.wait_for_metrics(
        "gateways are up and down as they should be",
        |metrics| {
            for (egress, _) in PAIR {
                let is_up = metrics.sum("egress_gateway_up", &[("gateway", egress.name)]) == 1;
                ensure!(is_up == up.contains(&egress), "{} up: {is_up}", egress.name);
            }
            Ok(())
        },
    )?;
    Ok(())
}

/// How long one gateway's end cost the flow, and what part of it was spent waiting for a processor.
struct Loss {
    /// From the last datagram that was answered before to the first one after.
    silence: Duration,
    /// The longest pause of the sender meanwhile.
    pause: Duration,
    /// What the threads of the worker's agent have waited for processors meanwhile, each for itself.
    starved: Duration,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            silence,
            pause,
            starved,
        } = self;
        write!(
            f,
            "silent for {silence:?}, with a pause of the sender of {pause:?}; the agent waited for processors for {starved:?}"
        )
    }
}

/// Cuts off the gateway that the flow uses, again and again, and checks how long each time cost it.
fn fail_over(stage: &ClusterStage, runs: u64) -> Result<()> {
    let to = ELSEWHERE.v4.into();
    let flow = Flow::start(stage.host("web")?, &stage.cluster.internet, to)?;
    let pid = stage.agent("worker-1")?.pid()?;
    let mut losses = Vec::new();
    for run in 0..runs {
        wait_until_up(stage, &[RED, BLUE])?;
        let used = flow.last()?;
        let (egress, node) = *PAIR
            .iter()
            .find(|(egress, _)| IpAddr::from(egress.v4) == used)
            .context("nobody's address")?;
        // Up is who has just answered: this spreads the cuts over the time between two probes.
        thread::sleep(Duration::from_millis(run * 107 % 300));
        let before = waited(pid)?;
        cut(stage, node)?;
        let (silence, pause) = wait::until("the flow is on the other gateway", || {
            ensure!(flow.last()? != used, "it is still on {}", egress.name);
            flow.last_silence()
        })?;
        losses.push(Loss {
            silence,
            pause,
            starved: waited(pid)?.saturating_sub(before),
        });
        let others: Vec<_> = PAIR
            .iter()
            .map(|(other, _)| *other)
            .filter(|other| *other != egress)
            .collect();
        wait_until_up(stage, &others)?;
        mend(stage, node)?;
    }
    losses.sort_by_key(|loss| loss.silence);
    let at = |percent: usize| losses[(losses.len() * percent).div_ceil(100) - 1].silence;
    let (median, most, max) = (at(50), at(99), at(100));
    let all: Vec<String> = losses.iter().map(Loss::to_string).collect();
    println!(
        "failover: {runs} runs, p50 {median:?}, p99 {most:?}, max {max:?}\n{}",
        all.join("\n")
    );
    ensure!(max <= WITHIN, "{}", all.join("\n"));

    wait_until_up(stage, &[RED, BLUE])?;
    let metrics = stage.metrics("worker-1")?;
    for (egress, _) in PAIR {
        let labels = [("gateway", egress.name), ("probe", "overlay")];
        let found: Vec<_> = metrics
            .matching("egress_gateway_probe_seconds", &labels)
            .collect();
        ensure!(
            found.len() == 1 && found[0].value > 0.0 && found[0].value < 1.0,
            "{found:?}"
        );
    }
    // Each is said once, with its reason.
    let log = stage.agent("worker-1")?.log();
    let said = |text: &str| log.lines().filter(|line| line.contains(text)).count() as u64;
    let (down, up) = (
        said("gateway is down: its node gw-"),
        said("gateway is up again"),
    );
    ensure!(
        down == up && down >= runs,
        "down {down} times, up {up} times"
    );
    Ok(())
}

/// What the threads of a process have waited for processors so far: the second number of `schedstat`.
fn waited(pid: Pid) -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let file = thread?.path().join("schedstat");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let second = text.split(' ').nth(1).unwrap_or("0");
        nanoseconds += second.trim().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

#[test]
fn traffic_is_on_another_member_within_a_second_of_silence() -> Result<()> {
    stage()?.play(|stage| {
        fail_over(stage, RUNS)?;
        what_began_meanwhile_stays(stage)?;
        without_another_member_nothing_leaks(stage)
    })
}

#[test]
#[ignore = "soak: twenty gateways die"]
fn traffic_is_on_another_member_within_a_second_of_silence_always() -> Result<()> {
    stage()?.play(|stage| fail_over(stage, SOAK))
}

/// What began on another member stays there when the dead one comes back.
fn what_began_meanwhile_stays(stage: &mut ClusterStage) -> Result<()> {
    const MANY: usize = 16;
    cut(stage, "gw-1")?;
    wait_until_up(stage, &[BLUE])?;
    let remote = [IpAddr::from(ELSEWHERE.v4), IpAddr::from(ELSEWHERE.v6)];
    let talks = (0..MANY)
        .map(|n| Conversation::start(stage.host("web")?, remote[n % 2]))
        .collect::<Result<Vec<_>>>()?;
    mend(stage, "gw-1")?;
    wait_until_up(stage, &[RED, BLUE])?;
    for talk in talks {
        talk.go_on(20)?;
        talk.end()?;
    }
    Ok(())
}

fn without_another_member_nothing_leaks(stage: &mut ClusterStage) -> Result<()> {
    let to = ELSEWHERE.v6.into();
    let flow = Flow::start(stage.host("web")?, &stage.cluster.internet, to)?;
    for (_, node) in PAIR {
        cut(stage, node)?;
    }
    wait_until_up(stage, &[])?;
    stage.wait_for_drops("worker-1", "NoGateway", 20)?;

    // An agent that starts now does not take silence for health.
    let said = stage.agent("worker-1")?.log().len();
    stage.kill_agent("worker-1")?;
    stage.start_agent("worker-1")?;
    wait_until_up(stage, &[])?;
    let log = stage.agent("worker-1")?.log().split_off(said);
    let first = log.find("applied").unwrap_or(log.len());
    ensure!(
        log[..first].matches("gateway is down").count() == PAIR.len(),
        "{log}"
    );

    let mended = Instant::now();
    let before = flow.count();
    mend(stage, "gw-2")?;
    wait_until_up(stage, &[BLUE])?;
    // Coming back is damped, and only that.
    ensure!(mended.elapsed() >= UP_AFTER, "{:?}", mended.elapsed());
    wait::until("the flow goes on", || {
        ensure!(flow.count() > before, "nothing came back");
        ensure!(flow.last()? == IpAddr::from(BLUE.v6));
        Ok(())
    })
}
