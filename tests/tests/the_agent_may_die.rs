//! However the agent ends, the kernel goes on; the next one takes over with connections and counters.

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Agent, Stage,
    client::Conversation,
    scrape::Metrics,
    stage::From,
    topology::{ELSEWHERE, INTERNAL, RED_NETWORK},
    wait,
};

#[test]
fn sigterm_leaves_the_datapath_at_work() -> Result<()> {
    survives(|agent| {
        let status = agent.terminate()?;
        ensure!(status.success(), "SIGTERM ended the agent with {status}");
        Ok(())
    })
}

#[test]
fn kill_9_leaves_the_datapath_at_work() -> Result<()> {
    survives(Agent::kill)
}

fn survives(end: impl Fn(Agent) -> Result<()>) -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let web = stage.pod("web")?.host.clone();
    let batch = stage.pod("batch")?.host.clone();
    let talks = [
        Conversation::start(&web, ELSEWHERE.v4.into())?,
        Conversation::start(&web, RED_NETWORK.v6.into())?,
        Conversation::start(&batch, ELSEWHERE.v6.into())?,
        Conversation::start(&batch, INTERNAL.v4.into())?,
    ];
    for _ in 0..3 {
        all_go_on(&talks)?;
        let before = stage.metrics()?;
        end(stage.agent.take().context("no agent")?)?;

        // Nobody is there, and everything works: old connections, new ones, and drops.
        all_go_on(&talks)?;
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
        stage.expect("web", RED_NETWORK, From::Gateway("red"))?;
        stage.expect("web", INTERNAL, From::Pod)?;
        stage.expect("plain", ELSEWHERE, From::Node)?;

        // The next one starts in the middle of it.
        stage.agent = Some(stage.setup.start()?);
        all_go_on(&talks)?;
        let after = stage.metrics()?;
        never_backwards(&before, &after);
        assert_eq!(after.all_dropped().len(), 0);
    }
    for talk in talks {
        talk.end()?;
    }
    // What passed while nobody looked was counted too.
    stage.wait_until_counted()?;
    assert_eq!(stage.scene.internet.counter("leaked")?.packets, 0);
    Ok(())
}

fn all_go_on(talks: &[Conversation]) -> Result<()> {
    talks.iter().try_for_each(|talk| talk.go_on(50))
}

fn never_backwards(before: &Metrics, after: &Metrics) {
    for name in [
        "egress_gateway_packets_total",
        "egress_gateway_bytes_total",
        "egress_local_packets_total",
    ] {
        for sample in before.matching(name, &[]) {
            let labels: Vec<_> = sample
                .labels
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            let now: f64 = after.matching(name, &labels).map(|found| found.value).sum();
            assert!(
                now >= sample.value,
                "{name} {labels:?}: {now} after {}",
                sample.value
            );
        }
    }
}

#[test]
fn a_change_made_while_the_agent_was_away_applies_at_its_return() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.agent.take().context("no agent")?.kill()?;
    let policy = std::fs::read_to_string(stage.resources.directory().join("policy.yaml"))?;
    stage
        .resources
        .write("policy.yaml", &policy.replace("'blue'", "'red'"))?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.agent = Some(stage.setup.start()?);
    stage.expect("web", ELSEWHERE, From::Gateway("red"))
}

/// A file that is removed while the agent runs takes its policy along: fail closed, not open.
#[test]
fn a_policy_that_goes_away_closes_its_pods() -> Result<()> {
    let stage = Stage::of_examples()?;
    stage.resources.remove("policy.yaml")?;
    stage
        .agent()?
        .wait_for_metrics("the pod has no policy", |metrics| {
            ensure!(metrics.sum("egress_pods", &[("state", "policy_missing")]) == 1);
            Ok(())
        })?;
    for address in ELSEWHERE.addresses() {
        stage.expect_dropped("web", address, "PolicyMissing")?;
    }
    wait::until("others go on", || {
        stage.expect("batch", ELSEWHERE, From::Gateway("red"))
    })
}
