//! A pod that gets the address of one that is gone has its own policy, or none, from its first packet on.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Stage,
    client::Conversation,
    stage::From,
    topology::{ELSEWHERE, Layout, Pod},
    wait,
};

/// A pod with the addresses of another.
fn yaml(name: &str, namespace: &str, red: bool, addresses: &Pod) -> String {
    let annotations = if red {
        "{egress.projectcalico.org/selector: \"egress-code == 'red'\", egress.projectcalico.org/namespaceSelector: \"projectcalico.org/name == 'default'\"}"
    } else {
        "{}"
    };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}\nspec: {{nodeName: worker-1}}\nstatus: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n",
        addresses.v4, addresses.v6
    )
}

/// Makes a pod whose addresses are those of one whose interface goes.
fn inherit(stage: &mut Stage, from: &Pod, name: &'static str) -> Result<Pod> {
    let heir = stage.scene.add_pod(name, Layout::Calico)?.clone();
    heir.host.ip(&format!(
        "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\naddr del {}/32 dev eth0\naddr del {}/128 dev eth0\n",
        from.v4, from.v6, heir.v4, heir.v6
    ))?;
    stage.scene.node.ip(&format!(
        "link del {}\nroute add {}/32 dev {} scope link\nroute add {}/128 dev {}\n",
        from.interface, from.v4, heir.interface, from.v6, heir.interface
    ))?;
    heir.host.wait_until_up()?;
    Ok(Pod {
        v4: from.v4,
        v6: from.v6,
        ..heir
    })
}

#[test]
fn by_a_pod_of_another_policy_and_by_one_without() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let web = stage.pod("web")?.clone();
    let pods = std::fs::read_to_string(stage.resources.directory().join("pods.yaml"))?;
    let others: String = pods
        .split("---\n")
        .filter(|document| !document.contains("name: web\n"))
        .map(|document| format!("---\n{document}"))
        .collect();
    ensure!(others.len() < pods.len(), "the examples have no pod web");
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    // A connection that lives on in the maps when its pod is gone.
    let talk = Conversation::start(&web.host, ELSEWHERE.v4.into())?;
    talk.go_on(20)?;

    // Another policy, while the agent runs.
    let heir = inherit(&mut stage, &web, "heir")?;
    drop(talk);
    let yaml_of_heir = yaml("heir", "lab", true, &web);
    stage
        .resources
        .write("pods.yaml", &(others.clone() + &yaml_of_heir))?;
    stage.wait_until_seen("heir", ELSEWHERE.v4.into(), From::Gateway("red"))?;
    stage.expect("heir", ELSEWHERE, From::Gateway("red"))?;

    // None, while the agent is away.
    stage.agent.take().context("no agent")?.kill()?;
    inherit(&mut stage, &heir, "last")?;
    let yaml_of_last = yaml("last", "lab", false, &web);
    stage
        .resources
        .write("pods.yaml", &(others.clone() + &yaml_of_last))?;
    stage.expect("last", ELSEWHERE, From::Node)?;
    stage.agent = Some(stage.setup.start()?);
    stage.expect("last", ELSEWHERE, From::Node)?;

    // And the first one's again, on the interface that had none: the very address never had so many policies.
    let yaml_of_first = yaml("last", "shop", false, &web);
    stage
        .resources
        .write("pods.yaml", &(others + &yaml_of_first))?;
    stage.wait_until_seen("last", ELSEWHERE.v4.into(), From::Gateway("blue"))?;
    stage.expect("last", ELSEWHERE, From::Gateway("blue"))?;

    let metrics = stage.metrics()?;
    let dropped = metrics.all_dropped();
    ensure!(dropped.is_empty(), "{dropped:?}");
    wait::until("the node has forgotten the interfaces", || {
        let dump = stage.setup.command(&[
            "dump",
            "pods",
            "--pin-dir",
            &stage.setup.pin_dir().display().to_string(),
            "--state-dir",
            &stage.setup.state_dir().display().to_string(),
        ])?;
        let address = IpAddr::from(web.v4).to_string();
        let times = dump.matches(&format!("{address} ")).count();
        ensure!(times == 1, "{address} is there {times} times:\n{dump}");
        Ok(())
    })
}
