//! A Service may lead out of the cluster (one without a selector, or with an external address): its address is the
//! cluster's, and is let through; what it is translated to is not. A steered pod reaches that only by a rule of its own
//! policy, and every other pod as ever.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use egress_tests::{
    ClusterStage,
    client::{send_datagrams, unanswered, whoami},
    cluster::{
        BLUE, ClusterShape, ELSEWHERE, NodeSetup, SHOP, Seen, namespace_of, usual, usual_gateways,
    },
    resources::{Via, policy},
    server::{ECHO_PORT, Whoami},
    wait,
};

const NODE: &str = "worker-1";
/// Prefixes of services.
const SERVICES: [&str; 2] = ["10.96.0.0/12", "fd00:96::/112"];
/// A service of the pod `app`, and one that leads out.
const INSIDE: [&str; 2] = ["10.96.0.80", "fd00:96::80"];
const OUTSIDE: [&str; 2] = ["10.96.0.90", "fd00:96::90"];
const REASON: &str = "LocalLeftCluster";

/// The node's translation, as kube-proxy has it: the services, and the node's port 80 for the pod `web`, for which whoever
/// calls is hidden behind the node.
fn stage() -> Result<ClusterStage> {
    let shape = ClusterShape {
        nodes: vec![NODE, "gw-1"],
        pods: ["web", "batch", "plain", "app"]
            .map(|pod| (pod, NODE))
            .into(),
        ..ClusterShape::default()
    };
    ClusterStage::new(
        &shape,
        |cluster| {
            let (web, app) = (cluster.pod("web")?, cluster.pod("app")?);
            let node = cluster.node(NODE)?;
            let mut rules = String::new();
            for (family, index, own, web, app, elsewhere) in [
                (
                    "ip",
                    0,
                    IpAddr::from(node.v4),
                    IpAddr::from(web.v4),
                    IpAddr::from(app.v4),
                    IpAddr::from(ELSEWHERE.v4),
                ),
                (
                    "ip6",
                    1,
                    node.v6.into(),
                    web.v6.into(),
                    app.v6.into(),
                    ELSEWHERE.v6.into(),
                ),
            ] {
                rules += &format!(
                    "add rule inet services prerouting {family} daddr {} dnat {family} to {app}
                     add rule inet services prerouting {family} daddr {} dnat {family} to {elsewhere}
                     add rule inet services prerouting iifname eth0 {family} daddr {own} tcp dport 80 dnat {family} to {web}
                     add rule inet services postrouting iifname eth0 {family} daddr {web} tcp dport 80 masquerade
                     ",
                    INSIDE[index], OUTSIDE[index]
                );
            }
            node.host.nft(&format!(
                "table inet services {{
                   chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}
                   chain postrouting {{ type nat hook postrouting priority srcnat - 1; policy accept; }}
                 }}
                 {rules}"
            ))?;
            Ok(usual(cluster) + &usual_gateways())
        },
        |node: &mut NodeSetup<'_>| {
            let services = SERVICES.map(str::to_owned);
            node.setup.local_cidrs.extend(services);
        },
    )
}

fn both(texts: [&str; 2]) -> Result<[IpAddr; 2]> {
    let [v4, v6] = texts;
    Ok([v4.parse()?, v6.parse()?])
}

/// Checks that nothing of what a pod sends to the service that leads out leaves, and that all of it is counted.
fn expect_cut(stage: &ClusterStage, pod: &str) -> Result<()> {
    for service in both(OUTSIDE)? {
        let before = stage.dropped(NODE, REASON)?;
        let to = SocketAddr::new(service, ECHO_PORT);
        send_datagrams(stage.host(pod)?, to, 5, 100)?;
        stage.wait_for_drops(NODE, REASON, before + 5)?;
    }
    Ok(())
}

