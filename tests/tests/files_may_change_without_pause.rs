//! Files that are rewritten all the time, with garbage among them: the last word counts, and nothing grows.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Stage,
    client::Conversation,
    stage::From,
    topology::{ELSEWHERE, RED_NETWORK},
    wait,
};

/// The pause between two writes: a hundred a second.
const PAUSE: Duration = Duration::from_millis(10);
/// What the agent promises after the last write.
const PROMISE: Duration = Duration::from_secs(1);
/// What a reader's memory may vary by, in KiB: freed memory goes back to the system when it suits the allocator.
const FLAT: u64 = 24 << 10;

#[test]
fn the_last_word_counts() -> Result<()> {
    rewrite_for(Duration::from_secs(8))
}

#[test]
#[ignore = "soak: rewrites for a minute"]
fn the_last_word_counts_after_a_minute() -> Result<()> {
    rewrite_for(Duration::from_secs(60))
}

fn rewrite_for(time: Duration) -> Result<()> {
    let stage = Stage::of_examples()?;
    let path = stage.resources.directory().join("policy.yaml");
    let blue = fs::read_to_string(&path)?;
    let red = blue.replace("egress-code == 'blue'", "egress-code == 'red'");
    ensure!(red != blue);
    // Its rule is the same in both, so it must not notice anything.
    let web = stage.pod("web")?.host.clone();
    let talk = Conversation::start(&web, RED_NETWORK.v4.into())?;
    let agent = stage.agent()?;
    let began = Instant::now();
    let mut settled = None;
    let mut writes = 0_u32;
    while began.elapsed() < time {
        let due = began + PAUSE * writes;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let good = if writes % 14 < 7 { &blue } else { &red };
        match writes % 7 {
            0 => stage.resources.write("policy.yaml", good)?,
            // In place: whoever reads meanwhile sees a part.
            1 => fs::write(&path, good)?,
            2 => fs::write(&path, &good[..good.len() * 2 / 3])?,
            3 => fs::write(&path, [0xff, 0, b'{', b'[', 0x80].repeat(2000))?,
            4 => fs::write(&path, good.replace("/24", "/77"))?,
            5 => fs::write(&path, "kind: EgressGatewayPolicy\nmetadata: {name: [")?,
            _ => {
                fs::write(&path, "- ".repeat(5000))?;
                fs::write(
                    path.with_file_name("stranger.yaml"),
                    good.replace("kind", "knid"),
                )?;
            }
        }
        writes += 1;
        if began.elapsed() > time / 4 && settled.is_none() {
            settled = Some(agent.resident()?);
        }
    }
    fs::remove_file(path.with_file_name("stranger.yaml")).ok();
    for (text, gateway) in [(&red, "red"), (&blue, "blue")] {
        stage.resources.write("policy.yaml", text)?;
        let written = Instant::now();
        wait::until_within("the last word is obeyed", PROMISE, || {
            stage.expect("web", ELSEWHERE, From::Gateway(gateway))
        })?;
        println!("{writes} writes; obeyed after {:?}", written.elapsed());
    }
    talk.go_on(10)?;
    talk.end().context("a connection that no version touches")?;
    let (settled, now) = (settled.context("no time")?, agent.resident()?);
    println!("memory: {settled} KiB after a quarter of the time, {now} KiB at the end");
    ensure!(
        now < settled + FLAT,
        "memory grew from {settled} to {now} KiB"
    );
    agent.wait_for_metrics("everything is valid again", |metrics| {
        ensure!(metrics.sum("egress_resources_valid", &[]) == 1);
        Ok(())
    })?;
    Ok(())
}
