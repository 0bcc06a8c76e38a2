//! What cannot be sent the way its policy says is dropped, counted by its reason, and arrives nowhere.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    Scene, Stage,
    client::{Frame, unanswered, whoami},
    resources::{Resources, Via, gateway, gateway_at, namespace, pod, policy},
    server::Whoami,
    stage::From,
    topology::{ELSEWHERE, INTERNAL, RED_NETWORK, Shape},
};

#[test]
fn a_pod_whose_policy_is_missing_reaches_nothing() -> Result<()> {
    let stage = Stage::new(&Shape::default(), |scene| {
        Ok(namespace("default", &[])
            + &gateway(scene.gateway("red")?, "red", "")
            + &pod(
                "default",
                scene.pod("web")?,
                &[("egressGatewayPolicy", "nowhere")],
                &[],
            ))
    })?;
    for destination in [ELSEWHERE, INTERNAL] {
        for address in destination.addresses() {
            stage.expect_dropped("web", address, "PolicyMissing")?;
        }
    }
    // The policy comes into being, and the pod into its own.
    stage
        .resources
        .write("late.yaml", &policy("nowhere", &[("", Via::Code("red"))]))?;
    stage.wait_until_seen("web", ELSEWHERE.v4.into(), From::Gateway("red"))?;
    stage.expect("web", ELSEWHERE, From::Gateway("red"))?;
    stage.expect("web", INTERNAL, From::Pod)
}

#[test]
fn a_rule_without_a_usable_gateway_drops() -> Result<()> {
    let stage = Stage::new(&Shape::default(), |scene| {
        let rules = [
            ("192.0.2.0/24", Via::Code("green")),
            ("2001:db8:2::/48", Via::Code("green")),
            ("", Via::Code("red")),
        ];
        let only_v4 = [scene.gateway("red")?.hop_v4.to_string()];
        Ok(namespace("default", &[])
            + &policy("some", &rules)
            + &gateway_at("red", "red", &only_v4, "")
            + &pod(
                "default",
                scene.pod("web")?,
                &[("egressGatewayPolicy", "some")],
                &[],
            ))
    })?;
    for address in RED_NETWORK.addresses() {
        stage.expect_dropped("web", address, "NoGateway")?;
    }
    stage.expect_at("web", ELSEWHERE.v4.into(), From::Gateway("red"))?;
    stage.expect_dropped("web", ELSEWHERE.v6.into(), "NoGateway")?;
    stage.expect("web", INTERNAL, From::Pod)
}

/// Keeps the pod `web` in, as network policies are enforced by rules of the forward chain.
const ENFORCEMENT: &str = "
table inet enforcement {
  counter judged {}
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    ip saddr 10.65.0.10 counter name judged drop
    ip6 saddr fd00:65::10 counter name judged drop
  }
}
";
const NETWORK_POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: keep-in, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
";