fn programs(stage: &ClusterStage, interface: &str) -> Result<usize> {
    let programs = stage.node(NODE)?.host.programs_on(interface)?;
    // The kernel keeps fifteen characters of a name.
    let ours = programs
        .iter()
        .filter(|line| line.contains("egress_to_upl"));
    Ok(ours.count())
}

fn start_again(stage: &mut ClusterStage, arguments: &[&str]) -> Result<()> {
    stage.kill(NODE)?;
    if let Some(setup) = stage.setups.get_mut(NODE) {
        setup
            .arguments
            .extend(arguments.iter().map(|&argument| argument.to_owned()));
    }
    stage.spawn(NODE)?;
    stage.wait_until_ready()
}

#[test]
fn nothing_leaks_by_a_service() -> Result<()> {
    stage()?.play(|stage| {
        for pod in ["web", "batch"] {
            expect_cut(stage, pod)?;
        }
        for service in both(OUTSIDE)? {
            unanswered(stage.host("web")?, service)?;
        }
        let metrics = stage.metrics(NODE)?;
        let labels = [("reason", REASON), ("policy", SHOP)];
        ensure!(metrics.sum("egress_dropped_packets_total", &labels) > 0);
        // Not one packet was seen on any uplink.
        stage.verify()?;
        let caller = ELSEWHERE.addresses();
        ensure!(
            stage.outside.internet.callers().is_empty(),
            "{caller:?} were called"
        );
        ensure!(stage.outside.internet_datagrams.seen().is_empty());

        let app = stage.pod("app")?.clone();
        let _in_app = Whoami::start(&app.host)?;
        for service in both(INSIDE)? {
            let seen = stage.pod("web")?.address_like(service);
            assert_eq!(whoami(stage.host("web")?, service)?, seen);
        }
        who_comes_in_by_the_node_is_answered(stage)?;
        stage.expect("web", ELSEWHERE, Seen::As(BLUE))?;

        // From here on the node may send there by itself.
        stage.permit_node(NODE, &[ELSEWHERE])?;
        for service in both(OUTSIDE)? {
            let node = stage.node(NODE)?.address_like(service);
            assert_eq!(
                whoami(stage.host("plain")?, service)?,
                node,
                "a pod that nobody steers"
            );
        }
        other_interfaces_are_guarded(stage)?;
        an_explicit_rule_opens_it(stage)?;
        expect_cut(stage, "batch")?;
        start_again(stage, &["--attach-mode", "clsact"])?;
        expect_cut(stage, "batch")?;
        ensure!(programs(stage, "eth0")? == 1);
        a_way_out_that_nobody_can_watch_cuts_the_cluster_off(stage)?;
        start_again(stage, &["--mark", "off"])?;
        for service in both(OUTSIDE)? {
            let node = stage.node(NODE)?.address_like(service);
            wait::until("nobody looks any more", || {
                let seen = whoami(stage.host("batch")?, service)?;
                ensure!(seen == node, "{seen}");
                Ok(())
            })?;
        }
        ensure!(programs(stage, "eth0")? == 0);
        Ok(())
    })
}

/// The node port: the pod sees the node, and its answers leave for who called.
fn who_comes_in_by_the_node_is_answered(stage: &mut ClusterStage) -> Result<()> {
    let web = stage.pod("web")?.clone();
    let node = stage.node(NODE)?.clone();
    let _in_web = Whoami::start(&web.host)?;
    let caller = egress_tests::cluster::INTERNET_HOST;
    stage.permit_node(NODE, &[caller])?;
    for own in [IpAddr::from(node.v4), node.v6.into()] {
        let seen = whoami(&stage.cluster.internet, own)?;
        ensure!(seen == own, "the pod saw {seen}");
    }
    Ok(())
}

