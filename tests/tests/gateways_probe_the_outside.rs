//! A gateway whose own probes of the outside fail is left by every node, and comes back when they are answered.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use egress_tests::{
    ClusterStage,
    client::Conversation,
    cluster::{
        BLUE, Cluster, ClusterShape, ELSEWHERE, Egress, PARTNER, RED, SHOP, Seen, gateway_spec,
        namespace_of,
    },
    resources::{Via, namespace, pod, policy},
    server::Page,
};

/// The gateways of the group, where each is, and how it asks.
const PAIR: [(Egress, &str, &str); 2] = [(RED, "gw-1", "icmp"), (BLUE, "gw-2", "http")];
/// Where the page is that one of them asks for.
const PORT: u16 = 8093;
/// How long answers must come before a gateway is back.
const UP_AFTER: Duration = Duration::from_millis(500);

/// Three nodes: two with a gateway each, which ask the partner in different ways, and pods on two of them; and the page
/// that one of them asks for.
fn stage() -> Result<(ClusterStage, Page)> {
    let shape = ClusterShape {
        nodes: vec!["worker-1", "gw-1", "gw-2"],
        pods: vec![("web", "worker-1"), ("near", "gw-1")],
        ..ClusterShape::default()
    };
    let [v4, v6] = PARTNER.addresses();
    let probes = [
        format!("icmp: {{addresses: [{v4}, \"{v6}\"], interval: 150ms, timeout: 600ms}}"),
        format!(
            "http: {{urls: [\"http://{v4}:{PORT}/ok\", \"http://[{v6}]:{PORT}/ok\"], interval: 150ms, timeout: 600ms}}"
        ),
    ];
    let cluster = Cluster::build(&shape)?;
    let page = Page::start(&cluster.internet, PORT)?;
    let mut stage = ClusterStage::on(
        cluster,
        |cluster| {
            let gateways = PAIR.iter().zip(&probes).map(|((egress, node, _), probes)| {
                let spec = format!(
                    "  node: {node}\n  egressIPs: [{}, \"{}\"]\n  interface: eth0\n  probes: {{{probes}}}\n",
                    egress.v4, egress.v6
                );
                gateway_spec(egress.name, "pair", &spec)
            });
            let pods = cluster
                .pods
                .iter()
                .map(|found| pod(namespace_of(found), found, &[], &[]));
            Ok([
                namespace("default", &[]),
                namespace("shop", &[("egressGatewayPolicy", SHOP)]),
                policy(SHOP, &[("", Via::Code("pair"))]),
                gateways.collect::<String>(),
                pods.collect(),
            ]
            .concat())
        },
        |setup| setup.arguments(&["--probe-up-after", "500ms"]),
    )?;
    for (egress, node, _) in PAIR {
        stage.permit_at(node, egress, &[ELSEWHERE, PARTNER]);
    }
    Ok((stage, page))
}

