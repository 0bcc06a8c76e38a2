//! A malformed object is refused by itself: its last good version stays, and everything else applies.

use anyhow::{Result, ensure};
use egress_tests::{
    Stage,
    resources::{Via, policy},
    stage::From,
    topology::ELSEWHERE,
};

#[test]
fn the_last_good_version_stays_and_others_apply() -> Result<()> {
    let stage = Stage::of_examples()?;
    let good = std::fs::read_to_string(stage.resources.directory().join("policy.yaml"))?;
    let elsewhere = ELSEWHERE.v4.into();
    let faults = [
        good.replace("192.0.2.0/24", "10.0.0.0/8"),
        good.replace("192.0.2.0/24", "192.0.2.0/33"),
        good.replace("egress-code == 'blue'", "egress-code == "),
        good.replace("egress-code == 'blue'", "''"),
        good.replace("maxNextHops: 2", "maxNextHops: -1"),
        good.replace("spec:", "spec:\n  colour: red"),
        good.replace("  rules:", "  rules:\n  - description: neither"),
        good.replace("metadata:", "metadata: {}\nmetadata:"),
        good.replace("rules:", "rules: ["),
    ];
    for (number, fault) in faults.iter().enumerate() {
        assert_ne!(fault, &good, "fault {number} is none");
        let errors = |now: &egress_tests::scrape::Metrics| {
            now.matching("egress_resource_errors", &[])
                .filter(|sample| {
                    sample
                        .labels
                        .get("file")
                        .is_some_and(|file| file.ends_with("policy.yaml"))
                })
                .map(|sample| sample.value)
                .sum::<f64>()
        };
        stage.resources.write("policy.yaml", fault)?;
        stage
            .agent()?
            .wait_for_metrics("the fault is reported", |now| {
                ensure!(errors(now) > 0.0, "fault {number} is not reported:\n{now}");
                Ok(())
            })?;
        stage.expect_at("web", elsewhere, From::Gateway("blue"))?;
        // Another object changes meanwhile, in a file of its own.
        let other = format!("other-{number}");
        stage
            .resources
            .write("other.yaml", &policy(&other, &[("", Via::Code("red"))]))?;
        let pods = std::fs::read_to_string(stage.resources.directory().join("pods.yaml"))?;
        let steered = pods.replace(
            "egress.projectcalico.org/selector: egress-code == 'red'",
            &format!("egress.projectcalico.org/egressGatewayPolicy: {other}"),
        );
        assert!(number > 0 || steered != pods);
        let steered = if number == 0 {
            steered
        } else {
            pods.replace(&format!("other-{}", number - 1), &other)
        };
        stage.resources.write("pods.yaml", &steered)?;
        stage.wait_until_seen("batch", elsewhere, From::Gateway("red"))?;

        stage.resources.write("policy.yaml", &good)?;
        stage
            .agent()?
            .wait_for_metrics("the fault is mended", |now| {
                ensure!(
                    errors(now) == 0.0,
                    "fault {number} is still reported:\n{now}"
                );
                Ok(())
            })?;
    }
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

#[test]
fn the_agent_says_where_the_fault_is() -> Result<()> {
    let stage = Stage::of_examples()?;
    let good = std::fs::read_to_string(stage.resources.directory().join("policy.yaml"))?;
    let fault = good.replace("192.0.2.0/24", "192.0.2.0/33");
    let line = fault
        .lines()
        .position(|line| line.contains("/33"))
        .map_or(0, |index| index + 1);
    stage.resources.write("policy.yaml", &fault)?;
    egress_tests::wait::until("the log names the place", || {
        let log = stage.agent()?.log();
        ensure!(log.contains(&format!("policy.yaml:{line}:")), "{log}");
        Ok(())
    })?;
    let path = stage.resources.directory().display().to_string();
    let Err(refusal) = stage.setup.command(&["validate", &path]) else {
        anyhow::bail!("egress validate accepts a malformed policy");
    };
    let refusal = refusal.to_string();
    assert!(
        refusal.contains(&format!("policy.yaml:{line}:")),
        "{refusal}"
    );
    stage.resources.write("policy.yaml", &good)?;
    stage.setup.command(&["validate", &path])?;
    Ok(())
}
