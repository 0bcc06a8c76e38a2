//! What a router beyond a gateway complains about reaches the pod that sent the packet.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    host::run,
    resources::Resources,
    stage::From,
    topology::{ELSEWHERE, Shape},
};

/// A host behind the internet, reached by a link that takes less than the host itself would.
const FAR_V4: &str = "198.51.100.200";
const FAR_V6: &str = "2001:db8:100::200";

fn stage_with_a_far_host() -> Result<(Stage, egress_tests::Host)> {
    let scene = Scene::build(&Shape::default())?;
    let far = scene.add_router("far")?;
    let internet = scene.internet.namespace();
    far.ip(&format!(
        "link set lo up
         link add eth0 type veth peer name far0 netns {internet}
         link set eth0 up
         addr add 10.9.9.2/24 dev eth0
         addr add fd00:9::2/64 dev eth0 nodad
         addr add {FAR_V4}/32 dev lo
         addr add {FAR_V6}/128 dev lo nodad
         route add default via 10.9.9.1
         route add default via fd00:9::1
         "
    ))?;
    scene.internet.ip(&format!(
        "link set far0 up mtu 1300
         addr add 10.9.9.1/24 dev far0
         addr add fd00:9::1/64 dev far0 nodad
         route add {FAR_V4}/32 via 10.9.9.2
         route add {FAR_V6}/128 via fd00:9::2
         "
    ))?;
    far.wait_until_up()?;
    scene.internet.wait_until_up()?;
    let resources = Resources::of_examples(&scene)?;
    Ok((Stage::start(scene, resources)?, far))
}

#[test]
fn traceroute_sees_the_hops_beyond_the_node() -> Result<()> {
    let (stage, _far) = stage_with_a_far_host()?;
    let web = &stage.pod("web")?.host;
    let blue = stage.gateway("blue")?;
    let trace = |address: &str| {
        // The node is hop 1, and has a test of its own; port 7 is not listening at the far host.
        web.run(&[
            "traceroute",
            "-n",
            "-q",
            "1",
            "-w",
            "5",
            "-f",
            "2",
            "-m",
            "6",
            address,
        ])
    };
    for (address, hops) in [
        (
            FAR_V4,
            [
                blue.hop_v4.to_string(),
                "203.0.113.1".to_owned(),
                FAR_V4.to_owned(),
            ],
        ),
        (
            FAR_V6,
            [
                blue.hop_v6.to_string(),
                "2001:db8:113::1".to_owned(),
                FAR_V6.to_owned(),
            ],
        ),
    ] {
        let output = trace(address)?;
        let seen: Vec<&str> = output
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        assert_eq!(seen, hops, "{output}");
    }
    Ok(())
}

#[test]
fn the_path_mtu_beyond_a_gateway_is_learned() -> Result<()> {
    let (stage, far) = stage_with_a_far_host()?;
    let _echo = egress_tests::server::Echo::start(&far)?;
    let _web = egress_tests::server::Whoami::start(&far)?;
    let web = &stage.pod("web")?.host;
    for address in [FAR_V4, FAR_V6] {
        let address: IpAddr = address.parse()?;
        stage.expect_at("web", address, From::Gateway("blue"))?;
        // A connection whose segments are too large for the last link gets through only when the pod is told.
        let large = stage.scene.files().join("large");
        std::fs::write(&large, vec![b'x'; 300_000])?;
        let url = format!("http://{}/", std::net::SocketAddr::new(address, 80));
        let upload = run(web
            .command("curl")
            .args(["--silent", "--show-error", "--globoff", "--noproxy", "*"])
            .args(["--max-time", "10", "--header", "Expect:", "--data-binary"])
            .arg(format!("@{}", large.display()))
            .arg(&url));
        let route = web.run(&["ip", "route", "get", &address.to_string()])?;
        ensure!(
            route.contains("mtu 1300"),
            "the pod learned no MTU: {route} ({upload:?})"
        );
    }
    Ok(())
}

#[test]
fn a_refused_port_is_told() -> Result<()> {
    let stage = Stage::of_examples()?;
    for pod in ["web", "batch"] {
        for address in ELSEWHERE.addresses() {
            let to = std::net::SocketAddr::new(address, 4321);
            let socket = egress_tests::client::datagram_socket(&stage.pod(pod)?.host, to)?;
            socket.set_read_timeout(Some(egress_tests::wait::PATIENCE))?;
            socket.send(b"anybody?")?;
            let refusal = socket.recv(&mut [0; 16]).err().context("an answer")?;
            assert_eq!(refusal.kind(), std::io::ErrorKind::ConnectionRefused);
        }
    }
    Ok(())
}
