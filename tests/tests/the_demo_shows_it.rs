//! The demo passes, fails when a row is not what the policy says, and leaves nothing, however it ends.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{wait, workspace::remains};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egress-demo"));
    command.stdin(Stdio::null()).process_group(0);
    command
}

/// The processes of the group that a demo leads, without those that wait for nothing but their burial.
fn living_in_group(leader: u32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        // What ends while we look has no such file, and what is no process neither.
        let Ok(stat) = std::fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        let fields: Vec<_> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        if let [state, _parent, group, ..] = fields[..]
            && state != "Z"
            && group == leader.to_string()
        {
            found.push(stat);
        }
    }
    Ok(found)
}

#[test]
fn every_row_is_ok() -> Result<()> {
    let child = demo()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // One node's rows of addresses and gateways, and several nodes' rows.
    assert_eq!(text.matches(" ok ").count(), 20 + 16, "{text}");
    assert_eq!(text.matches("FAIL").count(), 0, "{text}");
    assert_eq!(remains(pid), Vec::<String>::new());
    Ok(())
}

#[test]
fn another_policy_fails_the_rows_that_it_changes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for entry in std::fs::read_dir(egress_tests::resources::examples())? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?
            .replace("egress-code == 'blue'", "egress-code == 'red'");
        std::fs::write(
            directory.path().join(path.file_name().context("no name")?),
            text,
        )?;
    }
    let child = demo()
        .arg("--resources")
        .arg(directory.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    // Two rows of addresses, and the gateway that nothing reached.
    assert_eq!(text.matches("FAIL").count(), 3, "{text}");
    assert_eq!(remains(pid), Vec::<String>::new());
    Ok(())
}

/// What the demo says when all is done and nothing is left.
const LAST_LINE: &str = "Every row is what the policy says. Nothing is left behind.\n";

#[test]
fn nothing_is_left_after_a_signal_at_any_time() -> Result<()> {
    for (signal, lines) in [
        (Signal::SIGINT, 1),
        (Signal::SIGINT, 22),
        (Signal::SIGTERM, 22),
        (Signal::SIGINT, 30),
        // While the nodes of the second part are built, and while they are asked.
        (Signal::SIGTERM, 65),
        (Signal::SIGINT, 85),
    ] {
        let mut child = demo()
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        for _ in 0..lines {
            output.read_line(&mut line)?;
        }
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        wait::until("there is something to leave", || {
            ensure!(!remains(child.id()).is_empty());
            Ok(())
        })?;
        kill(pid, signal)?;
        let status = child.wait()?;
        let mut rest = String::new();
        output.read_to_string(&mut rest)?;
        // A signal that comes after the last line was earned comes too late to change the result.
        ensure!(
            status.success() == rest.ends_with(LAST_LINE),
            "{signal} after {lines} lines: {status}, and then came {rest:?}"
        );
        assert_eq!(
            remains(child.id()),
            Vec::<String>::new(),
            "{signal} after {lines} lines"
        );
        assert_eq!(
            living_in_group(child.id())?,
            Vec::<String>::new(),
            "{signal} after {lines} lines"
        );
    }
    Ok(())
}
