//! A gateway that dies: how long it costs, and that nothing leaks.

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
    cluster::{BLUE, ELSEWHERE, RED},
    flow::Flow,
    paced::{Paced, PacedServer},
    wait,
};
use nix::unistd::Pid;

use super::{PAIR, UP_AFTER, wait_until_up};

/// What is promised.
const WITHIN: Duration = Duration::from_secs(1);

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
pub(super) fn traffic_is_on_another_member_within_a_second_of_silence(
    stage: &ClusterStage,
    runs: u64,
) -> Result<()> {
    let to = ELSEWHERE.v4.into();
    let flow = Flow::start(stage.host("web")?, &stage.cluster.internet, to)?;
    let pid = stage.agent("worker-1")?.pid()?;
    let said_before = stage.agent("worker-1")?.log().len();
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
    let log = stage.agent("worker-1")?.log().split_off(said_before);
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

/// What began on another member stays there when the dead one comes back.
pub(super) fn what_began_meanwhile_stays(stage: &mut ClusterStage) -> Result<()> {
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

/// Who is known to be dead is sent nothing by an agent that starts, whatever layout its maps have.
pub(super) fn who_is_dead_stays_dead_over_restarts(stage: &mut ClusterStage) -> Result<()> {
    cut(stage, "gw-1")?;
    wait_until_up(stage, &[BLUE])?;
    let addresses = ELSEWHERE.addresses();
    let server = PacedServer::start(&stage.cluster.internet, &addresses)?;
    let web = stage.host("web")?.clone();
    let flows = addresses.map(|address| Paced::flows(&web, address, 100));
    let usual = stage.setups["worker-1"].clone();
    for version in [usual.clone(), usual.of_other_layout()?, usual] {
        stage.kill_agent("worker-1")?;
        stage.setups.insert("worker-1", version);
        stage.start_agent("worker-1")?;
        wait_until_up(stage, &[BLUE])?;
        flows.iter().try_for_each(Paced::settle)?;
        // A way that was not there when an agent started is counted from its first packet on.
        let sent = stage.metrics("worker-1")?.through(RED.name);
        ensure!(sent == 0, "{sent} packets to the dead");
    }
    for flows in flows {
        let tally = flows.end()?;
        ensure!(tally.sent == tally.back, "{tally:?}");
    }
    drop(server);
    mend(stage, "gw-1")?;
    wait_until_up(stage, &[RED, BLUE])
}

pub(super) fn without_another_member_nothing_leaks(stage: &mut ClusterStage) -> Result<()> {
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