/// Waits until every node can use these gateways, and no other.
fn wait_until_up(stage: &ClusterStage, up: &[Egress]) -> Result<()> {
    for node in ["worker-1", "gw-1", "gw-2"] {
        let what = format!("gateways are up and down on {node} as they should be");
        stage.agent(node)?.wait_for_metrics(&what, |metrics| {
            for (egress, ..) in PAIR {
                let is_up = metrics.sum("egress_gateway_up", &[("gateway", egress.name)]) == 1;
                ensure!(is_up == up.contains(&egress), "{} up: {is_up}", egress.name);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Whether the partner answers pings.
fn answer_pings(stage: &ClusterStage, answer: bool) -> Result<()> {
    let ignore = if answer { "0" } else { "1" };
    stage.cluster.internet.sysctl(&[
        ("ipv4/icmp_echo_ignore_all", ignore),
        ("ipv6/icmp/echo_ignore_all", ignore),
    ])
}

/// As whom the outside sees new connections of both pods.
fn expect_only(stage: &ClusterStage, egress: Egress) -> Result<()> {
    for pod in ["web", "near"] {
        for address in ELSEWHERE.addresses() {
            stage.expect_at(pod, address, Seen::As(egress))?;
        }
    }
    Ok(())
}

/// The lines of a node's log with these words.
fn said(stage: &ClusterStage, node: &str, words: &[&str]) -> Result<usize> {
    let log = stage.agent(node)?.log();
    let found = log
        .lines()
        .filter(|line| words.iter().all(|word| line.contains(word)));
    Ok(found.count())
}

#[test]
fn a_gateway_that_gets_no_answer_is_left_until_it_does() -> Result<()> {
    let (stage, page) = stage()?;
    stage.play(|stage| {
        wait_until_up(stage, &[RED, BLUE])?;
        // Who asked before its addresses were there would have heard nothing.
        for (_, node, _) in PAIR {
            let early = said(stage, node, &["gateway is down", "cannot ask from"])?;
            ensure!(early == 0, "{node} asked before it was ready");
        }
        for (egress, node, kind) in PAIR {
            stage
                .agent(node)?
                .wait_for_metrics("the outside has answered", |metrics| {
                    let labels = [("gateway", egress.name), ("probe", kind)];
                    let found: Vec<_> = metrics
                        .matching("egress_gateway_probe_seconds", &labels)
                        .collect();
                    ensure!(found.len() == 1 && found[0].value > 0.0, "{found:?}");
                    Ok(())
                })?;
        }

        // Nobody answers pings: all is with the other, on the node itself too.
        answer_pings(stage, false)?;
        wait_until_up(stage, &[BLUE])?;
        expect_only(stage, BLUE)?;
        let [v4, v6] = PARTNER.addresses();
        let silence = format!("gateway is down: icmp probe: no answer from {v4}, {v6} for 0.6 s");
        ensure!(said(stage, "gw-1", &[&silence])? == 1, "not said once");
        let talk = Conversation::start(stage.host("web")?, ELSEWHERE.v4.into())?;

        // An agent that starts now goes on where the last one was.
        let ups = |stage: &ClusterStage| -> Result<[usize; 2]> {
            let words = ["gateway is up again", "default/red"];
            Ok([
                said(stage, "gw-1", &words)?,
                said(stage, "worker-1", &words)?,
            ])
        };
        // So does one whose maps have another layout, and the next one whose maps have not.
        let before = ups(stage)?;
        let usual = stage.setups["gw-1"].clone();
        for version in [usual.clone(), usual.of_other_layout()?, usual] {
            let known = ["yet, and it was down before"];
            let said_before = said(stage, "gw-1", &known)?;
            stage.kill_agent("gw-1")?;
            stage.setups.insert("gw-1", version);
            stage.start_agent("gw-1")?;
            wait_until_up(stage, &[BLUE])?;
            let since = ups(stage)?;
            let began_anew = said(stage, "gw-1", &known)? == said_before;
            ensure!(!began_anew, "it began anew");
            ensure!(since == before, "it was up: {before:?}, {since:?}");
        }

        let answered = Instant::now();
        answer_pings(stage, true)?;
        wait_until_up(stage, &[RED, BLUE])?;
        // Coming back is damped.
        let took = answered.elapsed();
        ensure!(took >= UP_AFTER, "back after {took:?}");
        talk.go_on(10)?;
        talk.end()?;

        // A page that is no success, and one that is elsewhere, which is as good as there.
        page.answer_with(503);
        wait_until_up(stage, &[RED])?;
        expect_only(stage, RED)?;
        let refusal = [
            "http probe: no success from http://192.0.2.80:8093/ok, ",
            "(status 503",
        ];
        ensure!(said(stage, "gw-2", &refusal)? == 1, "not said once");
        page.answer_with(302);
        wait_until_up(stage, &[RED, BLUE])?;

        // Whom they asked saw nobody else, and not one answer was lost on the way.
        let callers: BTreeSet<IpAddr> = page.callers().into_iter().collect();
        ensure!(callers == BLUE.addresses().into(), "{callers:?}");
        stage.expect_no_drops()
    })
}