#[test]
fn a_network_policy_is_passed_by_only_if_somebody_says_so() -> Result<()> {
    let mut stage = Stage::new(&Shape::default(), |scene| {
        let annotation = [("egressGatewayPolicy", "all")];
        Ok(namespace("default", &[])
            + &policy("all", &[("", Via::Code("red"))])
            + &gateway(scene.gateway("red")?, "red", "")
            + &pod("default", scene.pod("web")?, &annotation, &[("app", "web")])
            + &pod("default", scene.pod("batch")?, &annotation, &[])
            + "---"
            + NETWORK_POLICY)
    })?;
    stage.scene.node.nft(ENFORCEMENT)?;
    stage.scene.route_internet_to_pods()?;
    let _server = Whoami::start(&stage.pod("web")?.host)?;
    let in_state = |stage: &Stage, wanted: &str| -> Result<()> {
        let metrics = stage.metrics()?;
        for state in ["policy_enforcement", "policy_bypass"] {
            let found = metrics.sum("egress_pods", &[("state", state)]);
            ensure!(
                found == u64::from(state == wanted),
                "{found} pods are {state}"
            );
        }
        Ok(())
    };
    // What stays local comes by the rules, whatever we do; and so do answers.
    let is_judged = |stage: &Stage| -> Result<()> {
        for address in INTERNAL.addresses() {
            let before = stage.scene.node.counter("judged")?.packets;
            unanswered(&stage.pod("web")?.host, address)?;
            ensure!(stage.scene.node.counter("judged")?.packets > before);
        }
        for address in [
            IpAddr::from(stage.pod("web")?.v4),
            stage.pod("web")?.v6.into(),
        ] {
            whoami(&stage.scene.internet, address)?;
        }
        Ok(())
    };

    in_state(&stage, "policy_enforcement")?;
    for address in ELSEWHERE.addresses() {
        stage.expect_dropped("web", address, "PolicyEnforcement")?;
        let explained = stage.setup.command(&[
            "explain",
            "--pod",
            "default/web",
            "--dst",
            &address.to_string(),
        ])?;
        ensure!(
            explained.contains("dropped (PolicyEnforcement)")
                && explained.contains("NetworkPolicy default/keep-in")
                && explained.contains("agrees with the resources"),
            "{explained}"
        );
    }
    is_judged(&stage)?;
    stage.expect("batch", ELSEWHERE, From::Gateway("red"))?;
    let log = stage.agent()?.log();
    let said = log.lines().filter(|line| line.contains("keep-in")).count();
    ensure!(said == 1, "said {said} times:\n{log}");

    // Somebody says so: the rules that keep the pod in do not see what is redirected.
    stage.agent.take().context("the agent runs")?.terminate()?;
    stage
        .setup
        .arguments
        .push("--accept-networkpolicy-bypass".to_owned());
    stage.agent = Some(stage.setup.start()?);
    in_state(&stage, "policy_bypass")?;
    let judged = stage.scene.node.counter("judged")?.packets;
    stage.expect("web", ELSEWHERE, From::Gateway("red"))?;
    ensure!(stage.scene.node.counter("judged")?.packets == judged);
    is_judged(&stage)
}

/// The default route would still lead to the next hop's address, past the gateway.
#[test]
fn a_gateway_whose_link_is_down_is_no_gateway() -> Result<()> {
    let stage = Stage::of_examples()?;
    stage.expect_at("web", ELSEWHERE.v4.into(), From::Gateway("blue"))?;
    stage.scene.node.ip("link set eth1 down\n")?;
    stage
        .agent()?
        .wait_for_metrics("the gateways are down", |metrics| {
            let up = metrics.sum("egress_gateway_up", &[]);
            ensure!(up == 0, "{up} gateways are up");
            Ok(())
        })?;
    for address in ELSEWHERE.addresses() {
        stage.expect_dropped("web", address, "NoGateway")?;
    }
    stage.expect("web", INTERNAL, From::Pod)?;
    stage
        .scene
        .node
        .ip("link set eth1 up\naddr add fd00:19::2/64 dev eth1 nodad\n")?;
    stage.wait_until_seen("web", ELSEWHERE.v4.into(), From::Gateway("blue"))?;
    stage.wait_until_seen("web", ELSEWHERE.v6.into(), From::Gateway("blue"))
}

#[test]
fn a_source_address_that_is_not_the_pods_is_dropped() -> Result<()> {
    let stage = Stage::of_examples()?;
    let (web, batch) = (stage.pod("web")?, stage.pod("batch")?);
    let sources: [IpAddr; 7] = [
        batch.v4.into(),
        batch.v6.into(),
        "10.65.0.99".parse()?,
        "172.18.0.2".parse()?,
        "169.254.7.7".parse()?,
        "2001:db8:100::80".parse()?,
        "::ffff:10.65.0.10".parse()?,
    ];
    for destination in [ELSEWHERE, INTERNAL] {
        let mut frames = Vec::new();
        for source in sources {
            let [v4, v6] = destination.addresses();
            let to = if source.is_ipv4() { v4 } else { v6 };
            let mut frame = Frame::from_pod(web, &stage.scene.node, to)?;
            frame.source = source;
            frames.push(frame.bytes()?);
        }
        stage.expect_frames_dropped("web", &frames, "SpoofedSource")?;
    }
    Ok(())
}

