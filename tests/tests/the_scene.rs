//! The scene itself: what the other tests take for granted, proved with the kernel's routing alone.

use anyhow::{Result, ensure};
use egress_tests::{
    Scene,
    client::{Frame, Wire, unanswered, whoami},
    server::{Datagrams, Whoami},
    topology::{ELSEWHERE, INTERNAL, Layout, NODE_V4, NODE_V6, RED_NETWORK, Shape},
    wait,
};

#[test]
fn pods_reach_everything_by_plain_routing() -> Result<()> {
    plain_routing(Layout::Calico)
}

#[test]
fn pods_on_a_bridge_reach_everything_by_plain_routing() -> Result<()> {
    plain_routing(Layout::Bridge)
}

fn plain_routing(layout: Layout) -> Result<()> {
    let scene = Scene::build(&Shape {
        layout,
        ..Shape::default()
    })?;
    let _internal = Whoami::start(&scene.internal)?;
    let _internet = Whoami::start(&scene.internet)?;
    for pod in &scene.pods {
        for destination in INTERNAL.addresses() {
            assert_eq!(
                whoami(&pod.host, destination)?,
                pod.address_like(destination)
            );
        }
        for destination in [RED_NETWORK, ELSEWHERE] {
            assert_eq!(whoami(&pod.host, destination.v4.into())?, NODE_V4);
            assert_eq!(whoami(&pod.host, destination.v6.into())?, NODE_V6);
        }
    }
    Ok(())
}

#[test]
fn gateways_translate_what_pods_send_through_them() -> Result<()> {
    let scene = Scene::new()?;
    let _internet = Whoami::start(&scene.internet)?;
    let web = scene.pod("web")?;
    for gateway in &scene.gateways {
        scene.node.ip(&format!(
            "route replace {}/32 via {}\nroute replace {}/128 via {}\n",
            RED_NETWORK.v4, gateway.hop_v4, RED_NETWORK.v6, gateway.hop_v6
        ))?;
        let before = gateway.host.counter("from_pods")?;
        for destination in RED_NETWORK.addresses() {
            assert_eq!(
                whoami(&web.host, destination)?,
                gateway.egress_like(destination)
            );
        }
        assert!(gateway.host.counter("from_pods")?.packets > before.packets);
    }
    assert_eq!(scene.internet.counter("leaked")?.packets, 0);
    Ok(())
}

#[test]
fn every_interface_has_a_strict_reverse_path_filter() -> Result<()> {
    let scene = Scene::new()?;
    let hosts = [&scene.node, &scene.fabric, &scene.internal, &scene.internet].into_iter();
    let gateways = scene.gateways.iter().map(|gateway| &gateway.host);
    for host in hosts.chain(gateways) {
        host.expect_strict_reverse_paths()?;
    }
    Ok(())
}

/// Without this, no test here would tell replies that we deliver from replies that the kernel lets through.
#[test]
fn the_node_drops_replies_whose_first_packet_it_did_not_see() -> Result<()> {
    let scene = Scene::new()?;
    let _internet = Whoami::start(&scene.internet)?;
    let web = scene.pod("web")?;
    let red = scene.gateway("red")?;
    // A packet that leaves through the gateway unseen by the node's conntrack, as a redirect makes it:
    // the pod's frames are sent to the DMZ by a second cable.
    let dmz = scene.dmz.namespace();
    web.host.ip(&format!(
        "link add eth1 type veth peer name side0 netns {dmz}
         link set eth1 up
         route replace {}/32 via {} dev eth1 src {} onlink
         route replace {}/128 via {} dev eth1 src {} onlink
         ",
        RED_NETWORK.v4, red.hop_v4, web.v4, RED_NETWORK.v6, red.hop_v6, web.v6
    ))?;
    scene.dmz.ip("link set side0 master br0 up\n")?;
    web.host.wait_until_up()?;
    red.host.sysctl(&[
        ("ipv4/conf/eth0/rp_filter", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
    ])?;
    let reverse_path = |destination| -> Result<()> {
        let before = red.host.counter("to_pods")?.packets;
        unanswered(&web.host, destination)?;
        ensure!(
            red.host.counter("to_pods")?.packets > before,
            "the gateway never answered, so the node dropped nothing"
        );
        Ok(())
    };
    // IPv4: the route back to 192.0.2.80 is the uplink, and the reply comes from the DMZ.
    reverse_path(RED_NETWORK.v4.into())?;
    // IPv6 has no such filter in the kernel: conntrack's verdict is what drops.
    reverse_path(RED_NETWORK.v6.into())?;
    ensure!(scene.node.counter("invalid")?.packets > 0);
    Ok(())
}

#[test]
fn frames_made_by_hand_arrive() -> Result<()> {
    let scene = Scene::new()?;
    let log = Datagrams::start(&scene.internet)?;
    let plain = scene.pod("plain")?;
    let wire = Wire::open(&plain.host, "eth0")?;
    for destination in ELSEWHERE.addresses() {
        // The kernel knows how to reach the pod once the pod has said something.
        let frame = Frame::from_pod(plain, &scene.node, destination)?;
        wire.send(&frame.bytes()?)?;
        wire.send(&frame.tagged(&[(0x8100, 0)])?)?;
    }
    wait::until("four datagrams arrive", || {
        let seen = log.seen();
        ensure!(seen.len() == 4, "{seen:?}");
        ensure!(seen.iter().all(|datagram| datagram.payload == b"by hand"));
        Ok(())
    })
}

#[test]
fn a_scene_leaves_nothing_behind() -> Result<()> {
    let scene = Scene::new()?;
    let _web = Whoami::start(&scene.internet)?;
    let mut sleeper = scene.node.command("sleep").arg("600").spawn()?;
    let own = std::process::id();
    assert!(egress_tests::workspace::remains(own).len() > 8);
    drop(scene);
    sleeper.wait()?;
    assert_eq!(egress_tests::workspace::remains(own), Vec::<String>::new());
    Ok(())
}
