//! What was last good is in force after a restart, too, while a file is broken or missing.

use std::fs;

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Agent, Stage,
    stage::From,
    topology::{ELSEWHERE, INTERNAL, RED_NETWORK},
    wait,
};

/// What is in force of the examples.
fn expect_examples(stage: &Stage) -> Result<()> {
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.expect("web", RED_NETWORK, From::Gateway("red"))?;
    stage.expect("web", INTERNAL, From::Pod)
}

fn restored(agent: &Agent) -> Result<u64> {
    Ok(agent.metrics()?.sum("egress_resources_restored", &[]))
}

fn state_errors(agent: &Agent) -> Result<u64> {
    Ok(agent.metrics()?.sum("egress_state_errors", &[]))
}

#[test]
fn a_restart_goes_on_while_files_are_broken_or_missing() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let directory = stage.resources.directory().to_owned();
    let (elsewhere, policy) = (
        directory.with_extension("elsewhere"),
        directory.join("policy.yaml"),
    );
    let good = fs::read_to_string(&policy)?;
    let broken: [(&str, &dyn Fn() -> Result<()>); 3] = [
        ("cut off", &|| {
            Ok(fs::write(&policy, &good[..good.len() / 2])?)
        }),
        ("refused", &|| {
            Ok(fs::write(&policy, good.replace("/24", "/33"))?)
        }),
        ("missing", &|| Ok(fs::rename(&directory, &elsewhere)?)),
    ];
    for (what, break_it) in broken {
        let agent = stage.agent.take().context("no agent")?;
        ensure!(agent.terminate()?.success());
        break_it()?;
        // As after a reboot: what the kernel held is gone, and only the state directory knows.
        fs::remove_dir_all(stage.setup.pin_dir())?;
        stage.agent = Some(stage.setup.start().context(what)?);
        expect_examples(&stage).context(what)?;
        let agent = stage.agent()?;
        ensure!(restored(agent)? >= 1, "{what}");
        ensure!(state_errors(agent)? == 0, "{what}");
        let log = agent.log();
        ensure!(
            log.contains("what the last run read there is in force"),
            "{what}: {log}"
        );
        let (_, status) = agent.get("/status")?;
        ensure!(
            status.contains("what the last run read there is in force"),
            "{what}: {status}"
        );

        if elsewhere.exists() {
            fs::rename(&elsewhere, &directory)?;
        }
        stage.resources.write("policy.yaml", &good)?;
        agent.wait_for_metrics("the files are read again", |metrics| {
            let restored = metrics.sum("egress_resources_restored", &[]);
            ensure!(restored == 0, "{restored} are still those of the last run");
            Ok(())
        })?;
        expect_examples(&stage).context(what)?;
    }
    Ok(())
}

#[test]
fn a_corrupt_state_directory_does_not_stop_the_agent() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let state = stage.setup.state_dir();
    let objects = state.join("objects");
    let policy = stage.resources.directory().join("policy.yaml");
    let good = fs::read_to_string(&policy)?;

    // With good files nothing is missed but the names of counters.
    let agent = stage.agent.take().context("no agent")?;
    agent.kill()?;
    let mut spoilt = 0;
    for directory in [&state, &objects] {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_file() && path.extension().is_some() {
                fs::write(&path, b"\0\xff{")?;
                spoilt += 1;
            }
        }
    }
    ensure!(spoilt > 2, "{spoilt} files in {}", state.display());
    stage.agent = Some(stage.setup.start()?);
    expect_examples(&stage)?;
    let agent = stage.agent()?;
    ensure!(state_errors(agent)? >= 1);
    ensure!(
        agent
            .log()
            .contains("the last good version of objects is lost")
    );

    // With a broken file nobody knows what was there: the kernel keeps what it has, and the agent says so.
    let agent = stage.agent.take().context("no agent")?;
    agent.kill()?;
    fs::remove_dir_all(&objects)?;
    fs::write(&objects, "no directory")?;
    fs::write(&policy, "kind: [")?;
    stage.agent = Some(stage.setup.spawn()?);
    wait::until("the agent says what it waits for", || {
        let (status, why) = stage.agent()?.get("/readyz")?;
        ensure!(
            status == 503 && why.contains("policy.yaml"),
            "{status} {why}"
        );
        Ok(())
    })?;
    expect_examples(&stage)?;
    ensure!(state_errors(stage.agent()?)? >= 1);
    stage.resources.write("policy.yaml", &good)?;
    wait::until("the agent is ready", || {
        let (status, why) = stage.agent()?.get("/readyz")?;
        ensure!(status == 200, "{status} {why}");
        Ok(())
    })?;
    wait::until("what is good is kept again", || {
        ensure!(objects.is_dir());
        Ok(())
    })?;
    expect_examples(&stage)
}