#[test]
fn tags_and_foreign_ethertypes_are_dropped() -> Result<()> {
    let stage = Stage::of_examples()?;
    let web = stage.pod("web")?;
    for address in ELSEWHERE
        .addresses()
        .into_iter()
        .chain(INTERNAL.addresses())
    {
        let frame = Frame::from_pod(web, &stage.scene.node, address)?;
        let frames = [
            frame.tagged(&[(0x8100, 5)])?,
            // Priority tags: the kernel takes them off and routes what is below.
            frame.tagged(&[(0x8100, 0)])?,
            frame.tagged(&[(0x8100, 0xe000)])?,
            frame.tagged(&[(0x88a8, 5)])?,
            frame.tagged(&[(0x88a8, 0)])?,
            frame.tagged(&[(0x88a8, 5), (0x8100, 6)])?,
            frame.tagged(&[(0x8100, 0), (0x8100, 0)])?,
            frame.tagged(&[(0x8100, 0), (0x88a8, 0)])?,
            frame.tagged(&[(0x9100, 5)])?,
        ];
        stage.expect_frames_dropped("web", &frames, "NotPlainIp")?;
    }
    let mut foreign = Frame::from_pod(web, &stage.scene.node, ELSEWHERE.v4.into())?.bytes()?;
    foreign[12..14].copy_from_slice(&0x88b5_u16.to_be_bytes());
    stage.expect_frames_dropped("web", &[foreign], "NotPlainIp")
}

#[test]
fn a_packet_at_the_end_of_its_life_is_dropped() -> Result<()> {
    let stage = Stage::of_examples()?;
    let web = stage.pod("web")?;
    for address in ELSEWHERE.addresses() {
        let mut frame = Frame::from_pod(web, &stage.scene.node, address)?;
        let mut frames = Vec::new();
        for ttl in [0, 1] {
            frame.ttl = ttl;
            frames.push(frame.bytes()?);
        }
        stage.expect_frames_dropped("web", &frames, "TtlExceeded")?;
    }
    Ok(())
}

#[test]
fn what_does_not_fit_the_way_out_is_dropped() -> Result<()> {
    let scene = Scene::new()?;
    scene.node.ip("link set eth1 mtu 1400\n")?;
    let resources = Resources::of_examples(&scene)?;
    let stage = Stage::start(scene, resources)?;
    let web = stage.pod("web")?;
    for address in ELSEWHERE.addresses() {
        let headers = if address.is_ipv4() { 28 } else { 48 };
        let reached = || stage.gateway("blue")?.host.counter("from_pods");
        let send = |size: usize| {
            let to = std::net::SocketAddr::new(address, egress_tests::server::ECHO_PORT);
            egress_tests::client::send_datagrams(&web.host, to, 1, size - headers)
        };
        let before = reached()?;
        let dropped = stage.metrics()?.dropped("TooBig");
        send(1401)?;
        stage
            .agent()?
            .wait_for_metrics("the large packet is counted", |metrics| {
                ensure!(metrics.dropped("TooBig") == dropped + 1);
                Ok(())
            })?;
        assert_eq!(reached()?, before);
        send(1400)?;
        egress_tests::wait::until("the fitting packet arrives", || {
            let after = reached()?;
            ensure!(after.packets == before.packets + 1, "{after:?}, {before:?}");
            ensure!(after.bytes == before.bytes + 1400, "{after:?}, {before:?}");
            Ok(())
        })?;
        assert_eq!(stage.metrics()?.dropped("TooBig"), dropped + 1);
    }
    Ok(())
}
