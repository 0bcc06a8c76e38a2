//! Only source pods are touched: others have no program on their interface.

use anyhow::{Result, ensure};
use egress_tests::{
    Stage,
    resources::{Via, gateway, namespace, pod, policy},
    stage::From,
    topology::{ELSEWHERE, INTERNAL, Layout, Shape},
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

/// Else what a gateway sends on would come back to it for ever.
#[test]
fn a_gateway_pods_own_traffic_is_never_redirected() -> Result<()> {
    let shape = Shape {
        pods: vec!["web", "plain", "exit"],
        ..Shape::default()
    };
    let stage = Stage::new(&shape, |scene| {
        let annotation = [("egressGatewayPolicy", "all")];
        Ok(namespace("default", &annotation)
            + &policy("all", &[("", Via::Code("pod"))])
            + &gateway(scene.gateway("red")?, "red", "")
            + &pod("default", scene.pod("web")?, &[], &[])
            + &pod(
                "default",
                scene.pod("exit")?,
                &annotation,
                &[("egress-code", "pod")],
            ))
    })?;
    let exit = stage.pod("exit")?;
    make_gateway_pod(&stage, exit)?;
    let web = stage.pod("web")?;
    for address in ELSEWHERE.addresses() {
        assert_eq!(
            egress_tests::client::whoami(&web.host, address)?,
            exit.address_like(address)
        );
        assert_eq!(
            egress_tests::client::whoami(&exit.host, address)?,
            exit.address_like(address)
        );
    }
    stage.expect("web", INTERNAL, From::Pod)?;
    assert_eq!(stage.metrics()?.all_dropped().len(), 0);
    Ok(())
}

/// Lets a pod translate to its own address, which the outside knows, as Calico's gateways do.
fn make_gateway_pod(stage: &Stage, exit: &egress_tests::topology::Pod) -> Result<()> {
    exit.host
        .sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    exit.host.nft(
        "table inet gateway {
           chain postrouting {
             type nat hook postrouting priority srcnat; policy accept;
             oifname \"eth0\" masquerade
           }
         }
         ",
    )?;
    stage.scene.node.nft(&format!(
        "insert rule inet kube postrouting ip saddr {} accept
         insert rule inet kube postrouting ip6 saddr {} accept
         ",
        exit.v4, exit.v6
    ))?;
    stage.scene.internet.ip(
        "route add 10.65.0.0/16 via 203.0.113.254\nroute add fd00:65::/32 via 2001:db8:113::254\n",
    )
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
    stage.wait_until_seen("first", ELSEWHERE.v4.into(), From::Gateway("blue"))?;
    stage.expect("first", ELSEWHERE, From::Gateway("blue"))?;
    // The interface first.
    stage
        .scene
        .add_pod("last", Layout::Calico)?
        .host
        .wait_until_up()?;
    stage.expect("last", ELSEWHERE, From::Node)?;
    stage.resources.write("last.yaml", &yaml("last", 14))?;
    stage.wait_until_seen("last", ELSEWHERE.v4.into(), From::Gateway("blue"))?;
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
    stage.wait_until_seen("web", ELSEWHERE.v4.into(), From::Gateway("blue"))?;
    stage.expect("web", ELSEWHERE, From::Gateway("blue"))
}
