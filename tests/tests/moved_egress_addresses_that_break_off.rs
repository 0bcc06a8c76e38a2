//! A gateway node's apply that dies at any step, while an egress address becomes another: nothing leaves with a third
//! address, and the next start completes it.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, net::Ipv6Addr, path::Path};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    ClusterStage,
    cluster::{
        BLUE, ClusterShape, ELSEWHERE, Egress, GATEWAY_NODE, INTERNAL, NodeSetup, RED, Seen,
        egress_gateway, usual, usual_gateways,
    },
    packets::random::Random,
    wait,
};

/// So many steps are tried where time is short.
const SAMPLE: usize = 4;
/// What blue becomes.
const OTHER: Egress = Egress {
    name: "blue",
    v4: Ipv4Addr::new(172, 18, 0, 203),
    v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x203),
};

#[test]
fn at_some_steps() -> Result<()> {
    at_steps(Some(SAMPLE))
}

#[test]
#[ignore = "soak: a restart for every step"]
fn at_every_step() -> Result<()> {
    at_steps(None)
}

fn at_steps(sample: Option<usize>) -> Result<()> {
    let stage = ClusterStage::new(
        &ClusterShape::default(),
        |cluster| Ok(usual(cluster) + &usual_gateways()),
        |node: &mut NodeSetup<'_>| {
            if node.node == GATEWAY_NODE {
                node.setup.faults = Some(node.setup.state_dir().with_file_name("faults"));
            }
        },
    )?;
    stage.play(|stage| {
        stage.permit(OTHER, &[ELSEWHERE]);
        // A connection that began by the last address is answered there, if that comes a moment too late.
        stage.permit_gone(BLUE);
        stage.permit_gone(OTHER);
        stage.expect("web", ELSEWHERE, Seen::As(BLUE))?;
        let faults = stage.setups[GATEWAY_NODE].faults.clone();
        let faults = faults.context("no faults")?;
        let mut is = BLUE;
        // There and back, with every step written down.
        let mut lists = Vec::new();
        for _ in 0..2 {
            is = other(is);
            write(stage, &faults, is)?;
            seen(stage, is)?;
            let steps = wait::until("the steps are written down", || {
                Ok(fs::read_to_string(faults.with_extension("steps"))?)
            })?;
            lists.push(steps.lines().count());
        }
        let steps = lists.iter().copied().max().unwrap_or(0);
        ensure!(steps > 4, "{lists:?}");
        let mut wanted: BTreeSet<usize> = (1..=steps).collect();
        let mut random = Random::new();
        while sample.is_some_and(|sample| wanted.len() > sample) {
            let which = random.below(wanted.len());
            let step = wanted.iter().nth(which).copied();
            wanted.retain(|other| Some(*other) != step);
        }
        for step in &wanted {
            is = other(is);
            fs::write(&faults, format!("abort {step}"))?;
            write(stage, &faults, is)?;
            let context = format!("step {step} of {steps}");
            let died = wait::until("the agent is killed, or has no such step", || {
                if stage.was_killed(GATEWAY_NODE)? {
                    return Ok(true);
                }
                let done = fs::read_to_string(faults.with_extension("steps"))?;
                ensure!(done.lines().count() < *step, "it has, and lives");
                Ok(false)
            })
            .context(context.clone())?;
            fs::remove_file(&faults)?;
            // Through the other gateway everything goes on meanwhile.
            stage.expect("web", INTERNAL, Seen::As(RED))?;
            if died {
                stage.spawn(GATEWAY_NODE)?;
                stage.wait_until_ready()?;
            }
            seen(stage, is).context(context)?;
        }
        println!("{} of {steps} steps", wanted.len());
        stage.expect("app", ELSEWHERE, Seen::As(RED))
    })
}

fn other(egress: Egress) -> Egress {
    if egress == BLUE { OTHER } else { BLUE }
}

fn write(stage: &ClusterStage, faults: &Path, blue: Egress) -> Result<()> {
    drop(fs::remove_file(faults.with_extension("steps")));
    let gateways = egress_gateway(RED, GATEWAY_NODE, "") + &egress_gateway(blue, GATEWAY_NODE, "");
    let text = usual(&stage.cluster) + &gateways;
    stage.resources.write("all.yaml", &text)
}

fn seen(stage: &ClusterStage, egress: Egress) -> Result<()> {
    for address in ELSEWHERE.addresses() {
        stage.wait_until_seen("web", address, Seen::As(egress))?;
    }
    Ok(())
}
