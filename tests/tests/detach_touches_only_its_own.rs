//! `egress detach` leaves alone what is not ours: others' files and pins, and a running agent.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use egress_tests::{
    Stage,
    stage::From,
    topology::{ELSEWHERE, NODE},
};

/// Checks that a command fails, and that it says why.
fn refused(outcome: Result<String>, reason: &str) -> Result<()> {
    let text = match outcome {
        Ok(said) => bail!("it was not refused: {said}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(
        text.contains(reason),
        "{reason:?} is not the reason: {text}"
    );
    Ok(())
}

#[test]
fn what_others_have_there_stays() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let pins = stage.setup.pin_dir();
    let state = stage.scene.files().join("state");
    let run = |words: &[&str], pins: &str, state: &str| {
        let places = ["--pin-dir", pins, "--state-dir", state];
        stage.setup.command(&[words, &places].concat())
    };
    let (own_pins, own_state) = (pins.display().to_string(), state.display().to_string());
    let other_pins = stage.scene.bpffs().join("other").display().to_string();
    let other_state = stage.scene.files().join("other").display().to_string();
    let all_pins = stage.scene.bpffs().display().to_string();
    let resources = stage.resources.directory().display().to_string();
    let agent = [
        &["run", "--node", NODE, "--metrics-listen", "127.0.0.1:0"][..],
        &["--resources", &resources],
    ]
    .concat();

    let busy = "another agent uses";
    for words in [&["detach"], &agent[..]] {
        refused(run(words, &own_pins, &own_state), busy)?;
        refused(run(words, &own_pins, &other_state), busy)?;
        refused(run(words, &other_pins, &own_state), busy)?;
        refused(
            run(words, &all_pins, &other_state),
            "choose a directory below it",
        )?;
    }
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;

    let file = state.join("theirs");
    fs::write(&file, "kept")?;
    // To what removes pins a directory is as foreign as a map, and needs no program to make.
    let pin = pins.join("maps/theirs");
    fs::create_dir(&pin)?;
    stage.agent.take().context("no agent")?.terminate()?;
    let said = run(&["detach"], &own_pins, &own_state)?;
    for directory in [&own_pins, &own_state] {
        let stays = format!("{directory} stays");
        ensure!(said.contains(&stays), "no {stays:?} in {said:?}");
    }
    assert_eq!(fs::read_to_string(&file)?, "kept");
    assert_eq!(fs::read_dir(&state)?.count(), 1);
    assert!(pin.is_dir());
    assert_eq!(fs::read_dir(pins.join("maps"))?.count(), 1);
    assert_eq!(fs::read_dir(&pins)?.count(), 1);
    stage.expect("web", ELSEWHERE, From::Node)
}
