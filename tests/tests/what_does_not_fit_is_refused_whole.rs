//! A change that a map has no room for is refused as a whole: what was there stays, and the log says which flag to raise.

use std::fs;

use anyhow::{Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    resources::{Resources, Via, policy},
    stage::From,
    topology::{ELSEWHERE, RED_NETWORK},
};

/// As many as the examples need, and a little more.
const TINY: [(&str, &str); 5] = [
    ("--max-pods", "4"),
    ("--max-prefixes", "64"),
    ("--max-verdicts", "40"),
    ("--max-members", "12"),
    ("--max-policies", "3"),
];

fn stage() -> Result<Stage> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    for (flag, value) in TINY {
        setup.arguments.extend([flag.to_owned(), value.to_owned()]);
    }
    Stage::start_with(scene, resources, setup)
}

fn rules(count: u8, via: Via<'_>) -> String {
    let nets: Vec<String> = (0..count).map(|n| format!("198.18.{n}.0/24")).collect();
    let mut rules: Vec<(&str, Via<'_>)> = nets.iter().map(|net| (net.as_str(), via)).collect();
    rules.push(("", Via::Code("red")));
    policy("egw-policy", &rules)
}

fn as_before(stage: &Stage) -> Result<()> {
    stage.expect("web", RED_NETWORK, From::Gateway("red"))?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
    stage.expect("plain", ELSEWHERE, From::Node)
}

#[test]
fn by_every_map_that_can_be_too_small() -> Result<()> {
    let stage = stage()?;
    as_before(&stage)?;
    let read = |file: &str| fs::read_to_string(stage.resources.directory().join(file));
    let (pods, namespaces, policies) = (
        read("pods.yaml")?,
        read("namespaces.yaml")?,
        read("policy.yaml")?,
    );
    let renamed = |text: &str| text.replace("egw-policy", "other-policy");
    let third = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: third, namespace: shop}\nspec: {nodeName: worker-1}\nstatus: {phase: Running, podIPs: [{ip: 10.65.0.12}, {ip: \"fd00:65::12\"}]}\n";
    let plain_steered = pods
        .split("---\n")
        .filter(|document| !document.contains("name: plain\n"))
        .map(|document| format!("---\n{document}"))
        .collect::<String>()
        + third;
    // What does not fit, and the files that make it so.
    let rows: [(&str, Vec<(&str, String)>); 5] = [
        ("source pods", vec![("pods.yaml", plain_steered)]),
        ("prefixes", vec![("policy.yaml", rules(100, Via::Local))]),
        (
            "verdicts",
            vec![("policy.yaml", rules(45, Via::Code("blue")))],
        ),
        (
            "members",
            vec![("policy.yaml", rules(20, Via::Code("blue")))],
        ),
        (
            "policies",
            vec![(
                "all-at-once.yaml",
                renamed(&namespaces) + "---\n" + &renamed(&policies),
            )],
        ),
    ];
    for (what, files) in rows {
        let said = stage.agent()?.log().len();
        if what == "policies" {
            stage.resources.remove("namespaces.yaml")?;
            stage.resources.remove("policy.yaml")?;
        }
        for (name, text) in &files {
            stage.resources.write(name, text)?;
        }
        let refusal = stage
            .agent()?
            .wait_for_metrics("the change is refused", |metrics| {
                ensure!(metrics.sum("egress_last_apply_success", &[]) == 0);
                let log = stage.agent()?.log().split_off(said);
                let refused = log
                    .lines()
                    .any(|line| line.contains("the last good state stays") && line.contains(what));
                ensure!(refused, "{log}");
                Ok(())
            })?;
        let dropped = refusal.all_dropped();
        ensure!(dropped.is_empty(), "{what}: {dropped:?}");
        as_before(&stage)?;
        stage.resources.write("pods.yaml", &pods)?;
        stage.resources.write("namespaces.yaml", &namespaces)?;
        stage.resources.write("policy.yaml", &policies)?;
        if what == "policies" {
            stage.resources.remove("all-at-once.yaml")?;
        }
        stage
            .agent()?
            .wait_for_metrics("what fits is taken again", |metrics| {
                ensure!(metrics.sum("egress_last_apply_success", &[]) == 1);
                Ok(())
            })?;
        as_before(&stage)?;
    }
    Ok(())
}
