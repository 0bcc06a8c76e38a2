//! Only source pods are touched: others have no program on their interface.

use anyhow::{Result, ensure};
use egress_tests::{
    Stage,
    stage::From,
    topology::{ELSEWHERE, Layout},
    wait,
};

#[test]
fn a_pod_that_is_not_annotated_has_no_program_on_its_interface() -> Result<()> {
    let stage = Stage::of_examples()?;
    for (pod, steered) in [("web", true), ("batch", true), ("plain", false)] {
        let interface = &stage.pod(pod)?.interface;
        let programs = stage.scene.node.programs_on(interface)?;
        assert_eq!(!programs.is_empty(), steered, "{interface}: {programs:?}");
    }
    Ok(())
}

#[test]
fn a_pod_that_loses_its_annotation_loses_the_program() -> Result<()> {
    let stage = Stage::of_examples()?;
    let batch = stage.pod("batch")?;
    stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
    let pods = std::fs::read_to_string(stage.resources.directory().join("pods.yaml"))?;
    let bare: Vec<_> = pods
        .lines()
        .filter(|line| !line.contains("annotations") && !line.contains("egress.projectcalico.org/"))
        .collect();
    stage.resources.write("pods.yaml", &bare.join("\n"))?;
    wait::until("the program is gone", || {
        let programs = stage.scene.node.programs_on(&batch.interface)?;
        ensure!(programs.is_empty(), "{programs:?}");
        Ok(())
    })?;
    stage.expect("batch", ELSEWHERE, From::Node)?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))?;
    stage.resources.write("pods.yaml", &pods)?;
    stage.wait_until_seen("batch", ELSEWHERE.v4.into(), From::Gateway("red"))
}

#[test]
fn pods_that_cannot_be_steered_are_counted_and_left_alone() -> Result<()> {
    let stage = Stage::of_examples()?;
    let odd = |name: &str, spec: &str, status: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: worker-1{spec}}}\nstatus: {{{status}}}\n"
        )
    };
    let yaml = odd("host", ", hostNetwork: true", "phase: Running, podIPs: [{ip: 172.18.0.2}]")
        // Its address has been given to a pod that is alive.
        + &odd("done", "", "phase: Succeeded, podIPs: [{ip: 10.65.0.12}]")
        + &odd("early", "", "phase: Pending");
    stage.resources.write("odd.yaml", &yaml)?;
    stage
        .agent()?
        .wait_for_metrics("the pods are counted", |metrics| {
            for (state, count) in [
                ("host_network", 1),
                ("finished", 1),
                ("no_address", 1),
                ("steered", 2),
            ] {
                let found = metrics.sum("egress_pods", &[("state", state)]);
                ensure!(found == count, "{found} pods are {state}, not {count}");
            }
            Ok(())
        })?;
    stage.expect("plain", ELSEWHERE, From::Node)?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}

#[test]
fn a_new_pod_is_steered_whether_its_yaml_or_its_interface_comes_first() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    // The YAML first.
    let yaml = |name: &str, number: u8| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: worker-1}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.65.0.{number}}}, {{ip: \"fd00:65::{number}\"}}]}}\n"
        )
    };
    stage.resources.write("first.yaml", &yaml("first", 13))?;
    stage
        .agent()?
        .wait_for_metrics("the pod without interface is known", |metrics| {
            ensure!(metrics.sum("egress_pods", &[("state", "no_interface")]) == 1);
            Ok(())
        })?;
    stage
        .scene
        .add_pod("first", Layout::Calico)?
        .host
        .wait_until_up()?;
    for address in ELSEWHERE.addresses() {
        stage.wait_until_seen("first", address, From::Gateway("blue"))?;
    }
    stage.expect("first", ELSEWHERE, From::Gateway("blue"))?;
    // The interface first.
    stage
        .scene
        .add_pod("last", Layout::Calico)?
        .host
        .wait_until_up()?;
    stage.expect("last", ELSEWHERE, From::Node)?;
    stage.resources.write("last.yaml", &yaml("last", 14))?;
    for address in ELSEWHERE.addresses() {
        stage.wait_until_seen("last", address, From::Gateway("blue"))?;
    }
    stage.expect("last", ELSEWHERE, From::Gateway("blue"))
}

#[test]
fn a_pod_that_comes_again_is_steered_again() -> Result<()> {
    let stage = Stage::of_examples()?;
    let web = stage.pod("web")?;
    for address in ELSEWHERE.addresses() {
        stage.expect_at("web", address, From::Gateway("blue"))?;
    }
    // A restarted pod: the same addresses behind a new interface, which first has another name.
    let interface = &web.interface;
    stage.scene.node.ip(&format!("link del {interface}\n"))?;
    stage
        .agent()?
        .wait_for_metrics("the interface is missed", |metrics| {
            ensure!(metrics.sum("egress_pods", &[("state", "no_interface")]) == 1);
            Ok(())
        })?;
    stage.scene.node.ip(&format!(
        "link add temporary type veth peer name eth0 netns {}
         link set temporary name {interface}
         link set {interface} address ee:ee:ee:ee:ee:ee
         link set {interface} up
         route add {}/32 dev {interface} scope link
         route add {}/128 dev {interface}
         ",
        web.host.namespace(),
        web.v4,
        web.v6
    ))?;
    stage
        .scene
        .node
        .sysctl(&[(&format!("ipv4/conf/{interface}/proxy_arp"), "1")])?;
    web.host.ip(&format!(
        "link set eth0 up
         addr add {}/32 dev eth0
         addr add {}/128 dev eth0 nodad
         route add 169.254.1.1 dev eth0 scope link
         route add default via 169.254.1.1 dev eth0
         route add default via fe80::ecee:eeff:feee:eeee dev eth0
         ",
        web.v4, web.v6
    ))?;
    web.host.wait_until_up()?;
    for address in ELSEWHERE.addresses() {
        stage.wait_until_seen("web", address, From::Gateway("blue"))?;
    }
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}