/// What gets a route out is looked at too, and stays so when the route goes.
fn other_interfaces_are_guarded(stage: &ClusterStage) -> Result<()> {
    ensure!(programs(stage, "eth0")? == 1);
    ensure!(programs(stage, "cali-plain")? == 0);
    let host = &stage.node(NODE)?.host;
    host.ip("link add out1 type veth peer name out2\nlink set out1 up\nlink set out2 up\n")?;
    for (table, route) in [(77, "default"), (254, "203.0.113.128/25")] {
        host.ip(&format!("route add {route} dev out1 table {table}\n"))?;
        wait::until("the new interface is looked at", || {
            ensure!(programs(stage, "out1")? == 1);
            Ok(())
        })?;
        host.ip(&format!("route del {route} dev out1 table {table}\n"))?;
    }
    ensure!(programs(stage, "out1")? == 1, "it is gone with the route");
    host.ip("link del out1\n")
}

/// A qdisc of somebody else's keeps the program from a new way out: until it goes, nothing is let through to where it might
/// leave from, and metrics say why.
fn a_way_out_that_nobody_can_watch_cuts_the_cluster_off(stage: &ClusterStage) -> Result<()> {
    const UNGUARDED: &str = "LocalUnguarded";
    let [inside, _] = both(INSIDE)?;
    let seen = stage.pod("batch")?.address_like(inside);
    ensure!(whoami(stage.host("batch")?, inside)? == seen);
    ensure!(stage.dropped(NODE, UNGUARDED)? == 0);

    let host = &stage.node(NODE)?.host;
    host.ip("link add out1 type veth peer name out2\nlink set out1 up\nlink set out2 up\n")?;
    host.run(&["tc", "qdisc", "add", "dev", "out1", "ingress"])?;
    host.ip("route add default dev out1 table 77\n")?;
    stage
        .agent(NODE)?
        .wait_for_metrics("the program is missed", |metrics| {
            let everywhere = [("program", "egress_to_uplink")];
            let there = [("program", "egress_to_uplink"), ("interface", "out1")];
            ensure!(metrics.sum("egress_program_attached", &everywhere) == 1);
            ensure!(metrics.sum("egress_program_attached", &there) == 0);
            ensure!(metrics.sum("egress_last_apply_success", &[]) == 0);
            Ok(())
        })?;
    ensure!(programs(stage, "out1")? == 0);
    let before = stage.dropped(NODE, UNGUARDED)?;
    send_datagrams(
        stage.host("batch")?,
        SocketAddr::new(inside, ECHO_PORT),
        5,
        100,
    )?;
    stage.wait_for_drops(NODE, UNGUARDED, before + 5)?;

    host.run(&["tc", "qdisc", "del", "dev", "out1", "ingress"])?;
    wait::until("the cluster is back", || {
        let now = whoami(stage.host("batch")?, inside)?;
        ensure!(now == seen, "{now}");
        Ok(())
    })?;
    ensure!(programs(stage, "out1")? == 1);
    host.ip("link del out1\n")
}

fn an_explicit_rule_opens_it(stage: &ClusterStage) -> Result<()> {
    let hosts = [
        format!("{}/32", ELSEWHERE.v4),
        format!("{}/128", ELSEWHERE.v6),
    ];
    let rules = [
        (hosts[0].as_str(), Via::Local),
        (hosts[1].as_str(), Via::Local),
        ("", Via::Code(BLUE.name)),
    ];
    ensure!(namespace_of(stage.pod("web")?) == "shop");
    let usual = usual(&stage.cluster);
    let begin = usual.find(&format!("name: {SHOP}\n")).unwrap_or_default();
    let start = usual[..begin].rfind("---\n").unwrap_or_default();
    let end = begin + usual[begin..].find("---\n").unwrap_or_default();
    let opened = [
        &usual[..start],
        &policy(SHOP, &rules),
        &usual[end..],
        &usual_gateways(),
    ];
    stage.resources.write("all.yaml", &opened.concat())?;
    for service in both(OUTSIDE)? {
        let node = stage.node(NODE)?.address_like(service);
        wait::until("the rule is in the kernel", || {
            let seen = whoami(stage.host("web")?, service)?;
            ensure!(seen == node, "{seen}");
            Ok(())
        })?;
    }
    Ok(())
}
