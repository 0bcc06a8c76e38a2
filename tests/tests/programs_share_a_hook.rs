//! Of two programs on one interface that for replies is first, and of two mechanisms only one is in use.

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    agent::Setup,
    resources::Resources,
    stage::From,
    topology::{ELSEWHERE, NODE},
    wait,
};

/// A pod behind the interface where the gateways' replies arrive.
fn pod_beside_gateways() -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: beside\n  namespace: default\n  annotations:\n    \
         egress.projectcalico.org/egressGatewayPolicy: egw-policy\n    egress.fastpath/interface: eth1\nspec:\n  \
         nodeName: {NODE}\nstatus:\n  phase: Running\n  podIPs: [{{ip: 10.244.0.77}}]\n"
    )
}

/// An egress address of the node behind the same interface.
fn address_beside_gateways() -> String {
    format!(
        "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata:\n  name: own\n  namespace: default\nspec:\n  \
         node: {NODE}\n  egressIPs: [172.19.0.100]\n  interface: eth1\n"
    )
}

fn stage(mode: &str) -> Result<Stage> {
    let scene = Scene::new()?;
    let resources = Resources::of_examples(&scene)?;
    let mut setup = Setup::new(&scene, resources.directory())?;
    setup.arguments = ["--attach-mode", mode].map(str::to_owned).to_vec();
    Stage::start_with(scene, resources, setup)
}

/// What is on the interface, by the part of its name that says which program it is.
fn programs(stage: &Stage, interface: &str) -> Result<Vec<&'static str>> {
    let found = stage.scene.node.programs_on(interface)?;
    Ok(found
        .iter()
        .filter_map(|line| {
            ["egress_from_gat", "egress_from_upl", "egress_from_pod"]
                .into_iter()
                .find(|name| line.contains(name))
        })
        .collect())
}

#[test]
fn replies_come_first() -> Result<()> {
    for mode in ["tcx", "clsact"] {
        let stage = stage(mode)?;
        stage
            .resources
            .write("beside.yaml", &pod_beside_gateways())?;
        let in_order = |expected: &[&str]| {
            wait::until("the programs are in order", || {
                let found = programs(&stage, "eth1")?;
                ensure!(found == expected, "{mode}: {found:?}");
                Ok(())
            })
        };
        in_order(&["egress_from_gat", "egress_from_pod"])?;
        stage
            .resources
            .write("address.yaml", &address_beside_gateways())?;
        in_order(&["egress_from_gat", "egress_from_upl", "egress_from_pod"])?;
    }
    Ok(())
}

#[test]
fn a_change_of_the_mechanism_leaves_one() -> Result<()> {
    let mut stage = stage("tcx")?;
    for mode in ["clsact", "tcx"] {
        stage.agent.take().context("no agent")?.kill()?;
        stage.setup.arguments = ["--attach-mode", mode].map(str::to_owned).to_vec();
        stage.agent = Some(stage.setup.start()?);
        let interface = stage.pod("web")?.interface.clone();
        for (interface, program) in [
            (interface.as_str(), "egress_from_pod"),
            ("eth1", "egress_from_gat"),
        ] {
            let found = programs(&stage, interface)?;
            ensure!(found == [program], "{mode} on {interface}: {found:?}");
        }
        stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    }
    let qdiscs = stage.scene.node.run(&["tc", "qdisc", "show"])?;
    ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    Ok(())
}
